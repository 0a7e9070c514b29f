"""Resumable streams: whoever comes back gets what is missing, once."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise

import pytest
from backend_client import KEY, PROMPT, Connection, ask, becomes, chat, error_of
from backend_upstream import DONE, ROLE, eventually, send_pieces, token
from conftest import write_keys
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from streams_client import STREAMS, Reader, begin, content, poll

OTHER_KEY = "mr-" + "o" * 43


def numbered(count):
    return [ROLE, *(token(str(number)) for number in range(count)), DONE]


def datas(stream):
    return [event[6:].decode() for event in stream.split(b"\n\n") if event]


def line_of(logs, made):
    """Return the generation's line."""
    lines = (line for line in logs.requests() if line["request_id"] == made["request_id"])
    return next(lines, None)


async def test_a_stream_from_its_beginning_to_its_end(port, upstream, logs):
    upstream.script = send_pieces(numbered(5), pause=0.01)
    made = await begin(port)
    assert made["object"] == "chat.stream"
    assert made["model"] == "tiny"
    assert made["events"] == f"{STREAMS}/{made['id']}/events"
    assert made["ticket_expires_in"] == 60
    reader = await Reader.open(port, made["events"])
    assert reader.status == 200
    assert reader.connection.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert "no-transform" in reader.connection.headers["cache-control"]
    await reader.rest()
    assert reader.retry == "1000"
    assert reader.ids == list(range(1, 8))
    assert reader.data == datas(b"".join(numbered(5)))
    request = await upstream.next_request()
    assert json.loads(request.body)["stream"] is True
    # Native EventSource stops asking at a 204.
    assert (await Reader.open(port, made["events"], after=7)).status == 204
    assert (await ask(port, "GET", made["events"] + "?after=7")).status == 204
    told = (await ask(port, "GET", f"{STREAMS}/{made['id']}")).json()
    assert told["last_event_id"] == 7
    assert told["ended"] is True
    assert told["outcome"] == "complete"
    await eventually(lambda: line_of(logs, made))
    assert made["request_id"] == request.headers["x-request-id"]
    assert line_of(logs, made)["ended"] == "complete"
    assert line_of(logs, made)["status"] == 201
    assert PROMPT not in "".join(logs.lines)


async def test_stream_is_implied_and_an_asked_for_whole_answer_is_a_stream_as_well(port, upstream):
    made = await begin(port, chat(stream=False))
    reader = await Reader.open(port, made["events"])
    await reader.rest()
    assert reader.data[-1] == "[DONE]"


@pytest.mark.parametrize("way", ["header", "query"])
async def test_resuming_behind_every_event(port, upstream, way):
    upstream.script = send_pieces(numbered(20), pause=0.002)
    made = await begin(port)
    whole = datas(b"".join(numbered(20)))
    for known in range(len(whole)):
        events = made["events"] + (f"?after={known}" if way == "query" else "")
        reader = await Reader.open(port, events, after=known if way == "header" else None)
        await reader.rest()
        assert reader.ids == list(range(known + 1, len(whole) + 1))
        assert reader.data == whole[known:]


async def test_the_header_counts_more_than_the_query(port, upstream):
    """An EventSource that reconnects uses its old address, with a new header."""
    upstream.script = send_pieces(numbered(5))
    made = await begin(port)
    reader = await Reader.open(port, made["events"] + "?after=1", after=4)
    await reader.rest()
    assert reader.ids == [5, 6, 7]


