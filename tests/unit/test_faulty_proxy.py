"""The fixtures of the stream check's tests: the engine paces, and each fault does what it says."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from unit_kit import ROOT

sys.path.insert(0, str(ROOT / "tests/fixtures"))
from engine_standin import EngineStandin
from faulty_proxy import FAULTS, HEALTHY, Chunks, FaultyProxy

PACE = 0.005
TOKENS = 40
LONG = PACE * TOKENS
MANY = TOKENS * 0.3  # reads of a stream that is not held; a busy machine brings some together


@dataclass
class Got:
    """An answer: each read's time since the request and its bytes of the body."""

    status: int = 0
    line: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    head_at: float = 0.0
    reads: list[tuple[float, bytes]] = field(default_factory=list)
    ended: bool = False  # with a last chunk

    @property
    def body(self) -> bytes:
        return b"".join(piece for _, piece in self.reads)

    @property
    def span(self) -> float:
        return self.reads[-1][0] - self.reads[0][0]

    @property
    def sizes(self) -> list[int]:
        return [len(piece) for _, piece in self.reads]


def request(proxy: FaultyProxy | EngineStandin, tokens: int, accept: str, **more: Any) -> bytes:
    wanted = {"model": "standin", "messages": [], "max_tokens": tokens, "stream": True, **more}
    body = json.dumps(wanted).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: here\r\nConnection: close\r\n"
    head += f"Accept-Encoding: {accept}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def ask(
    proxy: FaultyProxy | EngineStandin, tokens: int = TOKENS, accept: str = "identity",
    patience: float = 5, leave_after: int | None = None, tls: ssl.SSLContext | None = None,
    **more: Any,
) -> Got:  # fmt: skip
    """Ask for a stream and note how it comes."""
    got, raw, chunks = Got(), b"", Chunks()
    line: socket.socket = socket.create_connection(("127.0.0.1", proxy.port), timeout=patience)
    if tls:
        line = tls.wrap_socket(line, server_hostname="127.0.0.1")
    with line:
        begun = time.monotonic()
        line.sendall(request(proxy, tokens, accept, **more))
        while data := line.recv(1 << 16):
            now = time.monotonic() - begun
            if not got.status:
                head, found, data = (raw + data).partition(b"\r\n\r\n")
                if not found:
                    raw = head
                    continue
                got.line, *lines = head.decode().split("\r\n")
                got.status, got.head_at = int(got.line.split()[1]), now
                got.headers = dict(line.lower().split(": ", 1) for line in lines)
            if got.headers.get("transfer-encoding") == "chunked":
                data, got.ended = chunks.feed(data), chunks.ended
            if data:
                got.reads.append((now, data))
            if leave_after is not None and len(got.body) > leave_after:
                break
    return got


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 3
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def engine() -> Iterator[EngineStandin]:
    with EngineStandin(pace_ms=PACE * 1000) as engine:
        yield engine


@pytest.fixture
def through(engine: EngineStandin) -> Callable[..., Got]:
    """Return a function that asks once through a proxy with a fault."""

    def run(fault: str, asking: dict[str, Any] | None = None, **options: Any) -> Got:
        with FaultyProxy(engine.url, fault, **options) as proxy:
            return ask(proxy, **(asking or {}))

    return run


def unpack(got: Got) -> bytes:
    coding = got.headers.get("content-encoding", "")
    if coding == "gzip":
        return gzip.decompress(got.body)
    if coding == "br":
        return pytest.importorskip("brotli").decompress(got.body)
    if coding == "zstd":
        return pytest.importorskip("backports.zstd").decompress(got.body)
    return got.body


def need(fault: str) -> None:
    for coding, module in (("br_", "brotli"), ("zstd_", "backports.zstd")):
        if fault.startswith(coding):
            pytest.importorskip(module)


