"""The edge itself, an ASGI application: a visitor's request goes to the origin, its answer back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from . import compress
from .behaviour import Behaviour
from .headers import Headers, ray, to_origin, to_visitor, value
from .keep import Cache
from .origin import Answer, Origin, OriginError

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

MOST_BODY_BYTES = 100_000_000
"""Free and Pro; more is 413."""


class Edge:
    """One zone at the edge."""

    def __init__(self, origin: Origin, behaviour: Behaviour) -> None:
        self.origin, self.behaviour = origin, behaviour
        self.cache = Cache(behaviour)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; ASGI."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            await Visit(self, scope, receive, send).serve()


class Visit:
    """One request of a visitor's."""

    def __init__(self, edge: Edge, scope: Scope, receive: Receive, send: Send) -> None:
        self._edge, self._behaviour = edge, edge.behaviour
        self._receive, self._send = receive, send
        self._method: str = scope["method"]
        asked = [(n.decode("latin-1").lower(), t.decode("latin-1")) for n, t in scope["headers"]]
        self._asked: Headers = [(n, t) for n, t in asked if not n.startswith(":")]
        self._host = value(asked, "host") or value(asked, ":authority")
        query = scope["query_string"].decode("latin-1")
        raw: bytes = scope.get("raw_path") or scope["path"].encode()
        self._path = raw.decode("latin-1").partition("?")[0] + (f"?{query}" if query else "")
        self._address: str = scope["client"][0]
        self._ray = ray()
        self._begun = False

    async def serve(self) -> None:
        """Answer, and stop as soon as the visitor leaves."""
        body = await self._body()
        if body is None:
            return
        working = asyncio.create_task(self._answer(body))
        leaving = asyncio.create_task(self._left())
        try:
            await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            working.cancel() if not working.done() else None
            with contextlib.suppress(asyncio.CancelledError):
                await working

    async def _body(self) -> bytes | None:
        """Read the whole request, as the edge does; None when the visitor left meanwhile."""
        body = b""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return None
            body += bytes(message.get("body", b""))
            if len(body) > MOST_BODY_BYTES:
                await self._say(413, "Payload too large")
                return None
            if not message.get("more_body"):
                return body

    async def _left(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _answer(self, body: bytes) -> None:
        allowed = self._behaviour.allowed_paths
        if allowed and not self._path.startswith(allowed):
            await self._say(403, "error code: 1020")
            return
        eligible = self._edge.cache.eligible(self._method, self._path)
        kept = self._edge.cache.find(self._host, self._path) if eligible else None
        if kept:
            headers = to_visitor(kept.headers, self._ray, "HIT", self._behaviour)
            await self._pass_on(kept.status, headers, kept.body)
            return
        try:
            await self._ask(body, eligible)
        except OriginError as error:
            if self._begun:
                raise
            await self._say(error.status, f"error code: {error.status}: {error}")
        except TimeoutError:
            if self._begun:
                raise
            await self._say(524, "error code: 524")

    async def _ask(self, body: bytes, eligible: bool) -> None:
        pseudo = [
            (":method", self._method), (":scheme", "https"),
            (":authority", self._host), (":path", self._path),
        ]  # fmt: skip
        said = to_origin(self._asked, self._address, self._ray, self._behaviour)
        answer = await self._edge.origin.ask([*pseudo, *said], body)
        try:
            await asyncio.wait_for(answer.head.wait(), self._behaviour.read_timeout_seconds)
            if not answer.status:
                raise OriginError(520, answer.failed or "the origin gave no answer")
            await self._relay(answer, eligible)
        finally:
            answer.link.leave(answer)

    async def _relay(self, answer: Answer, eligible: bool) -> None:
        keep_it = eligible and self._edge.cache.seconds(answer.status, answer.headers) > 0
        word = "MISS" if keep_it else ("BYPASS" if eligible else "DYNAMIC")
        headers = to_visitor(answer.headers, self._ray, word, self._behaviour)
        pieces = answer.body(self._behaviour.read_timeout_seconds)
        if not (keep_it or self._behaviour.buffer_answers):
            await self._pass_on(answer.status, headers, None, pieces)
            return
        whole = b"".join([piece async for piece in pieces])
        if keep_it:
            self._edge.cache.put(self._host, self._path, answer.status, answer.headers, whole)
        await self._pass_on(answer.status, headers, whole)

    async def _pass_on(
        self, status: int, headers: Headers, whole: bytes | None, pieces: Any = None
    ) -> None:
        """Send an answer, in another coding where the visitor or the edge wants one."""
        coded, accepted = value(headers, "content-encoding"), value(self._asked, "accept-encoding")
        decoder = compress.Decoder(coded) if coded and coded not in accepted else None
        name = compress.coding(accepted, status, headers, self._behaviour)
        compressor = compress.CODINGS[name]() if name else None
        if decoder or compressor:
            changed = {"content-length", "content-encoding", "etag"}
            headers = [(known, text) for known, text in headers if known not in changed]
        if compressor:
            headers = [*headers, ("content-encoding", name), ("vary", "accept-encoding")]
        await self._start(status, headers)
        if whole is not None:
            pieces = _one(whole)
        async for piece in pieces:
            piece = decoder.feed(piece) if decoder else piece
            await self._give(compressor.feed(piece) if compressor else piece)
        if compressor:
            await self._give(compressor.end())
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _start(self, status: int, headers: Headers) -> None:
        self._begun = True
        told = [(name.encode("latin-1"), text.encode("latin-1")) for name, text in headers]
        await self._send({"type": "http.response.start", "status": status, "headers": told})

    async def _give(self, piece: bytes) -> None:
        if piece and self._method != "HEAD":
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def _say(self, status: int, text: str) -> None:
        """Give an answer of the edge's own."""
        body = text.encode()
        headers = [
            ("content-type", "text/plain; charset=UTF-8"), ("content-length", str(len(body))),
            ("cache-control", "private, max-age=0, no-store"),
            ("server", "cloudflare"), ("cf-ray", self._ray),
        ]  # fmt: skip
        await self._start(status, headers)
        await self._give(body)
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


async def _one(whole: bytes) -> Any:
    yield whole


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
