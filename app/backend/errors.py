"""Errors in the shape that OpenAI clients know.

Body: `{"error": {"message": str, "type": str, "param": str | null, "code": str | null}}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

DONE_EVENT = b"data: [DONE]\n\n"


class ApiError(Exception):
    """An answer to the client that is not the one it asked for.

    `status` is the HTTP status while the response has not begun; afterwards the same error goes
    out as an event. `ended` is the word for it in the request log. `payload` replaces the whole
    JSON body (an error that the upstream already wrote in this shape). `fault` is what failed
    behind the backend, in one word of a few, for the metrics.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        ended: str = "refused",
        payload: bytes | None = None,
        not_reached: bool = False,
        fault: str | None = None,
    ) -> None:
        super().__init__(message)
        # The request never got to an engine: it may be sent again.
        self.not_reached = not_reached
        self.status = status
        self.headers = dict(headers or {})
        self.ended = ended
        self.fault = fault
        if payload is None:
            error = {"message": message, "type": kind, "param": param, "code": code}
            payload = json.dumps({"error": error}, separators=(",", ":")).encode("ascii")
        self.payload = payload

    def response(self) -> Response:
        """Return the whole HTTP answer."""
        return Response(
            self.payload,
            status_code=self.status,
            media_type="application/json",
            headers={"cache-control": "no-store", **self.headers},
        )

    def event(self) -> bytes:
        """Return the same error as one server-sent event, without the terminal `[DONE]`."""
        # In JSON a raw line end can only be white space between tokens.
        line = self.payload.replace(b"\r", b" ").replace(b"\n", b" ")
        return b"data: " + line + b"\n\n"

    def response_event(self) -> bytes:
        """Return the same error as an event of /v1/responses, which ends such a stream."""
        error = json.loads(self.payload)["error"]
        fields = {
            "type": "error",
            "code": error.get("code"),
            "message": error.get("message") or str(self),
            "param": error.get("param"),
            "sequence_number": 0,
        }
        data = json.dumps(fields, separators=(",", ":")).encode("ascii")
        return b"event: error\ndata: " + data + b"\n\n"


def server_error(message: str, *, status: int = 500, code: str | None = None) -> ApiError:
    """Make an error that is our side's fault."""
    return ApiError(status, message, kind="server_error", code=code, ended="server_error")


def install(app: FastAPI) -> None:
    """Give every error that FastAPI and Starlette make themselves the same shape."""

    async def on_api_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error.response()

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        messages = {
            404: f"Unknown request URL: {request.method} {request.url.path}.",
            405: f"Not allowed to {request.method} on {request.url.path}.",
        }
        message = messages.get(error.status_code, str(error.detail))
        code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
        headers = dict(error.headers or {})
        return ApiError(error.status_code, message, code=code, headers=headers).response()

    async def on_validation_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first: dict[str, Any] = next(iter(error.errors()), {})
        param = ".".join(str(part) for part in first.get("loc", ())[1:]) or None
        return ApiError(400, str(first.get("msg", "Invalid request.")), param=param).response()

    async def on_crash(_: Request, error: Exception) -> Response:
        # Starlette raises the error again after this, and uvicorn logs where it came from.
        return server_error("The server failed to answer this request.").response()

    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(Exception, on_crash)
