"""One request: sent, read to its end, and written down as an Observation."""

from __future__ import annotations

import hashlib
import json
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from streamcheck.decode import CodingError, decoder
from streamcheck.model import Arrival, Numbered, Observation, Target, Way
from streamcheck.sse import Block, Parser, TooLongError
from streamcheck.wire import End, Head, Piece, Request, Wire

KEPT_HEADERS = (
    "content-type", "cache-control", "content-encoding", "x-accel-buffering", "age", "x-cache",
    "cf-cache-status", "cf-ray", "via", "server", "transfer-encoding", "content-length",
    "location", "retry-after", "vary",
)  # fmt: skip
LARGEST_BODY_BYTES = 32 << 20
KEPT_BYTES = 65536
CONNECT_SECONDS = 10.0
USER_AGENT = "millrace-streamcheck/1"


@dataclass(frozen=True)
class Ask:
    """What is asked: a path under the hop's base URL, and a body for a POST."""

    path: str
    body: bytes = b""
    # The answer may take so long in all, seconds.
    limit_seconds: float = 60.0
    # Called after each read with what was seen so far; a true answer means: leave now.
    leave: Callable[[Observation], bool] = field(default=lambda _: False)
    # A slow reader: sleep so long after each read, from so small a buffer of the kernel's.
    reading_pause_seconds: float = 0.0
    receive_buffer: int = 0


def chat(model: str, text: str, **more: Any) -> bytes:
    """Return the body of a streamed chat completion."""
    messages = [{"role": "user", "content": text}]
    return json.dumps({"model": model, "messages": messages, "stream": True, **more}).encode()


def request_for(target: Target, way: Way, ask: Ask) -> Request:
    """Return the request as a client of this way would send it."""
    headers = [
        ("User-Agent", USER_AGENT),
        ("Accept", "text/event-stream"),
        ("Accept-Encoding", way.encoding),
    ]
    if target.key:
        headers.append(("Authorization", f"Bearer {target.key}"))
    if ask.body:
        headers.append(("Content-Type", "application/json"))
    base = urllib.parse.urlsplit(target.url).path.rstrip("/")
    return Request(way.method, base + ask.path, headers, ask.body)


def observe(target: Target, way: Way, ask: Ask) -> Observation:
    """Send the request and read its answer. Raises CheckError and wire.NotOfferedError."""
    seen = Observation(way)
    timeout = min(CONNECT_SECONDS, ask.limit_seconds)
    wire = Wire(target, way.protocol, timeout, ask.receive_buffer)
    try:
        seen.connect_seconds = wire.connect_seconds
        reader = _Reader(seen)
        seen.requested_at = began = time.monotonic()
        for part in wire.exchange(request_for(target, way, ask), began + ask.limit_seconds):
            reader.take(part)
            if seen.ended:
                break
            if ask.leave(seen):
                seen.ended = "left"
                break
            if ask.reading_pause_seconds:
                time.sleep(ask.reading_pause_seconds)
    finally:
        wire.close()
    return seen


