"""The emitter: what it says it sends is what it sends, when it says so."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import time
from pathlib import Path

import pytest
from backend.emitter import MOST_EMISSIONS
from backend_client import KEY, Connection, ask, error_of
from backend_upstream import DONE, eventually

BOOT_ID = Path("/proc/sys/kernel/random/boot_id").read_text().replace("-", "").strip()
PATH = "/v1/streamcheck"
OPEN = b": open\n\n"
HEARTBEAT = b": heartbeat\n\n"


async def emit(port: int, query: str = "", method: str = "GET", body: bytes = b"", **headers: str):
    connection = await Connection.open(port)
    await connection.send(method, f"{PATH}?{query}", body, headers=headers)
    assert await connection.head() == 200
    return connection


async def emission(port: int, query: str = "") -> bytes:
    return await (await emit(port, query)).rest()


def chunks(body: bytes) -> list[dict]:
    """Return every chunk but the last one, once the whole is known to be as announced."""
    assert body.endswith(DONE)
    blocks = [block + b"\n\n" for block in body.removesuffix(DONE).split(b"\n\n")[:-1]]
    blocks = [block for block in blocks if not block.startswith(b":")]
    end = json.loads(blocks.pop().removeprefix(b"data: "))
    assert end["choices"] == [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    assert end["streamcheck"] == {
        "end": True,
        "events": len(blocks),
        "sha256": hashlib.sha256(b"".join(blocks)).hexdigest(),
    }
    found = []
    for number, block in enumerate(blocks, 1):
        event_id, data = block.removesuffix(b"\n\n").split(b"\n")
        assert event_id == b"id: %d" % number
        found.append(json.loads(data.removeprefix(b"data: ")))
        assert found[-1]["streamcheck"]["n"] == number
        assert found[-1]["id"] == end["id"]
    return found


def texts(found: list[dict]) -> list[str]:
    return [chunk["choices"][0]["delta"]["content"] for chunk in found]


def times(found: list[dict], which: str = "due") -> list[float]:
    return [chunk["streamcheck"][which] for chunk in found]


async def test_contents_and_order(port, logs):
    began = time.time()
    connection = await emit(port, "events=3&pace_ms=5&run=a_B-1", Via="1.1 x", Cookie="a=b")
    body = await connection.rest()
    assert connection.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert connection.headers["cache-control"] == "no-cache, no-transform"
    assert connection.headers["x-accel-buffering"] == "no"
    assert body.startswith(OPEN + b"id: 1\ndata: {")
    first, second, third = found = chunks(body)
    assert texts(found) == ["river 1 ", "stone 2 ", "amber 3 "]
    assert times(found) == [0.005, 0.01, 0.015]
    told = first.pop("streamcheck")
    assert began - 1 < told["started_unix"] < time.time()
    assert time.monotonic() - 5 < told["started_monotonic"] < time.monotonic()
    assert told["boot"] == hashlib.sha256(BOOT_ID.encode()).hexdigest()[:16]
    assert told["request"] == {
        "http_version": "1.1",
        "method": "GET",
        "body_bytes": 0,
        "headers": {"via": "1.1 x"},
    }
    assert set(second["streamcheck"]) == set(third["streamcheck"]) == {"n", "due", "sent"}
    assert first["id"].startswith("emit-")
    assert len(first["id"]) == 37
    assert first["object"] == "chat.completion.chunk"
    line = await logs.next_request()
    assert (line["model"], line["stream"], line["ended"]) == ("streamcheck", True, "complete")
    assert line["body_bytes"] == len(body)


async def test_defaults_and_longer_texts(port):
    one, two = map(chunks, await asyncio.gather(emission(port), emission(port, "bytes=300")))
    assert len(one) == len(two) == 100
    assert times(one)[-1] == times(two)[-1] == 2.0
    assert one[0]["id"] != two[0]["id"]
    assert all(long.startswith(short) for short, long in zip(texts(one), texts(two), strict=True))
    assert all(300 <= len(text) < 320 for text in texts(two))


async def test_each_event_comes_alone_when_it_is_due(port):
    connection = await emit(port, "events=40&pace_ms=15")
    found = chunks(await connection.rest())
    start = found[0]["streamcheck"]["started_monotonic"]
    seen = [at - start for at, data in connection.reads for _ in range(data.count(b'"content"'))]
    sent = times(found, "sent")
    late = sorted(sent_at - due for sent_at, due in zip(sent, times(found), strict=True))
    assert late[0] >= 0
    assert late[20] < 0.005, "the median event is late"
    assert late[-1] < 0.1, "lateness adds up"
    assert sorted(got - put for got, put in zip(seen, sent, strict=True))[20] < 0.01
    assert len([data for _, data in connection.reads if b'"content"' in data]) > 30


async def test_segments_of_pace(port):
    found = chunks(await emission(port, "events=6&pace_ms=0,30.5,10"))
    assert times(found) == [0, 0, 0.0305, 0.061, 0.071, 0.081]


@pytest.mark.parametrize(
    ("query", "after", "beats"),
    [
        ("events=4&silence_seconds=0.5", b"id: 2\n", True),
        ("events=4&silence_seconds=0.5&silence_after=4", b"id: 4\n", True),
        ("events=4&silence_seconds=0.5&heartbeats=0&silence_after=1", b"id: 1\n", False),
        ("events=4&lead_ms=500", OPEN, True),
        ("events=4&lead_ms=500&heartbeats=0", OPEN, False),
    ],
)
async def test_silence(start_backend, logs, query, after, beats):
    connection = await emit(start_backend(heartbeat_seconds=0.15).port, f"pace_ms=1&{query}")
    began = time.monotonic()
    seen = await connection.until(after)
    assert time.monotonic() - began < 0.3, "what comes before the silence came late"
    body = seen + await connection.rest()
    assert len(chunks(body)) == 4
    count = body.count(HEARTBEAT)
    assert count in (2, 3) if beats else count == 0
    tail = body.partition(after)[2].partition(b"\n\n")[2] if after != OPEN else body[len(OPEN) :]
    assert tail.startswith(HEARTBEAT * count)
    assert (await logs.next_request())["heartbeats"] == count
    at = [at for at, _ in connection.reads]
    longest = max(right - left for left, right in itertools.pairwise(at))
    assert longest < 0.4 if beats else longest > 0.4


async def test_awkward_events(port):
    connection = await emit(port, "events=2&pace_ms=0&awkward=1")
    body = await connection.rest()
    found = chunks(body)
    expected = [
        *("a\u2028b", "c\u2029d", "ends with newline\n", "\n\n", "\r\n", "tab\t"),
        *('quote " backslash \\', "e\u0301", "\0", "\ud83d", "\ude80", "🚀"),
    ]
    assert texts(found)[2:] == expected + [" same"] * 100
    for raw in ("a\u2028b", "c\u2029d", "e\u0301", "🚀"):
        assert f'"content":"{raw}"'.encode() in body
    for escaped in (rb"\u0000", rb"\ud83d", rb"\ude80"):
        assert b'"content":"' + escaped + b'"' in body
    assert b"\r" not in body
    half = next(i for i, (_, data) in enumerate(connection.reads) if "🚀".encode()[:2] in data)
    assert connection.reads[half][1].endswith("🚀".encode()[:2] + b"\r\n")
    assert connection.reads[half + 1][0] - connection.reads[half][0] > 0.02


async def test_no_heartbeat_inside_the_cut_event(start_backend):
    port = start_backend(heartbeat_seconds=0.005).port
    assert len(chunks(await emission(port, "events=1&pace_ms=0&awkward=1"))) == 113


@pytest.mark.parametrize(
    ("query", "param"),
    [
        *((f"run={bad}", "run") for bad in ("", "a+b", "a.b", "x" * 65, "%C3%A9", "a%0A")),
        *((f"events={bad}", "events") for bad in ("0", "2001", "1.5", "-1", "1_0", "%D9%A3", "")),
        *((f"pace_ms={bad}", "pace_ms") for bad in ("", "10001", "1,", "nan", "1e3", "1,x")),
        ("pace_ms=" + ",".join("1" * 9), "pace_ms"),
        *((f"bytes={bad}", "bytes") for bad in ("4097", "-1", "x")),
        *((f"lead_ms={bad}", "lead_ms") for bad in ("60001", "inf")),
        *((f"silence_seconds={bad}", "silence_seconds") for bad in ("301", "300.5", "-1")),
        *((f"events=9&silence_after={bad}", "silence_after") for bad in ("0", "10", "x")),
        *((f"{name}={bad}", name) for name in ("heartbeats", "awkward") for bad in ("2", "true")),
        ("event=1", "event"),
        ("events=1&events=1", "events"),
        ("events=2000&pace_ms=166", None),
        ("events=1&lead_ms=40000&silence_seconds=290", None),
        ("run=%FF", None),
        ("&".join(["events=1"] * 40), None),
    ],
)
async def test_a_bad_query(port, query, param):
    response = await ask(port, "GET", f"{PATH}?{query}")
    assert response.status == 400, response.body
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


async def test_so_many_at_once_and_no_more(port, logs):
    running = [await emit(port, "lead_ms=30000") for _ in range(MOST_EMISSIONS)]
    refused = await ask(port, "GET", PATH)
    assert refused.status == 429
    assert refused.headers["retry-after"] == "5"
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert (await logs.next_request())["ended"] == "refused"
    for connection in running:
        connection.close()
    await eventually(lambda: len(logs.requests()) == 1 + MOST_EMISSIONS)
    assert chunks(await emission(port, "events=1"))


async def test_a_key_is_needed(port):
    assert (await ask(port, "GET", PATH, key=None)).status == 401
    assert (await ask(port, "POST", PATH, b"x", key="wrong")).status == 401


@pytest.mark.parametrize(
    "query", ["events=2000&pace_ms=1", "lead_ms=60000&silence_seconds=265&heartbeats=0"]
)
async def test_leaving_ends_it(port, logs, query):
    connection = await emit(port, query)
    await connection.until(OPEN)
    left = time.monotonic()
    connection.close()
    assert (await logs.next_request())["ended"] == "client_left"
    assert time.monotonic() - left < 1


async def test_a_slow_reader_holds_it_back_and_loses_nothing(port):
    connection = await Connection.open(port, receive_buffer=65536)
    await connection.send("GET", f"{PATH}?events=1000&pace_ms=0&bytes=4096")
    await connection.head()
    await asyncio.sleep(0.7)
    found = chunks(await connection.rest())
    assert times(found) == [0] * 1000
    assert times(found, "sent")[-1] > 0.6, "all of it was taken at once"
    assert times(found, "sent")[50] < 0.5


async def test_the_body_of_a_post(start_backend):
    port = start_backend(max_body_bytes=2000).port
    found = chunks(await (await emit(port, "events=1", "POST", b"x" * 2000)).rest())
    assert found[0]["streamcheck"]["request"]["body_bytes"] == 2000
    assert found[0]["streamcheck"]["request"]["method"] == "POST"
    assert (await ask(port, "POST", PATH, b"x" * 2001)).status == 413


async def test_the_end_of_the_process(start_backend, logs):
    backend = start_backend()
    connection = await emit(backend.port, "lead_ms=30000")
    await connection.until(OPEN)
    backend.stop()
    assert "restarting" in error_of(await connection.rest())["message"]
    assert (await logs.next_request())["ended"] == "server_stopping"


async def test_an_old_protocol_is_told(port):
    connection = await Connection.open(port)
    request = f"GET {PATH}?events=1 HTTP/1.0\r\nAuthorization: Bearer {KEY}\r\n\r\n"
    await asyncio.get_running_loop().sock_sendall(connection.sock, request.encode())
    await connection.head()
    told = chunks(await connection.rest())[0]["streamcheck"]["request"]
    assert told["http_version"] == "1.0"


async def test_it_is_in_the_openapi_document(port):
    described = (await ask(port, "GET", "/openapi.json")).json()["paths"][PATH]
    assert set(described) == {"get", "post"}
    names = {parameter["name"] for parameter in described["get"]["parameters"]}
    assert {"run", "pace_ms", "events", "silence_after"} < names
