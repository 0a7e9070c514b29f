"""Streams that live in the other instance: requests for them are passed on to it."""

from __future__ import annotations

import re

import aiohttp
from starlette.types import ASGIApp, Receive, Scope, Send
from yarl import URL

from backend.answer import GuardedAnswer
from backend.exchange import Exchange, exchange_of
from backend.outlet import Outlet
from backend.settings import Settings
from backend.upstream import UPSTREAM_ERRORS, read_some, translate

_STREAM = re.compile(r"/v1/chat/streams/([a-z0-9]{1,16})-[0-9a-f]+(?:/|$)")
PASSED_ON_ROUTE = "/v1/chat/streams/{stream_id} (passed on)"
"""What requests for another instance's streams are counted under."""

# Set on what was passed on, so that two instances never play ball with a request.
_PASSED_ON = b"x-millrace-passed-on"
_CONNECT_SECONDS = 2.0
_READ_BUFFER_BYTES = 64 * 1024
# Headers of one connection are not passed on, nor those that each side sets itself.
_NOT_SENT = frozenset(
    b"connection content-length expect keep-alive te transfer-encoding upgrade x-request-id".split()
)
_NOT_RETURNED = frozenset(
    b"cache-control connection date keep-alive server transfer-encoding x-accel-buffering "
    b"x-request-id".split()
)


def tag_of(instance: str) -> str:
    """Return what the ids of an instance's streams begin with."""
    return f"{instance}-" if instance else ""


class Peers:
    """Passes requests on to the instance that a stream lives in, while that one drains.

    Who may do what is judged there, by the same keys. An instance that cannot be reached has
    gone, and its streams with it: then the request is answered here, as for any unknown stream.
    """

    def __init__(self, app: ASGIApp, settings: Settings, instance: str) -> None:
        self._app = app
        self._settings = settings
        self._sockets = dict(settings.stream_peers)
        self._sockets.pop(instance, None)
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        peer = self._peer_of(scope) if scope["type"] == "http" else None
        if peer is not None:
            exchange = exchange_of(scope)
            exchange.route = PASSED_ON_ROUTE
            answer = _PassedOn(self._settings, exchange, self._session(peer), scope)
            await answer(scope, receive, send)
            if answer.reached:
                return
            exchange.route = None
        await self._app(scope, receive, send)

    async def close(self) -> None:
        """Close every connection."""
        for session in self._sessions.values():
            await session.close()

    def _peer_of(self, scope: Scope) -> str | None:
        match = _STREAM.match(scope["path"]) if self._sockets else None
        if match is None or match[1] not in self._sockets:
            return None
        if any(name == _PASSED_ON for name, _ in scope["headers"]):
            return None
        return match[1]

    def _session(self, peer: str) -> aiohttp.ClientSession:
        if peer not in self._sessions:
            self._sessions[peer] = aiohttp.ClientSession(
                # Kept connections would race the end of the instance behind them.
                connector=aiohttp.UnixConnector(
                    str(self._sockets[peer]), force_close=True, limit=0
                ),
                timeout=aiohttp.ClientTimeout(total=None, connect=_CONNECT_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                read_bufsize=_READ_BUFFER_BYTES,
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            )
        return self._sessions[peer]


class _PassedOn(GuardedAnswer):
    """One request passed on, and its answer byte by byte. `reached` says whether it got there.

    An answer that breaks off is cut here as well, and so is one that outlives this instance: its
    reader comes back with the last id it knows.
    """

    def __init__(
        self, settings: Settings, exchange: Exchange, session: aiohttp.ClientSession, scope: Scope
    ) -> None:
        # What is an event and what is a heartbeat is the other side's affair.
        super().__init__(settings=settings, exchange=exchange, as_events=False)
        self._session = session
        self._scope = scope
        self.reached = True

    async def _pump(self, outlet: Outlet) -> None:
        scope = self._scope
        target = scope["raw_path"] + (
            b"?" + scope["query_string"] if scope["query_string"] else b""
        )
        headers = [
            (str(name, "latin-1"), str(value, "latin-1"))
            for name, value in scope["headers"]
            if name not in _NOT_SENT
        ]
        headers += [
            (str(_PASSED_ON, "ascii"), "1"),
            ("x-request-id", self._exchange.request_id),
        ]
        try:
            response = await self._session.request(
                scope["method"],
                URL("http://peer" + target.decode("latin-1"), encoded=True),
                headers=headers,
                allow_redirects=False,
            )
        except aiohttp.ClientConnectorError:
            self.reached = False
            return
        except UPSTREAM_ERRORS as error:
            raise translate(error) from error
        async with response:
            returned = [
                (name.lower(), value)
                for name, value in response.raw_headers
                if name.lower() not in _NOT_RETURNED
            ]
            await outlet.start(response.status, returned)
            while data := await read_some(response):
                await outlet.write(data)
            await outlet.finish()
