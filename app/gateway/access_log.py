"""One line a request in the journal, for servers that write none that is safe.

LiteLLM and vLLM can log what they do only together with what people write: prompts, stop words,
schemas. This ASGI layer logs a request's id, status and times, and never looks into a body. It
stands on the standard library alone, since it runs inside both: loaded by gateway.hooks, and in
vLLM by gateway.engine_layers (roles/vllm puts the files there).
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import UTC, datetime
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

STDERR = 2
SANE_ID = re.compile(r"[A-Za-z0-9._-]{8,128}")
# Asked every few seconds for ever: worth a line only when something is wrong.
PROBES = frozenset({"/health", "/health/liveliness", "/health/liveness", "/metrics"})
PROBE_ID = "ready-"
"""What the backend's readiness probe puts before its request ids."""


class AccessLog:
    """Writes a line of JSON when a request has ended. `ended` is complete, client_left or error."""

    def __init__(self, app: App, hop: str = "vllm") -> None:
        """Wrap `app`; `hop` stands in each line."""
        self.app = app
        self.hop = hop

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Run the request and write its line."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.monotonic()
        status, sent, whole, left = 0, 0, False, False
        first: float | None = None

        async def heard() -> Message:
            nonlocal left
            message = await receive()
            # After the last byte this only says that the answer is through.
            left = left or (message["type"] == "http.disconnect" and not whole)
            return message

        async def watched(message: Message) -> None:
            nonlocal status, sent, whole, first
            await send(message)
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                sent += len(message.get("body", b""))
                if first is None:
                    first = time.monotonic()
                whole = not message.get("more_body", False)

        try:
            await self.app(scope, heard, watched)
        finally:
            ended = "complete" if whole else "client_left" if left else "error"
            name = request_id(scope)
            if not is_probe(scope["path"], name, status, ended):
                write(
                    {
                        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                        "level": "info",
                        "event": "request",
                        "hop": self.hop,
                        "request_id": name,
                        "method": scope["method"],
                        "path": scope["path"][:200],
                        "status": status,
                        "body_bytes": sent,
                        "first_byte_seconds": None if first is None else round(first - started, 6),
                        "duration_seconds": round(time.monotonic() - started, 6),
                        "ended": ended,
                    }
                )


def request_id(scope: MutableMapping[str, Any]) -> str | None:
    """Return the id that the hop in front gave the request, where it is harmless in a log."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            told = str(value.decode("latin-1"))
            return told if SANE_ID.fullmatch(told) else None
    return None


def is_probe(path: str, name: str | None, status: int, ended: str) -> bool:
    """Tell whether it was a probe that found all well."""
    probing = path in PROBES or (name or "").startswith(PROBE_ID)
    return probing and ended == "complete" and 0 < status < 400


def write(line: dict[str, Any]) -> None:
    """Write one line in one step: vLLM puts its process's name before what goes by sys.stderr."""
    # A journal that does not listen must not fail a request.
    try:
        os.write(STDERR, json.dumps(line).encode() + b"\n")
    except OSError:
        return
