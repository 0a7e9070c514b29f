"""A scripted upstream on a raw socket: it can stall, cut, reset and trickle as told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
DONE = b"data: [DONE]\n\n"


def token(text: str) -> bytes:
    chunk = {"choices": [{"index": 0, "delta": {"content": text}}]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


async def eventually(condition: Callable[[], object], seconds: float = 5) -> None:
    """Look again and again until `condition` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        await asyncio.sleep(0.01)


@dataclass
class Received:
    """One request as it reached the upstream."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    arrived: float = field(default_factory=time.monotonic)
    # Set, with the time, when the other side closes before we have answered in full.
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    gone_at: float = 0.0

    def leave(self) -> None:
        """Note that the other side has closed."""
        self.gone_at = self.gone_at or time.monotonic()
        self.gone.set()

    @property
    def is_probe(self) -> bool:
        return self.headers.get("x-request-id", "").startswith("ready-")


class Answer:
    """What a script writes its answer with."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.keep = False
        self.sent = 0

    async def raw(self, data: bytes) -> None:
        self.writer.write(data)
        self.sent += len(data)
        await self.writer.drain()

    async def head(
        self, status: int = 200, content_type: str = "text/event-stream; charset=utf-8", **more: str
    ) -> None:
        lines = [f"HTTP/1.1 {status} X", f"Content-Type: {content_type}"]
        more.setdefault("Transfer_Encoding", "chunked")
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in more.items() if value]
        await self.raw(("\r\n".join(lines) + "\r\n\r\n").encode())

    async def chunk(self, data: bytes) -> None:
        await self.raw(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.raw(b"0\r\n\r\n")
        self.keep = True

    async def whole(
        self, body: bytes, status: int = 200, content_type: str = "application/json", **more: str
    ) -> None:
        length = str(len(body))
        await self.head(status, content_type, Content_Length=length, Transfer_Encoding="", **more)
        await self.raw(body)
        self.keep = True

    def reset(self) -> None:
        """Close with an RST instead of a FIN."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Script = Callable[[Received, Answer], Awaitable[None]]


async def answer_with_tokens(request: Received, answer: Answer) -> None:
    """Do what an engine does."""
    wanted: dict[str, Any] = json.loads(request.body)
    if not wanted.get("stream"):
        await answer.whole(b'{"choices":[{"message":{"role":"assistant","content":"Hi"}}]}')
        return
    await answer.head()
    for event in (ROLE, token("Hi"), DONE):
        await answer.chunk(event)
    await answer.end()


def send_pieces(pieces: Iterable[bytes], pause: float = 0.0) -> Script:
    """Make a script that answers with `pieces`, each one HTTP chunk."""

    async def script(request: Received, answer: Answer) -> None:
        await answer.head()
        for piece in pieces:
            await answer.chunk(piece)
            if pause:
                await asyncio.sleep(pause)
        await answer.end()

    return script


class Flood:
    """A script that sends more than anybody will take; `sent` counts what went out."""

    def __init__(self, event: bytes, total: int) -> None:
        self.event = event
        self.total = total
        self.sent = 0

    async def __call__(self, request: Received, answer: Answer) -> None:
        await answer.head()
        for _ in range(self.total):
            await answer.chunk(self.event)
            self.sent += 1


class Upstream:
    """The server. `script` answers requests, `probe_script` those of the readiness probe."""

    def __init__(self) -> None:
        self.script: Script = answer_with_tokens
        self.probe_script: Script = answer_with_tokens
        self.received: list[Received] = []
        self.probes: list[Received] = []
        self.connections = 0
        self.errors: list[Exception] = []
        self.port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse connections and drop the open ones, as a killed process would."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def next_request(self) -> Received:
        await eventually(lambda: self.received)
        return self.received[-1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            while await self._serve_one(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass
        except Exception as error:
            self.errors.append(error)
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {}
        for line in head[1:-2]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        request = Received(method, path, headers, body)
        (self.probes if request.is_probe else self.received).append(request)
        answer = Answer(writer)
        watch = asyncio.create_task(_watch(reader, request))
        script = self.probe_script if request.is_probe else self.script
        try:
            await script(request, answer)
        except OSError:
            # Who writes may hear of it before who watches.
            request.leave()
            raise
        finally:
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch
        return answer.keep


async def _watch(reader: asyncio.StreamReader, request: Received) -> None:
    with contextlib.suppress(OSError):
        while await reader.read(1):
            pass
    request.leave()
