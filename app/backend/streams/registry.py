"""The chat streams that this process runs or still keeps."""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections.abc import Iterator

from backend.errors import ApiError
from backend.settings import Settings
from backend.streams.buffer import EventBuffer, Pool
from backend.streams.store import StreamStore
from backend.streams.stream import ChatStream

_ID_BYTES = 16
_SANE_ID = re.compile(r"[a-z0-9-]{1,64}")


class Streams:
    """Makes streams, finds them for those who may see them, and forgets them in time.

    A stream without a reader is ended after `stream_grace_seconds`; one that has ended is kept
    `stream_linger_seconds` longer. Of those that have ended a bounded number is kept, in all and
    for each key; the oldest go first.
    """

    def __init__(self, settings: Settings, tag: str, pool: Pool, store: StreamStore) -> None:
        self._settings = settings
        self._pool = pool
        self._store = store
        # In front of every id, so that another process can tell whose it is.
        self._tag = tag
        self._streams: dict[str, ChatStream] = {}
        # In the order in which they ended.
        self._ended: dict[str, ChatStream] = {}

    def create(self, key_name: str, model: str) -> ChatStream:
        """Make a stream; whoever runs it must call finish()."""
        stream_id = self._tag + secrets.token_hex(_ID_BYTES)
        buffer = EventBuffer(self._settings.stream_buffer_bytes, self._pool)
        stream = ChatStream(stream_id, key_name, model, buffer)
        self._streams[stream_id] = stream
        self._store.keep(stream)
        self._await_reader(stream)
        return stream

    def get(self, stream_id: str) -> ChatStream | None:
        """Return the stream, whoever asks."""
        return self._streams.get(stream_id)

    async def find(self, stream_id: str, key_name: str | None) -> ChatStream:
        """Return the stream; raise ApiError 404 also for those that it does not belong to."""
        stream = self._streams.get(stream_id) or await self._load(stream_id)
        if stream is None or stream.key_name != key_name:
            raise ApiError(
                404,
                "There is no such stream. It may have ended some time ago, or belong to another "
                "key.",
                code="stream_not_found",
            )
        return stream

    async def _load(self, stream_id: str) -> ChatStream | None:
        if not _SANE_ID.fullmatch(stream_id):
            return None
        loaded = await self._store.load(stream_id)
        if loaded is None:
            return None
        stream = self._streams.setdefault(stream_id, loaded)
        if stream is loaded:
            self._await_reader(stream)
        else:
            # Two asked at once.
            loaded.buffer.discard()
        return stream

    @contextlib.contextmanager
    def reading(self, stream: ChatStream) -> Iterator[None]:
        """Keep the stream alive while somebody reads."""
        stream.readers += 1
        if stream.replica or stream.outcome is None:
            _cancel(stream)
        try:
            yield
        finally:
            stream.readers -= 1
            if not stream.readers and (stream.replica or stream.outcome is None):
                self._await_reader(stream)

    def finish(self, stream: ChatStream, outcome: str) -> None:
        """Note that the generation is over, and keep what it made for a while."""
        stream.outcome = outcome
        stream.buffer.end()
        stream.over.set()
        _cancel(stream)
        grace = self._settings.stream_grace_seconds
        loop = asyncio.get_running_loop()
        if outcome == "abandoned":
            stream.buffer.unwanted = True
            grace = 0
        stream.timer = loop.call_later(grace, self._linger, stream, grace)
        self._ended[stream.id] = stream
        self._forget_oldest(stream.key_name)

    def forget(self, stream: ChatStream) -> None:
        """Drop a stream and all that is kept of it."""
        self._release(stream)
        if not stream.replica:
            self._store.drop(stream)

    def _release(self, stream: ChatStream) -> None:
        """Drop what this process holds of a stream."""
        _cancel(stream)
        stream.over.set()
        stream.buffer.discard()
        self._streams.pop(stream.id, None)
        self._ended.pop(stream.id, None)

    def close(self) -> None:
        """Let go of every stream; the timers end with it."""
        for stream in list(self._streams.values()):
            self._release(stream)

    def _await_reader(self, stream: ChatStream) -> None:
        loop = asyncio.get_running_loop()
        grace = self._settings.stream_grace_seconds
        if stream.replica:
            stream.timer = loop.call_later(grace, self._release, stream)
        else:
            stream.timer = loop.call_later(grace, stream.leave, "abandoned")

    def _linger(self, stream: ChatStream, waited: float) -> None:
        stream.buffer.unwanted = not stream.readers
        left = max(self._settings.stream_linger_seconds - waited, 0)
        loop = asyncio.get_running_loop()
        stream.timer = loop.call_later(left, self._forget_unread, stream)

    def _forget_unread(self, stream: ChatStream) -> None:
        if stream.readers:
            # A slow reader still takes the tail.
            self._linger(stream, 0)
        else:
            self.forget(stream)

    def _forget_oldest(self, key_name: str) -> None:
        own = [stream for stream in self._ended.values() if stream.key_name == key_name]
        for stream in own[: -self._settings.streams_kept_per_key]:
            self.forget(stream)
        while len(self._ended) > self._settings.streams_kept:
            self.forget(next(iter(self._ended.values())))


def _cancel(stream: ChatStream) -> None:
    if stream.timer is not None:
        stream.timer.cancel()
        stream.timer = None
