"""Ready means that a token came out lately."""

from __future__ import annotations

import asyncio
import json

import pytest
from backend_client import Connection, ask, becomes, chat
from backend_upstream import DONE, ROLE, token

QUICK = {"ready_probe_interval_seconds": 0.2, "ready_max_age_seconds": 0.8}


async def readyz(port):
    response = await ask(port, "GET", "/readyz", key=None)
    body = response.json()
    assert body["ready"] == (response.status == 200)
    return response.status, body


async def test_ready_follows_the_upstream_down_and_up(start_backend, upstream):
    port = start_backend(**QUICK).port
    body = (await becomes(port, "/readyz", 200, key=None)).json()
    assert 0 <= body["last_token_age_seconds"] <= 0.8
    assert set(body) == {"ready", "last_token_age_seconds"}
    await upstream.stop()
    body = (await becomes(port, "/readyz", 503, key=None)).json()
    assert body["last_token_age_seconds"] > 0.8
    assert "no token has come from the engine for" in body["reason"]
    assert "cannot be reached" in body["reason"]
    await upstream.start()
    await becomes(port, "/readyz", 200, key=None)


async def test_the_probe_takes_the_same_way_as_a_request(start_backend, upstream):
    await becomes(start_backend(**QUICK).port, "/readyz", 200, key=None)
    probe = upstream.probes[0]
    assert (probe.method, probe.path) == ("POST", "/vllm/v1/chat/completions")
    wanted = json.loads(probe.body)
    assert (wanted["model"], wanted["max_tokens"], wanted["stream"]) == ("tiny", 1, True)
    await asyncio.sleep(1.0)
    assert 2 <= len(upstream.probes) < 12
    assert upstream.connections == 1


async def role_and_done(request, answer):
    await answer.head()
    await answer.chunk(ROLE + b": comment\n\n" + DONE)
    await answer.end()


async def engine_error(request, answer):
    await answer.head()
    await answer.chunk(ROLE + b'data: {"error": {"message": "EngineDeadError"}}\n\n' + DONE)
    await answer.end()


async def status_500(request, answer):
    await answer.whole(b'{"error": {"message": "sk-upstream-secret"}}', 500)


async def hang(request, answer):
    await answer.head()
    await answer.chunk(ROLE)
    await request.gone.wait()


async def cut(request, answer):
    await answer.head()
    await answer.chunk(ROLE)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (role_and_done, "without a token"),
        (engine_error, "without a token"),
        (status_500, "status 500"),
        (hang, "no token within 0.4 seconds"),
        (cut, "broke"),
    ],
)
async def test_no_token_is_not_ready(start_backend, upstream, script, reason):
    upstream.probe_script = script
    port = start_backend(ready_probe_interval_seconds=0.1, ready_max_age_seconds=0.4).port
    await asyncio.sleep(0.6)
    status, body = await readyz(port)
    assert status == 503
    assert body["last_token_age_seconds"] is None
    assert "no token has come from the engine yet" in body["reason"]
    assert reason in body["reason"]
    assert "secret" not in body["reason"]


@pytest.mark.parametrize("size", [1, 5, 1000])
async def test_a_token_is_seen_however_it_is_split(start_backend, upstream, size):
    stream = ROLE + token("Hi") + DONE

    async def script(request, answer):
        await answer.head()
        for start in range(0, len(stream), size):
            await answer.chunk(stream[start : start + size])
        await answer.end()

    upstream.probe_script = script
    await becomes(start_backend(**QUICK).port, "/readyz", 200, key=None)


async def test_streams_that_pass_count_as_tokens(start_backend, upstream):
    """A busy engine is not probed, and is ready even when a probe would not come through."""
    upstream.probe_script = hang

    async def script(request, answer):
        await answer.head()
        await answer.chunk(ROLE)
        for number in range(40):
            await answer.chunk(token(str(number)))
            await asyncio.sleep(0.05)
        await answer.chunk(DONE)
        await answer.end()

    upstream.script = script
    port = start_backend(ready_probe_interval_seconds=0.5, ready_max_age_seconds=0.8).port
    connection = await Connection.open(port)
    await connection.send("POST", "/v1/chat/completions", chat())
    await connection.head()
    await connection.until(token("20"))
    probes = len(upstream.probes)
    for _ in range(5):
        assert (await readyz(port))[0] == 200
        await asyncio.sleep(0.1)
    assert len(upstream.probes) - probes <= 1
    connection.close()


async def test_a_stream_without_tokens_does_not_count(start_backend, upstream):
    upstream.probe_script = hang
    upstream.script = role_and_done
    port = start_backend(**QUICK).port
    await ask(port, "POST", "/v1/chat/completions", chat())
    assert (await readyz(port))[0] == 503


async def test_what_the_hardware_guard_found_is_told(start_backend, upstream, tmp_path):
    folder = tmp_path / "hardware"
    port = start_backend(**QUICK, hardware_reports=str(folder)).port
    body = (await becomes(port, "/readyz", 200, key=None)).json()
    assert "hardware" not in body
    folder.mkdir()
    report = folder / "main.json"
    report.write_text(json.dumps({"problems": ["a card is missing"], "notes": ["another is new"]}))
    assert (await readyz(port))[1]["hardware"] == ["a card is missing", "another is new"]
    # Each engine has its own, and what both say is told once.
    second = {"problems": [], "notes": ["another is new", "a third is idle"]}
    (folder / "engine2.json").write_text(json.dumps(second))
    told = (await readyz(port))[1]["hardware"]
    assert told == ["a card is missing", "another is new", "a third is idle"]
    (folder / "engine2.json").unlink()
    # Half a report, or none that we know: nothing is told, and nobody is disturbed.
    report.write_text('{"problems": "all')
    assert "hardware" not in (await readyz(port))[1]
    report.write_text(json.dumps({"problems": [], "notes": []}))
    assert "hardware" not in (await readyz(port))[1]


async def test_a_folder_of_reports_that_cannot_be_read_is_in_nobodys_way(
    start_backend, upstream, tmp_path
):
    # Root may read everything, so it is a name that is too long.
    port = start_backend(**QUICK, hardware_reports=str(tmp_path / ("x" * 300))).port
    body = (await becomes(port, "/readyz", 200, key=None)).json()
    assert "hardware" not in body
