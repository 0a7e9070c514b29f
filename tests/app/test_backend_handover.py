"""Two processes on one listening socket, one taking over from the other: nobody is lost."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
from pathlib import Path

import pytest
from backend_client import Connection, chat, error_of
from backend_upstream import DONE, eventually, token

CHAT = "/v1/chat/completions"
TOKENS = b"".join(token(str(number)) for number in range(12)) + DONE


async def tokens(request, answer):
    await answer.head()
    for number in range(12):
        await answer.chunk(token(str(number)))
        await asyncio.sleep(0.02)
    await answer.chunk(DONE)
    await answer.end()


class Manager:
    """systemd's end: a listening socket that outlives the processes, and what they told."""

    def __init__(self, folder: Path) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self.listener.getsockname()[1]
        self.words = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.words.bind(str(folder / "notify"))
        self.words.setblocking(False)
        self.environment = {"NOTIFY_SOCKET": str(folder / "notify")}
        self.told: list[str] = []

    def heard(self, word: str) -> bool:
        while True:
            try:
                self.told += self.words.recv(4096).decode().splitlines()
            except BlockingIOError:
                return any(line.startswith(word) for line in self.told)

    async def ready(self) -> None:
        self.told.clear()
        await eventually(lambda: self.heard("READY=1"), 20)


@pytest.fixture
def manager(tmp_path):
    made = Manager(tmp_path)
    yield made
    made.listener.close()
    made.words.close()


def private_peer(path):
    peer = socket.socket(socket.AF_UNIX)
    peer.setblocking(False)
    peer.connect(str(path))
    return Connection(peer)


async def open_stream(connection):
    await connection.send("POST", CHAT, chat())
    assert await connection.head() == 200


async def test_under_load_every_stream_ends_whole(start_process, upstream, manager):
    """Each client opens a connection, waits a little as clients do, asks, and reads."""
    upstream.script = tokens
    whole, over = 0, False

    async def client(number):
        nonlocal whole
        while not over:
            connection = await Connection.open(manager.port)
            await asyncio.sleep(0.05 * (number % 4))
            await connection.send("POST", CHAT, chat(), headers={"Connection": "close"})
            assert await connection.head() == 200
            assert await connection.rest() == TOKENS
            connection.close()
            whole += 1

    def start():
        return start_process(listener=manager.listener, environment=manager.environment)

    old = start()
    await manager.ready()
    clients = [asyncio.create_task(client(number)) for number in range(16)]
    for _ in range(3):
        new = start()
        await manager.ready()
        old.terminate()
        await old.wait(10)
        old = new
    over = True
    await asyncio.gather(*clients)
    assert whole > 100


async def test_who_was_accepted_but_not_read_yet_is_answered(start_process, upstream, manager):
    backend = start_process(listener=manager.listener, environment=manager.environment)
    await manager.ready()
    late = await Connection.open(manager.port)
    await asyncio.sleep(0.1)
    backend.terminate()
    await asyncio.sleep(0.4)
    await late.send("POST", CHAT, chat(), headers={"Connection": "close"})
    assert await late.head() == 200
    assert (await late.rest()).endswith(DONE)
    await backend.wait(5)


async def test_who_says_nothing_does_not_hold_the_end_up(start_process, manager):
    backend = start_process(
        listener=manager.listener, environment=manager.environment, drain_seconds=30
    )
    await manager.ready()
    silent = await Connection.open(manager.port)
    backend.terminate()
    await backend.wait(4)
    silent.close()


async def test_ready_only_after_the_engine_was_asked(start_process, upstream, manager):
    """Else /readyz would say no between two instances."""
    start_process(listener=manager.listener, environment=manager.environment)
    await manager.ready()
    assert upstream.probes
    assert not upstream.received
    connection = await Connection.open(manager.port)
    await connection.send("GET", "/readyz", key=None)
    assert await connection.head() == 200


