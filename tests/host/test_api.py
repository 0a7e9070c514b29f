"""The service from outside, as a client meets it."""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import threading
import time
from typing import Any

import pytest
from conftest import status
from planner.dialects import DIALECTS
from servers import RECITAL, Server, figure
from wire import Reads, connect, post

PROTOCOLS = ("http/1.1", "h2")


def chat(**extra: Any) -> dict[str, Any]:
    """A streamed chat completion's body."""
    messages = [{"role": "user", "content": "How does the water find its way?"}]
    return {"model": "recital", "stream": True, "messages": messages, **extra}


def ask(server: Server, body: dict[str, Any], protocol: str = "http/1.1", **how: Any) -> Reads:
    """Ask the server from outside."""
    return post(server.address, server.secrets / "server.crt", server.key, body, protocol, **how)


def get(server: Server, path: str, key: str | None = None) -> tuple[int, dict[str, str], bytes]:
    """GET from outside: status, headers, body."""
    context = ssl.create_default_context(cafile=str(server.secrets / "server.crt"))
    link = http.client.HTTPSConnection(server.address, timeout=20, context=context)
    link.request("GET", path, headers={"Authorization": f"Bearer {key}"} if key else {})
    answer = link.getresponse()
    headers = {name.lower(): value for name, value in answer.getheaders()}
    body = answer.read()
    link.close()
    return answer.status, headers, body


def streams(server: Server) -> bool:
    """Whether a whole answer comes."""
    try:
        seen = ask(server, chat())
    except (AssertionError, OSError):
        return False
    return seen.status == 200 and seen.text == RECITAL and seen.ended


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_byte_arrives(engine: Server, protocol: str) -> None:
    seen = ask(engine, chat(), protocol)
    assert seen.status == 200
    assert seen.headers["content-type"].startswith("text/event-stream")
    assert "no-transform" in seen.headers["cache-control"]
    assert seen.text == RECITAL
    assert seen.ended


