"""How many tokens a request took, as the engine itself counts them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

# In the text of an answer the quotes are escaped, so this is only found where it is a field.
_USAGE = re.compile(rb'"usage"\s*:\s*\{')
# A CR that an LF follows is no line end of its own: else every CR LF would be two.
BYTES_PER_TOKEN = 4
"""Of English text, about: for what the engine has not counted yet, or did not live to."""
_EVENT_END = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r(?!\n))")


@dataclass(frozen=True, slots=True)
class Usage:
    """What one request took, in tokens."""

    prompt_tokens: int
    completion_tokens: int


class UsageTap:
    """Picks the engine's count out of a stream that passes, at the cost of a search per piece.

    The engine counts only when it is asked to. Where the client did not ask, the backend did
    (`hide`), and the event that carries nothing but the count is taken out again: the client gets
    what it would have got from the engine itself.
    """

    __slots__ = ("_hide", "_latest")

    def __init__(self, *, hide: bool) -> None:
        self._hide = hide
        self._latest = b""

    def look(self, events: bytes) -> bytes:
        """Return `events` (whole ones) as they are to be sent on."""
        if b'"usage"' not in events or not _USAGE.search(events):
            return events
        if not self._hide:
            self._latest = events
            return events
        kept, start = bytearray(), 0
        while start < len(events):
            end = _EVENT_END.search(events, start)
            stop = end.end() if end else len(events)
            event = events[start:stop]
            start = stop
            if _USAGE.search(event):
                self._latest = event
                if _is_only_usage(event):
                    continue
            kept += event
        return bytes(kept)

    @property
    def usage(self) -> Usage | None:
        """The last count that passed, or None."""
        found = None
        for data in _data_of(self._latest):
            found = usage_of(data) or found
        return found


def usage_of(data: bytes) -> Usage | None:
    """Return the count in one JSON text: a whole answer, or the data of an event.

    Chat and completions say `prompt_tokens` and `completion_tokens`, responses `input_tokens` and
    `output_tokens`; an embedding has no completion.
    """
    found = _usage_field(_parsed(data))
    if found is None:
        return None
    prompt = _count(found.get("prompt_tokens", found.get("input_tokens")))
    completion = _count(found.get("completion_tokens", found.get("output_tokens")))
    return Usage(prompt, completion)


def _usage_field(fields: Any) -> dict[str, Any] | None:
    """Look only where the engine puts it: deeper down it may be a client's own words."""
    if not isinstance(fields, dict):
        return None
    if isinstance(fields.get("usage"), dict):
        return dict(fields["usage"])
    response = fields.get("response")
    if isinstance(response, dict) and isinstance(response.get("usage"), dict):
        return dict(response["usage"])
    return None


def _is_only_usage(event: bytes) -> bool:
    fields = [_parsed(data) for data in _data_of(event)]
    return bool(fields) and all(
        isinstance(one, dict) and one.get("choices") == [] and isinstance(one.get("usage"), dict)
        for one in fields
    )


def _data_of(events: bytes) -> list[bytes]:
    return [line[5:] for line in events.splitlines() if line.startswith(b"data:")]


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
