"""A stand-in for LiteLLM: its pass-through and its router's cooldowns, with our own desk in front.

    python chain_gateway.py PORT ENGINE=PORT …

test_express.py asks LiteLLM itself where MILLRACE_LITELLM names one.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from typing import Any

import aiohttp
import uvicorn
from asgi_kit import live, read_body
from chain_engine import KEY as ENGINE_KEY
from gateway.access_log import AccessLog
from gateway.engines import EngineDesk

KEY = "sk-" + "g" * 40
REST_SECONDS = 2
engines = dict(word.split("=") for word in sys.argv[2:])
resting: dict[str, float] = {}
turns = itertools.count()


class Router:
    """What gateway.engines asks of LiteLLM's router."""

    async def select(self, model: str, request_kwargs: dict[str, object]) -> dict[str, Any]:
        awake = [name for name in engines if resting.get(name, 0) < time.monotonic()]
        if not awake:
            raise RuntimeError("all rest")
        name = awake[next(turns) % len(awake)]
        return {"litellm_params": {"api_key": ENGINE_KEY}, "model_info": {"id": name}}

    def health(self) -> Router:
        return self

    def record_failure(self, name: str, error: Exception, status: int) -> bool:
        resting[name] = time.monotonic() + REST_SECONDS
        return True


async def relay(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Pass a request on to an engine that does not rest, and its answer back; ASGI."""
    if scope["type"] != "http":
        await live(receive, send)
        return
    body = await read_body(receive)
    work = asyncio.create_task(_pass(scope, body, send))
    gone = asyncio.create_task(receive())
    await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
    for task in (work, gone):
        task.cancel()


async def _pass(scope: dict[str, Any], body: bytes, send: Any) -> None:
    try:
        chosen = await Router().select("", {})
    except RuntimeError:
        await _unreachable(send)
        return
    name = chosen["model_info"]["id"]
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    url = f"http://127.0.0.1:{engines[name]}{scope['path'].removeprefix('/vllm')}"
    sent = {"Authorization": f"Bearer {ENGINE_KEY}", "Content-Type": "application/json",
            "X-Request-Id": headers.get("x-pass-x-request-id", "")}  # fmt: skip
    begun = False
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, data=body, headers=sent) as answer,
        ):
            kind = answer.headers["Content-Type"].encode()
            start = {"status": answer.status, "headers": [(b"content-type", kind)]}
            await send({"type": "http.response.start", **start})
            begun = True
            async for piece in answer.content.iter_any():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    except aiohttp.ClientError:
        if begun:
            raise
        Router().record_failure(name, Exception(), 503)
        await _unreachable(send)


async def _unreachable(send: Any) -> None:
    body = b'{"error":{"message":"none","type":"x","param":null,"code":"engine_unreachable"}}'
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    app = EngineDesk(AccessLog(relay, "gateway"), Router, lambda: KEY)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error")
