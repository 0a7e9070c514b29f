"""The engine's side of the express lane (docs/express.md), as a layer in vLLM itself.

An answer that nginx fetches from the engine passes nobody who could count its tokens or take out
what its client did not ask for. The engine's own process can, for the price of a look for one word
in each piece; and where a generation ends too early it says so, as the backend does in line. It
tells the backend when such a request came and how its answer ended, by a datagram each: nobody
waits for one, and one that is lost holds nothing up for long (backend.express).

Loaded by engine_layers.py; roles/vllm puts it beside vLLM with the two files of the backend that
it reads, and so it stands on the standard library alone. Requests that come any other way pass
through untouched.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import time
from collections.abc import MutableMapping
from typing import Any

from backend.tokens import shows_token
from backend.usage import UsageTap

from gateway.access_log import App, Message, Receive, Send

ENDS_VARIABLE = "MILLRACE_ENDS"
"""Where the datagrams go, with {} for the backend's instance; for tests."""
ENDS = "/run/millrace-backend-{}/ends.sock"
_INSTANCE = re.compile(rb"[a-z0-9]{1,16}")
_COMMENT = ord(":")
_DONE = b"data: [DONE]\n\n"
# The backend's words for it, see relay.py.
_BROKEN = (
    b'data: {"error":{"message":"The model server ended the answer before it was complete.",'
    b'"type":"server_error","param":null,"code":"upstream_error"}}\n\n' + _DONE
)
_TRIES, _RETRY_SECONDS = 50, 0.1


class HandedOff:
    """ASGI middleware: counts, hides and tells, for requests that nginx marked as handed off."""

    def __init__(self, app: App) -> None:
        """Wrap `app`."""
        self.app = app
        self._where = os.environ.get(ENDS_VARIABLE) or ENDS
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Run the request."""
        mark = None
        if scope["type"] == "http":
            mark = next((v for name, v in scope["headers"] if name == b"x-millrace-ends"), None)
        if mark is None or not _INSTANCE.fullmatch(mark):
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        instance = mark.decode("ascii")
        told: dict[str, Any] = {"id": headers.get(b"x-request-id", b"").decode("latin-1")}
        self._tell(instance, {**told, "from": "engine", "what": "begin"})
        answer = _Answer(send, hides_usage=b"x-millrace-hide-usage" in headers)

        async def heard() -> Message:
            message = await receive()
            # After the last byte this only says that the answer is through.
            if message["type"] == "http.disconnect" and not answer.whole:
                answer.left = True
            return message

        try:
            await self.app(scope, heard, answer.send)
        except (Exception, asyncio.CancelledError):
            await answer.break_off()
            raise
        finally:
            self._tell(instance, {**told, "from": "engine", "what": "end", **answer.report()})

    def _tell(self, instance: str, what: dict[str, Any], tries: int = _TRIES) -> None:
        try:
            self._socket.sendto(json.dumps(what).encode("ascii"), self._where.format(instance))
        except BlockingIOError:
            # It does not keep up: a socket of this kind holds only so many.
            if tries:
                loop = asyncio.get_running_loop()
                loop.call_later(_RETRY_SECONDS, self._tell, instance, what, tries - 1)
        except OSError:
            # It has gone, and what it counted with it.
            return


class _Answer:
    """One answer as it passes: every step here is taken for every token."""

    __slots__ = (
        "_between", "_bytes", "_done", "_first_token", "_is_stream", "_pieces", "_send",
        "_started", "_status", "_tap", "left", "whole",
    )  # fmt: skip

    def __init__(self, send: Send, *, hides_usage: bool) -> None:
        self._send = send
        self._tap = UsageTap(hide=hides_usage)
        self._started = time.monotonic()
        self._first_token: float | None = None
        self._status = self._pieces = self._bytes = 0
        self._is_stream = self._done = False
        # What was sent so far ends between two events.
        self._between = True
        self.left = self.whole = False

    async def send(self, message: Message) -> None:
        """Pass a message on, without what its reader did not ask for."""
        if message["type"] != "http.response.body":
            if message["type"] == "http.response.start":
                self._status = message["status"]
                kind = dict(message["headers"]).get(b"content-type", b"")
                self._is_stream = kind.startswith(b"text/event-stream")
            await self._send(message)
            return
        more = message.get("more_body", False)
        body = message.get("body", b"")
        if body:
            kept = self._tap.look(body)
            if kept is not body:
                body = kept
                if not body and more:
                    return
                message = {**message, "body": body}
        if body:
            self._note(body)
        if not more and self._is_stream and not self._done:
            message = {**message, "body": body + self._last_words()}
        try:
            await self._send(message)
        except OSError:
            self.left = True
            raise
        if not more:
            self.whole = True

    async def break_off(self) -> None:
        """Tell the reader that no more will come, where the generation failed."""
        if self._is_stream and not (self.whole or self.left):
            with contextlib.suppress(Exception):
                await self._send({"type": "http.response.body", "body": self._last_words()})

    def _last_words(self) -> bytes:
        words = _BROKEN if self._between else b"\n\n" + _BROKEN
        self._bytes += len(words)
        return words

    def _note(self, body: bytes) -> None:
        self._bytes += len(body)
        self._between = body.endswith(b"\n\n")
        if body[0] == _COMMENT:
            return
        self._pieces += 1
        if self._first_token is None and shows_token(body):
            self._first_token = time.monotonic() - self._started
        self._done = body.endswith(_DONE)

    def report(self) -> dict[str, Any]:
        """Return what became of it."""
        usage = self._tap.usage
        return {
            "status": self._status,
            "whole": self.whole,
            "left": self.left,
            "done": self._done,
            "pieces": self._pieces,
            "bytes": self._bytes,
            "first_token": self._first_token,
            "usage": None if usage is None else [usage.prompt_tokens, usage.completion_tokens],
        }
