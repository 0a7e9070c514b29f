"""What the OpenAPI document says of chat streams."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_ERRORS = {
    400: "The request is not understood.",
    401: "There is no key, or it is not good.",
    403: "The key may not do this, or another site made the browser ask.",
    404: "There is no such stream for this key, or no such model.",
    410: "The events asked for are no longer kept.",
    413: "The body is too large.",
    429: "The key has had its share.",
    500: "The server failed.",
    502: "The model server failed.",
    503: "There is no place, or the server is restarting.",
    504: "The model server did not answer in time.",
}
_STRING = {"type": "string"}
_INTEGER = {"type": "integer"}
_BOOLEAN = {"type": "boolean"}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {"message": _STRING, "type": _STRING},
        }
    },
}


def _json(description: str, properties: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "required": sorted(properties), "properties": properties}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


_TICKET = {"ticket": _STRING, "ticket_expires_in": _INTEGER}
_STREAM = {
    "id": _STRING,
    "object": {"const": "chat.stream"},
    "created": _INTEGER,
    "model": _STRING,
}
CREATED = _json("The stream has begun.", {**_STREAM, "events": _STRING, **_TICKET})
DESCRIPTION = _json(
    "How far it is.",
    {
        **_STREAM,
        "last_event_id": _INTEGER,
        "ended": _BOOLEAN,
        "outcome": {"type": ["string", "null"]},
    },
)
POLLED = _json(
    "The next events, as far as there are any.",
    {
        "events": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["id", "data"],
                "properties": {"id": _INTEGER, "data": _STRING},
            },
        },
        "ended": _BOOLEAN,
    },
)
STOPPED = _json("The generation has ended.", {"id": _STRING, "ended": _BOOLEAN})
TICKET = _json("A ticket for one connection.", _TICKET)
EVENTS = {
    "description": "The events, each with its id; the last one's data is [DONE].",
    # One event, as FastAPI describes its own.
    "content": {
        "text/event-stream": {
            "itemSchema": {
                "type": "object",
                "required": ["data"],
                "properties": {"id": _STRING, "data": _STRING, "retry": _INTEGER},
            }
        }
    },
}


def answers(good: dict[int, dict[str, Any]], *errors: int) -> dict[int | str, dict[str, Any]]:
    """Return the responses of a route: its own, and the errors it may answer with."""
    content = {"application/json": {"schema": _ERROR}}
    documented: dict[int | str, dict[str, Any]] = dict(good.items())
    for code in (401, *errors):
        documented[code] = {"description": _ERRORS[code], "content": content}
    return documented


def create_body(model_ids: Iterable[str]) -> dict[str, Any]:
    """Describe the body of a new stream; the fields are those of a chat completion."""
    schema = {
        "type": "object",
        "required": ["model", "messages"],
        "properties": {
            "model": {"type": "string", "enum": sorted(model_ids)},
            "messages": {"type": "array", "items": {"type": "object"}},
        },
    }
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
