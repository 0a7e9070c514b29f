"""Two instances on one listening socket: a stream is reached wherever it lives."""

from __future__ import annotations

import asyncio
import socket

import pytest
from backend_client import Connection, ask
from backend_upstream import DONE, eventually, token
from streams_client import STREAMS, Reader, begin, poll


def tokens_until(event):
    async def script(request, answer):
        await answer.head()
        number = 0
        while not event.is_set() and not request.gone.is_set():
            await answer.chunk(token(str(number)))
            number += 1
            await asyncio.sleep(0.02)
        await answer.chunk(DONE)
        await answer.end()

    return script


@pytest.fixture
def instances(start_process, tmp_path):
    """Start an instance: what systemd and the release would give it."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    sockets = {name: str(tmp_path / f"{name}.sock") for name in ("a", "b")}

    def start(name, **changes):
        return start_process(
            "--private", sockets[name], listener=listener,
            environment={"MILLRACE_INSTANCE": name}, stream_peers=sockets,
            **{"drain_seconds": 20, **changes},
        )  # fmt: skip

    yield start
    listener.close()


def private(path):
    sock = socket.socket(socket.AF_UNIX)
    sock.setblocking(False)
    sock.connect(str(path))
    return Connection(sock)


async def serves(backend):
    await eventually(lambda: "Application startup complete" in backend.log, 20)


async def test_a_stream_is_resumed_through_the_other_instance_while_its_own_drains(
    instances, upstream
):
    done = asyncio.Event()
    upstream.script = tokens_until(done)
    old = instances("a")
    await serves(old)
    port = old.port
    made = await begin(port)
    assert made["id"].startswith("a-")
    first = await Reader.open(port, made["events"])
    await first.until(5)
    new = instances("b")
    await serves(new)
    old.terminate()
    await asyncio.sleep(0.5)
    first.close()
    # From here on only the other one accepts.
    known = len(first.seen)
    second = await Reader.open(port, made["events"], after=known)
    assert second.status == 200
    assert second.connection.headers["content-type"] == "text/event-stream; charset=utf-8"
    await second.until(10)
    told = (await ask(port, "GET", f"{STREAMS}/{made['id']}")).json()
    assert told["ended"] is False
    third = await Reader.open(
        port, f"{made['events']}?ticket={made['ticket']}", after=known, key=None
    )
    assert third.status == 200
    assert "set-cookie" in third.connection.headers
    polled = (await poll(port, made["id"], known)).json()
    assert polled["events"][0]["id"] == known + 1
    assert (await ask(port, "GET", made["events"], key="wrong")).status == 401
    done.set()
    seen = first.seen + await second.rest()
    assert [number for number, _ in seen] == list(range(1, len(seen) + 1))
    assert seen[-1][1] == "[DONE]"
    assert await third.rest() == seen[known:]
    await old.wait(10)
    # With its instance the stream has gone, unless a store keeps it.
    assert (await ask(port, "GET", made["events"])).status == 404
    new.terminate()


async def test_a_stop_reaches_the_other_instance(instances, upstream):
    upstream.script = tokens_until(asyncio.Event())
    old = instances("a")
    await serves(old)
    made = await begin(old.port)
    new = instances("b")
    await serves(new)
    old.terminate()
    await asyncio.sleep(0.5)
    response = await ask(old.port, "POST", f"{STREAMS}/{made['id']}/stop")
    assert response.json() == {"id": made["id"], "ended": True}
    await asyncio.wait_for(upstream.received[0].gone.wait(), 1)
    await old.wait(10)


async def test_a_reader_that_leaves_is_noticed_through_the_other_instance(instances, upstream):
    upstream.script = tokens_until(asyncio.Event())
    old = instances("a", stream_grace_seconds=1.5)
    await serves(old)
    made = await begin(old.port)
    first = await Reader.open(old.port, made["events"])
    new = instances("b")
    await serves(new)
    old.terminate()
    await asyncio.sleep(0.3)
    second = await Reader.open(old.port, made["events"])
    first.close()
    await second.until(len(first.seen) + 100)
    assert not upstream.received[0].gone.is_set()
    second.close()
    await asyncio.wait_for(upstream.received[0].gone.wait(), 3)
    await old.wait(10)


async def test_an_instance_that_dies_cuts_its_readers_and_its_streams_are_unknown(
    instances, upstream
):
    upstream.script = tokens_until(asyncio.Event())
    old = instances("a")
    await serves(old)
    made = await begin(old.port)
    new = instances("b")
    await serves(new)
    old.terminate()
    await asyncio.sleep(0.3)
    reader = await Reader.open(old.port, made["events"])
    await reader.until(3)
    old.process.kill()
    await reader.rest_or_cut()
    assert not reader.ended, "a cut is not an end"
    assert reader.data[-1] != "[DONE]"
    assert (await ask(old.port, "GET", made["events"])).status == 404


async def test_nothing_is_passed_on_twice(instances, upstream, tmp_path):
    one = instances("a")
    await serves(one)
    two = instances("b")
    await serves(two)
    for tag in ("a", "b", "c"):
        path = f"{STREAMS}/{tag}-{'0' * 32}/events"
        response = await ask(one.port, "GET", path)
        assert response.status == 404
        assert response.json()["error"]["code"] == "stream_not_found"
    made = await begin(one.port)
    other = "b" if made["id"].startswith("a-") else "a"
    for headers, status in (({}, 200), ({"X-Millrace-Passed-On": "1"}, 404)):
        connection = private(tmp_path / f"{other}.sock")
        await connection.send("GET", f"{STREAMS}/{made['id']}", headers=headers)
        assert await connection.head() == status
