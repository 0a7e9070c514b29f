"""GET /v1/status: each hop as it is, and the last stream check's report."""

from __future__ import annotations

import json

import pytest
from backend_client import ask, becomes
from backend_upstream import answer_with_tokens

STATUS = "/v1/status"
REPORT = {
    "when": "2026-11-26T03:00:00+00:00",
    "verdict": "streams",
    "summary": "",
    "hops": [
        {
            "name": "vllm", "verdict": "streams", "summary": "", "median_gap_ms": 12.0,
            "first_token_ms": 50.5, "reads": [[0.05, 1], [0.062, 1]],
        }
    ],
}  # fmt: skip


@pytest.fixture
def alive(upstream):
    """LiteLLM's liveness route beside the engine's answers."""
    calls = []

    async def script(request, answer):
        if request.path == "/health/liveliness":
            calls.append(request)
            await answer.whole(b'"I\'m alive!"')
        else:
            await answer_with_tokens(request, answer)

    upstream.script = script
    return calls


async def status(port: int, **how) -> dict:
    response = await ask(port, "GET", STATUS, **how)
    assert response.status == 200
    assert response.headers["cache-control"] == "no-store"
    return response.json()


def states(told: dict) -> dict[str, str]:
    return {hop["name"]: hop["state"] for hop in told["hops"]}


async def test_all_is_well(start_backend, alive):
    port = start_backend().port
    await becomes(port, "/readyz", 200)
    told = await status(port, headers={"X-Forwarded-For": "192.0.2.7"})
    assert told["ready"] is True
    assert told["reason"] is None
    assert states(told) == {"nginx": "ok", "backend": "ok", "litellm": "ok", "vllm": "ok"}
    assert "192.0.2.7" not in json.dumps(told)
    assert "token came out of it" in told["hops"][3]["detail"]


async def test_without_a_key_nothing_is_told(port):
    assert (await ask(port, "GET", STATUS, key=None)).status == 401


async def test_who_did_not_come_through_nginx_knows_nothing_of_it(start_backend, alive):
    assert states(await status(start_backend().port))["nginx"] == "unknown"


async def test_the_gateway_is_down(start_backend, upstream):
    port = start_backend().port
    await becomes(port, "/readyz", 200)
    await upstream.stop()
    told = await status(port)
    assert states(told)["litellm"] == "down"
    # The last token is not old yet.
    assert states(told)["vllm"] == "ok"


async def test_of_an_engine_behind_a_gateway_that_is_down_nothing_is_known(start_backend, upstream):
    await upstream.stop()
    told = await status(start_backend().port)
    assert told["ready"] is False
    assert told["reason"]
    assert states(told) == {
        "nginx": "unknown", "backend": "ok", "litellm": "down", "vllm": "unknown",
    }  # fmt: skip


async def test_the_engine_is_down(start_backend, upstream, alive, tmp_path):
    async def refuses(_, answer):
        await answer.whole(b"{}", status=503)

    upstream.probe_script = refuses
    folder = tmp_path / "hardware"
    folder.mkdir()
    (folder / "main.json").write_text('{"problems": ["a card is gone"], "notes": []}')
    told = await status(start_backend(hardware_reports=str(folder)).port)
    assert states(told)["litellm"] == "ok"
    assert states(told)["vllm"] == "down"
    assert "a card is gone" in told["hops"][3]["detail"]


async def test_however_many_look_the_gateway_is_asked_once(start_backend, alive):
    port = start_backend().port
    for _ in range(5):
        await status(port)
    assert len(alive) == 1
    # It is asked without a key: the route needs none, and none should be about.
    assert alive[0].body == b""


async def test_the_last_stream_check(start_backend, alive, tmp_path):
    file = tmp_path / "summary.json"
    port = start_backend(streamcheck_summary=str(file)).port
    assert (await status(port))["streamcheck"] is None
    file.write_text(json.dumps(REPORT))
    assert (await status(port))["streamcheck"] == REPORT
    fresh = tmp_path / "fresh"
    fresh.write_text(json.dumps({**REPORT, "verdict": "broken", "more": "of a newer release"}))
    fresh.replace(file)
    assert (await status(port))["streamcheck"] == {**REPORT, "verdict": "broken"}
    file.unlink()
    assert (await status(port))["streamcheck"] is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        json.dumps({**REPORT, "verdict": "x" * 65}),
        json.dumps({**REPORT, "hops": [{**REPORT["hops"][0], "reads": [[0, 1]] * 201}]}),
        json.dumps(REPORT) + " " * 600_000,
    ],
)
async def test_a_report_that_makes_no_sense_is_none(start_backend, alive, tmp_path, logs, text):
    file = tmp_path / "summary.json"
    file.write_text(text)
    port = start_backend(streamcheck_summary=str(file)).port
    for _ in range(3):
        assert (await status(port))["streamcheck"] is None
    # Said once, not at every look.
    assert len([line for line in logs.lines if str(file) in line]) == 1
