"""The events of one stream, numbered, within a bound of memory."""

from __future__ import annotations

import asyncio
import contextlib

# What a bytes object and its place in a list take beside the text.
_OVERHEAD_BYTES = 48
# Events that no reader has had may fill this share of the buffer before the engine has to wait.
# The rest is for those that were sent: a connection takes what it had under way with it, which
# may be megabytes in the sockets of every hop, and that must be there to be asked for again.
_UNSENT_SHARE = 1 / 4
# Room is made in batches.
_TRIM_SHARE = 7 / 8


class EventsGoneError(Exception):
    """The events that a reader asks for are no longer held."""


class Pool:
    """Bounds what the buffers of one process hold together.

    When it is full, what was sent goes first, then the producers wait. Each may always add one
    piece when its reader has had all: the bound is exceeded by a piece per stream at most, and no
    stream stands still for ever because of the others.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._buffers: dict[EventBuffer, None] = {}
        self.used = 0

    @property
    def full(self) -> bool:
        """Whether nothing more should be taken in."""
        return self.used > self._limit

    def join(self, buffer: EventBuffer) -> None:
        """Count a buffer in."""
        self._buffers[buffer] = None

    def leave(self, buffer: EventBuffer) -> None:
        """Forget a buffer that holds nothing any more."""
        self._buffers.pop(buffer, None)

    def take(self, size: int) -> None:
        """Count `size` bytes more, or less; whoever waits for room is woken by less."""
        self.used += size
        if size < 0 and not self.full:
            for buffer in self._buffers:
                buffer.wake_producer()

    def reclaim(self) -> None:
        """Drop what readers can do without: the oldest streams first, those that ended before."""
        goal = int(self._limit * _TRIM_SHARE)
        for buffer in sorted(self._buffers, key=lambda one: not one.ended):
            if self.used <= goal:
                return
            buffer.drop_sent(self.used - goal)


class EventBuffer:
    """Numbers events (from `first` on) and keeps them for readers that come and come back.

    One producer appends; any number of readers ask for what is behind the id they know. An event
    is *sent* when any reader has had it. Above `limit_bytes` the oldest sent events are dropped;
    events that nobody has had are never dropped while the stream is wanted: instead room() makes
    the producer wait, and through it the engine.

    An event is kept in the form in which it goes out, its *frame*: `id: N`, then `data: …` lines,
    then a blank line.
    """

    def __init__(self, limit_bytes: int, pool: Pool, *, first: int = 1) -> None:
        self._limit = limit_bytes
        self._pool = pool
        self._frames: list[bytes] = []
        self._first = first
        self._sent = first - 1
        self._sent_bytes = 0
        self._unsent_bytes = 0
        self._readers: set[asyncio.Future[None]] = set()
        self._producer: asyncio.Future[None] | None = None
        self.ended = False
        # Nobody has come back for it in time: what was not sent may go as well.
        self.unwanted = False
        pool.join(self)

    @property
    def last_id(self) -> int:
        """The id of the newest event; 0 when there is none."""
        return self._first + len(self._frames) - 1

    @property
    def first_id(self) -> int:
        """The id of the oldest event that is still held, or of the next one."""
        return self._first

    @property
    def held_bytes(self) -> int:
        """What the events take in memory."""
        return self._sent_bytes + self._unsent_bytes

    def append(self, data: bytes) -> None:
        """Add one event; never waits."""
        number = self._first + len(self._frames)
        frame = frame_of(number, data)
        self._frames.append(frame)
        size = len(frame) + _OVERHEAD_BYTES
        self._unsent_bytes += size
        self._pool.take(size)
        if self._readers:
            self._wake_readers()
        if self._sent_bytes + self._unsent_bytes > self._limit:
            self._trim()

    def end(self) -> None:
        """Say that nothing more will come."""
        self.ended = True
        self._wake_readers()

    def discard(self) -> None:
        """Drop everything and leave the pool; readers that ask again are told it is gone."""
        self._drop(len(self._frames))
        self.end()
        self._pool.leave(self)

    async def room(self) -> None:
        """Wait until more may be added."""
        while not self._has_room():
            self._producer = asyncio.get_running_loop().create_future()
            try:
                await self._producer
            finally:
                self._producer = None

    def read(self, after: int, most_bytes: int) -> list[bytes]:
        """Return the next frames behind event `after`, at least one if there is any.

        They count as sent. Raises EventsGoneError when the next one has been dropped.
        """
        frames = self.peek(after, most_bytes)
        if after + len(frames) > self._sent:
            self._mark_sent(after + len(frames))
        return frames

    def peek(self, after: int, most_bytes: int) -> list[bytes]:
        """Return what read() would, for someone who is no reader."""
        start = after + 1 - self._first
        if start < 0:
            raise EventsGoneError
        frames = self._frames[start : start + 1]
        size = len(frames[0]) if frames else 0
        for index in range(start + 1, len(self._frames)):
            size += len(self._frames[index])
            if size > most_bytes:
                break
            frames.append(self._frames[index])
        return frames

    async def news(self, after: int) -> None:
        """Wait until there is an event behind `after`, or until the end."""
        while self.last_id <= after and not self.ended:
            told = asyncio.get_running_loop().create_future()
            self._readers.add(told)
            try:
                await told
            finally:
                self._readers.discard(told)

    def wake_producer(self) -> None:
        """Let room() look again."""
        if self._producer is not None and not self._producer.done():
            self._producer.set_result(None)

    def drop_sent(self, size: int) -> None:
        """Drop the oldest events, `size` bytes or a little more, as far as that may be."""
        count = freed = 0
        most = len(self._frames) if self.unwanted else self._sent + 1 - self._first
        while freed < size and count < most:
            freed += len(self._frames[count]) + _OVERHEAD_BYTES
            count += 1
        self._drop(count)

    def _has_room(self) -> bool:
        if self._pool.full:
            self._pool.reclaim()
        if not self._unsent_bytes:
            return True
        return self._unsent_bytes <= self._limit * _UNSENT_SHARE and not self._pool.full

    def _mark_sent(self, number: int) -> None:
        frames = self._frames[self._sent + 1 - self._first : number + 1 - self._first]
        size = sum(map(len, frames)) + len(frames) * _OVERHEAD_BYTES
        self._sent = number
        self._sent_bytes += size
        self._unsent_bytes -= size
        if self.held_bytes > self._limit:
            # They came in one burst, and nothing may come after it that would make room. Other
            # readers that were told of it have their turn first.
            asyncio.get_running_loop().call_soon(self._trim)
        self.wake_producer()

    def _trim(self) -> None:
        self.drop_sent(self.held_bytes - int(self._limit * _TRIM_SHARE))

    def _drop(self, count: int) -> None:
        if not count:
            return
        sent = max(min(count, self._sent + 1 - self._first), 0)
        sizes = [len(frame) + _OVERHEAD_BYTES for frame in self._frames[:count]]
        del self._frames[:count]
        self._first += count
        self._sent = max(self._sent, self._first - 1)
        self._sent_bytes -= sum(sizes[:sent])
        self._unsent_bytes -= sum(sizes[sent:])
        self._pool.take(-sum(sizes))

    def _wake_readers(self) -> None:
        for told in self._readers:
            # One that was cancelled, or told already, has yet to take itself out.
            with contextlib.suppress(asyncio.InvalidStateError):
                told.set_result(None)


def frame_of(number: int, data: bytes) -> bytes:
    """Return the form in which an event goes out."""
    if b"\n" in data:
        data = data.replace(b"\n", b"\ndata: ")
    return b"id: %d\ndata: %b\n\n" % (number, data)


def id_of(frame: bytes) -> int:
    """Return the number of the event that `frame` is the form of."""
    return int(frame[4 : frame.index(b"\n")])


def data_of(frame: bytes) -> bytes:
    """Return the data of the event that `frame` is the form of."""
    _, _, rest = frame.partition(b"\ndata: ")
    return rest[:-2].replace(b"\ndata: ", b"\n")
