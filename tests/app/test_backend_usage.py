"""The engine's own count: read from what passes, and taken out again where nobody asked for it."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from backend.events import EventSplitter
from backend.usage import Usage, UsageTap, usage_of
from backend_client import Connection, ask, chat, events
from backend_upstream import DONE, ROLE, send_pieces, token
from hypothesis import example, given, settings
from hypothesis import strategies as st

CHAT = "/v1/chat/completions"
COUNT = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
LAST = b'data: {"id":"c","choices":[],"usage":' + json.dumps(COUNT).encode() + b"}\n\n"
SPACED = b'data: {"choices": [], "usage" : ' + json.dumps(COUNT).encode() + b"}\r\n\r\n"
RUNNING = (
    b'data: {"choices":[{"delta":{"content":"a"}}],'
    b'"usage":{"prompt_tokens":7,"completion_tokens":1}}\n\n'
)
TALK = token('he said "usage":{"prompt_tokens":1000000}')
NULL = b'data: {"choices":[{"delta":{"content":"b"}}],"usage":null}\n\n'


@pytest.mark.parametrize("last", [LAST, SPACED])
def test_the_count_is_taken_out_and_nothing_else(last):
    tap = UsageTap(hide=True)
    assert tap.look(ROLE + TALK + NULL + RUNNING + last + DONE) == (
        ROLE + TALK + NULL + RUNNING + DONE
    )
    assert tap.usage == Usage(7, 3)


def test_who_asked_for_the_count_gets_it():
    tap = UsageTap(hide=False)
    assert tap.look(RUNNING) == RUNNING
    assert tap.usage == Usage(7, 1)
    assert tap.look(LAST + DONE) == LAST + DONE
    assert tap.usage == Usage(7, 3)


@given(st.lists(st.sampled_from([ROLE, TALK, NULL, token("x"), b": beat\n\n", DONE])))
def test_what_counts_nothing_passes_as_it_is(pieces):
    tap = UsageTap(hide=True)
    data = b"".join(pieces)
    assert tap.look(data) is data
    assert tap.usage is None


# What an engine sends, in any line ends; the huge one is longer than the splitter holds.
LINES = [
    [ROLE[:-2]],
    [token("déjà vu 🌊\u2028 " * 3)[:-2]],
    ['data: {"choices":[{"delta":{"content":"ü🌊"}}]}'.encode()],
    [TALK[:-2]],
    [NULL[:-2]],
    [RUNNING[:-2]],
    [b": heartbeat"],
    [b"event: x", b"data: {}"],
    [b"data: " + b"\xc3\xa9" * 150_000],
    [DONE[:-2]],
]
COUNTS = [[LAST[:-2]], [b"id: 7", LAST[:-2]]]


@st.composite
def cut_answers(draw):
    """An answer in pieces as they may be read, and what is to be left of it."""
    end = draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
    sent, left = b"", b""
    for lines in draw(st.lists(st.sampled_from(LINES + COUNTS), min_size=1, max_size=8)):
        event = end.join(lines) + end + end
        sent += event
        left += b"" if lines in COUNTS else event
    cuts = draw(st.lists(st.integers(0, len(sent)), max_size=20))
    edges = sorted({0, len(sent), *cuts})
    return end, [sent[a:b] for a, b in pairwise(edges)], left


@settings(max_examples=400, deadline=None)
@given(cut_answers())
@example((b"\r\n", [b"id: 7\r\n" + SPACED, b"data: x\r\n\r\n"], b"data: x\r\n\r\n"))
def test_behind_the_splitter_only_the_count_is_missing(answer):
    end, pieces, left = answer
    splitter, tap = EventSplitter(), UsageTap(hide=True)
    out = b"".join(tap.look(ready) for piece in pieces if (ready := splitter.feed(piece)))
    out += splitter.rest()
    if end == b"\r\n":
        # An event is over at its last CR; cut there, the LF comes as an empty line of its own.
        assert events(out) == events(left)
        assert out.split() == left.split()
    else:
        assert out == left


@pytest.mark.parametrize(
    ("data", "usage"),
    [
        ('{"usage": {"prompt_tokens": 5, "total_tokens": 5}}', Usage(5, 0)),
        ('{"usage": {"input_tokens": 5, "output_tokens": 6}}', Usage(5, 6)),
        (
            '{"type": "x", "response": {"usage": {"input_tokens": 5, "output_tokens": 6}}}',
            Usage(5, 6),
        ),
        # A client's own words, told back by the engine.
        ('{"response": {"tools": [{"usage": {"input_tokens": 5}}]}}', None),
        ('{"usage": {"prompt_tokens": -5, "completion_tokens": true}}', Usage(0, 0)),
        ('{"usage": []}', None),
        ("[]", None),
        ("{", None),
    ],
)
def test_where_a_count_is_looked_for(data, usage):
    assert usage_of(data.encode()) == usage


@pytest.mark.parametrize("asked", [False, True])
async def test_a_stream_is_counted_and_looks_as_it_was_asked_for(port, upstream, logs, asked):
    upstream.script = send_pieces([ROLE, token("a"), LAST, DONE])
    more = {"stream_options": {"include_usage": True}} if asked else {}
    body = (await ask(port, "POST", CHAT, chat(**more))).body
    assert body == ROLE + token("a") + (LAST if asked else b"") + DONE
    sent = json.loads(upstream.received[-1].body)
    assert sent["stream_options"] == {"include_usage": True}
    line = await logs.next_request()
    assert (line["prompt_tokens"], line["completion_tokens"]) == (7, 3)


async def test_a_whole_answer_is_counted(port, upstream, logs):
    async def whole(request, answer):
        await answer.whole(b'{"choices":[],"usage":' + json.dumps(COUNT).encode() + b"}")

    upstream.script = whole
    await ask(port, "POST", CHAT, chat(stream=False))
    line = await logs.next_request()
    assert (line["prompt_tokens"], line["completion_tokens"]) == (7, 3)
    assert "stream_options" not in json.loads(upstream.received[-1].body)


RESPONSE_END = (
    b'event: response.completed\ndata: {"type":"response.completed","response":'
    b'{"usage":{"input_tokens":4,"output_tokens":9}}}\n\n'
)
RESPONSE_DELTA = (
    b"event: response.output_text.delta\n"
    b'data: {"type":"response.output_text.delta","delta":"event: response.completed"}\n\n'
)


async def ask_responses(port: int) -> Connection:
    connection = await Connection.open(port)
    body = json.dumps({"model": "tiny", "input": "hi", "stream": True}).encode()
    await connection.send("POST", "/v1/responses", body)
    return connection


async def test_responses_end_with_their_own_event(port, upstream, logs):
    upstream.script = send_pieces([RESPONSE_DELTA, RESPONSE_END])
    connection = await ask_responses(port)
    assert await connection.head() == 200
    assert await connection.rest() == RESPONSE_DELTA + RESPONSE_END
    line = await logs.next_request()
    assert (line["ended"], line["prompt_tokens"], line["completion_tokens"]) == ("complete", 4, 9)
    assert "stream_options" not in json.loads(upstream.received[-1].body)


async def test_responses_cut_short_say_so_in_their_own_way(port, upstream, logs):
    upstream.script = send_pieces([RESPONSE_DELTA])
    connection = await ask_responses(port)
    await connection.head()
    body = await connection.rest()
    assert body.startswith(RESPONSE_DELTA + b"event: error\ndata: ")
    said = json.loads(body.split(b"data: ")[-1])
    assert said["type"] == "error"
    assert said["code"] == "upstream_error"
    assert b"[DONE]" not in body
    assert (await logs.next_request())["ended"] == "upstream_error"
