"""What the OpenAPI document says of answers: each route's own, and the errors it may give."""

from __future__ import annotations

from typing import Any

ERRORS = {
    400: "The request is not understood.",
    401: "There is no key, or it is not good.",
    403: "The key may not do this, or another site made the browser ask.",
    404: "There is no such thing for this key.",
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
# Whoever asks may come without a key, or from an address with too many wrong ones.
_ALWAYS = (401, 429)


def answers(good: dict[int, dict[str, Any]], *errors: int) -> dict[int | str, dict[str, Any]]:
    """Return the responses of a route behind the keys, in OpenAPI's words."""
    content = {"application/json": {"schema": _ERROR}}
    documented: dict[int | str, dict[str, Any]] = dict(good.items())
    for code in sorted({*_ALWAYS, *errors}):
        documented[code] = {"description": ERRORS[code], "content": content}
    return documented
