"""The HTTP routes."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from backend.emission import parse_plan, query_openapi, request_facts
from backend.emitter import Emitter
from backend.exchange import exchange_of
from backend.openai_routes import add_openai_routes
from backend.openapi import EVENTS, answers
from backend.services import NO_STORE, NoResponse, Services, body_of
from backend.status import add_status_route


def make_router(services: Services) -> APIRouter:
    """Return the routes, bound to `services`."""
    router = APIRouter(redirect_slashes=False)
    emitter = Emitter(services.settings)
    emission_openapi = {"parameters": query_openapi()}
    add_openai_routes(router, services)
    add_status_route(router, services)

    @router.get("/healthz", include_in_schema=False)
    async def healthz() -> JSONResponse:
        """Tell that the process is alive; says nothing of the engine."""
        return JSONResponse({"alive": True}, headers=NO_STORE)

    @router.get("/readyz", include_in_schema=False)
    async def readyz() -> JSONResponse:
        """Tell whether a token came out of the engine lately: 200, or 503 with the reason."""
        ready, body = services.readiness.report()
        return JSONResponse(body, status_code=200 if ready else 503, headers=NO_STORE)

    emission_answers = answers({200: EVENTS}, 400, 403, 413)

    @router.get(
        "/v1/streamcheck",
        response_class=Response,
        responses=emission_answers,
        openapi_extra=emission_openapi,
    )
    @router.post(
        "/v1/streamcheck",
        response_class=Response,
        responses=emission_answers,
        openapi_extra={**emission_openapi, "requestBody": {"content": {"*/*": {}}}},
    )
    async def streamcheck(request: Request) -> Response:
        """Emit a planned stream, for the stream check to time. A POST's body is only counted."""
        plan = parse_plan(request.scope["query_string"])
        body = await body_of(request, services.settings)
        if body is None:
            return NoResponse()
        facts = request_facts(request.scope, len(body))
        return emitter.answer(exchange_of(request.scope), plan, facts)

    return router
