"""A scripted origin for the edge: paths say what it answers, answers what it was asked."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from asgi_kit import live

asked: list[str] = []
"""Paths, in the order they were asked."""


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer; ASGI."""
    if scope["type"] != "http":
        await live(receive, send)
        return
    path = scope["path"]
    asked.append(path)
    headers = [[name.decode(), text.decode()] for name, text in scope["headers"]]

    async def start(status: int, **told: str) -> None:
        lines = [(n.replace("_", "-").encode(), t.encode()) for n, t in told.items()]
        await send({"type": "http.response.start", "status": status, "headers": lines})

    async def give(piece: str, more: bool = True) -> None:
        await send({"type": "http.response.body", "body": piece.encode(), "more_body": more})

    if path.startswith("/events"):
        control = "no-cache" if path == "/events/bare" else "no-cache, no-transform"
        await start(200, content_type="text/event-stream", cache_control=control)
        for number in range(10):
            await give(f"data: event {number}\n\n")
            await asyncio.sleep(0.05)
        await give("", more=False)
    elif path == "/silent":
        await asyncio.sleep(30)
    elif path == "/stops":
        await start(200, content_type="text/event-stream", cache_control="no-transform")
        await give("data: first\n\n")
        await asyncio.sleep(30)
    elif path == "/endless":
        await start(200, content_type="text/event-stream", cache_control="no-transform")
        try:
            while True:
                await give(": still here\n\n")
                await asyncio.sleep(0.05)
                gone = asyncio.create_task(receive())
                done, _ = await asyncio.wait({gone}, timeout=0)
                if done and gone.result()["type"] == "http.disconnect":
                    break
                gone.cancel()
        finally:
            asked.append("left")
    elif path == "/app.js":
        await start(200, content_type="text/javascript", cache_control="public, max-age=60")
        await give("// " + "long " * 200 + str(len(asked)), more=False)
    elif path == "/private.js":
        await start(200, content_type="text/javascript", cache_control="private")
        await give(f"// {len(asked)}", more=False)
    else:
        await start(200, content_type="application/json", cache_control="no-store")
        told = {"headers": headers, "asked": asked, "peer": scope["client"],
                "version": scope["http_version"], "text": "word " * 100}  # fmt: skip
        await give(json.dumps(told), more=False)
