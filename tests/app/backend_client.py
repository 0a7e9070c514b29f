"""A client on a raw socket that keeps every read, and a reader of events by the book."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from dataclasses import dataclass, field
from typing import Any

KEY = "mr-" + "k" * 43
PROMPT = "Tell me about zanzibarine snowglobes"


class CutError(Exception):
    """The connection ended before the response did."""


def chat(stream: bool = True, **more: Any) -> bytes:
    body = {"model": "tiny", "messages": [{"role": "user", "content": PROMPT}], "stream": stream}
    return json.dumps({**body, **more}).encode()


@dataclass
class Response:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Connection:
    """One request on one connection. `reads` holds (monotonic time, bytes) of each recv."""

    sock: socket.socket
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    reads: list[tuple[float, bytes]] = field(default_factory=list)
    _buffer: bytes = b""
    _left: int | None = None
    _ended: bool = False

    @classmethod
    async def open(cls, port: int, receive_buffer: int | None = None) -> Connection:
        sock = socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        return cls(sock)

    async def send(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        key: str | None = KEY,
        headers: dict[str, str] | None = None,
    ) -> None:
        lines = [f"{method} {path} HTTP/1.1", "Host: x"]
        if key is not None:
            lines.append(f"Authorization: Bearer {key}")
        merged = {"Content-Length": str(len(body)), **(headers or {})}
        lines += [f"{name}: {value}" for name, value in merged.items()]
        data = ("\r\n".join(lines) + "\r\n\r\n").encode() + body
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def head(self) -> int:
        """Read the status and headers."""
        while b"\r\n\r\n" not in self._buffer:
            await self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(first.split(" ")[1])
        self.headers = {}
        for line in lines:
            name, _, value = line.partition(": ")
            assert name.lower() not in self.headers, f"{name} came twice"
            self.headers[name.lower()] = value
        if self.status == 204:
            self._left, self._ended = 0, True
        elif "content-length" in self.headers:
            self._left = int(self.headers["content-length"])
            self._ended = self._left == 0
        else:
            self._left = None
            self._ended = self.status == 204
        return self.status

    async def read(self) -> bytes:
        """Return the next piece of the body, without its framing; nothing at its honest end."""
        if self._ended:
            return b""
        if self._left is not None:
            if not self._buffer:
                await self._more()
            piece, self._buffer = self._buffer[: self._left], self._buffer[self._left :]
            self._left -= len(piece)
            self._ended = self._left == 0
            return piece
        assert self.headers.get("transfer-encoding") == "chunked"
        while b"\r\n" not in self._buffer:
            await self._more()
        size, _, rest = self._buffer.partition(b"\r\n")
        length = int(size, 16)
        while len(rest) < length + 2:
            await self._more()
            rest = self._buffer.partition(b"\r\n")[2]
        assert rest[length : length + 2] == b"\r\n"
        self._buffer = rest[length + 2 :]
        self._ended = length == 0
        return rest[:length]

    async def until(self, wanted: bytes, seconds: float = 5) -> bytes:
        """Read until `wanted` is in what has come."""
        body = b""
        async with asyncio.timeout(seconds):
            while wanted not in body:
                piece = await self.read()
                assert piece, f"ended without {wanted!r}: {body!r}"
                body += piece
        return body

    async def rest(self, seconds: float = 10) -> bytes:
        """Read to the end of the body; raise CutError if it has none."""
        body = b""
        async with asyncio.timeout(seconds):
            while piece := await self.read():
                body += piece
        return body

    def close(self) -> None:
        self.sock.close()

    async def _more(self) -> None:
        try:
            data = await asyncio.get_running_loop().sock_recv(self.sock, 262_144)
        except OSError as error:
            raise CutError from error
        if not data:
            raise CutError
        self.reads.append((time.monotonic(), data))
        self._buffer += data


async def ask(
    port: int,
    method: str,
    path: str,
    body: bytes = b"",
    key: str | None = KEY,
    headers: dict[str, str] | None = None,
    seconds: float = 10,
) -> Response:
    connection = await Connection.open(port)
    try:
        async with asyncio.timeout(seconds):
            await connection.send(method, path, body, key, headers)
            await connection.head()
            return Response(connection.status, connection.headers, await connection.rest(seconds))
    finally:
        connection.close()


async def becomes(
    port: int, path: str, status: int, key: str | None = KEY, seconds: float = 5
) -> Response:
    """Ask again and again until the answer has this status."""
    deadline = time.monotonic() + seconds
    while (response := await ask(port, "GET", path, key=key)).status != status:
        assert time.monotonic() < deadline, f"still {response}"
        await asyncio.sleep(0.05)
    return response


def events(stream: bytes) -> list[str]:
    """Return the data of each event, as the HTML standard says to parse a stream."""
    found: list[str] = []
    data: list[str] = []
    *lines, _ = re.split(r"\r\n|\n|\r", stream.decode("utf-8", "replace"))
    for line in lines:
        if not line:
            if data:
                found.append("\n".join(data))
            data = []
            continue
        name, _, value = line.partition(":")
        if name == "data":
            data.append(value.removeprefix(" "))
    return found


def error_of(stream: bytes) -> dict[str, Any]:
    """Return the error of a stream that ended badly, and check how it ended."""
    parsed = events(stream)
    assert parsed[-1] == "[DONE]", parsed
    for event in parsed[:-1]:
        assert isinstance(json.loads(event), dict)
    error = json.loads(parsed[-2])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error, dict)
    return error
