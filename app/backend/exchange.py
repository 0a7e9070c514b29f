"""One request from its arrival to its line in the log."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.keys import Key
from backend.metrics import Metrics
from backend.pace import Pace
from backend.usage import Usage

log = logging.getLogger("backend.request")

_SCOPE_KEY = "millrace.exchange"
_SANE_ID = re.compile(rb"[A-Za-z0-9._-]{8,128}")
_PROBES = frozenset({"/healthz", "/readyz"})


@dataclass(slots=True, eq=False)
class Exchange:
    """What is known of one request. Times are `time.monotonic()` seconds.

    It never holds prompt or answer text: everything here may be logged.
    """

    request_id: str
    method: str
    path: str
    # The server's own send(). Body bytes of a stream go straight to it: the wrappers that
    # FastAPI and Starlette lay around send() only watch for the response start, and cost four
    # extra coroutine calls per token.
    server_send: Send
    started: float
    # The path's pattern as the router knows it, so that what is counted by it stays bounded.
    route: str | None = None
    key: Key | None = None
    model: str | None = None
    stream: bool = False
    status: int = 0
    body_bytes: int = 0
    heartbeats: int = 0
    # What the engine counted, or what was seen of an answer that was cut short.
    usage: Usage | None = None
    # How often the request was sent again because no engine could be reached.
    resent: int = 0
    # Further headers of the answer, whatever it will be.
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    first_byte: float | None = None
    # Notes when the pieces go out; None where they are not an engine's own.
    pace: Pace | None = None
    # nginx fetches the answer from the engine: whoever handed it off concludes it.
    handed_off: bool = False
    # What failed behind the backend, in one word; None when nothing did.
    fault: str | None = None
    # complete, refused, client_left, upstream_error, upstream_timeout, server_stopping,
    # server_error; of a chat stream also stopped, abandoned; of what was handed off also handed_on
    # (to the next instance's time: nobody will know), unheard
    ended: str = "complete"

    @property
    def key_name(self) -> str | None:
        """The name of the key that was presented, if one was and is good."""
        return None if self.key is None else self.key.name

    def record(self) -> dict[str, object]:
        """Return the fields of the log line; durations in seconds."""
        first_token = None if self.pace is None else self.pace.first_token
        usage = self.usage
        return {
            "event": "request",
            "request_id": self.request_id,
            "key": self.key_name,
            "method": self.method,
            "path": self.path[:200],
            "model": self.model,
            "stream": self.stream,
            "status": self.status,
            "body_bytes": self.body_bytes,
            "heartbeats": self.heartbeats,
            "first_byte_seconds": self._since_start(self.first_byte),
            "first_token_seconds": self._since_start(first_token),
            "resent": self.resent,
            "duration_seconds": round(time.monotonic() - self.started, 6),
            "prompt_tokens": usage and usage.prompt_tokens,
            "completion_tokens": usage and usage.completion_tokens,
            "ended": self.ended,
            "fault": self.fault,
            "express": self.handed_off,
        }

    def _since_start(self, moment: float | None) -> float | None:
        return None if moment is None else round(moment - self.started, 6)


def exchange_of(scope: Scope) -> Exchange:
    """Return the record of the request that `scope` belongs to."""
    exchange = scope[_SCOPE_KEY]
    assert isinstance(exchange, Exchange)
    if exchange.route is None and (route := scope.get("route")) is not None:
        exchange.route = route.path
    return exchange


def key_of(scope: Scope) -> Key:
    """Return the key whose request it is; only for what Authenticate guards."""
    key = exchange_of(scope).key
    assert key is not None, "Authenticate lets nobody through without a key"
    return key


class Exchanges:
    """Outermost ASGI layer: gives each request its id and record, and logs it at the end.

    `open_requests` counts the requests in hand, for the end of the process to wait on.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, elsewhere: Callable[[], int] = lambda: 0
    ) -> None:
        self._app = app
        self._metrics = metrics
        # Answers that are ours to count and pass us by; the server's end waits for them too.
        self.elsewhere = elsewhere
        self.open_requests = 0
        self._none_open = asyncio.Event()
        self._none_open.set()

    async def drained(self, timeout_seconds: float) -> None:
        """Wait until no request is in hand, or until the time is up."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._none_open.wait()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(
            request_id=_request_id(scope),
            method=scope["method"],
            path=scope["path"],
            server_send=send,
            started=time.monotonic(),
            pace=self._metrics.pace(),
        )
        scope[_SCOPE_KEY] = exchange
        id_header = (b"x-request-id", exchange.request_id.encode("ascii"))

        async def tagged_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                headers = [*message.get("headers", ()), id_header, *exchange.headers]
                message = {**message, "headers": headers}
            elif body := message.get("body"):
                exchange.body_bytes += len(body)
                if exchange.first_byte is None:
                    exchange.first_byte = time.monotonic()
            await send(message)

        self._metrics.begin(exchange)
        self.open_requests += 1
        self._none_open.clear()
        try:
            await self._app(scope, receive, tagged_send)
        except BaseException:
            exchange.ended = "server_error"
            raise
        finally:
            self.open_requests -= 1
            if not self.open_requests:
                self._none_open.set()
            exchange_of(scope)  # Takes the route over, where nothing asked before.
            if exchange.handed_off:
                # An hour's stream shall not keep a connection's remains for as long.
                exchange.server_send = _nowhere
            else:
                conclude(exchange, self._metrics)


async def _nowhere(_: Message) -> None:
    """Send nothing: its connection has ended."""


def conclude(exchange: Exchange, metrics: Metrics) -> None:
    """Count an exchange that has ended and write its line."""
    if exchange.ended == "complete" and exchange.status >= 400:
        exchange.ended = "refused" if exchange.status < 500 else "server_error"
    metrics.end(exchange)
    # Probes come every few seconds for ever: not worth a line unless something watches.
    level = logging.DEBUG if exchange.path in _PROBES else logging.INFO
    log.log(level, "request", extra={"fields": exchange.record()})


def _request_id(scope: Scope) -> str:
    """Take the caller's id when it is harmless in headers and logs, else make one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _SANE_ID.fullmatch(value):
            return str(value, "ascii")
    return uuid.uuid4().hex
