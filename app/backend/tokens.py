"""Whether a piece of a chat stream proves that the engine made a token."""

from __future__ import annotations

import json


def shows_token(events: bytes) -> bool:
    """Whether any event in `events` carries generated content.

    The first event of a stream is an empty role delta, comments are only signs of life, and an
    error event may come under HTTP 200: none of these is a token. A generation that ends at once
    has no content, but a usage count or a finish reason of its own. Completions have their text in
    the choice itself, responses a `delta` of text in the event.
    """
    return any(_has_token(line[5:]) for line in events.splitlines() if line.startswith(b"data:"))


def _has_token(data: bytes) -> bool:
    try:
        chunk = json.loads(data)
    except (ValueError, RecursionError):
        return False
    if not isinstance(chunk, dict):
        return False
    usage = chunk.get("usage")
    if isinstance(usage, dict) and _is_positive(usage.get("completion_tokens")):
        return True
    if isinstance(chunk.get("delta"), str) and chunk["delta"]:
        return True
    choices = chunk.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if not isinstance(choice, dict):
            continue
        if choice.get("finish_reason") in {"stop", "length", "tool_calls"}:
            return True
        if choice.get("text"):
            return True
        delta = choice.get("delta")
        if isinstance(delta, dict) and any(v for k, v in delta.items() if k != "role"):
            return True
    return False


def _is_positive(count: object) -> bool:
    return isinstance(count, int) and count > 0