@pytest.mark.timing
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_it_streams_event_by_event(engine: Server, protocol: str) -> None:
    """Events per read ≤ 1.2; the best of three, for this machine has two cores and other work."""
    best = min((ask(engine, chat(max_tokens=300), protocol) for _ in range(3)), key=_ratio)
    assert _ratio(best) <= 1.2
    gaps = best.gaps()
    gap, engine_gap = gaps[len(gaps) // 2], _engine_gap(engine)
    assert gap == pytest.approx(engine_gap, rel=0.5)
    figure(
        f"{protocol}: {_ratio(best):.2f} events per read, median gap {1000 * gap:.1f} ms "
        f"(the engine's mean {1000 * engine_gap:.1f} ms)"
    )


@pytest.mark.timing
def test_the_engine_leaves_the_processor_to_others_while_it_waits(engine: Server) -> None:
    """Its processes ask one another for news; without a rest between, that takes a whole core.

    And Linux 6.18 lets the gateway starve beside it: app/gateway/engine_waits.py.
    """
    files = "$(pgrep -u millrace-vllm | sed 's,.*,/proc/&/stat,')"
    used = f"awk '{{s += $14 + $15}} END {{print s}}' {files}"
    ticks = int(engine.run("getconf CLK_TCK"))
    before, began = int(engine.run(used)), time.monotonic()
    assert ask(engine, chat(max_tokens=400)).ended
    seconds = time.monotonic() - began
    share = (int(engine.run(used)) - before) / ticks / seconds
    figure(f"the engine's processes at its pace: {share:.2f} of a core")
    assert share < 0.8


def _ratio(seen: Reads) -> float:
    return seen.events_per_read()


def _engine_gap(server: Server) -> float:
    """The engine's own mean gap between tokens, from its histogram, seconds."""
    name = "vllm:inter_token_latency_seconds"
    return server.engine_metric(f"{name}_sum") / server.engine_metric(f"{name}_count")


def test_plain_answer_is_the_same(engine: Server) -> None:
    seen = ask(engine, chat(stream=False, max_tokens=80))
    assert seen.status == 200
    told = json.loads(seen.body)
    answer = told["choices"][0]["message"]["content"]
    assert answer
    assert RECITAL.startswith(answer)
    assert told["usage"]["completion_tokens"] == 80


def test_models(server: Server) -> None:
    code, _, body = get(server, "/v1/models", server.key)
    assert code == 200
    assert [model["id"] for model in json.loads(body)["data"]] == ["recital"]


@pytest.mark.parametrize("key", [None, "wrong", "x" * 48])
def test_without_a_good_key_nothing(server: Server, key: str | None) -> None:
    code, headers, body = get(server, "/v1/models", key)
    assert code == 401
    assert headers["www-authenticate"].startswith("Bearer")
    assert json.loads(body)["error"]["message"]


def test_alive_and_ready(engine: Server) -> None:
    assert get(engine, "/healthz")[0] == 200
    code, _, body = get(engine, "/readyz")
    assert code == 200
    assert json.loads(body)["ready"] is True


def test_unknown_model_and_broken_body(server: Server) -> None:
    seen = ask(server, {**chat(), "model": "nobody"})
    assert seen.status == 404
    assert json.loads(seen.body)["error"]["code"] == "model_not_found"
    assert ask(server, {"model": "recital"}).status == 400


def test_the_engines_refusal_reaches_the_caller(engine: Server) -> None:
    seen = ask(engine, chat(max_tokens=10_000_000))
    assert seen.status == 400
    assert "error" in json.loads(seen.body)


@pytest.mark.parametrize(
    "path", ["/index.html", "/assets/", "/metrics", "/vllm/v1/models", "/admin", "/v2/x", "/ui/"]
)
def test_nothing_else_is_open(server: Server, path: str) -> None:
    assert status(server, path) == 404


def test_metrics_are_for_this_server_alone(engine: Server) -> None:
    """Whoever is on it may read them without a key; nobody else reaches them."""
    ask(engine, chat(max_tokens=5))
    ports = json.loads(engine.run("cat /etc/millrace/plan.json"))["backend"]["metrics_ports"]
    port = ports[re.search(r"@(.)", engine.backend())[1]]  # type: ignore[index]
    code, body = engine.get(f"http://127.0.0.1:{port}/metrics")
    assert code == 200
    assert re.search(r"^millrace_first_token_seconds_count [1-9]", body, re.M)
    for path in ("/metrics", "/v1/metrics", "/v1/../metrics", "/healthz/../metrics"):
        wire = http.client.HTTPSConnection(
            engine.address, timeout=10, context=ssl._create_unverified_context()
        )
        wire.request("GET", path, headers={"Authorization": f"Bearer {engine.key}"})
        assert wire.getresponse().status == 404
        wire.close()
    with socket.socket() as outside:
        outside.settimeout(5)
        assert outside.connect_ex((engine.address, port)) != 0


def test_status_tells_of_every_hop_and_of_the_last_check(engine: Server) -> None:
    assert get(engine, "/v1/status")[0] == 401
    engine.run("systemctl start millrace-streamcheck", check=False, timeout=900)
    code, headers, body = get(engine, "/v1/status", engine.key)
    assert code == 200
    assert headers["cache-control"] == "no-store"
    told = json.loads(body)
    assert told["ready"] is True
    assert [(hop["name"], hop["state"]) for hop in told["hops"]] == [
        ("nginx", "ok"), ("backend", "ok"), ("litellm", "ok"), ("vllm", "ok"),
    ]  # fmt: skip
    check = told["streamcheck"]
    assert check["when"]
    assert [hop["name"] for hop in check["hops"]][-3:] == ["litellm", "backend", "nginx"]
    for hop in check["hops"]:
        assert 10 < len(hop["reads"]) <= 200
        assert hop["median_gap_ms"] > 0
    figure(f"/v1/status is {len(body)} bytes")


def test_the_engine_knows_every_dialect_that_a_plan_may_name(engine: Server) -> None:
    """Read from vLLM's own tables: one wrong name and an engine of that family does not start."""
    tables = engine.run(
        "cd /opt/millrace/vllm/current/venv/lib/python3*/site-packages/vllm && "
        "cat tool_parsers/__init__.py && echo ---- && cat reasoning/__init__.py"
    )
    tools, reasoning = (
        set(re.findall(r'^    "([\w-]+)": \(|name="([\w-]+)"', table, re.M))
        for table in tables.split("----\n")
    )
    known = [{one or other for one, other in found} for found in (tools, reasoning)]
    for named, there in zip(zip(*DIALECTS, strict=True), known, strict=True):
        assert len(there) > 20
        assert set(named) - {""} <= there


def test_the_edges_own_refusals_are_json(server: Server) -> None:
    code, headers, body = get(server, "/nothing-here")
    assert code == 404
    assert headers["content-type"] == "application/json"
    assert json.loads(body)["error"]["code"] == "not_found"
    seen = ask(server, chat(padding="x" * 9_000_000))
    assert seen.status == 413
    assert json.loads(seen.body)["error"]["code"] == "request_too_large"


def test_plain_http_sends_on(server: Server) -> None:
    link = http.client.HTTPConnection(server.address, 80, timeout=10)
    link.request("GET", "/v1/models")
    answer = link.getresponse()
    assert answer.status == 308
    assert answer.getheader("location") == f"https://{server.address}/v1/models"


def test_old_tls_is_refused(server: Server) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        pytest.raises((ssl.SSLError, ConnectionError)),
        socket.create_connection((server.address, 443), timeout=10) as raw,
    ):
        context.wrap_socket(raw)


def _running(server: Server) -> float:
    return server.engine_metric("vllm:num_requests_running")


def _falls_to_zero(server: Server, seconds: float) -> float:
    """Seconds until the engine runs nothing; fails when it takes longer than `seconds`."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if _running(server) == 0:
            return time.monotonic() - began
        time.sleep(0.1)
    raise AssertionError(f"the engine still works after {seconds} s for a client who left")


@pytest.mark.timing
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_who_leaves_a_stream_frees_the_engine(engine: Server, protocol: str) -> None:
    long = chat(max_tokens=8000, ignore_eos=True)
    seen = ask(engine, long, protocol, leave_after=20)
    assert len(seen.reads) >= 20
    assert _falls_to_zero(engine, 2) < 2


@pytest.mark.timing
def test_who_leaves_before_a_plain_answer_frees_the_engine(engine: Server) -> None:
    wire = connect(engine.address, engine.secrets / "server.crt", "http/1.1")
    body = json.dumps(chat(stream=False, max_tokens=8000, ignore_eos=True)).encode()
    wire.sendall(
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {engine.address}\r\n"
        f"Authorization: Bearer {engine.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    for _ in range(50):
        if _running(engine) > 0:
            break
        time.sleep(0.1)
    else:
        pytest.fail("the engine never began")
    wire.close()
    assert _falls_to_zero(engine, 2) < 2


def test_streams_beside_each_other_are_whole(engine: Server) -> None:
    results: list[Reads] = []
    threads = [
        threading.Thread(target=lambda: results.append(ask(engine, chat()))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert [seen.text == RECITAL and seen.ended for seen in results] == [True] * 8