texts = st.text(st.sampled_from('aé漢🦉\u2028\x85 \\"\n'), max_size=6)
awkward = st.lists(
    st.one_of(
        texts.map(lambda text: token(text)),
        texts.map(lambda text: ('data: {"x":' + json.dumps(text, ensure_ascii=False)).encode()).map(
            lambda line: line.replace(b"\n", b"") + b"}\n\n"
        ),
        st.sampled_from([b": keep-alive\n\n", b"data: 1\ndata: 2\n\n", b"data: x\r\n\r\n"]),
    ),
    min_size=1,
    max_size=12,
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(events=awkward, data=st.data())
async def test_any_cuts_on_the_way_in_and_any_on_the_way_out(port, upstream, events, data):
    """Events cut anywhere, several in a read; connections lost after any byte."""
    stream = b"".join(events) + DONE
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    edges = sorted({0, len(stream), *cuts})
    pieces = [stream[a:b] for a, b in pairwise(edges)]
    upstream.script = send_pieces(pieces, pause=0.001)
    made = await begin(port)
    whole = await (await Reader.open(port, made["events"])).rest()
    seen, known = [], 0
    for bytes_read in data.draw(st.lists(st.integers(0, 200), max_size=6)):
        reader = await Reader.open(port, made["events"], after=known)
        if reader.status == 204:
            break
        raw = b""
        while len(raw) < bytes_read and (piece := await reader.connection.read()):
            raw += piece
        # The rest of what came is lost with the connection, in mid-event as likely as not.
        complete = raw[:bytes_read].rpartition(b"\n\n")[0]
        reader.close()
        lost = Reader(reader.connection)
        lost._text = ""
        for block in complete.decode().split("\n\n"):
            lost._take(block.split("\n")) if block else None
        seen += lost.seen
        known = seen[-1][0] if seen else 0
    last = await Reader.open(port, made["events"], after=known)
    if last.status == 200:
        seen += await last.rest()
    assert seen == whole
    assert [number for number, _ in seen] == list(range(1, len(whole) + 1))


async def test_losing_the_line_in_mid_answer_does_not_stop_it(port, upstream):
    upstream.script = send_pieces(numbered(100), pause=0.005)
    made = await begin(port)
    seen: list[tuple[int | None, str]] = []
    for stop in (5, 30, 31, 70):
        reader = await Reader.open(port, made["events"], after=len(seen))
        await reader.until(stop - len(seen))
        seen += reader.seen
        reader.close()
        await asyncio.sleep(0.05)
    seen += await (await Reader.open(port, made["events"], after=len(seen))).rest()
    assert [data for _, data in seen] == datas(b"".join(numbered(100)))
    assert not upstream.received[0].gone.is_set()


async def test_two_readers_at_once_each_get_everything(port, upstream):
    upstream.script = send_pieces(numbered(50), pause=0.004)
    made = await begin(port)
    first = await Reader.open(port, made["events"])
    await first.until(10)
    second = await Reader.open(port, made["events"])
    await asyncio.gather(first.rest(), second.rest())
    assert first.data == second.data == datas(b"".join(numbered(50)))


async def test_one_stream_has_a_bounded_number_of_readers(port, upstream):
    upstream.script = send_pieces(numbered(100), pause=0.05)
    made = await begin(port)
    readers = [await Reader.open(port, made["events"]) for _ in range(16)]
    refused = await ask(port, "GET", made["events"])
    assert refused.status == 429
    assert refused.json()["error"]["code"] == "too_many_readers"
    readers[0].close()
    await becomes(port, f"{STREAMS}/{made['id']}/poll", 200)


async def test_heartbeats_come_while_nothing_else_does(start_backend, upstream):
    async def script(request, answer):
        await asyncio.sleep(0.5)
        await answer.head()
        await answer.chunk(token("x"))
        await asyncio.sleep(0.5)
        await answer.chunk(DONE)
        await answer.end()

    upstream.script = script
    port = start_backend(heartbeat_seconds=0.1).port
    made = await begin(port)
    reader = await Reader.open(port, made["events"])
    await reader.until(1)
    before = reader.heartbeats
    await reader.rest()
    assert before >= 1
    assert reader.heartbeats - before >= 3
    # The generation's own heartbeats are no events.
    assert reader.ids == [1, 2]


@pytest.mark.parametrize("known", ["x", "-1", "1.5", "1e3", "٣", "9" * 30])
async def test_an_id_that_is_none_is_refused(port, upstream, known):
    made = await begin(port)
    for response in (
        await ask(
            port, "GET", made["events"], headers={"Last-Event-ID": known.encode().decode("latin-1")}
        ),
        await ask(port, "GET", f"{made['events']}?after={known}" if known.isascii() else "/x"),
    ):
        assert response.status in {400} if known.isascii() else {400, 404}


async def test_an_id_that_there_is_not_yet_is_refused(port, upstream):
    async def script(request, answer):
        await answer.head()
        await answer.chunk(token("x"))
        await request.gone.wait()

    upstream.script = script
    made = await begin(port)
    response = await ask(port, "GET", made["events"], headers={"Last-Event-ID": "99"})
    assert response.status == 400
    assert response.json()["error"]["code"] == "unknown_event"
    assert (await poll(port, made["id"], 99)).status == 400


async def test_what_the_buffer_had_to_drop_is_said_to_be_gone(start_backend, upstream):
    upstream.script = send_pieces(numbered(200))
    port = start_backend(stream_buffer_bytes=8000).port
    made = await begin(port)
    reader = await Reader.open(port, made["events"])
    await reader.rest()
    assert reader.data == datas(b"".join(numbered(200)))
    for response in (await ask(port, "GET", made["events"]), await poll(port, made["id"], 3)):
        assert response.status == 410
        assert response.json()["error"]["code"] == "events_gone"
    tail = await Reader.open(port, made["events"], after=200)
    await tail.rest()
    assert tail.ids == [201, 202]


async def test_a_reader_left_behind_by_another_is_told_so(start_backend, upstream):
    go = asyncio.Event()

    async def script(request, answer):
        await go.wait()
        await send_pieces([token("w" * 4000)] * 3000 + [DONE])(request, answer)

    upstream.script = script
    port = start_backend(stream_buffer_bytes=100_000).port
    made = await begin(port)
    slow = await Reader.open(port, made["events"], receive_buffer=8192)
    fast = await Reader.open(port, made["events"])
    go.set()
    await fast.rest(30)
    assert fast.ids == list(range(1, 3002))
    await slow.rest(30)
    assert slow.seen[-1] == (None, "[DONE]")
    number, data = slow.seen[-2]
    assert number is None
    assert json.loads(data)["error"]["code"] == "events_gone"
    known = [number for number in slow.ids if number is not None]
    assert known == list(range(1, len(known) + 1))


async def test_only_the_key_that_made_it_sees_it(port, upstream, files):
    write_keys(files.keys, alice=KEY, bob=OTHER_KEY)
    await becomes(port, "/v1/models", 200, key=OTHER_KEY)
    made = await begin(port)
    for method, path in (
        ("GET", ""),
        ("GET", "/events"),
        ("GET", "/poll"),
        ("POST", "/stop"),
        ("POST", "/ticket"),
    ):
        address = f"{STREAMS}/{made['id']}{path}"
        response = await ask(port, method, address, key=OTHER_KEY)
        assert response.status == 404
        assert response.json()["error"]["code"] == "stream_not_found"
        unknown = await ask(port, method, f"{STREAMS}/nothing{path}", key=OTHER_KEY)
        assert unknown.body == response.body, "it shows that there is such a stream"
        assert (await ask(port, method, address, key=None)).status == 401
    assert (await (await Reader.open(port, made["events"])).rest())[-1][1] == "[DONE]"


async def test_a_long_poll_gets_what_there_is_or_waits_for_it(port, upstream):
    go = asyncio.Event()

    async def script(request, answer):
        await answer.head()
        for event in numbered(2)[:-1]:
            await answer.chunk(event)
        await go.wait()
        await answer.chunk(token("late"))
        await asyncio.sleep(0.1)
        await answer.chunk(DONE)
        await answer.end()

    upstream.script = script
    made = await begin(port)
    await asyncio.sleep(0.05)
    first = (await poll(port, made["id"], 0)).json()
    assert [event["id"] for event in first["events"]] == [1, 2, 3]
    assert [content(event["data"]) for event in first["events"]] == ["", "0", "1"]
    assert first["ended"] is False
    assert (await poll(port, made["id"], 3)).json() == {"events": [], "ended": False}
    waiting = asyncio.create_task(poll(port, made["id"], 3, wait=5))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    go.set()
    late = (await asyncio.wait_for(waiting, 2)).json()
    assert [(event["id"], content(event["data"])) for event in late["events"]] == [(4, "late")]
    last = (await poll(port, made["id"], 4, wait=5)).json()
    assert last == {"events": [{"id": 5, "data": "[DONE]"}], "ended": True}
    assert (await poll(port, made["id"], 5, wait=5)).json() == {"events": [], "ended": True}
    for wait in ("26", "-1", "nan", "x"):
        path = f"{STREAMS}/{made['id']}/poll?after=0&wait={wait}"
        assert (await ask(port, "GET", path)).status == 400


REFUSALS = [
    (b"{", 400),
    (json.dumps({"model": "tiny"}).encode(), 400),
    (json.dumps({"model": "none", "messages": []}).encode(), 404),
    (chat(pad="x" * 2_000_000), 413),
]


@pytest.mark.parametrize(("body", "status"), REFUSALS)
async def test_what_is_refused_here_has_its_real_status(port, upstream, body, status):
    response = await ask(port, "POST", STREAMS, body)
    assert response.status == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert not upstream.received


@pytest.mark.parametrize("status", [400, 429, 503])
async def test_what_the_engine_refuses_at_once_has_its_real_status(port, upstream, logs, status):
    error = b'{"error":{"message":"too long","type":"t","param":null,"code":null}}'

    async def script(request, answer):
        await answer.whole(error, status, Retry_After="7")

    upstream.script = script
    response = await ask(port, "POST", STREAMS, chat())
    assert response.status == status
    assert response.body == error
    assert response.headers["retry-after"] == "7"
    line = await logs.next_request()
    assert line["status"] == status
    assert line["path"] == STREAMS


async def test_what_the_engine_refuses_late_ends_the_stream_honestly(port, upstream):
    async def script(request, answer):
        await asyncio.sleep(0.6)
        error = b'{"error":{"message":"too\\nlong","type":"t","param":null,"code":null}\n}'
        await answer.whole(error, 400)

    upstream.script = script
    made = await begin(port)
    reader = await Reader.open(port, made["events"])
    seen = await reader.rest()
    assert [number for number, _ in seen] == [1, 2]
    assert json.loads(seen[0][1])["error"]["message"] == "too\nlong"
    assert seen[1][1] == "[DONE]"
    assert (await Reader.open(port, made["events"], after=2)).status == 204


@pytest.mark.parametrize("way", ["reset", "end", "not a stream"])
async def test_what_breaks_behind_ends_the_stream_honestly(port, upstream, way):
    async def script(request, answer):
        if way == "not a stream":
            await answer.whole(b"{}")
            return
        await answer.head()
        await answer.chunk(token("one"))
        await asyncio.sleep(0.05)
        answer.reset() if way == "reset" else await answer.end()

    upstream.script = script
    if way == "not a stream":
        assert (await ask(port, "POST", STREAMS, chat())).status == 502
        return
    made = await begin(port)
    reader = await Reader.open(port, made["events"])
    await reader.rest()
    assert reader.ids == [1, 2, 3]
    body = b"".join(b"data: " + data.encode() + b"\n\n" for data in reader.data)
    assert error_of(body)["code"] == "upstream_error"
    told = (await ask(port, "GET", f"{STREAMS}/{made['id']}")).json()
    assert told["outcome"] == "upstream_error"


async def test_the_connection_of_the_post_serves_further_requests(port, upstream):
    """The generation goes on in the request's task: that must not hold its connection."""
    upstream.script = send_pieces(numbered(30), pause=0.02)
    connection = await Connection.open(port)
    await connection.send("POST", STREAMS, chat())
    assert await connection.head() == 201
    made = json.loads(await connection.rest())
    await connection.send("GET", made["events"])
    assert await connection.head() == 200
    reader = Reader(connection)
    await reader.rest()
    assert reader.data[-1] == "[DONE]"
    connection.close()
    await eventually(lambda: upstream.received)
