"""The numbered buffer and the parser in front of it: nothing lost, nothing twice, in bounds."""

from __future__ import annotations

import asyncio
import tracemalloc
from itertools import pairwise

import pytest
from backend.errors import ApiError
from backend.streams.buffer import EventBuffer, EventsGoneError, Pool, data_of
from backend.streams.generation import Generation
from backend.streams.parser import EventParser
from backend.streams.stream import ChatStream
from backend_client import events
from backend_upstream import DONE, ROLE, token
from hypothesis import example, given, settings
from hypothesis import strategies as st

line_ends = st.sampled_from([b"\n", b"\r\n", b"\r"])
DATA = [b"x", b"[DONE]", b"", b" y", b"\xc3\xa9 \xe2\x80\xa8", b"\xff", b"a: b"]
lines = st.sampled_from(
    [b"", b"", *(b"data: " + data for data in DATA), b"data:", b"data", b": c", b"d", b"id: 7"]
)
streams = st.lists(st.tuples(lines, line_ends), max_size=25).map(
    lambda parts: b"".join(line + end for line, end in parts)
)


@st.composite
def pieces_of(draw, source):
    stream = draw(source)
    cuts = draw(st.lists(st.integers(0, len(stream)), max_size=30))
    edges = sorted({0, len(stream), *cuts})
    return [stream[a:b] for a, b in pairwise(edges)]


@settings(max_examples=800, deadline=None)
@given(pieces_of(streams))
@example([b"data: x\r", b"\n\r\n"])
@example([b"data: x\r\n\r", b"\n", b"data: y\n\n"])
@example([b"data: x\n\n", b"data: y\n", b"\n", b"data: z\n\n"])
@example([b"data: x\r\r", b"data: y\n\n"])
@example([b"data: x\n", b"data: y\n\n"])
@example([b"data: x\ndata", b": y\n\n"])
def test_the_parser_finds_what_a_browser_finds_however_it_is_cut(pieces):
    parser = EventParser(1 << 20)
    found = [data for piece in pieces for data in parser.feed(piece)]
    # The client's reader decodes the whole first, and knows nothing of pieces.
    assert [data.decode("utf-8", "replace") for data in found] == events(b"".join(pieces))


def test_an_event_that_has_no_end_is_refused_and_the_next_is_read():
    parser = EventParser(1000)
    parser.feed(b"data: " + b"x" * 900)
    with pytest.raises(ApiError) as refused:
        parser.feed(b"x" * 200)
    assert refused.value.status == 502
    parser.feed(b"\n\n")
    assert parser.feed(token("next")) == [token("next")[6:-2]]


def buffer_of(limit: int = 1 << 20, pool: Pool | None = None) -> EventBuffer:
    return EventBuffer(limit, pool or Pool(1 << 30))


def ids(frames: list[bytes]) -> list[int]:
    return [int(frame.partition(b"\n")[0].removeprefix(b"id: ")) for frame in frames]


@given(st.lists(st.text("a\n:dt \u2028").map(str.encode), max_size=20))
def test_a_frame_says_what_went_in(texts):
    buffer = buffer_of()
    for text in texts:
        buffer.append(text)
    frames = buffer.read(0, 1 << 20)
    assert [data_of(frame) for frame in frames] == texts
    assert ids(frames) == list(range(1, len(texts) + 1))
    assert [one.encode() for one in events(b"".join(frames))] == texts


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=60),
    st.lists(st.tuples(st.integers(0, 1), st.integers(1, 400)), max_size=200),
)
async def test_any_two_readers_get_each_event_once_or_are_told(sizes, turns):
    """Whatever the order of appends and reads: no gap, no double, and no silence about a loss."""
    buffer = buffer_of(limit=1500)
    sent, cursors, got = 0, [0, 0], [[], []]
    gone = [False, False]

    def read(reader: int, most: int) -> None:
        try:
            frames = buffer.read(cursors[reader], most)
        except EventsGoneError:
            gone[reader] = True
            return
        assert ids(frames) == list(range(cursors[reader] + 1, cursors[reader] + len(frames) + 1))
        cursors[reader] += len(frames)
        got[reader] += frames

    for turn, size in enumerate(sizes * 3):
        if not buffer._unsent_bytes or buffer._has_room():
            sent += 1
            buffer.append(b"%d " % sent + b"x" * size)
        for reader, most in turns[turn::7]:
            if not gone[reader]:
                read(reader, most)
    buffer.end()
    furthest = max((0, 1), key=lambda reader: cursors[reader])
    assert not gone[furthest] or cursors[0] == cursors[1]
    while cursors[furthest] < sent:
        read(furthest, 1 << 20)
    assert [int(data_of(frame).split()[0]) for frame in got[furthest]] == list(range(1, sent + 1))
    assert buffer.held_bytes == sum(len(frame) + 48 for frame in buffer._frames)
    assert buffer._pool.used == buffer.held_bytes


async def test_the_producer_waits_while_a_quarter_of_the_buffer_is_news():
    buffer = buffer_of(limit=10_000)
    count = 0
    while buffer._has_room():
        buffer.append(b"x" * 200)
        count += 1
    assert 8 < count < 13
    waiting = asyncio.create_task(buffer.room())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    buffer.read(0, 1)
    await asyncio.wait_for(waiting, 1)


