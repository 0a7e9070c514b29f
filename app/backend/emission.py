"""What an emission is: the plan that its query asks for, and the events, made without sending."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from starlette.types import Scope

from backend.errors import ApiError

_LONGEST_SECONDS = 330
_MOST_PACES = 8
_RUN_PATTERN = "[A-Za-z0-9_-]{1,64}"
_WHOLE = re.compile(r"[0-9]{1,6}")
_DECIMAL = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?")
_TOLD_HEADERS = (b"via", b"accept-encoding", b"connection", b"x-forwarded-proto", b"cf-ray")

# What careless hands break, one event each. The halves of the surrogate pair make a character
# only together, and the last one but the many is cut in the middle of its bytes, see cut_in_two().
EMOJI = "🚀"
AWKWARD_TEXTS = (
    "a\u2028b",
    "c\u2029d",
    "ends with newline\n",
    "\n\n",
    "\r\n",
    "tab\t",
    'quote " backslash \\',
    "e\u0301",
    "\u0000",
    "\ud83d",
    "\ude80",
    EMOJI,
    *[" same"] * 100,
)
EMOJI_PAUSE_SECONDS = 0.03


@dataclass(frozen=True, slots=True)
class _Number:
    """A query parameter that is one number."""

    meaning: str
    most: int
    least: int = 0
    default: int | None = 0
    is_whole: bool = True

    def read(self, name: str, text: str) -> float:
        pattern = _WHOLE if self.is_whole else _DECIMAL
        value = float(text) if pattern.fullmatch(text) else -1.0
        if not self.least <= value <= self.most:
            kind = "a whole number" if self.is_whole else "a number"
            raise _refusal(name, f"{name} must be {kind} from {self.least} to {self.most}.")
        return value

    def schema(self) -> dict[str, Any]:
        kind = "integer" if self.is_whole else "number"
        return {"type": kind, "minimum": self.least, "maximum": self.most}


_PACE = _Number("", most=10_000, is_whole=False)
_NUMBERS = {
    "events": _Number("How many numbered events.", least=1, most=2000, default=100),
    "bytes": _Number("Least length of each numbered event's text.", most=4096),
    "lead_ms": _Number("Pause before the first event's pace begins.", most=60_000, is_whole=False),
    "silence_seconds": _Number("Length of the one long pause.", most=300, is_whole=False),
    "silence_after": _Number(
        "Number of the event before the long pause; half of `events` if not given.",
        least=1,
        most=2000,
        default=None,
    ),
    "heartbeats": _Number("1: pauses are broken by the usual heartbeats.", most=1, default=1),
    "awkward": _Number("1: events with awkward texts follow the numbered ones.", most=1),
}
# name: (what it is, its schema); these two are no plain numbers.
_TEXTS: dict[str, tuple[str, dict[str, Any]]] = {
    "run": (
        "Anything; it only makes the address its own.",
        {"type": "string", "pattern": f"^{_RUN_PATTERN}$"},
    ),
    "pace_ms": (
        f"Milliseconds before each event, up to {_PACE.most}; or up to {_MOST_PACES} of them,"
        " comma-separated, each for an equal run of consecutive events.",
        {"type": "string", "default": "20"},
    ),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What to emit and when. `paces` are in seconds, one for each segment of the events."""

    events: int
    paces: tuple[float, ...]
    least_bytes: int
    lead_seconds: float
    silence_seconds: float
    silence_after: int
    heartbeats: bool
    awkward: bool

    def due_times(self) -> Iterator[float]:
        """Give the due time of each numbered event, in seconds since the emission's start."""
        due = self.lead_seconds
        for number in range(1, self.events + 1):
            due += self._pace(number)
            yield due
            if number == self.silence_after:
                due += self.silence_seconds

    @property
    def numbered_seconds(self) -> float:
        """How long the numbered events take, with a silence after the last of them."""
        paces = sum(self._pace(number) for number in range(1, self.events + 1))
        return self.lead_seconds + paces + self.silence_seconds

    def _pace(self, number: int) -> float:
        return self.paces[(number - 1) * len(self.paces) // self.events]


def parse_plan(query: bytes) -> Plan:
    """Read a plan from a raw query string; raise ApiError 400, naming the parameter."""
    given = _read_query(query)
    if not re.fullmatch(_RUN_PATTERN, given.get("run", "-")):
        raise _refusal("run", "run must be 1 to 64 of the characters A-Z a-z 0-9 _ and -.")
    paces = given.get("pace_ms", "20").split(",")
    if len(paces) > _MOST_PACES:
        raise _refusal("pace_ms", f"pace_ms may have up to {_MOST_PACES} numbers.")
    numbers = {
        name: number.read(name, given[name]) if name in given else number.default
        for name, number in _NUMBERS.items()
    }
    events = int(numbers["events"] or 0)
    after = numbers["silence_after"]
    if after is not None and after > events:
        raise _refusal("silence_after", f"silence_after must be from 1 to {events}, as events is.")
    plan = Plan(
        events=events,
        paces=tuple(_PACE.read("pace_ms", pace) / 1000 for pace in paces),
        least_bytes=int(numbers["bytes"] or 0),
        lead_seconds=(numbers["lead_ms"] or 0) / 1000,
        silence_seconds=numbers["silence_seconds"] or 0,
        silence_after=max(events // 2, 1) if after is None else int(after),
        heartbeats=bool(numbers["heartbeats"]),
        awkward=bool(numbers["awkward"]),
    )
    seconds = plan.numbered_seconds + (EMOJI_PAUSE_SECONDS if plan.awkward else 0)
    if seconds > _LONGEST_SECONDS:
        raise _refusal(
            None, f"This would take {seconds:.0f} seconds; at most {_LONGEST_SECONDS} are allowed."
        )
    return plan


def query_openapi() -> list[dict[str, Any]]:
    """Describe the parameters as an OpenAPI document does."""
    described = dict(_TEXTS)
    for name, number in _NUMBERS.items():
        default = {} if number.default is None else {"default": number.default}
        described[name] = (number.meaning, number.schema() | default)
    return [
        {"name": name, "in": "query", "required": False, "description": meaning, "schema": schema}
        for name, (meaning, schema) in described.items()
    ]


def request_facts(scope: Scope, body_bytes: int) -> dict[str, Any]:
    """Tell how the request came in here: what a hop in front may have changed."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        if raw_name in _TOLD_HEADERS:
            name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return {
        "http_version": scope["http_version"],
        "method": scope["method"],
        "body_bytes": body_bytes,
        "headers": headers,
    }


class EventMaker:
    """Makes the events of one emission, counts them, and keeps the hash over their bytes."""

    def __init__(self, emission_id: str, created: int) -> None:
        self.count = 0
        self._hash = hashlib.sha256()
        self._head = {
            "id": emission_id,
            "object": "chat.completion.chunk",
            "created": created,
            "model": "streamcheck",
        }

    def event(self, text: str, due: float, sent: float, **more: Any) -> bytes:
        """Return the next event with its blank line. Times are seconds since the start."""
        self.count += 1
        told = {"n": self.count, "due": round(due, 6), "sent": round(sent, 6), **more}
        event = b"id: %d\n" % self.count + self._data({"content": text}, None, told)
        self._hash.update(event)
        return event

    def end(self) -> bytes:
        """Return the last chunk, which says what should have come before it."""
        told = {"end": True, "events": self.count, "sha256": self._hash.hexdigest()}
        return self._data({}, "stop", told)

    def _data(self, delta: Mapping[str, str], finish: str | None, told: Mapping[str, Any]) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        chunk = {**self._head, "choices": [choice], "streamcheck": told}
        text = json.dumps(chunk, ensure_ascii=False, separators=(",", ":"))
        # Half a surrogate pair has no UTF-8; Python's escape for it is the one that JSON has.
        return b"data: " + text.encode("utf-8", "backslashreplace") + b"\n\n"


def cut_in_two(event: bytes) -> tuple[bytes, bytes]:
    """Cut an event with the emoji in the middle of the emoji's four bytes."""
    middle = event.index(EMOJI.encode()) + 2
    return event[:middle], event[middle:]


_WORDS = ("river", "stone", "amber", "field", "lantern", "north", "willow", "copper")


def _padding() -> str:
    """Return words in an order that looks like chance and is always the same."""
    state, words = 1, []
    for _ in range(2000):
        state = (state * 1_103_515_245 + 12_345) % 2**31
        words.append(_WORDS[state >> 16 & 7])
    return " ".join(words) + " "


_PADDING = _padding()


def text_of(number: int, least_bytes: int) -> str:
    """Return the text of the numbered event: always the same, and whole words."""
    text = f"{_WORDS[(number - 1) % len(_WORDS)]} {number} "
    missing = least_bytes - len(text)
    if missing <= 0:
        return text
    start = _PADDING.index(" ", number * 131 % 4096) + 1
    return text + _PADDING[start : _PADDING.index(" ", start + missing - 1) + 1]


def _read_query(query: bytes) -> dict[str, str]:
    try:
        pairs = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=32
        )
    except ValueError:
        raise _refusal(None, "The query is not valid.") from None
    given: dict[str, str] = {}
    for name, value in pairs:
        if name not in _TEXTS and name not in _NUMBERS:
            raise _refusal(name[:100], f"Unknown parameter: {name[:100]}.")
        if name in given:
            raise _refusal(name, f"{name} may be given only once.")
        given[name] = value
    return given


def _refusal(param: str | None, message: str) -> ApiError:
    return ApiError(400, message, param=param)