@pytest.mark.parametrize("fault", [*HEALTHY, "ignore_disconnect", "serial", "cut_on_silence"])
def test_what_is_healthy_passes_each_event_as_it_comes(
    fault: str, through: Callable[..., Got], engine: EngineStandin
) -> None:
    need(fault)
    # Less jitter than there is between two events, or some would come together.
    options = {"ms": 3} if fault == "jitter" else {}
    got = through(fault, {"accept": "gzip, br, zstd"}, **options)
    assert unpack(got) == engine.bodies[-1]
    assert got.ended
    assert got.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert got.headers.get("content-encoding", fault).startswith(fault.removesuffix("_flush"))
    assert len(got.reads) > MANY
    assert got.span > LONG * 0.8


HOLDING: dict[str, tuple[dict[str, Any], Callable[[Got], object]]] = {
    "hold_all": ({}, lambda got: got.head_at > LONG and len(got.reads) == 1),
    "hold_body": ({}, lambda got: got.head_at < LONG / 2 and got.reads[0][0] > LONG),
    "hold_headers": ({}, lambda got: 0.03 <= got.head_at < LONG and got.span > LONG * 0.8),
    "buffer_bytes": ({"n": 2000}, lambda got: set(got.sizes[:-1]) == {2000}),
    "buffer_whole_events": ({"n": 2000}, lambda got: all(
        size >= 2000 and piece.endswith(b"\n\n")
        for size, (_, piece) in zip(got.sizes[:-1], got.reads, strict=False)
    )),
    "gzip_hold": ({}, lambda got: got.reads[-1][0] > LONG and len(got.reads) <= 3),
    "br_hold": ({}, lambda got: got.reads[0][0] > LONG and len(got.reads) <= 2),
    "zstd_hold": ({}, lambda got: got.reads[0][0] > LONG and len(got.reads) <= 2),
    "coalesce": ({"ms": 60}, lambda got: 3 <= len(got.reads) <= 6),
    "nagle": ({"ms": 40}, lambda got: 3 <= len(got.reads) <= 9 and got.reads[0][0] < LONG / 2),
    "delay": ({"ms": 80}, lambda got: len(got.reads) > MANY and got.reads[0][0] > 0.1),
    "delay_each": ({"ms": 40}, lambda got: 3 <= len(got.reads) <= 9),
    "throttle": ({"bytes_per_second": 20000}, lambda got: got.span > 0.3 and len(got.reads) > 15),
    "http10": ({}, lambda got: got.line.startswith("HTTP/1.0 200") and got.span > LONG * 0.8),
    "content_type": ({}, lambda got: got.headers["content-type"] == "text/html"),
    "truncate_politely": ({"after": 10**6}, lambda got: got.ended),
}  # fmt: skip


@pytest.mark.parametrize("fault", HOLDING)
def test_what_holds_back_still_brings_every_byte(
    fault: str, through: Callable[..., Got], engine: EngineStandin
) -> None:
    need(fault)
    options, visible = HOLDING[fault]
    got = through(fault, {"accept": "gzip, br, zstd"}, **options)
    assert unpack(got) == engine.bodies[-1]
    assert got.ended == (fault != "http10")
    assert visible(got), (got.head_at, [(round(at, 3), len(piece)) for at, piece in got.reads])


def test_what_a_client_does_not_accept_is_not_compressed(through: Callable[..., Got]) -> None:
    assert "content-encoding" not in through("gzip_hold").headers


@pytest.mark.parametrize(("fault", "ended"), [("truncate", False), ("truncate_politely", True)])
def test_truncation_with_and_without_a_last_chunk(
    fault: str, ended: bool, through: Callable[..., Got], engine: EngineStandin
) -> None:
    got = through(fault, after=3000)
    assert len(got.body) == 3000
    assert got.ended == ended
    until(lambda: engine.running == 0)


def test_silence_cuts_both_sides() -> None:
    with (
        EngineStandin(pace_ms=800) as slow,
        FaultyProxy(slow.url, "cut_on_silence", seconds=0.2) as proxy,
    ):
        got = ask(proxy)
        assert got.body
        assert not got.ended
        until(lambda: slow.running == 0)


