"""A stand-in for vLLM: streams at a steady pace, its tokens numbered, cheap enough not to count.

    python -m bench.engine --port PORT

One process; every event of an answer is encoded once, for all streams; one wheel of a millisecond
a slot gives each stream its tokens. What it says is vLLM's chat completion stream: a first event
with the role alone, an event a token, the finish reason in the last, the usage where it was asked
for, `[DONE]`. The text of token 17 is " amber 17": no two tokens of an answer are alike (LiteLLM
ends a stream that repeats itself), and who reads it sees what is missing.

`POST /bench/pace` sets the pace of streams that begin from then on, and forgets the lateness seen
so far; `GET /bench/state` tells how late the wheel was.

On the express lane (docs/express.md) it does as vLLM does with our layer in it: it tells the
backend of begin and end, and leaves the usage out where nginx says so. What that layer costs in
vLLM is in no figure.

When the reader of a stream does not keep up, its tokens wait, where vLLM would merge them: so that
an answer always has as many events as tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import sys
import time
from typing import Any, cast

import httptools
import uvloop

from bench.figures import quantiles

WORDS = ("river", "stone", "amber", "field", "lantern", "north", "willow", "copper")
ID = "chatcmpl-05a3c28feb9f4b4eb1d5faed7bb4ca8a"
CREATED = 1795664158
PROMPT_TOKENS = 12
SLOT_SECONDS = 0.001
SLOTS = 4096
GOLDEN = 0.6180339887
"""Multiples of it spread evenly over the pace, however many streams there are."""
HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


def usage(tokens: int) -> dict[str, int]:
    """Return vLLM's count."""
    total = PROMPT_TOKENS + tokens
    return {"prompt_tokens": PROMPT_TOKENS, "total_tokens": total, "completion_tokens": tokens}


def text(number: int) -> str:
    """Return the text of a token; they are numbered from 1."""
    return f" {WORDS[number % 8]} {number}"


def chunked(document: dict[str, Any]) -> bytes:
    """Return one event as one chunk of HTTP."""
    data = b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


class Events:
    """Every event that any answer of one model may need, each encoded once."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._tokens: dict[bool, list[bytes]] = {False: [], True: []}

    def role(self, *, counted: bool) -> bytes:
        """Return the first event, which has no token."""
        return self._event({"role": "assistant", "content": ""}, None, 0, counted=counted)

    def tokens(self, most: int, *, counted: bool) -> list[bytes]:
        """Return the events of tokens 1, 2, 3 …, at least so many."""
        known = self._tokens[counted]
        for number in range(len(known) + 1, most + 1):
            known.append(self._event({"content": text(number)}, None, number, counted=counted))
        return known

    def last(self, number: int, *, counted: bool) -> bytes:
        """Return the event of a last token."""
        return self._event({"content": text(number)}, "length", number, counted=counted)

    def usage(self, tokens: int) -> bytes:
        """Return the event that has the count alone."""
        return chunked({**self._chunk(), "choices": [], "usage": usage(tokens)})

    def _chunk(self) -> dict[str, Any]:
        kind = "chat.completion.chunk"
        return {"id": ID, "object": kind, "created": CREATED, "model": self._model}

    def _event(
        self, delta: dict[str, str], finish: str | None, number: int, *, counted: bool
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        if "role" not in delta:
            choice["token_ids"] = None
        more = {"usage": usage(number)} if counted else {}
        return chunked({**self._chunk(), "choices": [choice], **more})


class Ends:
    """Tells a backend of answers that pass it by, as gateway.handed_off does in vLLM.

    `where` is its socket's path, with {} for the instance.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def tell(self, headers: dict[bytes, bytes], what: str, **more: Any) -> None:
        """Tell, where the request was handed off."""
        instance = headers.get(b"x-millrace-ends")
        if not instance:
            return
        told = {"from": "engine", "what": what, "id": headers[b"x-request-id"].decode(), **more}
        # Nobody's answer depends on it.
        with contextlib.suppress(OSError):
            self._socket.sendto(json.dumps(told).encode(), self._where.format(instance.decode()))


