"""LiteLLM's pass-through route, mended.

Loaded by LITELLM_WORKER_STARTUP_HOOKS=gateway.hooks:install.

What was seen of 1.109.1's `/vllm/…` route behind its router, and what is done about each:

- Every error of the engine became an opaque 500, and the router never cooled an engine down for
  answering 5xx, because httpx's error has no `status_code`. Now it has one, and the engine's own
  status and body go back to the caller.
- `"stream": false` was taken for a stream and ended in a 500.
- At the end of a stream the whole answer was parsed on the event loop, for logging, and every other
  stream stood still meanwhile (658 ms after 8,000 tokens, measured; 4 ms without).
- A caller who left before the engine's headers, or during a plain answer, left the engine working.
- No line in the log told what became of a request: access_log.py writes one.

This leans on LiteLLM's internals, which is why LiteLLM is pinned and why `install` raises, and with
it the start fails, when one of them is not where it should be.
"""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

from gateway.access_log import AccessLog, App, Message, Receive, Send
from gateway.engines import EngineDesk

ROUTE = "/vllm/"
RETRY_AFTER_SECONDS = "2"
# vLLM 0.32 while it shuts down; the words are those of Python's concurrent.futures.
STOPPING = b"cannot schedule new futures after shutdown"
KEPT_HEADERS = ("content-type", "retry-after", "x-request-id")


class CancelWhenLeft:
    """ASGI middleware: when the caller leaves, what was being done for them ends at once."""

    def __init__(self, app: App) -> None:
        """Wrap `app`."""
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Run the request; cancel it on `http.disconnect`."""
        if scope["type"] != "http" or not scope["path"].startswith(ROUTE):
            await self.app(scope, receive, send)
            return
        # The server is the only one who knows that the caller left, and says so through `receive`.
        # A pump reads it all along; the app gets the same messages. The backend in front bounds
        # the size of a body, so that the queue is bounded as well.
        messages: asyncio.Queue[Message] = asyncio.Queue()
        answered = asyncio.Event()

        async def watched(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                answered.set()

        work = asyncio.create_task(self._run(scope, messages.get, watched))

        async def pump() -> None:
            while True:
                message = await receive()
                messages.put_nowait(message)
                if message["type"] == "http.disconnect":
                    # After the last byte this only says that the answer is through.
                    if not answered.is_set():
                        work.cancel()
                    return

        pumping = asyncio.create_task(pump())
        try:
            await asyncio.wait({work})
        finally:
            pumping.cancel()
            work.cancel()
        if not work.cancelled() and (error := work.exception()):
            raise error

    async def _run(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


class NoCollector:
    """Stands where LiteLLM gathers a whole stream to parse it at its end."""

    def add(self, chunk: bytes) -> None:
        """Keep nothing."""

    def build_logged_response(self, litellm_logging_obj: Any) -> None:
        """Return nothing to log: usage is counted by the backend."""


def refusal(status: int, message: str, retry_after: str | None = None) -> Any:
    """Return an error in OpenAI's shape."""
    from starlette.responses import JSONResponse

    error = {
        "message": message,
        "type": "upstream_error",
        "param": None,
        "code": "engine_unreachable",
    }
    headers = {"retry-after": retry_after} if retry_after else None
    return JSONResponse({"error": error}, status_code=status, headers=headers)


async def engine_answered(request: Any, error: Any) -> Any:
    """Pass an engine's refusal on as it was: status and body.

    An engine that is being stopped answers 500 to what it no longer takes up: it was not run, and
    may be sent again.
    """
    from starlette.responses import Response

    answer = error.response
    if answer.status_code == 500 and STOPPING in answer.content:
        return refusal(503, "the engine is stopping", RETRY_AFTER_SECONDS)
    headers = {k: v for k, v in answer.headers.items() if k in KEPT_HEADERS}
    return Response(content=answer.content, status_code=answer.status_code, headers=headers)


async def engine_unreachable(request: Any, error: Any) -> Any:
    """Say that no engine could be reached, and when to come again."""
    if "timeout" in f"{type(error).__name__} {error}".lower():
        return refusal(504, "the engine did not answer in time")
    return refusal(503, "no engine can be reached", RETRY_AFTER_SECONDS)


async def no_engine_chosen(request: Any, error: Any) -> Any:
    """Tell engines that all rest after a failure from a model that none of them serves."""
    from litellm.types.router import RouterRateLimitError

    cause = error
    while cause is not None:
        if isinstance(cause, RouterRateLimitError):
            return refusal(503, "every engine rests after a failure", RETRY_AFTER_SECONDS)
        cause = cause.__context__
    return refusal(404, "no engine serves this model")


def install() -> None:
    """Mend the route. Raises when LiteLLM's insides are not as expected."""
    import httpx
    from litellm.exceptions import BadRequestError
    from litellm.llms.base_llm.chat.transformation import BaseLLMException
    from litellm.llms.vllm.passthrough.transformation import VLLMPassthroughConfig
    from litellm.proxy import proxy_server
    from litellm.router import Router
    from starlette.middleware.exceptions import ExceptionMiddleware

    for name in ("is_streaming_request", "create_stream_collector"):
        if not hasattr(VLLMPassthroughConfig, name):
            raise RuntimeError(
                f"this LiteLLM has no VLLMPassthroughConfig.{name}; see gateway.hooks"
            )
    httpx.HTTPStatusError.status_code = property(lambda error: error.response.status_code)  # type: ignore[attr-defined]
    VLLMPassthroughConfig.is_streaming_request = lambda self, endpoint, request_data: bool(
        request_data.get("stream")
    )
    VLLMPassthroughConfig.create_stream_collector = lambda self, *_, **__: NoCollector()

    for name in ("select", "health"):
        if not hasattr(Router, name):
            raise RuntimeError(f"this LiteLLM has no Router.{name}; see gateway.engines")

    app = proxy_server.app
    layer = app.middleware_stack
    while layer is not None and not isinstance(layer, ExceptionMiddleware):
        layer = getattr(layer, "app", None)
    if layer is None:
        raise RuntimeError("this LiteLLM has no ExceptionMiddleware; see gateway.hooks")
    layer.add_exception_handler(httpx.HTTPStatusError, engine_answered)
    layer.add_exception_handler(BaseLLMException, engine_unreachable)
    layer.add_exception_handler(httpx.TransportError, engine_unreachable)
    layer.add_exception_handler(BadRequestError, no_engine_chosen)
    app.middleware_stack = EngineDesk(
        AccessLog(CancelWhenLeft(app.middleware_stack), "litellm"),
        router=lambda: proxy_server.llm_router,
        master_key=lambda: proxy_server.master_key,
    )