class _Reader:
    """Turns what comes off the wire into an Observation."""

    def __init__(self, seen: Observation) -> None:
        self.seen = seen
        self.parser = Parser()
        self.decode: Callable[[bytes], bytes] = lambda data: data
        self.is_refusal = False
        self.total = 0
        self.digest = hashlib.sha256()
        self.finished = False

    def take(self, part: Head | Piece | End) -> None:
        if isinstance(part, Head):
            self._head(part)
        elif isinstance(part, Piece):
            self._piece(part)
        else:
            self._end(part)

    def _head(self, head: Head) -> None:
        seen = self.seen
        seen.status, seen.http_version = head.status, head.version
        seen.headers_seconds = head.at - seen.requested_at
        seen.headers = {k: head.headers[k] for k in KEPT_HEADERS if k in head.headers}
        self.is_refusal = head.status != 200
        try:
            self.decode = decoder(head.headers.get("content-encoding", ""))
        except CodingError as error:
            seen.error, seen.ended = str(error), "refused"

    def _piece(self, piece: Piece) -> None:
        seen = self.seen
        at = piece.at - seen.requested_at
        if seen.first_byte_seconds is None:
            seen.first_byte_seconds = at
        try:
            data = self.decode(piece.data)
        except CodingError as error:
            seen.error, seen.ended = str(error), "cut"
            return
        self.total += len(data)
        if len(seen.body) < KEPT_BYTES:
            seen.body += data[:KEPT_BYTES]
        if self.is_refusal:
            if self.total > KEPT_BYTES:
                self._end(End(piece.at, True))
            return
        try:
            blocks = self.parser.feed(data)
        except TooLongError:
            seen.error = "more than a mebibyte came without the end of an event"
            seen.ended, seen.end_seconds = "too_long", at
            return
        before = seen.events
        for block in blocks:
            self._block(block, at)
        partial = bool(self.parser.rest)
        seen.arrivals.append(Arrival(at, len(data), len(piece.data), seen.events - before, partial))
        if self.total > LARGEST_BODY_BYTES:
            seen.error = f"the answer is longer than {LARGEST_BODY_BYTES >> 20} MiB"
            seen.ended, seen.end_seconds = "too_long", at

    def _block(self, block: Block, at: float) -> None:
        seen = self.seen
        if block.data is None:
            seen.comments += any(line.startswith(b":") for line in block.raw.splitlines())
            return
        if block.data.strip() == "[DONE]":
            self.finished = True
            seen.end_seconds = at
            return
        try:
            told = json.loads(block.data)
        except (ValueError, RecursionError):
            told = None
        if not isinstance(told, dict):
            seen.error = seen.error or "the stream holds an event that is no JSON object"
            return
        ours = told.get("streamcheck")
        if isinstance(ours, dict):
            self._numbered(ours, block, at)
        self._chunk(told, at)

    def _chunk(self, told: dict[str, Any], at: float) -> None:
        seen = self.seen
        if "error" in told and not told.get("choices"):
            error = told["error"]
            said = error.get("message") if isinstance(error, dict) else error
            seen.error = f"an error came in the stream: {str(said)[:300]}"
            seen.ended = "error_event"
            seen.end_seconds = at
        if not seen.answer_id and isinstance(told.get("id"), str):
            seen.answer_id = told["id"]
        seen.finish_seen = seen.finish_seen or _finish(told)
        usage = told.get("usage")
        if isinstance(usage, dict) and isinstance(usage.get("completion_tokens"), int):
            seen.tokens = usage["completion_tokens"]
        text = _text(told)
        if text:
            seen.events += 1
            seen.text += text
            if seen.first_token_seconds is None:
                seen.first_token_seconds = at

    def _numbered(self, ours: dict[str, Any], block: Block, at: float) -> None:
        seen = self.seen
        if ours.get("end"):
            seen.tokens = ours.get("events")
            seen.digest_right = self.digest.hexdigest() == ours.get("sha256")
            return
        self.digest.update(block.raw)
        seen.start = seen.start or ours
        try:
            seen.numbered.append(
                Numbered(int(ours["n"]), float(ours["due"]), float(ours["sent"]), at)
            )
        except (KeyError, TypeError, ValueError):
            seen.error = seen.error or "an event of the emitter is not as it should be"

    def _end(self, end: End) -> None:
        seen = self.seen
        seen.end_seconds = end.at - seen.requested_at
        if self.is_refusal or not seen.status:
            seen.ended = "timeout" if end.reason == "timeout" else "refused"
            seen.error = self._refused() if seen.status else end.reason
        elif seen.ended:
            pass
        elif self.finished and end.clean:
            seen.ended = "terminal"
        elif end.clean:
            seen.ended = "end"
        elif end.reason == "timeout":
            seen.ended = "timeout"
        else:
            seen.ended, seen.error = "cut", seen.error or end.reason
        if not seen.events and not seen.error and seen.body:
            seen.error = _what_it_is(seen, seen.body)

    def _refused(self) -> str:
        seen = self.seen
        if 300 <= seen.status < 400:
            to = seen.headers.get("location", "another place")
            return f"it answers {seen.status} and sends to {to[:200]}: give that address instead"
        try:
            said = json.loads(seen.body)["error"]["message"]
        except (ValueError, KeyError, TypeError, RecursionError):
            said = _what_it_is(seen, seen.body)
        return f"it answers {seen.status}: {' '.join(str(said).split())[:300]}"


def _what_it_is(seen: Observation, body: bytes) -> str:
    kind = seen.headers.get("content-type", "").partition(";")[0].strip().lower()
    start = body.lstrip()[:200].lower()
    if kind == "text/html" or start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, where an event stream should be"
    if kind == "application/json" or start.startswith((b"{", b"[")):
        return "one JSON document, where an event stream should be"
    if not body.strip():
        return "nothing"
    return f"{kind or 'bytes without a content type'}, where an event stream should be"


def _finish(chunk: dict[str, Any]) -> bool:
    choices = chunk.get("choices")
    return isinstance(choices, list) and any(
        isinstance(choice, dict) and choice.get("finish_reason") for choice in choices
    )


def _text(chunk: dict[str, Any]) -> str:
    """Return what a chunk brings to the reader: content, reasoning, a tool's arguments."""
    choices = chunk.get("choices")
    found = ""
    for choice in choices if isinstance(choices, list) else ():
        if not isinstance(choice, dict):
            continue
        if isinstance(choice.get("text"), str):
            found += choice["text"]
        delta = choice.get("delta")
        if isinstance(delta, dict):
            for name in ("content", "reasoning_content", "reasoning"):
                found += delta[name] if isinstance(delta.get(name), str) else ""
            if delta.get("tool_calls"):
                found += json.dumps(delta["tool_calls"])
    return found