class Stream:
    """One answer under way: which token is next, and when."""

    __slots__ = (
        "counted", "due", "end", "events", "headers", "link", "next", "period", "tokens"
    )  # fmt: skip

    def __init__(
        self, link: Link, events: Events, tokens: int, options: dict[str, Any],
        headers: dict[bytes, bytes],
    ) -> None:  # fmt: skip
        self.link = link
        self.headers = headers
        self.tokens = tokens
        self.next = 1
        self.counted = bool(options.get("continuous_usage_stats"))
        self.events = events.tokens(tokens, counted=self.counted)
        self.end = events.last(tokens, counted=self.counted)
        if options.get("include_usage") and b"x-millrace-hide-usage" not in headers:
            self.end += events.usage(tokens)
        self.end += END
        self.period = self.due = 0.0

    def step(self) -> bool:
        """Send the next token, and the end behind the last; return whether there are more."""
        link = self.link
        if link.held:
            return True
        if self.next == self.tokens:
            link.transport.write(self.end)
            link.stream = None
            self.tell_end(whole=True)
            return False
        link.transport.write(self.events[self.next - 1])
        self.next += 1
        return True

    def tell_end(self, *, whole: bool) -> None:
        """Tell the backend how it ended, where the answer passed it by."""
        counted = [PROMPT_TOKENS, self.tokens] if whole else None
        self.link.engine.ends.tell(
            self.headers, "end", status=200, whole=whole, left=not whole, done=whole,
            pieces=self.next, bytes=0, first_token=None, usage=counted,
        )  # fmt: skip


class Engine:
    """Gives every open stream its tokens at its pace."""

    def __init__(self, ends: Ends) -> None:
        self.ends = ends
        self.rate, self.first_seconds, self.aligned = 50.0, 0.01, False
        self.open = self.begun = 0
        self.lags: list[float] = []
        self._loop = asyncio.get_running_loop()
        self._slots: list[list[Stream]] = [[] for _ in range(SLOTS)]
        self._slot = 0
        self._turning = False
        self._events: dict[str, Events] = {}

    def events(self, model: str) -> Events:
        """Return the events of answers of this model."""
        return self._events.setdefault(model, Events(model))

    def set_pace(self, rate: float, first_seconds: float, aligned: bool) -> None:
        """Set the pace of streams that begin from now on, in tokens a second and stream."""
        self.rate, self.first_seconds, self.aligned = rate, first_seconds, aligned
        self.lags.clear()

    def state(self) -> dict[str, float]:
        """Say how many streams are open and how late the wheel was, in seconds."""
        told = quantiles(self.lags)
        lag = {f"lag_{name}_seconds": told[name] for name in ("p50", "p99", "max") if self.lags}
        return {"open": self.open, "begun": self.begun, **lag}

    def begin(self, stream: Stream) -> None:
        """Give a stream its first token in a while, and then one a pace."""
        self.open += 1
        self.begun += 1
        stream.period = 1 / self.rate
        now = self._loop.time()
        # A real engine gives all streams their tokens in the same step, but hands them on one by
        # one; aligned, they come in the same millisecond.
        stream.due = now + self.first_seconds
        if self.aligned:
            stream.due += stream.period - stream.due % stream.period
        if not self._turning:
            self._turning = True
            self._slot = int(now / SLOT_SECONDS)
            self._loop.call_later(SLOT_SECONDS, self._turn)
        self._put(stream)

    def _put(self, stream: Stream) -> None:
        if stream.due - self._loop.time() > (SLOTS - 2) * SLOT_SECONDS:
            # Hardly ever a token: such a stream is there to be idle.
            self._loop.call_at(stream.due, self._step, stream)
        else:
            slot = max(int(stream.due / SLOT_SECONDS), self._slot)
            self._slots[slot % SLOTS].append(stream)

    def _step(self, stream: Stream) -> None:
        # The second token's time gives the stream its place within the pace.
        first = stream.next == 1
        if stream.link.closed:
            return
        if not stream.step():
            self.open -= 1
            return
        share = 1.0
        if first and not self.aligned:
            share = 0.5 + (self.begun * GOLDEN) % 1
        stream.due += stream.period * share
        self._put(stream)

    def _turn(self) -> None:
        # uvloop's own clock stands still while it works off what came.
        now = time.monotonic()
        until = int(now / SLOT_SECONDS)
        while self._slot <= until:
            slot = self._slot
            self._slot += 1
            due = self._slots[slot % SLOTS]
            if due:
                self._slots[slot % SLOTS] = []
                self.lags.append(now - (slot + 1) * SLOT_SECONDS)
                for stream in due:
                    self._step(stream)
        if self.open:
            self._loop.call_later(SLOT_SECONDS, self._turn)
        else:
            self._turning = False


