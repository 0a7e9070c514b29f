"""What every ASGI stand-in of the tests needs: it starts and ends, and reads a body."""

from __future__ import annotations

from typing import Any


async def live(receive: Any, send: Any) -> None:
    """Say yes to start-up and shutdown."""
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


async def read_body(receive: Any) -> bytes:
    """Return a request's whole body."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body
