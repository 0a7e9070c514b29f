"""Reading and checking the body of a chat completion request."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from backend.errors import ApiError


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request that may be sent on. `body` is exactly what came; nothing is written anew."""

    body: bytes
    model: str
    stream: bool


async def read_body(scope: Scope, receive: Receive, limit_bytes: int) -> bytes:
    """Return the whole body; raise ApiError 413 above the limit, ClientDisconnect on a cut."""
    for name, value in scope["headers"]:
        # Said before the first byte is taken, so that Expect: 100-continue saves the upload.
        if name == b"content-length" and value.isdigit() and int(value) > limit_bytes:
            raise _too_large(limit_bytes)
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > limit_bytes:
            raise _too_large(limit_bytes)
        if not message.get("more_body", False):
            return bytes(body)


def parse_chat_request(body: bytes, models: Collection[str]) -> ChatRequest:
    """Check the little that this hop depends on; the engine judges the rest.

    Raises ApiError 400, and 404 for a model that is not served here.
    """
    try:
        # Decoded here because json.loads would also take UTF-16 and UTF-32, which the engine
        # may read in another way than we did.
        fields = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        raise ApiError(400, "The request body is not valid JSON in UTF-8.") from None
    if not isinstance(fields, dict):
        raise ApiError(400, "The request body must be a JSON object.")
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        raise ApiError(400, "You must provide a model parameter, as a string.", param="model")
    if model not in models:
        raise ApiError(
            404,
            f"The model `{model[:100]}` does not exist or you do not have access to it.",
            code="model_not_found",
            param="model",
        )
    if not isinstance(fields.get("messages"), list):
        raise ApiError(400, "You must provide messages, as a list.", param="messages")
    stream = fields.get("stream")
    # Not "true" or 1: the engine would take those for true, and we would not send heartbeats.
    if stream is not None and not isinstance(stream, bool):
        raise ApiError(400, "stream must be true or false.", param="stream")
    return ChatRequest(body=body, model=model, stream=bool(stream))


def _too_large(limit_bytes: int) -> ApiError:
    return ApiError(
        413, f"The request body is larger than {limit_bytes} bytes.", code="request_too_large"
    )
