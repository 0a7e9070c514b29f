"""The HTTP routes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from backend.chat_request import parse_chat_request, read_body
from backend.emission import parse_plan, query_openapi, request_facts
from backend.emitter import Emitter
from backend.exchange import exchange_of
from backend.metrics import Metrics
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
    metrics: Metrics


class NoResponse(Response):
    """The client has gone: there is nobody to answer."""

    async def __call__(self, *_: object) -> None:
        """Send nothing."""


def make_router(services: Services) -> APIRouter:
    """Return the routes, bound to `services`."""
    settings = services.settings
    router = APIRouter(redirect_slashes=False)
    emitter = Emitter(settings)
    emission_openapi = {"parameters": query_openapi()}
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

    async def body_of(request: Request) -> bytes | None:
        """Return the whole body; None, and the log told, when the client leaves in the middle."""
        try:
            return await read_body(request.scope, request.receive, settings.max_body_bytes)
        except ClientDisconnect:
            exchange_of(request.scope).ended = "client_left"
            return None

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
        body = await body_of(request)
        if body is None:
            return NoResponse()
        exchange = exchange_of(request.scope)
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

    @router.get("/v1/streamcheck", response_class=Response, openapi_extra=emission_openapi)
    @router.post(
        "/v1/streamcheck",
        response_class=Response,
        openapi_extra={**emission_openapi, "requestBody": {"content": {"*/*": {}}}},
    )
    async def streamcheck(request: Request) -> Response:
        """Emit a planned stream, for the stream check to time. A POST's body is only counted."""
        plan = parse_plan(request.scope["query_string"])
        body = await body_of(request)
        if body is None:
            return NoResponse()
        facts = request_facts(request.scope, len(body))
        return emitter.answer(exchange_of(request.scope), plan, facts)

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