class Link(asyncio.Protocol):
    """A connection to the engine; kept for further requests."""

    transport: asyncio.Transport

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.closed = self.held = False
        self.stream: Stream | None = None
        self._parser: Any = httptools.HttpRequestParser(self)
        self._path, self._body = b"", bytearray()
        self._headers: dict[bytes, bytes] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the reader left."""
        self.closed = True
        if self.stream is not None:
            self.stream.tell_end(whole=False)
            self.stream = None
            self.engine.open -= 1

    def pause_writing(self) -> None:
        """Wait: the reader does not keep up."""
        self.held = True

    def resume_writing(self) -> None:
        """Go on."""
        self.held = False

    def data_received(self, data: bytes) -> None:
        """Read requests, one after another."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.close()

    def on_url(self, url: bytes) -> None:
        """Note what is asked for."""
        self._path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note a header."""
        self._headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        """Collect the body."""
        self._body += body

    def on_message_complete(self) -> None:
        """Answer."""
        path, body = self._path.partition(b"?")[0], bytes(self._body)
        headers = self._headers
        self._path, self._body, self._headers = b"", bytearray(), {}
        try:
            given = json.loads(body or b"{}")
            self._answer(path, given, headers)
        except (ValueError, KeyError, TypeError) as error:
            self._json({"error": {"message": f"not understood: {error}", "code": 400}}, 400)

    def _answer(self, path: bytes, given: dict[str, Any], headers: dict[bytes, bytes]) -> None:
        engine = self.engine
        if path == b"/v1/chat/completions":
            self._complete(given, headers)
        elif path == b"/bench/state":
            self._json(engine.state())
        elif path == b"/bench/pace":
            engine.set_pace(given["rate"], given["first_seconds"], given["aligned"])
            self._json(engine.state())
        elif path in (b"/health", b"/ping"):
            self._json({})
        elif path == b"/v1/models":
            model = {"id": "bench", "object": "model", "created": CREATED, "owned_by": "bench"}
            self._json({"object": "list", "data": [model]})
        else:
            self._json({"error": {"message": "there is nothing here", "code": 404}}, 404)

    def _complete(self, given: dict[str, Any], headers: dict[bytes, bytes]) -> None:
        wanted = given.get("max_completion_tokens") or given.get("max_tokens") or 16
        tokens, model = int(wanted), str(given["model"])
        if not given.get("stream"):
            message = {"role": "assistant", "content": "".join(map(text, range(1, tokens + 1)))}
            choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}
            kind = {"id": ID, "object": "chat.completion", "created": CREATED, "model": model}
            self._json({**kind, "choices": [choice], "usage": usage(tokens)})
            return
        events, options = self.engine.events(model), given.get("stream_options") or {}
        self.engine.ends.tell(headers, "begin")
        self.stream = Stream(self, events, tokens, options, headers)
        self.transport.write(HEAD + events.role(counted=self.stream.counted))
        self.engine.begin(self.stream)

    def _json(self, document: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(document).encode()
        head = b"HTTP/1.1 %d OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self.transport.write(head % (status, len(data)) + data)


async def serve(port: int, ends: Ends) -> None:
    """Serve for ever."""
    engine = Engine(ends)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Link(engine), "127.0.0.1", port, backlog=2048)
    async with server:
        await server.serve_forever()


def main() -> int:
    """Run the stand-in."""
    parser = argparse.ArgumentParser(prog="python -m bench.engine")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ends", default="", help="the backend's ends.sock, {} for its instance")
    options = parser.parse_args()
    uvloop.run(serve(options.port, Ends(options.ends)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
