"""The client's end of a relayed answer."""

from __future__ import annotations

import asyncio
import time

from starlette.types import Send

from backend.exchange import Exchange
from backend.pace import Pace

HEARTBEAT = b": heartbeat\n\n"

# no-transform is what keeps Cloudflare from compressing, and so holding, the stream.
_ALWAYS = [(b"cache-control", b"no-cache, no-transform"), (b"x-accel-buffering", b"no")]


class Outlet:
    """Writes one response, piece by piece, and knows when it last did.

    Two tasks write here, the pump and the heartbeat; the lock keeps their pieces in order. A
    write returns when the server has taken the bytes: it waits while a slow client's socket is
    full, and that wait is what holds the pump, and through it the engine, back.
    """

    def __init__(self, send: Send, exchange: Exchange) -> None:
        # Only the start goes through the framework's layers, which must know of it.
        self._send_start = send
        self._send_body = exchange.server_send
        self._exchange = exchange
        self._turn = asyncio.Lock()
        # Set when an event stream begins; a whole answer has no pace.
        self._pace: Pace | None = None
        self.started = False
        self.finished = False
        # What was sent so far ends between two events: another one may follow.
        self.between_events = False
        self.last_write = exchange.started

    @property
    def busy(self) -> bool:
        """Whether a write is under way, that is: bytes wait for the client and not for us."""
        return self._turn.locked()

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Send status and headers."""
        self.started = True
        await self._send_start(
            {"type": "http.response.start", "status": status, "headers": headers + _ALWAYS}
        )

    async def start_events(self, content_type: bytes) -> None:
        """Begin an event stream, unless a heartbeat has begun it already."""
        async with self._turn:
            await self._start_events(content_type)

    async def _start_events(self, content_type: bytes) -> None:
        if not self.started:
            self.between_events = True
            self._pace = self._exchange.pace
            await self.start(200, [(b"content-type", content_type)])

    async def write(self, data: bytes, *, between_events: bool = False) -> None:
        """Send some of the body; `between_events` says that another event may follow it."""
        async with self._turn:
            await self._send_body({"type": "http.response.body", "body": data, "more_body": True})
            # Afterwards: a write that is cancelled while it waits has sent nothing.
            self.between_events = between_events
        exchange = self._exchange
        exchange.body_bytes += len(data)
        self.last_write = now = time.monotonic()
        if exchange.first_byte is None:
            exchange.first_byte = now
        if self._pace is not None:
            self._pace.note(data, now)

    async def beat(self) -> None:
        """Send a heartbeat comment, beginning the event stream if nothing has begun it."""
        async with self._turn:
            await self._start_events(b"text/event-stream; charset=utf-8")
            if not self.between_events:
                return
            message = {"type": "http.response.body", "body": HEARTBEAT, "more_body": True}
            await self._send_body(message)
        self._exchange.heartbeats += 1
        self._exchange.body_bytes += len(HEARTBEAT)
        self.last_write = time.monotonic()

    async def finish(self, data: bytes = b"") -> None:
        """Send the last of the body and end the response."""
        async with self._turn:
            self.finished = True
            await self._send_body({"type": "http.response.body", "body": data, "more_body": False})
        self._exchange.body_bytes += len(data)
