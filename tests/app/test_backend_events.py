"""The event splitter under any split, and what counts as a token."""

import json
from itertools import pairwise

import pytest
from backend.events import EventSplitter, is_terminal
from backend.tokens import shows_token
from backend_client import events
from backend_upstream import DONE, ROLE, token
from hypothesis import example, given, settings
from hypothesis import strategies as st

HEARTBEAT = b": heartbeat\n\n"

line_ends = st.sampled_from([b"\n", b"\r\n", b"\r"])
lines = st.sampled_from([b"", b"data: x", b"data:", b": c", b"d", b"\xc3\xa9", b"data: [DONE]"])
streams = st.lists(st.tuples(lines, line_ends), max_size=25).map(
    lambda parts: b"".join(line + end for line, end in parts)
)
raw_streams = st.one_of(streams, st.text("\r\na:", max_size=40).map(str.encode))


@st.composite
def split_streams(draw):
    stream = draw(raw_streams)
    cuts = draw(st.lists(st.integers(0, len(stream)), max_size=30))
    edges = sorted({0, len(stream), *cuts})
    return [stream[a:b] for a, b in pairwise(edges)]


def boundaries(stream: bytes) -> set[int]:
    """Find byte by byte where an event has ended: slow, and made differently on purpose."""
    found, line_is_empty, position = {0}, True, 0
    while position < len(stream):
        byte = stream[position : position + 1]
        if byte not in (b"\r", b"\n"):
            line_is_empty = False
            position += 1
            continue
        crlf = stream[position : position + 2] == b"\r\n"
        if line_is_empty:
            found.add(position + 1)
            if crlf:
                found.add(position + 2)
        position += 2 if crlf else 1
        line_is_empty = True
    return found


@settings(max_examples=600, deadline=None)
@given(split_streams())
@example([b"data: x\r\n\r", b"\n"])
@example([b"data: x\r", b"\n", b"\r", b"\n", b"data: y\r\n\r\n"])
@example([b"data: x\n", b"\r\n", b"\n", b"y"])
def test_everything_comes_out_and_each_piece_ends_between_events(pieces):
    splitter, out, fed = EventSplitter(), b"", b""
    for piece in pieces:
        fed += piece
        out += splitter.feed(piece)
        assert not splitter.mid_event
        # All that is complete is out, and not a byte more. Positions that only the future can
        # tell (a CR whose LF may follow) count as ends: the line is over either way.
        assert len(out) == max(boundaries(fed))
    assert out + splitter.rest() == b"".join(pieces)


@settings(max_examples=400, deadline=None)
@given(split_streams())
def test_a_heartbeat_after_any_piece_changes_no_event(pieces):
    splitter, out = EventSplitter(), b""
    for piece in pieces:
        out += splitter.feed(piece) + HEARTBEAT
    out += splitter.rest()
    assert events(out) == events(b"".join(pieces))


@settings(max_examples=300, deadline=None)
@given(split_streams(), st.integers(0, 12))
def test_a_long_event_passes_in_pieces_and_memory_stays_bounded(pieces, limit):
    splitter, out = EventSplitter(limit), b""
    for piece in pieces:
        ready = splitter.feed(piece)
        out += ready
        if ready and not splitter.mid_event:
            out += HEARTBEAT
        assert len(splitter.rest()) <= limit
    out += splitter.rest()
    assert out.replace(HEARTBEAT, b"") == b"".join(pieces)
    assert events(out) == events(b"".join(pieces))


def test_whole_events_pass_without_a_copy():
    event = token("hello")
    assert EventSplitter().feed(event) is event


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_done_is_seen_however_it_is_cut(end, step):
    stream = b"data: {}" + end + b"data: [DONE]" + end
    splitter = EventSplitter()
    for start in range(0, len(stream), step):
        splitter.feed(stream[start : start + step])
    assert splitter.is_done


@pytest.mark.parametrize(
    "stream",
    [
        b'data: {"content":"data: [DONE]"}\n\n',
        b"data: [DONE]\n",
        b"data: [DONE]\n\ndata: more\n\n",
        b"xdata: [DONE]\n\n",
        b"",
    ],
)
def test_what_only_looks_like_done_is_not(stream):
    splitter = EventSplitter()
    if stream:
        splitter.feed(stream)
    assert not splitter.is_done


def test_terminal_without_its_blank_line():
    assert is_terminal(b"data: [DONE]")
    assert is_terminal(b"data: [DONE]\r\n")
    assert not is_terminal(b"data: [DONE")
    assert not is_terminal(b"")


def chunk(**fields):
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


@pytest.mark.parametrize(
    "stream",
    [
        token("x"),
        ROLE + token("x"),
        chunk(choices=[{"delta": {"reasoning_content": "hm"}}]),
        chunk(choices=[{"delta": {"tool_calls": [{"index": 0}]}}]),
        chunk(choices=[{"delta": {}, "finish_reason": "stop"}]),
        chunk(choices=[], usage={"completion_tokens": 1}),
        chunk(choices=[{"text": "x", "finish_reason": None}]),
        b"event: response.output_text.delta\n" + chunk(delta="x"),
    ],
)
def test_tokens_are_seen(stream):
    assert shows_token(stream)


@pytest.mark.parametrize(
    "stream",
    [
        ROLE,
        DONE,
        b": keep-alive\n\n",
        b"data: {broken\n\n",
        b"data: [1]\n\ndata: null\n\n",
        chunk(error={"message": "engine died"}),
        chunk(choices=[{"delta": {"content": ""}, "finish_reason": None}]),
        chunk(choices=[{"delta": {}, "finish_reason": "abort"}]),
        chunk(choices=[], usage={"completion_tokens": 0}),
        chunk(choices="x", usage=[]),
        chunk(choices=[{"text": "", "finish_reason": None}]),
        b"event: response.output_text.delta\n" + chunk(delta=""),
    ],
)
def test_signs_of_life_are_not_tokens(stream):
    assert not shows_token(stream)