async def test_an_engine_that_says_nothing_does_not_hold_the_start_up(
    start_process, upstream, manager
):
    async def silent(request, answer):
        await request.gone.wait()

    upstream.probe_script = silent
    start_process(listener=manager.listener, environment=manager.environment)
    await manager.ready()


async def test_several_workers_say_so_once_they_serve(start_process, manager):
    backend = start_process(listener=manager.listener, environment=manager.environment, workers=2)
    await manager.ready()
    assert backend.log.count("Started server process") == 2


async def test_the_private_socket_is_open_until_the_last_stream_is_over(
    start_process, upstream, manager, tmp_path
):
    upstream.script = tokens
    private = tmp_path / "private.sock"
    private.touch()  # Left by a process that was killed.
    backend = start_process(
        "--private", str(private), listener=manager.listener, environment=manager.environment,
        drain_seconds=10,
    )  # fmt: skip
    await manager.ready()
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    shared = await Connection.open(manager.port)
    await open_stream(shared)
    backend.terminate()
    await eventually(lambda: manager.heard("STOPPING=1"))
    peer = private_peer(private)
    await open_stream(peer)
    assert await shared.rest() == await peer.rest() == TOKENS
    assert manager.heard("STATUS=drains: 2 open")
    await backend.wait(5)
    with pytest.raises(OSError, match=r"refused|No such file"):
        private_peer(private)


async def test_a_stream_that_outlives_its_connection_is_finished_and_read(
    start_process, upstream, manager, tmp_path
):
    """It lives in the instance that drains; whoever comes back for it comes by the other one."""

    async def slow_tokens(request, answer):
        await answer.head()
        for number in range(12):
            await answer.chunk(token(str(number)))
            await asyncio.sleep(0.3)
        await answer.chunk(DONE)
        await answer.end()

    upstream.script = slow_tokens
    private = tmp_path / "private.sock"
    backend = start_process(
        "--private", str(private), listener=manager.listener, environment=manager.environment,
        drain_seconds=20,
    )  # fmt: skip
    await manager.ready()
    asked = await Connection.open(manager.port)
    await asked.send("POST", "/v1/chat/streams", chat(), headers={"Connection": "close"})
    assert await asked.head() == 201
    events = json.loads(await asked.rest())["events"]
    backend.terminate()
    await eventually(lambda: manager.heard("STATUS=drains: 1 open"))
    peer = private_peer(private)
    await peer.send("GET", events, headers={"Connection": "close"})
    assert await peer.head() == 200
    read = await peer.rest()
    assert [f'"content": "{number}"'.encode() in read for number in range(12)] == [True] * 12
    assert read.endswith(b"data: [DONE]\n\n")
    await backend.wait(5)


async def test_the_private_socket_serves_with_several_workers(start_process, manager, tmp_path):
    private = tmp_path / "private.sock"
    start_process(
        "--private", str(private), listener=manager.listener, environment=manager.environment,
        workers=2,
    )  # fmt: skip
    await manager.ready()
    peer = private_peer(private)
    await peer.send("GET", "/healthz", key=None)
    assert await peer.head() == 200


async def test_the_old_one_accepts_nobody_and_ends_what_takes_too_long(
    start_process, upstream, manager
):
    async def endless(request, answer):
        await answer.head()
        while not request.gone.is_set():
            await answer.chunk(token("again"))
            await asyncio.sleep(0.02)

    upstream.script = endless
    old = start_process(listener=manager.listener, environment=manager.environment, drain_seconds=2)
    await manager.ready()
    long = await Connection.open(manager.port)
    await open_stream(long)
    old.terminate()
    await asyncio.sleep(0.4)
    next_one = await Connection.open(manager.port)
    await next_one.send("POST", CHAT, chat(), headers={"Connection": "close"})
    assert "restarting" in error_of(await long.rest())["message"]
    await old.wait(5)
    upstream.script = tokens
    start_process(listener=manager.listener, environment=manager.environment)
    assert await next_one.head() == 200
    assert await next_one.rest() == TOKENS
