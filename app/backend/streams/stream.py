"""One chat stream: a generation and what is kept of it."""

from __future__ import annotations

import asyncio
import time

from backend.errors import ApiError
from backend.streams.buffer import EventBuffer, frame_of
from backend.streams.tickets import Passes

# Behind the last event that was written down: more than a maker that died can have been ahead.
_LOST_JUMP = 1_000_000
_LOST = ApiError(
    503,
    "The server that made this answer has stopped, and the rest of it with it. Please send the "
    "request again.",
    kind="server_error",
    code="stream_lost",
).payload


class ChatStream:
    """One generation and what is kept of it: who made it, its events, who reads them.

    `outcome` is None while it runs, then the word for how it ended: complete, stopped, abandoned,
    lost, or what the request log calls the failure.
    """

    def __init__(
        self,
        stream_id: str,
        key_name: str,
        model: str,
        buffer: EventBuffer,
        created: int | None = None,
    ) -> None:
        self.id = stream_id
        self.key_name = key_name
        self.model = model
        self.created = int(time.time()) if created is None else created
        self.buffer = buffer
        self.passes = Passes(stream_id)
        self.outcome: str | None = None
        # Why the generation is to end before its time: stopped or abandoned.
        self.wanted_end: str | None = None
        self.readers = 0
        # Set when the generation is to end, and when it has.
        self.left = asyncio.Event()
        self.over = asyncio.Event()
        # Made elsewhere: what is here follows what its maker writes down.
        self.replica = False
        # Its maker died before its end.
        self.lost = False
        self.timer: asyncio.TimerHandle | None = None

    def leave(self, reason: str) -> None:
        """Have the generation end; the first reason counts."""
        if self.wanted_end is None:
            self.wanted_end = reason
        self.left.set()

    def describe(self) -> dict[str, object]:
        """Return what GET on the stream says."""
        return {
            "id": self.id,
            "object": "chat.stream",
            "created": self.created,
            "model": self.model,
            "last_event_id": self.buffer.last_id,
            "ended": self.outcome is not None,
            "outcome": self.outcome,
        }

    def knows_all(self, known: int) -> bool:
        """Whether nothing more will come for a reader that knows event `known`."""
        return self.buffer.ended and known >= self._last_words_id

    def cursor(self, known: int) -> int:
        """Return where a reader goes on that knows event `known`.

        Readers may have seen more of a stream whose maker died than was written down.
        """
        return min(known, self.buffer.last_id) if self.lost else known

    def last_words(self) -> list[bytes]:
        """Return the events with which a stream ends that was lost; none for any other.

        Their numbers are far behind all others: no reader has seen them for something else.
        """
        if not self.lost:
            return []
        last = self._last_words_id
        return [frame_of(last - 1, _LOST), frame_of(last, b"[DONE]")]

    @property
    def _last_words_id(self) -> int:
        return self.buffer.last_id + (_LOST_JUMP if self.lost else 0)
