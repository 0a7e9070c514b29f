"""What the bench measures the backend with: an engine at a steady pace, and a plain relay.

python bench/standins.py engine PORT STEPS_PER_SECOND
python bench/standins.py plain PORT ENGINE_PORT
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator

import httpx
import uvicorn
import uvloop
from fastapi import FastAPI, Request
from starlette.responses import StreamingResponse

WORDS = ("river", "stone", "amber", "field", "lantern", "north", "willow", "copper")
HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


def event(number: int) -> bytes:
    """Return a token's event as vLLM writes it, each with another text."""
    chunk = {
        "id": "chatcmpl-05a3c28feb9f4b4eb1d5faed7bb4ca8a",
        "object": "chat.completion.chunk",
        "created": 1795664158,
        "model": "bench",
        "choices": [
            {
                "index": 0,
                "delta": {"content": f" {WORDS[number % 8]} {number}"},
                "logprobs": None,
                "finish_reason": None,
                "token_ids": None,
            }
        ],
    }
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


class Engine:
    """Gives every open stream a token at each step, all of them at once, as an engine does."""

    def __init__(self) -> None:
        self._streams: set[asyncio.StreamWriter] = set()

    async def serve(self, port: int, steps_per_second: float) -> None:
        """Serve for ever."""
        server = await asyncio.start_server(self._answer, "127.0.0.1", port, backlog=1024)
        loop = asyncio.get_running_loop()
        began, step = loop.time(), 0
        async with server:
            while True:
                step += 1
                await asyncio.sleep(max(0, began + step / steps_per_second - loop.time()))
                data = event(step)
                chunk = b"%x\r\n%b\r\n" % (len(data), data)
                for writer in self._streams:
                    # Its task may not have learnt yet that the reader left.
                    if not writer.is_closing():
                        writer.write(chunk)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                await reader.readexactly(int(line.split(b":")[1]))
        writer.write(HEAD)
        self._streams.add(writer)
        try:
            await reader.read()  # Nothing more comes but the end.
        except OSError:
            pass
        finally:
            self._streams.discard(writer)
            writer.close()


def plain(engine_port: int) -> FastAPI:
    """Return the relay that everybody writes first: FastAPI, httpx and a generator."""
    app = FastAPI()
    client = httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=None))  # noqa: S113

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> StreamingResponse:
        body = await request.body()

        async def pieces() -> AsyncIterator[bytes]:
            url = f"http://127.0.0.1:{engine_port}/v1/chat/completions"
            async with client.stream("POST", url, content=body) as answer:
                async for piece in answer.aiter_raw():
                    yield piece

        return StreamingResponse(pieces(), media_type="text/event-stream")

    return app


if __name__ == "__main__":
    what, port, number = sys.argv[1:]
    if what == "engine":
        uvloop.run(Engine().serve(int(port), float(number)))
    else:
        uvicorn.run(
            plain(int(number)), port=int(port), loop="uvloop", http="httptools", log_level="warning"
        )
