"""The relay: bytes as they came, heartbeats between events, honest endings."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time

import pytest
from backend_client import PROMPT, Connection, CutError, ask, chat, error_of, events
from backend_upstream import DONE, ROLE, eventually, send_pieces, token
from conftest import UPSTREAM_KEY

CHAT = "/v1/chat/completions"
HEARTBEAT = b": heartbeat\n\n"


async def open_chat(port: int, body: bytes | None = None, **headers: str) -> Connection:
    connection = await Connection.open(port)
    await connection.send("POST", CHAT, body or chat(), headers=headers)
    return connection


AWKWARD = {
    "plain": ROLE + token("Hello") + DONE,
    "unicode line separators": token("a\u2028b\u2029c\x85d") + DONE,
    "raw utf-8": 'data: {"x":"héé 漢字 🦉 \u2028"}\n\n'.encode() + DONE,
    "not utf-8": b"data: \xff\xfe\x80\n\n" + DONE,
    "crlf": b"data: 1\r\n\r\ndata: 2\r\n\r\ndata: [DONE]\r\n\r\n",
    "cr": b"data: 1\r\rdata: 2\r\rdata: [DONE]\r\r",
    "mixed line ends": b"data: 1\n\r\ndata: 2\r\n\ndata: 3\r\r\ndata: [DONE]\n\n",
    "comments and fields": b": hi\n\nid: 7\nretry: 10\nevent: e\ndata: a\ndata: b\n\n" + DONE,
    "blank lines": b"\n\n\n" + token("x") + b"\n\n\n" + DONE + b"\n",
    "trailing spaces": b"data: x  \n\ndata:  y\n\n" + DONE,
    "nul": b"data: \x00\n\n" + DONE,
    "talks about done": token("data: [DONE]") + DONE,
    "a long event": token("w" * 100_000) + DONE,
    "a very long event": token("w" * 2_000_000) + DONE,
    "many events": b"".join(token(str(i)) for i in range(5000)) + DONE,
}


@pytest.mark.parametrize("payload", AWKWARD.values(), ids=AWKWARD)
async def test_bytes_in_are_bytes_out(port, upstream, payload):
    upstream.script = send_pieces([payload])
    connection = await open_chat(port)
    assert await connection.head() == 200
    assert await connection.rest() == payload


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
async def test_bytes_survive_any_split(port, upstream, size):
    payload = AWKWARD["mixed line ends"] + AWKWARD["raw utf-8"]
    pieces = [payload[i : i + size] for i in range(0, len(payload), size)]
    upstream.script = send_pieces(pieces, pause=0.001)
    connection = await open_chat(port)
    await connection.head()
    assert await connection.rest() == payload


async def test_each_paced_event_arrives_alone_and_at_once(port, upstream):
    sent: list[float] = []

    async def script(request, answer):
        await answer.head()
        for number in range(60):
            sent.append(time.monotonic())
            await answer.chunk(token(str(number)))
            await asyncio.sleep(0.01)
        await answer.chunk(DONE)
        await answer.end()

    upstream.script = script
    connection = await open_chat(port)
    await connection.head()
    await connection.rest()
    seen = [at for at, data in connection.reads for _ in range(data.count(b'"content"'))]
    delays = sorted(got - put for got, put in zip(seen, sent, strict=True))
    reads = len([data for _, data in connection.reads if b'"content"' in data])
    assert 60 / reads <= 1.1
    assert delays[30] < 0.02, f"median delay {delays[30]:.4f} s"


async def test_headers_of_a_stream(port, upstream):
    connection = await open_chat(port, **{"X-Request-Id": "from-nginx-1234"})
    await connection.head()
    assert connection.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert connection.headers["cache-control"] == "no-cache, no-transform"
    assert connection.headers["x-accel-buffering"] == "no"
    assert connection.headers["x-request-id"] == "from-nginx-1234"
    await connection.rest()
    request = await upstream.next_request()
    assert request.headers["x-request-id"] == "from-nginx-1234"


async def test_what_the_upstream_gets(port, upstream):
    body = b' {"model":"tiny", "messages":[],  "stream":true,"seed":1,"user":"\\u00e9","seed":2}\n'
    sent = {
        "X-LiteLLM-Api-Key": "sk-mine",
        "Cookie": "a=b",
        "Accept-Encoding": "gzip",
        "TE": "trailers",
        "Connection": "keep-alive, X-Hop",
        "X-Hop": "1",
        "X-Forwarded-For": "1.2.3.4",
        "Content-Type": "text/plain",
    }
    connection = await open_chat(port, body, **sent)
    await connection.head()
    await connection.rest()
    request = await upstream.next_request()
    assert (request.method, request.path) == ("POST", "/vllm/v1/chat/completions")
    # What was checked and nothing else, and the engine is asked to count.
    body = (
        b'{"model":"tiny","messages":[],"stream":true,"seed":2,"user":"\\u00e9",'
        b'"stream_options":{"include_usage":true}}'
    )
    assert request.body == body
    request.headers.pop("host")
    request_id = request.headers.pop("x-request-id")
    assert len(request_id) == 32
    # LiteLLM hands on only what has its prefix, without it.
    assert request.headers.pop("x-pass-x-request-id") == request_id
    assert request.headers == {
        "authorization": f"Bearer {UPSTREAM_KEY}",
        "content-type": "application/json",
        "content-length": str(len(body)),
        "accept": "text/event-stream",
        "accept-encoding": "identity",
    }


@pytest.mark.parametrize("bad", ["short", "x" * 200, "with space 12", 'quote"12345'])
async def test_an_insane_request_id_is_replaced(port, upstream, bad):
    response = await ask(port, "GET", "/v1/models", headers={"X-Request-Id": bad})
    assert response.headers["x-request-id"] != bad
    assert len(response.headers["x-request-id"]) == 32


async def test_upstream_connections_are_used_again(port, upstream):
    for _ in range(5):
        assert (await ask(port, "POST", CHAT, chat())).status == 200
    # One for these, one for the readiness probe.
    assert upstream.connections <= 2


async def test_whole_answer(port, upstream):
    response = await ask(port, "POST", CHAT, chat(stream=False))
    assert response.status == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json()["choices"][0]["message"]["content"] == "Hi"


async def test_a_long_whole_answer(port, upstream):
    payload = json.dumps({"x": "y" * 3_000_000}).encode()

    async def script(request, answer):
        await answer.whole(payload)

    upstream.script = script
    response = await ask(port, "POST", CHAT, chat(stream=False))
    assert response.body == payload


# --- heartbeats


async def test_heartbeats_from_the_moment_of_acceptance(start_backend, upstream, logs):
    async def script(request, answer):
        await asyncio.sleep(0.7)
        await answer.head()
        await answer.chunk(ROLE + token("late") + DONE)
        await answer.end()

    upstream.script = script
    connection = await open_chat(start_backend(heartbeat_seconds=0.2).port)
    began = time.monotonic()
    assert await connection.head() == 200
    assert 0.15 < time.monotonic() - began < 0.4
    assert connection.headers["content-type"] == "text/event-stream; charset=utf-8"
    body = await connection.rest()
    beats = body.count(HEARTBEAT)
    assert beats in (2, 3)
    assert body == HEARTBEAT * beats + ROLE + token("late") + DONE
    line = await logs.next_request()
    assert line["heartbeats"] == beats
    assert 0.6 < line["first_byte_seconds"] < 1.2


@pytest.mark.parametrize(
    ("before", "rest"),
    [
        (b'data: {"a', b'":1}\n\n'),
        (b'data: {"a":1}', b"\n\n"),
        (b'data: {"a":1}\n', b"\n"),
        (b'data: {"a":1}\r\n', b"\r\n"),
        (b'data: {"a":1}\r\n\r', b"\n"),
        (b'data: {"a":1}\r', b"\r"),
        (b"id: 1\nda", b'ta: {"a":1}\n\n'),
    ],
)
async def test_a_stall_in_mid_event_gets_heartbeats_only_between_events(
    start_backend, upstream, before, rest
):
    async def script(request, answer):
        await answer.head()
        await answer.chunk(token("first") + before)
        await asyncio.sleep(0.25)
        await answer.chunk(rest)
        await answer.chunk(DONE)
        await answer.end()

    upstream.script = script
    connection = await open_chat(start_backend(heartbeat_seconds=0.1).port)
    await connection.head()
    body = await connection.rest()
    assert body.count(HEARTBEAT) in (1, 2)
    assert events(body) == events(token("first") + before + rest + DONE)
    whole = (before + rest).removesuffix(b"\n")  # CR | LF: the event is complete at the CR
    assert whole in body


async def test_no_heartbeat_inside_an_event_too_long_to_hold(start_backend, upstream):
    event = token("w" * 400_000)

    async def script(request, answer):
        await answer.head()
        await answer.chunk(event[:350_000])
        await asyncio.sleep(0.5)
        await answer.chunk(event[350_000:])
        await asyncio.sleep(0.3)
        await answer.chunk(DONE)
        await answer.end()

    upstream.script = script
    connection = await open_chat(start_backend(heartbeat_seconds=0.2).port)
    await connection.head()
    body = await connection.rest()
    assert body.replace(HEARTBEAT, b"") == event + DONE
    assert body.startswith(event + HEARTBEAT)


async def test_no_heartbeats_while_tokens_flow(start_backend, upstream):
    upstream.script = send_pieces([token(str(i)) for i in range(12)] + [DONE], pause=0.05)
    connection = await open_chat(start_backend(heartbeat_seconds=0.3).port)
    await connection.head()
    assert HEARTBEAT not in await connection.rest()


async def test_no_heartbeats_in_a_whole_answer(start_backend, upstream):
    async def script(request, answer):
        await asyncio.sleep(0.5)
        await answer.whole(b'{"choices":[]}')

    upstream.script = script
    response = await ask(
        start_backend(heartbeat_seconds=0.1).port, "POST", CHAT, chat(stream=False)
    )
    assert (response.status, response.body) == (200, b'{"choices":[]}')


# --- failures before the first byte: a real status code


async def refuse(request, answer):
    body = b'{"error": {"message": "too long", "type": "t", "param": null, "code": 400}}'
    await answer.whole(body, 400, Retry_After="7")


@pytest.mark.parametrize("stream", [True, False])
async def test_an_upstream_error_passes_through(port, upstream, stream):
    upstream.script = refuse
    response = await ask(port, "POST", CHAT, chat(stream))
    assert response.status == 400
    assert response.headers["retry-after"] == "7"
    assert response.headers["content-type"] == "application/json"
    assert (
        response.body
        == b'{"error": {"message": "too long", "type": "t", "param": null, "code": 400}}'
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"object": "error", "message": "old vLLM"}', "old vLLM"),
        (b"<html>Bad Gateway</html>", "The model server answered with status 502."),
        (b"", "The model server answered with status 502."),
        (b'["x"]', "The model server answered with status 502."),
    ],
)
async def test_an_upstream_error_in_another_shape_is_put_into_ours(port, upstream, body, message):
    async def script(request, answer):
        await answer.whole(body, 502, "text/html")

    upstream.script = script
    response = await ask(port, "POST", CHAT, chat())
    assert response.status == 502
    assert response.json()["error"]["message"] == message


async def test_an_endpoint_that_the_engine_has_not(port, upstream):
    async def script(request, answer):
        await answer.whole(b'{"detail": "Not Found"}', 404)

    upstream.script = script
    body = json.dumps({"model": "tiny", "input": "hi"}).encode()
    response = await ask(port, "POST", "/v1/embeddings", body)
    assert response.status == 404
    error = response.json()["error"]
    assert error["code"] == "unsupported_endpoint"
    assert "/v1/embeddings" in error["message"]


@pytest.mark.parametrize("status", [401, 403])
async def test_our_own_key_refused_is_not_the_clients_fault(port, upstream, status):
    async def script(request, answer):
        await answer.whole(b'{"error":{"message":"bad key"}}', status)

    upstream.script = script
    response = await ask(port, "POST", CHAT, chat())
    assert response.status == 502
    assert "www-authenticate" not in response.headers


async def test_redirects_are_not_followed(port, upstream):
    async def script(request, answer):
        await answer.whole(b"", 307, Location="/elsewhere")

    upstream.script = script
    assert (await ask(port, "POST", CHAT, chat())).status == 502
    assert len(upstream.received) == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_nobody_listens(port, upstream, logs, stream):
    await upstream.stop()
    response = await ask(port, "POST", CHAT, chat(stream))
    assert response.status == 503
    assert int(response.headers["retry-after"]) >= 1
    assert response.json()["error"]["code"] == "service_unavailable"
    assert (await logs.next_request())["ended"] == "upstream_error"


@pytest.fixture
def crowded_port():
    """A port with a full queue: whoever connects hears nothing until the listener is closed."""
    with contextlib.ExitStack() as sockets:
        full = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            other = sockets.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(full.getsockname())
        yield full


async def test_connecting_takes_too_long(start_backend, crowded_port):
    url = f"http://127.0.0.1:{crowded_port.getsockname()[1]}"
    backend = start_backend(upstream_url=url, connect_timeout_seconds=0.3)
    response = await ask(backend.port, "POST", CHAT, chat())
    assert response.status == 504


async def test_a_gateway_too_busy_to_take_connections_is_waited_for(
    start_backend, upstream, logs, crowded_port
):
    await upstream.stop()
    upstream.port = crowded_port.getsockname()[1]
    url = f"http://127.0.0.1:{upstream.port}"
    settings = {"connect_timeout_seconds": 0.3, "restart_wait_seconds": 20}
    port = start_backend(upstream_url=url, **settings).port
    asking = asyncio.create_task(ask(port, "POST", CHAT, chat()))
    await asyncio.sleep(1)
    assert not asking.done()
    crowded_port.close()
    await upstream.start()
    response = await asyncio.wait_for(asking, 10)
    assert response.body == ROLE + token("Hi") + DONE
    assert (await logs.next_request())["resent"] >= 1


async def close_at_once(request, answer):
    pass


async def reset_at_once(request, answer):
    answer.reset()


async def speak_gibberish(request, answer):
    await answer.raw(b"220 smtp ready\r\n\r\n")


async def close_after_head(request, answer):
    await answer.head()


async def close_in_first_event(request, answer):
    await answer.head()
    await answer.chunk(b'data: {"choi')


async def end_without_an_event(request, answer):
    await answer.head()
    await answer.end()


async def compress_unasked(request, answer):
    await answer.head(Content_Encoding="gzip")
    await answer.chunk(b"\x1f\x8b")
    await answer.end()


@pytest.mark.parametrize(
    "script",
    [
        close_at_once,
        reset_at_once,
        speak_gibberish,
        close_after_head,
        close_in_first_event,
        end_without_an_event,
        compress_unasked,
    ],
)
async def test_a_broken_upstream_before_the_first_event_is_a_502(port, upstream, script):
    upstream.script = script
    response = await ask(port, "POST", CHAT, chat())
    assert response.status == 502
    assert response.json()["error"]["type"] == "server_error"


async def test_a_whole_answer_cut_short_is_a_502(port, upstream):
    async def script(request, answer):
        await answer.head(200, "application/json", Content_Length="1000", Transfer_Encoding="")
        await answer.raw(b'{"choices": [')

    upstream.script = script
    response = await ask(port, "POST", CHAT, chat(stream=False))
    assert response.status == 502


async def test_a_long_whole_answer_cut_short_is_cut(port, upstream):
    async def script(request, answer):
        await answer.head(200, "application/json", Content_Length="9000000", Transfer_Encoding="")
        await answer.raw(b" " * 3_000_000)

    upstream.script = script
    with pytest.raises(CutError):
        await ask(port, "POST", CHAT, chat(stream=False))


@pytest.mark.parametrize("stream", [True, False])
async def test_the_first_byte_never_comes(start_backend, upstream, logs, stream):
    async def script(request, answer):
        await request.gone.wait()

    upstream.script = script
    began = time.monotonic()
    backend = start_backend(first_byte_timeout_seconds=0.4)
    response = await ask(backend.port, "POST", CHAT, chat(stream))
    assert response.status == 504
    assert 0.3 < time.monotonic() - began < 2
    assert response.json()["error"]["code"] == "upstream_timeout"
    assert (await logs.next_request())["ended"] == "upstream_timeout"
    await asyncio.wait_for((await upstream.next_request()).gone.wait(), 2)


# --- failures after it: an error event, never a silent cut


async def test_an_error_after_a_heartbeat_is_an_event(start_backend, upstream):
    async def script(request, answer):
        await asyncio.sleep(0.3)
        await answer.whole(
            b'{"error": {\n"message": "full",\r\n "type": "t", "param": null, "code": "429"}}', 429
        )

    upstream.script = script
    connection = await open_chat(start_backend(heartbeat_seconds=0.15).port)
    assert await connection.head() == 200
    assert error_of(await connection.rest())["message"] == "full"


async def test_the_first_byte_never_comes_after_heartbeats(start_backend, upstream):
    async def script(request, answer):
        await request.gone.wait()

    upstream.script = script
    backend = start_backend(heartbeat_seconds=0.15, first_byte_timeout_seconds=0.5)
    connection = await open_chat(backend.port)
    body = await connection.rest() if await connection.head() == 200 else b""
    assert body.count(HEARTBEAT) >= 2
    assert error_of(body)["code"] == "upstream_timeout"


HALF = b'data: {"choices":[{"delta":{"content":"never to be se'


async def cut(request, answer):
    pass


async def reset(request, answer):
    answer.reset()


async def cut_in_a_chunk(request, answer):
    await answer.raw(b"40\r\ndata: x")


async def break_the_framing(request, answer):
    await answer.raw(b"zanzibarine\r\n")


async def end_politely(request, answer):
    await answer.end()


@pytest.mark.parametrize("half", [b"", HALF, b"data: x\n", b"data: x\r\n\r", b"id: 1\n"])
@pytest.mark.parametrize("how", [cut, reset, cut_in_a_chunk, end_politely])
async def test_an_upstream_that_fails_in_mid_stream(port, upstream, logs, half, how):
    async def script(request, answer):
        await answer.head()
        await answer.chunk(token("one"))
        await answer.chunk(token("two") + half)
        await asyncio.sleep(0.05)
        await how(request, answer)

    upstream.script = script
    connection = await open_chat(port)
    assert await connection.head() == 200
    body = await connection.rest()
    assert body.startswith(token("one") + token("two"))
    whole_events = [e for e in events(body) if e != "x"]
    assert [json.loads(e).get("choices") for e in whole_events[:2]] != [None, None]
    if half != b"data: x\r\n\r":
        error_of(body)
        assert len(events(body)) == 4  # one, two, the error, [DONE]: no half event
    assert events(body)[-1] == "[DONE]"
    assert (await logs.next_request())["ended"] == "upstream_error"


async def test_an_upstream_that_no_longer_speaks_http(start_backend, upstream, logs):
    """aiohttp wakes nobody then: the guard has to see it."""

    async def script(request, answer):
        await answer.head()
        await answer.chunk(token("one") + HALF)
        await asyncio.sleep(0.05)
        await break_the_framing(request, answer)

    upstream.script = script
    connection = await open_chat(start_backend(heartbeat_seconds=0.3).port)
    await connection.head()
    body = await connection.rest(3)
    assert body.startswith(token("one"))
    assert error_of(body)["code"] == "upstream_error"
    assert (await logs.next_request())["ended"] == "upstream_error"


async def test_silence_in_mid_stream(start_backend, upstream, logs):
    async def script(request, answer):
        await answer.head()
        await answer.chunk(token("one") + HALF)
        await request.gone.wait()

    upstream.script = script
    connection = await open_chat(start_backend(idle_timeout_seconds=0.4).port)
    await connection.head()
    body = await connection.rest()
    assert body.startswith(token("one"))
    assert error_of(body)["code"] == "upstream_timeout"
    assert (await logs.next_request())["ended"] == "upstream_timeout"
    await asyncio.wait_for((await upstream.next_request()).gone.wait(), 2)


async def test_comments_of_the_upstream_are_life(start_backend, upstream):
    upstream.script = send_pieces([b": keep-alive\n\n"] * 8 + [token("x"), DONE], pause=0.1)
    connection = await open_chat(start_backend(idle_timeout_seconds=0.4).port)
    await connection.head()
    assert (await connection.rest()).endswith(token("x") + DONE)


async def test_a_failure_inside_an_event_too_long_to_hold(port, upstream):
    async def script(request, answer):
        await answer.head()
        await answer.chunk(token("w" * 600_000)[:500_000])
        await asyncio.sleep(0.1)

    upstream.script = script
    connection = await open_chat(port)
    await connection.head()
    parsed = events(await connection.rest())
    assert "error" in json.loads(parsed[-2])
    assert parsed[-1] == "[DONE]"


async def test_an_engine_error_passes_as_it_is(port, upstream):
    payload = token("one") + b'data: {"error":{"message":"engine died","code":500}}\n\n' + DONE
    upstream.script = send_pieces([payload])
    connection = await open_chat(port)
    await connection.head()
    assert await connection.rest() == payload


@pytest.mark.parametrize("how", [cut, reset, cut_in_a_chunk])
async def test_after_done_nothing_is_missing(port, upstream, logs, how):
    async def script(request, answer):
        await answer.head()
        await answer.chunk(token("one") + DONE)
        await asyncio.sleep(0.05)
        await how(request, answer)

    upstream.script = script
    connection = await open_chat(port)
    await connection.head()
    assert await connection.rest() == token("one") + DONE
    assert (await logs.next_request())["ended"] == "complete"


async def test_after_done_an_upstream_that_lingers_is_not_waited_for(start_backend, upstream, logs):
    async def script(request, answer):
        await answer.head()
        await answer.chunk(token("one") + DONE)
        await request.gone.wait()

    upstream.script = script
    connection = await open_chat(start_backend(idle_timeout_seconds=0.3).port)
    await connection.head()
    assert await connection.rest() == token("one") + DONE
    assert (await logs.next_request())["ended"] == "complete"


async def test_done_without_its_blank_line_is_completed(port, upstream):
    upstream.script = send_pieces([token("one") + b"data: [DONE]"])
    connection = await open_chat(port)
    await connection.head()
    assert events(await connection.rest())[-1] == "[DONE]"


async def test_the_connection_serves_again_after_a_bad_end(port, upstream):
    async def script(request, answer):
        await answer.head()
        await answer.chunk(token("one"))

    upstream.script = script
    connection = await open_chat(port)
    await connection.head()
    error_of(await connection.rest())
    await connection.send("GET", "/v1/models")
    assert await connection.head() == 200


async def test_no_text_of_prompt_or_answer_in_the_log(start_backend, upstream, logs):
    port = start_backend(heartbeat_seconds=0.5).port
    secret = "quixotryan"

    async def script(request, answer):
        await answer.head()
        await answer.chunk(token(secret))
        await asyncio.sleep(0.05)
        # Parsers quote what they choke on.
        await answer.raw(b"%b\r\n" % secret.encode())

    upstream.script = script
    connection = await open_chat(port)
    await connection.head()
    error_of(await connection.rest())

    async def gibberish(request, answer):
        await answer.raw(secret.encode() + b"\r\n\r\n")

    upstream.script = gibberish
    assert (await ask(port, "POST", CHAT, chat())).status == 502
    await ask(port, "POST", CHAT, chat()[:-1])
    await ask(port, "POST", CHAT, chat(model=secret))
    await ask(port, "POST", CHAT, chat(stream=secret))
    text = "\n".join(logs.lines)
    await eventually(lambda: len(logs.requests()) == 5)
    assert secret not in text
    assert PROMPT not in text
    assert "zanzibarine" not in text
