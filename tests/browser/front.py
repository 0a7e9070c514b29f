"""nginx's part in front of a backend, for tests of the page: files, TLS, and a line that can fail.

Serves what `node build.mjs` made with the headers that templates/nginx/parts/site.j2 gives, and
passes /v1/ on. Tests cut the line, hold event streams back, or take the backend away.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "templates/nginx/parts/site.j2"


def page_headers() -> dict[str, str]:
    """Return the headers that nginx gives with the page."""
    # In the template, from what every answer has to where the refusals begin.
    given = SITE.read_text().partition("macro every_answer")[2].partition("macro refusal")[0]
    found = dict(re.findall(r'add_header ([\w-]+) "([^"{]+)" always;', given))
    assert {"Content-Security-Policy", "X-Content-Type-Options"} <= set(found)
    return found


class Front:
    """The server. Its switches may be turned from any thread."""

    def __init__(self, pages: Path, backend: str) -> None:
        self.pages = pages
        self.backend = backend
        # Nothing gets through: connections are closed without an answer.
        self.down = False
        # Event streams are accepted, and nothing of them comes out.
        self.hold_events = False
        self.seen: list[str] = []
        self._flowing: set[asyncio.Transport] = set()
        self._session: aiohttp.ClientSession | None = None

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/", self.page)
        app.router.add_get("/assets/{name}", self.asset)
        app.router.add_route("*", "/v1/{rest:.*}", self.forward)
        return app

    async def page(self, request: web.Request) -> web.StreamResponse:
        headers = {**page_headers(), "Cache-Control": "no-cache"}
        return web.FileResponse(self.pages / "index.html", headers=headers)

    async def asset(self, request: web.Request) -> web.StreamResponse:
        file = self.pages / "assets" / Path(request.match_info["name"]).name
        headers = {"Cache-Control": "public, max-age=31536000, immutable"}
        return web.FileResponse(file, headers=headers)

    async def forward(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        if self.down:
            request.transport.abort()
            raise web.HTTPServiceUnavailable
        self.seen.append(f"{request.method} {request.path_qs}")
        self._session = self._session or aiohttp.ClientSession(auto_decompress=False)
        headers = {
            **request.headers,
            "Host": request.url.host or "",
            "X-Forwarded-For": "127.0.0.1",
        }
        self._flowing.add(request.transport)
        try:
            async with self._session.request(
                request.method, self.backend + request.path_qs, headers=headers,
                data=await request.read(), allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=None),
            ) as answer:  # fmt: skip
                out = web.StreamResponse(status=answer.status, headers=answer.headers)
                out.headers.pop("Transfer-Encoding", None)
                await out.prepare(request)
                async for data in answer.content.iter_any():
                    if self.hold_events and request.path.endswith("/events"):
                        continue
                    await out.write(data)
                return out
        except (aiohttp.ClientError, ConnectionError):
            # Either side left: the other's connection ends as well, as behind nginx.
            if request.transport:
                request.transport.abort()
            raise web.HTTPBadGateway from None
        finally:
            self._flowing.discard(request.transport)

    async def close(self) -> None:
        """Let go of the backend."""
        self.cut()
        if self._session:
            await self._session.close()

    def cut(self) -> None:
        """Cut every connection that something is flowing through."""
        for transport in list(self._flowing):
            transport.abort()


class Running:
    """An event loop in a thread of its own, where the servers run."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self._runners: list[web.AppRunner] = []

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def call(self, act: Callable[[], object]) -> None:
        self.loop.call_soon_threadsafe(act)

    def serve(self, app: web.Application, tls: ssl.SSLContext | None = None) -> int:
        """Serve an application on loopback; return its port."""

        async def start() -> int:
            runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
            await site.start()
            self._runners.append(runner)
            port: int = runner.addresses[0][1]
            return port

        return int(self.do(start()))

    def stop(self) -> None:
        with contextlib.suppress(TimeoutError):
            for runner in self._runners:
                self.do(runner.cleanup())
        self.do(_cancel_others())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
