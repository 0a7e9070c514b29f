"""Logging in and out: /v1/session."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field, ValidationError
from starlette.responses import JSONResponse, Response

from backend.auth import check_token
from backend.doors import Doors, address_of
from backend.errors import ApiError
from backend.exchange import exchange_of, key_of
from backend.keys import KeyRing
from backend.openapi import answers
from backend.services import NO_STORE, NoResponse, body_of
from backend.sessions import Sessions, cross_site, is_same_origin
from backend.settings import Settings, Strict

_BODY_BYTES = 4096


class Login(Strict):
    """The body of a login."""

    key: str = Field(min_length=1)


_OPENAPI: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": Login.model_json_schema()}},
    }
}


def make_session_router(
    settings: Settings, keys: KeyRing, doors: Doors, sessions: Sessions
) -> APIRouter:
    """Return the routes of the cookie session."""
    router = APIRouter(redirect_slashes=False)

    @router.post(
        "/v1/session",
        status_code=204,
        response_class=Response,
        responses=answers({}, 400, 403, 413),
        openapi_extra=_OPENAPI,
    )
    async def log_in(request: Request) -> Response:
        """Begin a session with a key; the answer sets the cookie."""
        # Else another site could log the reader in with a key of its own, and see the bill grow.
        if not is_same_origin(request.scope, unknown=True):
            raise cross_site()
        body = await body_of(request, settings, limit_bytes=_BODY_BYTES)
        if body is None:
            return NoResponse()
        try:
            login = Login.model_validate_json(body)
        except ValidationError:
            raise ApiError(
                400, 'The body must be {"key": "YOUR_KEY"} and nothing else.', param="key"
            ) from None
        key = check_token(login.key, address_of(request.scope), keys, doors)
        exchange_of(request.scope).key = key
        headers = {**NO_STORE, "set-cookie": sessions.begin(key)}
        return Response(status_code=204, headers=headers)

    @router.get("/v1/session", responses=answers({}))
    async def show(request: Request) -> JSONResponse:
        """Tell whose session this is, and what its key may do."""
        key = key_of(request.scope)
        told = {
            "key": key.name,
            "expires": key.expires,
            "models": None if key.models is None else sorted(key.models),
            "limits": key.limits.model_dump(exclude_none=True),
        }
        return JSONResponse(told, headers=NO_STORE)

    @router.delete(
        "/v1/session", status_code=204, response_class=Response, responses=answers({}, 403)
    )
    async def log_out() -> Response:
        """End the session: the answer takes the cookie away."""
        return Response(status_code=204, headers={**NO_STORE, "set-cookie": sessions.end()})

    return router
