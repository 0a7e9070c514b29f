"""One answer, two ways: through every hop, and from the engine to nginx (docs/express.md).

The same requests go through the whole chain in either mode and have to be answered alike.
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chain_kit
import edge_kit
import httpx
import pytest
from backend.errors import DONE_EVENT
from backend.upstream import gateway_error
from backend_client import KEY
from chain_kit import ENGINES, MODEL, Chain, until
from conftest import key_entry
from test_gateway_live import free_port

pytestmark = pytest.mark.skipif(
    not edge_kit.nginx_version(), reason="no nginx can be had here; tests/host asks a server's"
)
CHAT = "/v1/chat/completions"
LIMITED, COUNTED, SLOTTED = "mr-" + "l" * 43, "mr-" + "c" * 43, "mr-" + "s" * 43
KEYS = [
    key_entry("alice", KEY),
    key_entry("limited", LIMITED, limits={"requests_per_minute": 3}),
    key_entry("counted", COUNTED, limits={"tokens_per_minute": 100_000}),
    key_entry("slotted", SLOTTED, limits={"concurrent_streams": 1}),
]


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    return {name: free_port() for name in ENGINES}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory, ports: dict[str, int]) -> Path:
    home = tmp_path_factory.mktemp("rendered")
    edge_kit.make_certificates(home)
    return chain_kit.render_edges(home, chain_kit.chain_plan(ports))


@pytest.fixture(scope="module", params=["inline", "express"])
def chain(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, rendered: Path,
    ports: dict[str, int],
) -> Iterator[Chain]:  # fmt: skip
    home = tmp_path_factory.mktemp("chain")
    for name in ("server.crt", "server.key"):
        (home / name).write_bytes((rendered / name).read_bytes())
    gateway_port = free_port()
    express = request.param == "express"
    with chain_kit.running_gateway(home, gateway_port, ports):
        made = chain_kit.start_chain(home, rendered, ports, gateway_port, express, KEYS)
        yield made
        made.stop()


def ask(script: dict[str, Any] | str = "", **more: Any) -> dict[str, Any]:
    said = script if isinstance(script, str) else json.dumps(script)
    body = {"model": MODEL, "messages": [{"role": "user", "content": said}], "stream": True}
    return {**body, **more}


def streams_through(chain: Chain, request_id: str) -> dict[str, Any]:
    """Return the line of a streamed answer, which went the way that this chain has."""
    line = chain.line_of(request_id)
    assert line["express"] == chain.express, line
    return line


def engines_own(chain: Chain, body: str, path: str = CHAT) -> str:
    """Return what an engine answers to a body, asked by ourselves."""
    url = f"http://127.0.0.1:{chain.engine_ports['main']}{path}"
    headers = {"Authorization": f"Bearer {chain_kit.ENGINE_KEY}"}
    return httpx.post(url, content=body.encode(), headers=headers, timeout=30).text


def without_count(events: str) -> str:
    kept = [e for e in events.split("\n\n") if '"choices":[],"usage"' not in e]
    return "\n\n".join(kept)


COUNT = {"stream_options": {"include_usage": True}}
# What a header, nginx's variables and JSON could each take for something else.
ODD = "snowglöbes \\ \n \r\n\r\n \t \" \x7f \u2028 😀 $request_id ${uri} %2e @x; # ' </script> "
LONG = ODD * 500
ANSWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain words": (CHAT, ask("Hello")),
    "many": (CHAT, ask({"tokens": 400})),
    "counted": (CHAT, ask({"tokens": 3}, **COUNT)),
    "running count": (CHAT, ask(stream_options={"include_usage": True,
                                                "continuous_usage_stats": True})),
    "signs of life": (CHAT, ask({"beats": 2, "wait": 0.1})),
    "a long prompt": (CHAT, ask(LONG)),
    "an error event": (CHAT, ask({"tokens": 9, "error_after": 4})),
    "completion": ("/v1/completions", {"model": MODEL, "prompt": "Once", "stream": True}),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_a_streamed_answer_is_the_engines_own(chain: Chain, name: str) -> None:
    path, body = ANSWERS[name]
    with chain.client() as client:
        got = client.post(path, json=body)
    assert got.status_code == 200
    request_id = got.headers["x-request-id"]
    (asked,) = chain.asked(request_id)
    own = engines_own(chain, asked["body"], path)
    assert got.text == (
        own
        if COUNT["stream_options"].items() <= body.get("stream_options", {}).items()
        else without_count(own)
    )
    # The engine gets what the backend checked and wrote anew, whichever way it comes.
    sent = {**body, "stream_options": {"include_usage": True, **body.get("stream_options", {})}}
    assert json.loads(asked["body"]) == sent
    assert (asked["path"], asked["query"]) == (path, "")
    line = streams_through(chain, request_id)
    assert line["body_bytes"] == len(got.content)
    if "error" not in name:
        tokens = json.loads(body["messages"][0]["content"]).get("tokens", 5) if (
            name in ("many", "counted")) else 5  # fmt: skip
        assert (line["prompt_tokens"], line["completion_tokens"]) == (7, tokens)
    assert (line["status"], line["ended"]) == (200, "complete")
    assert line["first_token_seconds"] > 0


def test_an_answer_that_ends_too_early_says_so(chain: Chain) -> None:
    with chain.client() as client:
        got = client.post(CHAT, json=ask({"no_done": True}))
    request_id = got.headers["x-request-id"]
    own = without_count(engines_own(chain, chain.asked(request_id)[0]["body"]))
    error = gateway_error(
        502, "The model server ended the answer before it was complete.", fault="incomplete"
    )
    assert got.text == own + (error.event() + DONE_EVENT).decode()
    line = streams_through(chain, request_id)
    assert (line["ended"], line["fault"]) == ("upstream_error", "incomplete")


def test_its_headers_are_the_backends(chain: Chain) -> None:
    with chain.client(key=COUNTED) as client:
        got = client.post(CHAT, json=ask())
    told = {name: got.headers.get(name) for name in got.headers}
    for name in ("date", "x-request-id", "x-ratelimit-reset-tokens"):
        assert told.pop(name)
    assert told == {
        "server": "nginx", "transfer-encoding": "chunked", "connection": "keep-alive",
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-cache, no-transform", "x-accel-buffering": "no",
        "x-content-type-options": "nosniff", "x-robots-tag": "noindex",
        "x-ratelimit-limit-tokens": "100000",
        "x-ratelimit-remaining-tokens": told["x-ratelimit-remaining-tokens"],
    }  # fmt: skip


def test_http2_as_well(chain: Chain) -> None:
    with chain.client(http2=True) as client:
        got = client.post(CHAT, json=ask({"tokens": 50}))
    assert (got.http_version, got.status_code) == ("HTTP/2", 200)
    assert got.text.endswith('"}}]}\n\ndata: [DONE]\n\n')
    streams_through(chain, got.headers["x-request-id"])


IN_LINE: dict[str, tuple[str, dict[str, Any]]] = {
    "not streamed": (CHAT, ask(stream=False)),
    "a query": (CHAT + "?x=1", ask()),
    "a prompt too large for a header": (CHAT, ask("x" * 200_000)),
}


@pytest.mark.parametrize("name", IN_LINE)
def test_what_express_cannot_carry_comes_in_line(chain: Chain, name: str) -> None:
    path, body = IN_LINE[name]
    with chain.client() as client:
        got = client.post(path, json=body)
    assert got.status_code == 200
    line = chain.line_of(got.headers["x-request-id"])
    assert (line["express"], line["ended"], line["completion_tokens"]) == (False, "complete", 5)


REFUSED: dict[str, tuple[int, str | None, dict[str, Any]]] = {
    "an unknown field": (400, "unsupported_parameter", ask(wishes=3)),
    "no messages": (400, None, {"model": MODEL, "stream": True}),
    "an unknown model": (404, "model_not_found", ask(model="other")),
    "too many answers": (400, "value_above_limit", ask(n=99)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_of_the_backend(chain: Chain, name: str) -> None:
    status, code, body = REFUSED[name]
    with chain.client() as client:
        got = client.post(CHAT, json=body)
    assert (got.status_code, got.json()["error"]["code"]) == (status, code)
    assert not chain.asked(got.headers["x-request-id"])


def test_wrong_keys(chain: Chain) -> None:
    for key in ("mr-wrong", "x"):
        with chain.client(key=key) as client:
            got = client.post(CHAT, json=ask())
        assert (got.status_code, got.json()["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize("status", [400, 404, 422, 429, 500, 503])
def test_an_engines_refusal_passes_as_it_was(chain: Chain, status: int) -> None:
    with chain.client() as client:
        got = client.post(CHAT, json=ask({"status": status}))
    assert got.status_code == status
    assert got.json()["error"]["message"] == f"the engine says {status}"
    line = chain.line_of(got.headers["x-request-id"])
    assert line["ended"] == ("refused" if status < 500 else "upstream_error")
    # A failure rests an engine; the next test shall have both.
    time.sleep(2.1 if status == 429 or status >= 500 else 0)


def test_requests_a_minute(chain: Chain) -> None:
    with chain.client(key=LIMITED) as client:
        seen = [client.post(CHAT, json=ask()) for _ in range(4)]
    assert [got.status_code for got in seen] == [200, 200, 200, 429]
    left = [got.headers["x-ratelimit-remaining-requests"] for got in seen]
    assert left == ["2", "1", "0", "0"]
    assert seen[-1].json()["error"]["code"] == "rate_limit_exceeded"


def test_tokens_are_settled_at_the_end(chain: Chain) -> None:
    with chain.client(key=COUNTED) as client:
        before = client.post(CHAT, json=ask(max_tokens=50))
        chain.line_of(before.headers["x-request-id"])
        after = client.post(CHAT, json=ask(max_tokens=50))
    left = [int(got.headers["x-ratelimit-remaining-tokens"]) for got in (before, after)]
    reserved = 100_000 - left[0]
    # What was reserved is given back but for what the engine counted, then the same is reserved.
    assert left[0] - left[1] == 12, (left, reserved)


def test_one_answer_at_once(chain: Chain) -> None:
    with chain.client(key=SLOTTED) as client:
        with client.stream("POST", CHAT, json=ask({"tokens": 20, "pace": 0.05})) as first:
            pieces = first.iter_bytes()
            next(pieces)
            second = client.post(CHAT, json=ask())
            assert (second.status_code, second.json()["error"]["code"]) == (
                429, "too_many_streams")  # fmt: skip
            for _ in pieces:
                pass
        until(lambda: client.post(CHAT, json=ask()).status_code == 200, 3)


def test_who_leaves_frees_the_slot_and_the_engine(chain: Chain) -> None:
    with chain.client(key=SLOTTED) as client:
        until(lambda: client.post(CHAT, json=ask()).status_code == 200, 3)
        time.sleep(0.2)
        with client.stream("POST", CHAT, json=ask({"tokens": 5000, "pace": 0.02})) as answer:
            request_id = answer.headers["x-request-id"]
            for _, _ in zip(range(5), answer.iter_bytes(), strict=False):
                pass
        left_at = time.monotonic()
        until(lambda: client.post(CHAT, json=ask()).status_code == 200, 3)
        assert time.monotonic() - left_at < 2
    assert not any(request_id in chain.told(name)["running"] for name in ENGINES)
    line = streams_through(chain, request_id)
    assert line["ended"] == "client_left"
    assert 1 <= line["completion_tokens"] < 200


def test_nobody_forges_what_hops_tell_each_other(chain: Chain) -> None:
    forged = {
        "X-Millrace-Express": "offer main engine2", "X-Accel-Redirect": "@engine_main",
        "X-Millrace-Ends": "b", "X-Millrace-Hide-Usage": "1", "X-Millrace-Body": "{}",
        "X-Millrace-Key": "x", "X-Millrace-Instance": "b", "X-Request-Id": "mine-mine-mine",
    }  # fmt: skip
    with chain.client(headers={"Authorization": f"Bearer {KEY}", **forged}) as client:
        got = client.post(CHAT, json=ask(**COUNT))
        assert got.status_code == 200
        assert got.headers["x-request-id"] != "mine-mine-mine"
        assert '"usage"' in got.text
        assert not [n for n in got.headers if "millrace" in n or "redirect" in n]
        streams_through(chain, got.headers["x-request-id"])
        for path in ("/@engine_main", "@engine_main", "/v1/@engine_main", "/millrace/engines"):
            refused = client.post(f"{chain.url}/{path.lstrip('/')}", json=ask())
            assert refused.status_code == 404
        again = client.post(CHAT, json=ask(), headers={"X-Millrace-Express": "again 502"})
        assert chain.line_of(again.headers["x-request-id"])["resent"] == 0


def test_the_backend_hands_off_to_nobody_but_nginx(chain: Chain) -> None:
    transport = httpx.HTTPTransport(uds=str(chain.home / "backend.sock"))
    with httpx.Client(transport=transport, base_url="http://x") as client:
        got = client.post(CHAT, json=ask(), headers={"Authorization": f"Bearer {KEY}"})
    assert got.status_code == 200
    assert got.text.endswith("[DONE]\n\n")
    assert not [name for name in got.headers if "accel-redirect" in name or "millrace" in name]


def test_a_reload_of_nginx_cuts_nobody(chain: Chain) -> None:
    with chain.client() as client:
        with client.stream("POST", CHAT, json=ask({"tokens": 9, "hold": 4})) as answer:
            pieces = answer.iter_text()
            next(pieces)
            chain.end("nginx", signal.SIGHUP, wait=False)
            time.sleep(0.5)
            chain.release()
            text = "".join(pieces)
        assert text.count("wörd") >= 5
        assert text.endswith("data: [DONE]\n\n")
    assert streams_through(chain, answer.headers["x-request-id"])["ended"] == "complete"


def test_a_handover_of_the_backend_cuts_nobody(chain: Chain) -> None:
    with chain.client(key=SLOTTED) as client:
        until(lambda: client.post(CHAT, json=ask()).status_code == 200, 3)
        time.sleep(0.2)
        with client.stream("POST", CHAT, json=ask({"tokens": 9, "hold": 4})) as answer:
            request_id = answer.headers["x-request-id"]
            pieces = answer.iter_text()
            next(pieces)
            chain.start_backend("b")
            chain.end("backend-a", signal.SIGTERM, wait=False)
            time.sleep(1.5)
            assert chain.processes["backend-a"].poll() is None
            other = client.post(CHAT, json=ask())
            assert other.status_code == 200
            chain.release()
            text = "".join(pieces)
        assert text.count("wörd") >= 5
    assert text.endswith("data: [DONE]\n\n")
    assert streams_through(chain, request_id)["ended"] == "complete"
    assert chain.line_of(other.headers["x-request-id"], "b")["express"] == chain.express
    until(lambda: chain.processes["backend-a"].poll() is not None, 5, "the old one does not end")
    # And back again, as at the next release.
    chain.start_backend("a")
    chain.end("backend-b", signal.SIGTERM)
    with chain.client() as client:
        for _ in range(4):
            got = client.post(CHAT, json=ask())
            assert streams_through(chain, got.headers["x-request-id"])["ended"] == "complete"


def test_an_engine_that_is_down_is_not_noticed_where_there_is_another(chain: Chain) -> None:
    chain.end("engine-engine2")
    with chain.client() as client:
        for _ in range(6):
            got = client.post(CHAT, json=ask())
            assert got.status_code == 200
            assert len(chain.asked(got.headers["x-request-id"])) == 1
            assert chain.line_of(got.headers["x-request-id"])["ended"] == "complete"
    chain.start_engine("engine2")
    time.sleep(2.1)


def test_engines_that_restart_are_waited_for(chain: Chain) -> None:
    for name in ENGINES:
        chain.end(f"engine-{name}")
    back = threading.Timer(1.5, lambda: [chain.start_engine(name) for name in ENGINES])
    back.start()
    with chain.client() as client:
        got = client.post(CHAT, json=ask())
    back.join()
    assert got.status_code == 200
    assert got.text.endswith("data: [DONE]\n\n")
    assert len(chain.asked(got.headers["x-request-id"])) == 1
    line = chain.line_of(got.headers["x-request-id"])
    # It was nobody's express answer: those who wait get heartbeats, which takes the backend.
    assert (line["express"], line["ended"]) == (False, "complete")
    assert line["resent"] >= 1
    time.sleep(2.1)


def test_an_engine_that_dies_in_the_middle(chain: Chain) -> None:
    with chain.client(key=SLOTTED) as client:
        until(lambda: client.post(CHAT, json=ask()).status_code == 200, 3)
        time.sleep(0.2)
        cut, text = False, ""
        script = {"tokens": 50, "pace": 0.01, "cut_after": 20}
        with client.stream("POST", CHAT, json=ask(script)) as answer:
            request_id = answer.headers["x-request-id"]
            with contextlib.suppress(httpx.RemoteProtocolError):
                cut = True
                for piece in answer.iter_text():
                    text += piece
                cut = False
    # In line the client is told in an error event; here the connection breaks off.
    assert cut == chain.express
    assert text.count("wörd") >= 15
    if not chain.express:
        assert text.endswith("data: [DONE]\n\n")
        assert '"code":"upstream_error"' in text
    line = streams_through(chain, request_id)
    assert (line["ended"], line["fault"]) == ("upstream_error", "broken_off")
    assert 10 <= line["completion_tokens"] <= 30
    for name in ENGINES:
        if chain.processes[f"engine-{name}"].poll() is not None:
            chain.start_engine(name)
    # It was never asked again: a prompt is run once.
    assert not chain.asked(request_id)
    with chain.client(key=SLOTTED) as client:
        until(lambda: client.post(CHAT, json=ask()).status_code == 200, 4)
