"""A stand-in for vLLM as a process of its own, with the layers that vLLM loads of ours.

The last message of a request is a script, in JSON: `tokens`, `pace` (seconds), `wait` (before the
first), `beats` (signs of life before it), `status` (refuse), `cut_after` (the process dies),
`error_after` (vLLM's error event), `no_done`, `hold` (go on behind so many tokens only after
`GET /release`). Without one it says a few words. The same request is answered with the same bytes.
`GET /told` tells what was asked, and what runs now.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import sys
from typing import Any

import uvicorn
from asgi_kit import live, read_body
from gateway.engine_layers import EngineLayers

KEY = "engine-" + "e" * 32
KEEP_ALIVE = b": keep-alive\n\n"

asked: list[dict[str, Any]] = []
running: set[str] = set()
released = asyncio.Event()


async def engine(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer; ASGI."""
    if scope["type"] != "http":
        await live(receive, send)
        return
    if scope["path"] == "/told":
        await whole(send, 200, {"asked": asked, "running": sorted(running)})
        return
    if scope["path"] == "/release":
        released.set()
        await whole(send, 200, {})
        return
    body = await read_body(receive)
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    asked.append({"path": scope["path"], "query": scope["query_string"].decode(),
                  "headers": headers, "body": body.decode()})  # fmt: skip
    if headers.get("authorization") != f"Bearer {KEY}":
        await whole(send, 401, {"error": "Unauthorized"})
        return
    await answer(scope, json.loads(body), receive, send, headers.get("x-request-id", ""))


async def answer(scope: Any, wanted: Any, receive: Any, send: Any, name: str) -> None:
    """Answer one completion, as long as its reader is there."""
    chat = scope["path"] == "/v1/chat/completions"
    said = wanted["messages"][-1]["content"] if chat else wanted["prompt"]
    script: dict[str, Any] = {}
    with contextlib.suppress(ValueError):
        script = json.loads(said)
    if status := script.get("status"):
        error = {"message": f"the engine says {status}", "type": "x", "param": None, "code": status}
        await whole(send, status, {"error": error})
        return
    work = asyncio.create_task(stream(script, wanted, chat, send))
    leaving = asyncio.create_task(left(receive))
    running.add(name)
    try:
        await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        running.discard(name)
        work.cancel()
        leaving.cancel()
    if work.done() and not work.cancelled():
        work.result()


async def left(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def stream(script: dict[str, Any], wanted: Any, chat: bool, send: Any) -> None:
    tokens = script.get("tokens", 5)
    seed = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:24]
    head = {"id": f"chatcmpl-{seed}", "created": 1, "model": wanted["model"]}
    usage = {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens}
    options = wanted.get("stream_options") or {}
    counted = bool(options.get("include_usage"))
    running_count = counted and bool(options.get("continuous_usage_stats"))
    if not wanted.get("stream"):
        message = {"role": "assistant", "content": " word" * tokens}
        await whole(send, 200, {**head, "choices": [{"message": message}], "usage": usage})
        return

    async def event(fields: dict[str, Any], more: bool = True) -> None:
        text = json.dumps({**head, **fields}, separators=(",", ":"), ensure_ascii=False)
        await give(f"data: {text}\n\n".encode())

    async def give(data: bytes, more: bool = True) -> None:
        await send({"type": "http.response.body", "body": data, "more_body": more})

    start = {"type": "http.response.start", "status": 200,
             "headers": [(b"content-type", b"text/event-stream; charset=utf-8")]}  # fmt: skip
    await send(start)
    for _ in range(script.get("beats", 0)):
        await give(KEEP_ALIVE)
    await asyncio.sleep(script.get("wait", 0))
    if chat:
        await event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
    for n in range(tokens):
        if n == script.get("cut_after"):
            os._exit(1)
        if n == script.get("hold"):
            released.clear()
            await released.wait()
        if n == script.get("error_after"):
            error = {"message": "EngineCore encountered an issue.", "code": 500}
            await give(f"data: {json.dumps({'error': error})}\n\n".encode())
            break
        piece = {"delta": {"content": f" wörd{n}"}} if chat else {"text": f" wörd{n}"}
        count = {"usage": {**usage, "completion_tokens": n + 1}} if running_count else {}
        await event({"choices": [{"index": 0, **piece}], **count})
        await asyncio.sleep(script.get("pace", 0))
    else:
        if counted:
            await event({"choices": [], "usage": usage})
    if not script.get("no_done"):
        await give(b"data: [DONE]\n\n")
    await give(b"", more=False)


async def whole(send: Any, status: int, body: Any) -> None:
    """Answer in one piece."""
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


if __name__ == "__main__":
    uvicorn.run(
        EngineLayers(engine), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning",
        timeout_graceful_shutdown=5,
    )  # fmt: skip
