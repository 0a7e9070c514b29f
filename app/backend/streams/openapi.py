"""What the OpenAPI document says of chat streams."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_STRING = {"type": "string"}
_INTEGER = {"type": "integer"}
_BOOLEAN = {"type": "boolean"}


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
