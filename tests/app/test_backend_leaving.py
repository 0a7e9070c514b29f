"""Clients that leave and clients that read slowly."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from backend_client import Connection, becomes, chat
from backend_upstream import DONE, Flood, token

CHAT = "/v1/chat/completions"


async def endless(request, answer):
    await answer.head()
    while not request.gone.is_set():
        await answer.chunk(token("again"))
        await asyncio.sleep(0.01)


async def stall_after_one(request, answer):
    await answer.head()
    await answer.chunk(token("one"))
    await request.gone.wait()


async def stall_in_mid_event(request, answer):
    await answer.head()
    await answer.chunk(token("one") + b"data: {")
    await request.gone.wait()


async def never_answer(request, answer):
    await request.gone.wait()


async def head_only(request, answer):
    await answer.head(200, "application/json")
    await request.gone.wait()


@pytest.mark.parametrize(
    ("script", "stream", "wait_for"),
    [
        (endless, True, b"again"),
        (stall_after_one, True, b"one"),
        (stall_in_mid_event, True, b"one"),
        (never_answer, True, None),
        (never_answer, False, None),
        (head_only, False, None),
    ],
)
async def test_the_upstream_is_closed_when_the_client_leaves(
    port, upstream, logs, script, stream, wait_for
):
    upstream.script = script
    connection = await Connection.open(port)
    await connection.send("POST", CHAT, chat(stream))
    request = await upstream.next_request()
    if wait_for is not None:
        await connection.head()
        await connection.until(wait_for)
    else:
        await asyncio.sleep(0.1)
    assert not request.gone.is_set()
    left = time.monotonic()
    connection.close()
    await asyncio.wait_for(request.gone.wait(), 2)
    assert request.gone_at - left < 0.5
    assert (await logs.next_request())["ended"] == "client_left"


async def test_a_client_that_leaves_while_it_does_not_read(port, upstream, logs):
    """The pump is then waiting to write, not to read."""

    async def flood(request, answer):
        await answer.head()
        while not request.gone.is_set():
            await answer.chunk(token("w" * 8000))

    upstream.script = flood
    connection = await Connection.open(port, receive_buffer=8192)
    await connection.send("POST", CHAT, chat())
    request = await upstream.next_request()
    await asyncio.sleep(0.5)
    assert not request.gone.is_set()
    connection.close()
    await asyncio.wait_for(request.gone.wait(), 2)
    assert (await logs.next_request())["ended"] == "client_left"


async def test_a_client_that_leaves_in_its_own_request(port, upstream, logs):
    connection = await Connection.open(port)
    await connection.send("POST", CHAT, chat()[:-5], headers={"Content-Length": str(len(chat()))})
    await asyncio.sleep(0.1)
    connection.close()
    assert (await logs.next_request())["ended"] == "client_left"
    assert not upstream.received


async def test_a_client_that_leaves_after_heartbeats(start_backend, upstream):
    upstream.script = never_answer
    connection = await Connection.open(start_backend(heartbeat_seconds=0.1).port)
    await connection.send("POST", CHAT, chat())
    await connection.head()
    await connection.until(b": heartbeat")
    connection.close()
    await asyncio.wait_for((await upstream.next_request()).gone.wait(), 2)


async def test_others_are_not_hurt_by_those_who_leave(port, upstream):
    async def script(request, answer):
        await answer.head()
        for number in range(100):
            await answer.chunk(token(str(number)))
            await asyncio.sleep(0.005)
        await answer.chunk(DONE)
        await answer.end()

    upstream.script = script
    staying = [await Connection.open(port) for _ in range(10)]
    leaving = [await Connection.open(port) for _ in range(10)]
    for connection in (*staying, *leaving):
        await connection.send("POST", CHAT, chat())
    await asyncio.sleep(0.2)
    for connection in leaving:
        connection.close()
    whole = b"".join(token(str(number)) for number in range(100)) + DONE
    for connection in staying:
        await connection.head()
        assert await connection.rest() == whole


def resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


async def test_long_prompts_are_not_kept_while_their_answers_run(start_process, upstream):
    upstream.script = stall_after_one
    backend = start_process(max_body_bytes=16_000_000)
    await becomes(backend.port, "/healthz", 200, key=None, seconds=20)
    prompt = chat(pad="x" * 8_000_000)
    connections = []
    before = 0
    for _ in range(10):
        connections.append(await Connection.open(backend.port))
        await connections[-1].send("POST", CHAT, prompt)
        await connections[-1].head()
        before = before or resident_bytes(backend.process.pid)
    assert resident_bytes(backend.process.pid) - before < 16_000_000
    for connection in connections:
        connection.close()


async def test_a_slow_client_holds_the_engine_back_in_bounded_memory(
    start_process, upstream, files
):
    event = token("w" * 4000)
    flood = Flood(event, 60_000)  # 240 MB, were it all taken
    upstream.script = flood
    backend = start_process(heartbeat_seconds=5, idle_timeout_seconds=0.5)
    connection = await Connection.open(backend.port, receive_buffer=8192)
    await connection.send("POST", CHAT, chat())
    await connection.head()
    before = resident_bytes(backend.process.pid)
    await asyncio.sleep(1.5)  # Longer than the idle time: the silence is the client's.
    stuck_at = flood.sent
    await asyncio.sleep(0.5)
    assert flood.sent == stuck_at, "the upstream was never held back"
    assert not upstream.received[0].gone.is_set(), "the client's silence was held against it"
    # What is under way sits in the kernel's socket buffers, not in the backend.
    assert flood.sent < flood.total / 4
    assert resident_bytes(backend.process.pid) - before < 4 * 1024 * 1024
    # Then it reads on, and nothing is lost or added.
    body = b""
    while len(body) < 100 * len(event):
        piece = await connection.read()
        assert piece
        body += piece
    assert body.startswith(event * 100)
    connection.close()