async def test_last_words_do_not_wait_for_room():
    """At the end of the drain time they have two seconds, and perhaps nobody reads."""
    buffer = buffer_of(limit=10_000)
    ends = []
    generation = Generation(
        ChatStream("s", "alice", "tiny", buffer), 5000, lambda: ends.append(buffer.last_id)
    )
    start = {"status": 200, "headers": [(b"content-type", b"text/event-stream")]}
    await generation.send({"type": "http.response.start", **start})

    async def send(body, more_body):
        await generation.send({"type": "http.response.body", "body": body, "more_body": more_body})

    while buffer._has_room():
        await send(token("w" * 200), more_body=True)
    before = buffer.last_id
    stuck = asyncio.create_task(send(token("w" * 200), more_body=True))
    await asyncio.sleep(0.01)
    assert not stuck.done()
    stuck.cancel()
    await asyncio.sleep(0)
    assert buffer.last_id == before, "a write that was cancelled has written nothing"
    await asyncio.wait_for(send(token("last") + DONE + token("behind"), more_body=False), 1)
    assert buffer.last_id == before + 2
    assert ends == [before + 2]


async def test_what_was_sent_is_kept_for_a_reader_that_comes_back():
    buffer = buffer_of(limit=10_000)
    for _ in range(300):
        await buffer.room()
        buffer.append(b"x" * 200)
        buffer.read(buffer.last_id - 1, 1)
    # A reader that lost the last ones with its connection, while news fills the buffer.
    while buffer._has_room():
        buffer.append(b"x" * 200)
    assert ids(buffer.read(285, 1)) == [286]
    with pytest.raises(EventsGoneError):
        buffer.read(0, 1)
    assert buffer.held_bytes <= 10_000


async def test_a_burst_that_came_at_once_is_cut_to_the_bound_once_it_is_read():
    buffer = buffer_of(limit=10_000)
    for _ in range(100):
        buffer.append(b"x" * 200)
    buffer.end()
    assert buffer.held_bytes > 10_000, "nobody has had it: nothing may go"
    assert ids(buffer.read(0, 1 << 20)) == list(range(1, 101))
    assert ids(buffer.read(0, 1 << 20)) == list(range(1, 101)), "a second reader, in the same turn"
    await asyncio.sleep(0)
    assert buffer.held_bytes <= 10_000
    assert buffer._pool.used == buffer.held_bytes
    with pytest.raises(EventsGoneError):
        buffer.read(0, 1)
    assert ids(buffer.read(95, 1 << 20)) == [96, 97, 98, 99, 100]


async def test_all_buffers_together_keep_within_the_pool():
    pool = Pool(100_000)
    buffers = [buffer_of(50_000, pool) for _ in range(10)]
    for _ in range(400):
        for buffer in buffers:
            if buffer._has_room():
                buffer.append(b"x" * 200)
                buffer.read(buffer.last_id - 1, 1)
        assert pool.used <= 100_000 + 10 * 300
    # Now nobody reads: each producer is held back, and one reader's progress lets one go on.
    for buffer in buffers:
        while buffer._has_room():
            buffer.append(b"x" * 200)
    assert pool.used <= 100_000 + 10 * 300
    # Nothing of what was not sent has gone for it.
    for buffer in buffers:
        assert buffer.first_id <= buffer._sent + 1
    waiting = asyncio.create_task(buffers[3].room())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    reader = buffers[3]
    reader.read(reader._sent, 1 << 20)
    await asyncio.wait_for(waiting, 1)
    # Those that have ended and that nobody wants make room for the others.
    for buffer in buffers[5:]:
        buffer.end()
        buffer.unwanted = True
    pool.reclaim()
    assert not pool.full
    for buffer in buffers:
        buffer.discard()
    assert pool.used == 0


async def test_a_reader_that_waits_is_told_of_news_and_of_the_end():
    buffer = buffer_of()
    waiting = [asyncio.create_task(buffer.news(0)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    buffer.append(b"1")
    buffer.append(b"2")
    await asyncio.wait_for(asyncio.gather(*waiting[1:]), 1)
    waiting = [asyncio.create_task(buffer.news(2))]
    await asyncio.sleep(0)
    buffer.end()
    await asyncio.wait_for(waiting[0], 1)


def test_the_count_of_bytes_is_the_memory_that_is_taken():
    """A hundred thousand tokens as an engine writes them, and many streams at once."""
    chunk = token("word ")[6:-2].replace(b'"choices"', b'"id":"chatcmpl-%032d","choices"' % 0)
    chunk = chunk[:-1] + b',"object":"chat.completion.chunk","created":1790000000,"model":"tiny"}'

    def fill(limit: int, count: int, streams: int) -> tuple[int, int]:
        pool = Pool(1 << 30)
        tracemalloc.start()
        buffers = [buffer_of(limit, pool) for _ in range(streams)]
        for number in range(count):
            for buffer in buffers:
                buffer.append(b"%b" % (chunk[:-1] + b" }"))
                if number % 10 == 9:
                    buffer.read(number - 9, 1 << 20)
        taken, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return taken, pool.used

    taken, counted = fill(1 << 30, 20_000, 1)
    assert 4_000_000 < counted < 7_000_000  # without a bound
    assert abs(taken - counted) < counted * 0.1
    taken, counted = fill(8 << 20, 100_000, 1)
    assert taken < 8.5 * (1 << 20)
    taken, counted = fill(32 << 10, 300, 100)
    assert taken < 100 * (36 << 10)
    assert abs(taken - counted) < counted * 0.15


def test_role_and_done_are_events_as_others():
    parser = EventParser(1000)
    assert parser.feed(ROLE + DONE) == [ROLE[6:-2], b"[DONE]"]
