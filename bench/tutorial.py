"""The backend that tutorials build: FastAPI, httpx, a StreamingResponse.

With the header that tells nginx not to buffer, which the better tutorials have; without it nginx
would hold back each answer until it has 8 KB of it.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import httpx
from fastapi import FastAPI, Request
from starlette.responses import StreamingResponse

URL = os.environ.get("UPSTREAM_URL", "") + "/v1/chat/completions"
HEADERS = {
    "Authorization": f"Bearer {os.environ.get('UPSTREAM_KEY', '')}",
    "Content-Type": "application/json",
}

app = FastAPI()
client = httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=None))  # noqa: S113


@app.post("/v1/chat/completions")
async def chat(request: Request) -> StreamingResponse:
    """Pass a chat on."""
    body = await request.body()

    async def pieces() -> AsyncIterator[bytes]:
        async with client.stream("POST", URL, content=body, headers=HEADERS) as answer:
            async for piece in answer.aiter_bytes():
                yield piece

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(pieces(), media_type="text/event-stream", headers=headers)
