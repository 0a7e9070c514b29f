"""A relay's client that lives in the server: it takes the answer into a buffer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import Message

from backend.errors import ApiError
from backend.streams.parser import EventParser
from backend.streams.stream import ChatStream
from backend.upstream import gateway_error

_DONE = b"[DONE]"


@dataclass(slots=True)
class Whole:
    """An answer in one piece."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""

    @classmethod
    def of(cls, error: ApiError) -> Whole:
        """Make the answer that tells of an error."""
        response = error.response()
        return cls(response.status_code, response.raw_headers, bytes(response.body))


class Generation:
    """The two ends of an ASGI connection, for a relay to serve as it serves a client.

    `send` waits while the buffer is full of events that nobody has had, as a socket would; it
    takes heartbeats for what they are, nothing. `receive` says that the client has left once the
    stream is stopped or abandoned. So limits, endings, usage and logs are those of the relay.

    `settled` is set when it is known whether there will be a stream; `on_end` is called once, with
    the last event.
    """

    def __init__(
        self, stream: ChatStream, longest_event_bytes: int, on_end: Callable[[], None]
    ) -> None:
        self._stream = stream
        self._buffer = stream.buffer
        self._on_end = on_end
        self._parser = EventParser(longest_event_bytes)
        self._last = b""
        self._refusal: Whole | None = None
        self._whole_refusal = False
        self._answered = False
        self._refused = False
        self.settled = asyncio.Event()

    async def receive(self) -> Message:
        """Wait until nobody wants the answer any more."""
        await self._stream.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Take the start of the answer, or a piece of it."""
        if message["type"] == "http.response.start":
            self._start(message["status"], list(message.get("headers", ())))
        elif self._refusal is None:
            await self._take(message.get("body", b""), more=message.get("more_body", False))
        elif not self._whole_refusal:
            self._refusal.body += message.get("body", b"")
            if not message.get("more_body", False):
                self._whole_refusal = True
                self.settled.set()

    def answer(self) -> Whole | None:
        """Return what to answer instead of a stream, None for a stream; decided once."""
        if not self._answered:
            self._answered = True
            self._refused = self._whole_refusal
        return self._refusal if self._refused else None

    def end(self) -> None:
        """Write the last events where the relay did not: it was stopped, or too late to refuse."""
        if self._refusal is not None and self._whole_refusal:
            # In JSON a raw line end can only be white space between tokens.
            self._append(self._refusal.body.replace(b"\r", b" ").replace(b"\n", b" "))
        elif self._stream.wanted_end == "abandoned":
            self._append(_ABANDONED)
        self._append(_DONE)

    def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        if status >= 400:
            self._refusal = Whole(status, headers)
            return
        if not _are_events(headers):
            error = gateway_error(
                502, "The model server did not answer with a stream.", fault="odd_answer"
            )
            self._refusal = Whole.of(error)
            self._whole_refusal = True
        self.settled.set()

    async def _take(self, body: bytes, *, more: bool) -> None:
        events = self._parser.feed(body) if body else []
        if not events:
            return
        if more:
            # All or nothing: a write that is cancelled while it waits has written nothing. The
            # last words are taken in any case.
            await self._buffer.room()
        for data in events:
            self._append(data)

    def _append(self, data: bytes) -> None:
        if self._last == _DONE:
            # Nothing comes behind it, whatever an upstream says.
            return
        self._buffer.append(data)
        self._last = data
        if data == _DONE:
            self._on_end()


_ABANDONED = ApiError(
    408,
    "The answer was broken off because nobody read it any more.",
    kind="server_error",
    code="stream_abandoned",
).payload


def _are_events(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(
        name.lower() == b"content-type" and value.startswith(b"text/event-stream")
        for name, value in headers
    )
