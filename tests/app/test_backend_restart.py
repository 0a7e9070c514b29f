"""An engine that restarts is waited for, with heartbeats, and no prompt is run twice."""

from __future__ import annotations

import asyncio
import time

import pytest
from backend_client import Connection, ask, chat, error_of
from backend_upstream import DONE, ROLE, answer_with_tokens, eventually, token

CHAT = "/v1/chat/completions"
HEARTBEAT = b": heartbeat\n\n"
NO_ENGINE = (
    b'{"error":{"message":"no engine can be reached","type":"upstream_error","param":null,'
    b'"code":"engine_unreachable"}}'
)


async def refuse(request, answer):
    await answer.whole(NO_ENGINE, 503, Retry_After="2")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_gateway_that_is_away_is_waited_for(start_backend, upstream, logs, stream):
    port = start_backend(restart_wait_seconds=20, heartbeat_seconds=0.3).port
    await upstream.stop()
    asking = asyncio.create_task(ask(port, "POST", CHAT, chat(stream)))
    await asyncio.sleep(1)
    await upstream.start()
    response = await asyncio.wait_for(asking, 10)
    assert response.status == 200
    if stream:
        assert response.body.startswith(HEARTBEAT * 2)
        assert response.body.endswith(ROLE + token("Hi") + DONE)
    line = await logs.next_request()
    assert line["ended"] == "complete"
    assert line["resent"] >= 1


async def test_engines_that_are_away_are_waited_for(start_backend, upstream):
    port = start_backend(restart_wait_seconds=20).port
    upstream.script = refuse
    asking = asyncio.create_task(ask(port, "POST", CHAT, chat()))
    await eventually(lambda: len(upstream.received) >= 2)
    upstream.script = answer_with_tokens
    response = await asyncio.wait_for(asking, 10)
    assert response.body == ROLE + token("Hi") + DONE


async def test_the_wait_is_bounded_and_told(start_backend, upstream):
    port = start_backend(restart_wait_seconds=2).port
    upstream.script = refuse
    began = time.monotonic()
    response = await ask(port, "POST", CHAT, chat())
    assert response.status == 503
    assert response.headers["retry-after"] == "2"
    assert time.monotonic() - began < 3
    with_beats = start_backend(restart_wait_seconds=2, heartbeat_seconds=0.3).port
    response = await ask(with_beats, "POST", CHAT, chat())
    assert response.status == 200
    assert error_of(response.body)["code"] == "engine_unreachable"
    assert response.body.endswith(DONE)


@pytest.mark.parametrize("status", [400, 429, 500, 503])
async def test_an_engines_own_refusal_is_not_asked_again(start_backend, upstream, status):
    async def busy(request, answer):
        await answer.whole(b'{"error":{"message":"no","code":"busy"}}', status)

    port = start_backend(restart_wait_seconds=20).port
    upstream.script = busy
    assert (await ask(port, "POST", CHAT, chat())).status == status
    assert len(upstream.received) == 1


async def test_an_answer_that_has_begun_is_never_begun_again(start_backend, upstream):
    async def cut(request, answer):
        await answer.head()
        await answer.chunk(ROLE + token("a"))

    port = start_backend(restart_wait_seconds=20).port
    upstream.script = cut
    response = await ask(port, "POST", CHAT, chat())
    assert response.body.startswith(ROLE + token("a"))
    assert error_of(response.body)["code"] == "upstream_error"
    assert len(upstream.received) == 1


async def test_who_leaves_while_it_waits_is_not_sent_again(start_backend, upstream, logs):
    port = start_backend(restart_wait_seconds=20).port
    upstream.script = refuse
    connection = await Connection.open(port)
    await connection.send("POST", CHAT, chat())
    await eventually(lambda: upstream.received)
    connection.sock.close()
    assert (await logs.next_request())["ended"] == "client_left"
    seen = len(upstream.received)
    await asyncio.sleep(2)
    assert len(upstream.received) == seen
