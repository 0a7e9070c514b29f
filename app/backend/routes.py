"""The HTTP routes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from backend.chat_request import parse_chat_request, read_body
from backend.exchange import exchange_of
from backend.readiness import Readiness
from backend.relay import Relay
from backend.settings import Settings
from backend.upstream import CHAT_PATH, Upstream

_NO_STORE = {"cache-control": "no-store"}


@dataclass(frozen=True, slots=True)
class Services:
    """What the routes work with; made once per process."""

    settings: Settings
    upstream: Upstream
    readiness: Readiness


class NoResponse(Response):
    """The client has gone: there is nobody to answer."""

    async def __call__(self, *_: object) -> None:
        """Send nothing."""


def make_router(services: Services) -> APIRouter:
    """Return the routes, bound to `services`."""
    settings = services.settings
    router = APIRouter(redirect_slashes=False)
    model_ids = frozenset(model.id for model in settings.models)
    model_list = {
        "object": "list",
        "data": [
            {
                "id": model.id,
                "object": "model",
                "created": model.created,
                "owned_by": model.owned_by,
            }
            for model in settings.models
        ],
    }

    @router.get("/healthz", include_in_schema=False)
    async def healthz() -> JSONResponse:
        """Tell that the process is alive; says nothing of the engine."""
        return JSONResponse({"alive": True}, headers=_NO_STORE)

    @router.get("/readyz", include_in_schema=False)
    async def readyz() -> JSONResponse:
        """Tell whether a token came out of the engine lately: 200, or 503 with the reason."""
        ready, body = services.readiness.report()
        return JSONResponse(body, status_code=200 if ready else 503, headers=_NO_STORE)

    @router.get("/v1/models")
    async def list_models() -> JSONResponse:
        """List the models that may be asked for."""
        return JSONResponse(model_list, headers=_NO_STORE)

    @router.post(
        "/v1/chat/completions", response_class=Response, openapi_extra=_chat_openapi(model_ids)
    )
    async def chat_completions(request: Request) -> Response:
        """Answer a chat, whole or as a stream of events, as OpenAI does."""
        exchange = exchange_of(request.scope)
        try:
            body = await read_body(request.scope, request.receive, settings.max_body_bytes)
        except ClientDisconnect:
            exchange.ended = "client_left"
            return NoResponse()
        chat = parse_chat_request(body, model_ids)
        exchange.model = chat.model
        exchange.stream = chat.stream
        return Relay(
            settings=settings,
            upstream=services.upstream,
            readiness=services.readiness,
            exchange=exchange,
            path=CHAT_PATH,
            body=chat.body,
            stream=chat.stream,
        )

    return router


def _chat_openapi(model_ids: frozenset[str]) -> dict[str, Any]:
    schema = {
        "type": "object",
        "required": ["model", "messages"],
        "properties": {
            "model": {"type": "string", "enum": sorted(model_ids)},
            "messages": {"type": "array", "items": {"type": "object"}},
            "stream": {"type": "boolean"},
        },
    }
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
