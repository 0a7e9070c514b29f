"""A reader of chat streams on raw sockets, and what it must have got."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from typing import Any

from backend_client import KEY, Connection, CutError, Response, ask, chat

STREAMS = "/v1/chat/streams"


async def begin(port: int, body: bytes | None = None, key: str = KEY) -> dict[str, Any]:
    """Make a stream and return what was answered, with the id of the request."""
    response = await ask(port, "POST", STREAMS, body or chat(), key=key)
    assert response.status == 201, response
    made = response.json()
    assert isinstance(made, dict)
    return {**made, "request_id": response.headers["x-request-id"]}


@dataclass
class Reader:
    """One connection to the events of a stream, read as an EventSource reads."""

    connection: Connection
    seen: list[tuple[int | None, str]] = field(default_factory=list)
    retry: str | None = None
    heartbeats: int = 0
    ended: bool = False
    _text: str = ""

    @classmethod
    async def open(
        cls,
        port: int,
        events: str,
        after: int | None = None,
        key: str | None = KEY,
        receive_buffer: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> Reader:
        connection = await Connection.open(port, receive_buffer)
        sent = dict(headers or {})
        if after is not None:
            sent["Last-Event-ID"] = str(after)
        await connection.send("GET", events, key=key, headers=sent)
        await connection.head()
        return cls(connection)

    @property
    def status(self) -> int:
        return self.connection.status

    @property
    def ids(self) -> list[int | None]:
        return [number for number, _ in self.seen]

    @property
    def data(self) -> list[str]:
        return [data for _, data in self.seen]

    async def until(self, count: int, seconds: float = 5) -> None:
        """Read until so many events were seen."""
        async with asyncio.timeout(seconds):
            while len(self.seen) < count:
                assert await self._more(), f"ended after {self.seen}"

    async def rest(self, seconds: float = 10) -> list[tuple[int | None, str]]:
        """Read to the end."""
        async with asyncio.timeout(seconds):
            while await self._more():
                pass
        return self.seen

    async def rest_or_cut(self, seconds: float = 10) -> list[tuple[int | None, str]]:
        with contextlib.suppress(CutError):
            await self.rest(seconds)
        return self.seen

    async def _more(self) -> bool:
        piece = await self.connection.read()
        if not piece:
            self.ended = True
            return False
        # What we send is whole characters in every write; a cut one would show here.
        self._text += piece.decode("utf-8", "surrogateescape")
        *blocks, self._text = self._text.split("\n\n")
        for block in blocks:
            self._take(block.split("\n"))
        return True

    def _take(self, lines: list[str]) -> None:
        number, data = None, []
        for line in lines:
            name, _, value = line.partition(": ")
            if name == "id":
                number = int(value)
            elif name == "data":
                data.append(value)
            elif name == "retry":
                self.retry = value
                assert not self.seen
            else:
                assert line == ": heartbeat", line
                self.heartbeats += 1
        if data:
            self.seen.append((number, "\n".join(data)))

    def close(self) -> None:
        self.connection.close()


async def poll(port: int, stream_id: str, after: int, wait: float = 0, **options: Any) -> Response:
    path = f"{STREAMS}/{stream_id}/poll?after={after}&wait={wait:g}"
    return await ask(port, "GET", path, **options)


def content(data: str) -> str | None:
    """Return the text of a chunk, None for what is none."""
    if data == "[DONE]":
        return None
    choices = json.loads(data).get("choices")
    return choices[0]["delta"].get("content") if choices else None