def test_events_left_out(through: Callable[..., Got], engine: EngineStandin) -> None:
    whole = through("none").body.count(b"\n\n")
    assert through("drop_events", every=10).body.count(b"\n\n") == whole - TOKENS // 10
    got = through("strip_done")
    assert got.body + b"data: [DONE]\n\n" == engine.bodies[-1]


def test_comments_left_out(serve: Callable[..., str]) -> None:
    body = b": open\n\ndata: 1\n\n: beat\n\n: with\ndata: 2\r\n\r\ndata: 3\n\n"
    url = serve(lambda handler: send_whole(handler, body))
    with FaultyProxy(url, "strip_comments") as proxy:
        assert ask(proxy).body == b"data: 1\n\ndata: 2\r\n\r\ndata: 3\n\n"


def send_whole(handler: Any, body: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@pytest.mark.parametrize(
    ("fault", "age", "paced"),
    [("cache", True, False), ("cache_silent", False, False), ("replay_paced", False, True)],
)
def test_replays(fault: str, age: bool, paced: bool, engine: EngineStandin) -> None:
    with FaultyProxy(engine.url, fault) as proxy:
        first, second, other = ask(proxy), ask(proxy), ask(proxy, tokens=3)
    assert second.body == first.body != other.body
    assert first.span > LONG * 0.8
    assert (second.span > LONG * 0.8) == paced
    assert ("age" in second.headers) == age
    assert "age" not in first.headers


ANSWERS = {
    "error_page": (502, "text/html", b"Bad Gateway"),
    "redirect": (302, None, b""),
    "html_200": (200, "text/html", b"<html>"),
    "json_200": (200, "application/json", b"chat.completion"),
}


@pytest.mark.parametrize("fault", ANSWERS)
def test_answers_of_its_own(fault: str, through: Callable[..., Got]) -> None:
    got = through(fault)
    status, kind, text = ANSWERS[fault]
    assert (got.status, got.headers.get("content-type")) == (status, kind)
    assert text in got.body
    assert got.ended


def test_silence_and_endlessness(through: Callable[..., Got]) -> None:
    with pytest.raises(TimeoutError):
        through("never_answers", {"patience": 0.3})
    assert b"\n" not in through("endless", {"leave_after": 10**6}).body


@pytest.mark.parametrize(
    ("fault", "still"), [("none", 0), ("coalesce", 0), ("throttle", 0), ("ignore_disconnect", 1)]
)
def test_a_client_that_leaves(fault: str, still: int, engine: EngineStandin) -> None:
    with FaultyProxy(engine.url, fault) as proxy:
        ask(proxy, tokens=160, leave_after=100)
        time.sleep(0.15)
        assert engine.running == still
        until(lambda: engine.running == 0)


def test_serial_lets_one_after_the_other(engine: EngineStandin) -> None:
    with FaultyProxy(engine.url, "serial") as proxy:
        got: list[Got] = []
        threads = [threading.Thread(target=lambda: got.append(ask(proxy))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(answer.reads[0][0] > LONG for answer in got) == [False, True]


def test_a_throttle_reaches_the_engine() -> None:
    with (
        EngineStandin(pace_ms=0) as fast,
        FaultyProxy(fast.url, "throttle", bytes_per_second=50_000) as proxy,
    ):
        ask(proxy, tokens=100_000, leave_after=25_000)
        assert len(fast.bodies[-1]) < 10_000_000  # of about 20 million
        until(lambda: fast.running == 0)


def test_tls_on_both_sides(engine: EngineStandin, tmp_path: Path) -> None:
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=here", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    trust = ssl.create_default_context(cafile=cert)
    with (
        FaultyProxy(engine.url, cert=cert, key=key) as inner,
        FaultyProxy(inner.url, ca=cert, cert=cert, key=key) as outer,
    ):
        assert outer.url.startswith("https://127.0.0.1:")
        got = ask(outer, tls=trust)
    assert got.body == engine.bodies[-1]
    assert len(got.reads) > MANY


def test_a_unix_socket_and_an_upstream_that_is_down(tmp_path: Path) -> None:
    path = str(tmp_path / "up.sock")
    with socket.socket(socket.AF_UNIX) as upstream, FaultyProxy(f"unix:{path}") as proxy:
        assert ask(proxy).status == 502
        upstream.bind(path)
        upstream.listen()
        thread = threading.Thread(target=answer_until_close, args=(upstream, b"data: 1\n\n"))
        thread.start()
        got = ask(proxy)
        thread.join()
    assert (got.status, got.body, got.ended) == (200, b"data: 1\n\n", True)


def answer_until_close(upstream: socket.socket, body: bytes) -> None:
    line, _ = upstream.accept()
    with line:
        line.recv(1 << 16)
        line.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + body)


def test_names_and_options_are_checked() -> None:
    assert len(FAULTS) == len(set(FAULTS)) == 37
    with pytest.raises(KeyError):
        FaultyProxy("http://127.0.0.1:1", "no_such")
    with pytest.raises(TypeError):
        FaultyProxy("http://127.0.0.1:1", "delay", seconds=1)


# ---- the engine


def events(body: bytes) -> list[Any]:
    texts = [text.removeprefix("data: ") for text in body.decode().split("\n\n")[:-1]]
    return [text if text == "[DONE]" else json.loads(text) for text in texts]


def test_the_engine_speaks_as_vllm_does(engine: EngineStandin) -> None:
    got = ask(engine, tokens=5, stream_options={"include_usage": True})
    role, *tokens, finish, usage, done = events(got.body)
    assert got.head_at + 0.01 < got.reads[0][0] >= 0.03
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert len(tokens) == 5
    assert finish["choices"][0]["finish_reason"] == "length"
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 5)
    assert done == "[DONE]"
    whole = ask(engine, tokens=5, stream=False)
    assert len(json.loads(whole.body)["choices"][0]["message"]["content"].split()) == 5


def test_the_engine_refuses() -> None:
    with EngineStandin(key="secret") as locked:
        assert ask(locked).status == 401
    with EngineStandin(models=("other",)) as other:
        got = ask(other)
        assert (got.status, json.loads(got.body)["error"]["param"]) == (404, "model")
        assert ask(other, tokens=100_001).status == 400


def test_the_engine_counts_what_runs(engine: EngineStandin) -> None:
    with socket.create_connection(("127.0.0.1", engine.port)) as line:
        line.sendall(request(engine, 1000, "identity"))
        line.recv(1000)
        assert metric(engine) == 1
    until(lambda: metric(engine) == 0)


def metric(engine: EngineStandin) -> float:
    with socket.create_connection(("127.0.0.1", engine.port)) as line:
        line.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = b"".join(iter(lambda: line.recv(65536), b"")).decode()
    found = [line for line in text.splitlines() if line.startswith("vllm:num_requests_running{")]
    return float(found[0].rsplit(" ", 1)[1])


@pytest.mark.parametrize(
    ("options", "visible"),
    [
        ({"no_done": True}, lambda got: b"[DONE]" not in got.body and got.ended),
        ({"error_after": 3}, lambda got: "error" in events(got.body)[4]),
        ({"hold_headers": True}, lambda got: got.head_at >= 0.03),
        ({"headers": {"X-Accel-Buffering": "yes"}}, lambda got: "x-accel-buffering" in got.headers),
        ({"tokens_per_event": 8}, lambda got: len(events(got.body)) == 1 + 1 + 1 + 1),
        ({"burst": 4}, lambda got: got.span < 0.02),
        ({"jitter_ms": 200}, lambda got: got.reads[-1][0] > 0.12),
    ],
)
def test_the_engines_options(options: dict[str, Any], visible: Callable[[Got], object]) -> None:
    with EngineStandin(pace_ms=5, **options) as engine:
        assert visible(ask(engine, tokens=8))
