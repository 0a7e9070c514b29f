"""Chat streams in Redis (or Valkey): for another instance, and for after a crash.

For each stream a hash says what it is, and a Redis stream holds its frames, each under the number
of its event, so that Redis itself refuses one that comes twice. A process that makes streams holds
a lease; when it runs out without an end of the stream, its maker has died.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Coroutine
from typing import Any

import redis.asyncio
from redis.exceptions import RedisError, ResponseError

from backend.settings import Settings
from backend.streams.buffer import EventBuffer, EventsGoneError, Pool, data_of
from backend.streams.store import StreamStore
from backend.streams.stream import ChatStream

log = logging.getLogger(__name__)

_PREFIX = "millrace:stream:"
_LEASES = "millrace:maker:"
_LEASE_SECONDS = 10
_RENEW_SECONDS = 3.0
_TIMEOUT_SECONDS = 5.0
# Tokens of so long go into one write: a write costs as much as ten tokens.
_GATHER_SECONDS = 0.05
_RETRY_SECONDS = 1.0
_BATCH_BYTES = 64 * 1024
# A stream whose end nobody wrote down goes after so long.
_RUNNING_SECONDS = 86_400
_FLUSH_SECONDS = 3.0
_FOLLOW_SECONDS = 0.1

LOST = "lost"
"""The outcome of a stream whose maker died before its end."""

ERRORS = (RedisError, OSError)


class RedisStore(StreamStore):
    """Writes streams down as they are made, and reads those of other processes.

    Writing lags a moment behind the readers, and never holds them up: when Redis cannot keep up or
    is away for longer than the buffer lasts, that stream is kept no more.
    """

    def __init__(self, settings: Settings, pool: Pool) -> None:
        self._settings = settings
        self._pool = pool
        self._url = settings.store_url.removeprefix("redis+")
        self._maker = secrets.token_hex(8)
        self._redis: redis.asyncio.Redis | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._journals: set[asyncio.Task[None]] = set()
        self._away = False

    @property
    def _client(self) -> Any:
        # Its types are those of every protocol and decoding at once: here replies are bytes.
        assert self._redis is not None, "open() comes first"
        return self._redis

    async def open(self) -> None:
        """Connect, and hold the lease from now on."""
        self._redis = redis.asyncio.from_url(
            self._url,
            socket_timeout=_TIMEOUT_SECONDS,
            socket_connect_timeout=_TIMEOUT_SECONDS,
        )
        with contextlib.suppress(*ERRORS):
            await self._renew()
        self._start(self._hold_lease(), self._tasks)

    async def close(self) -> None:
        """Let the last events be written, and give the lease back."""
        if self._journals:
            await asyncio.wait(self._journals, timeout=_FLUSH_SECONDS)
        for task in self._tasks | self._journals:
            task.cancel()
        if self._redis is not None:
            with contextlib.suppress(*ERRORS):
                await self._redis.delete(_LEASES + self._maker)
            await self._redis.aclose()

    def keep(self, stream: ChatStream) -> None:
        """Begin to write a stream down."""
        self._start(self._journal(stream), self._journals)

    def drop(self, stream: ChatStream) -> None:
        """Delete what was kept."""
        self._start(self._delete(stream.id), self._tasks)

    async def load(self, stream_id: str) -> ChatStream | None:
        """Return a stream as far as it is kept; None also when Redis cannot be asked."""
        try:
            about = await self._client.hgetall(_PREFIX + stream_id)
            if not about:
                return None
            stream = await self._replica(stream_id, {k.decode(): v for k, v in about.items()})
        except ERRORS as error:
            self._complain(error)
            return None
        self._recovered()
        if stream.outcome is None:
            self._start(self._follow(stream, about[b"maker"].decode()), self._tasks)
        return stream

    async def _journal(self, stream: ChatStream) -> None:
        buffer, after, begun, first = stream.buffer, 0, False, 1
        while True:
            await buffer.news(after)
            if not buffer.ended:
                await asyncio.sleep(_GATHER_SECONDS)
            ended = buffer.ended
            try:
                frames = buffer.peek(after, _BATCH_BYTES)
            except EventsGoneError:
                log.warning("a stream is no longer kept: the store could not keep up with it")
                await self._delete(stream.id)
                return
            try:
                if not begun and frames:
                    await self._begin(stream)
                    begun = True
                await self._write(stream.id, after, frames, first, buffer.first_id)
                first = buffer.first_id
                after += len(frames)
                if ended and after >= buffer.last_id:
                    # Of a request that was refused there is nothing to keep.
                    if begun:
                        await self._conclude(stream.id, stream.outcome or "complete")
                    return
            except ERRORS as error:
                self._complain(error)
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                self._recovered()

    async def _begin(self, stream: ChatStream) -> None:
        about = {
            "key": stream.key_name,
            "model": stream.model,
            "created": stream.created,
            "maker": self._maker,
        }
        async with self._client.pipeline(transaction=True) as pipe:
            pipe.hset(_PREFIX + stream.id, mapping=about)
            pipe.expire(_PREFIX + stream.id, _RUNNING_SECONDS)
            await pipe.execute()

    async def _write(
        self, stream_id: str, after: int, frames: list[bytes], was_first: int, first: int
    ) -> None:
        if not frames:
            return
        events = f"{_PREFIX}{stream_id}:events"
        async with self._client.pipeline(transaction=True) as pipe:
            for number, frame in enumerate(frames, after + 1):
                pipe.xadd(events, {"f": frame}, id=f"{number}-0")
            if first > was_first:
                # No more than the buffer in memory holds.
                pipe.xtrim(events, minid=f"{first}-0", approximate=False)
            pipe.expire(events, _RUNNING_SECONDS)
            for result in await pipe.execute(raise_on_error=False):
                # An id that is there already was written by a try whose answer was lost.
                if isinstance(result, Exception) and not isinstance(result, ResponseError):
                    raise result

    async def _conclude(self, stream_id: str, outcome: str) -> None:
        seconds = max(1, round(self._settings.stream_linger_seconds))
        async with self._client.pipeline(transaction=True) as pipe:
            pipe.hset(_PREFIX + stream_id, "outcome", outcome)
            pipe.expire(_PREFIX + stream_id, seconds)
            pipe.expire(f"{_PREFIX}{stream_id}:events", seconds)
            await pipe.execute()

    async def _delete(self, stream_id: str) -> None:
        with contextlib.suppress(*ERRORS):
            await self._client.delete(_PREFIX + stream_id, f"{_PREFIX}{stream_id}:events")

    async def _replica(self, stream_id: str, about: dict[str, bytes]) -> ChatStream:
        entries = await self._client.xrange(f"{_PREFIX}{stream_id}:events")
        first = _number(entries[0][0]) if entries else 1
        limit = self._settings.stream_buffer_bytes
        stream = ChatStream(
            stream_id,
            about["key"].decode(),
            about["model"].decode(),
            EventBuffer(limit, self._pool, first=first),
            created=int(about["created"]),
        )
        stream.replica = True
        _take(stream.buffer, entries)
        if outcome := about.get("outcome"):
            _end(stream, outcome.decode())
        return stream

    async def _follow(self, stream: ChatStream, maker: str) -> None:
        """Take what the maker goes on to write, until its end or that of the maker."""
        buffer = stream.buffer
        events = f"{_PREFIX}{stream.id}:events"
        while not buffer.ended:
            try:
                alive = await self._client.exists(_LEASES + maker)
                entries = await self._client.xrange(events, min=f"({buffer.last_id}-0")
                # A reader that is slow holds back what is taken here, as it does at the maker's.
                await buffer.room()
                _take(buffer, entries)
                outcome = await self._client.hget(_PREFIX + stream.id, "outcome")
                if not alive and not entries and outcome is None:
                    outcome = LOST.encode("ascii")
                    await self._conclude(stream.id, LOST)
            except ERRORS as error:
                self._complain(error)
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            if entries:
                continue
            if outcome is not None:
                _end(stream, outcome.decode())
                return
            await asyncio.sleep(_FOLLOW_SECONDS)

    async def _hold_lease(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            try:
                await self._renew()
            except ERRORS as error:
                self._complain(error)
            else:
                self._recovered()

    async def _renew(self) -> None:
        await self._client.set(_LEASES + self._maker, 1, ex=_LEASE_SECONDS)

    def _start(self, what: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> None:
        task = asyncio.create_task(what)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def _complain(self, error: Exception) -> None:
        if not self._away:
            self._away = True
            log.error("the store of chat streams cannot be used", exc_info=error)

    def _recovered(self) -> None:
        if self._away:
            self._away = False
            log.info("the store of chat streams can be used again")


def _end(stream: ChatStream, outcome: str) -> None:
    stream.outcome = outcome
    stream.lost = outcome == LOST
    stream.buffer.end()
    stream.over.set()


def _number(entry_id: bytes) -> int:
    return int(entry_id.partition(b"-")[0])


def _take(buffer: EventBuffer, entries: list[tuple[bytes, dict[bytes, bytes]]]) -> None:
    for _, fields in entries:
        buffer.append(data_of(fields[b"f"]))
