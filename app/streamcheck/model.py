"""What the parts hand to each other: where to ask, how, and what was seen. Data only."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

IDENTITY = "identity"
COMPRESSED = "gzip, br, zstd"
"""What a browser asks for; curl asks for nothing, which is why curl often sees no fault."""

HTTP1, HTTP2 = "http/1.1", "h2"


class CheckError(Exception):
    """Nothing can be judged: one line that says why and how to mend it. Exit code 2."""


@dataclass(frozen=True)
class Target:
    """One hop's address. `url` is the API's root, such as `https://chat.example.org/v1`."""

    name: str
    title: str
    url: str
    key: str = ""
    # A certificate file to trust beside the system's own.
    ca: str = ""
    # Where to connect instead of the URL's host: `unix:/path`, or an address.
    connect: str = ""
    # `here`, or `server` when it was asked on the server itself.
    seen_from: str = "here"
    # Below this hop lies the backend, so that its emitter can be asked through it.
    has_emitter: bool = True
    # The server's own address, where `url` may lead there by way of another machine.
    origin: str = ""


@dataclass(frozen=True)
class Way:
    """One of the ways in which a client may come."""

    source: str  # generation | emitter
    method: str = "POST"
    protocol: str = HTTP1
    encoding: str = IDENTITY

    def __str__(self) -> str:
        return f"{self.method} {self.protocol} {self.encoding}"

    @property
    def compressed(self) -> bool:
        """Whether the client offered to take a compressed answer."""
        return self.encoding != IDENTITY


@dataclass
class Arrival:
    """One read of the wire. `at`: seconds since the request was sent.

    `size`: bytes of the body, decoded; `wire`: the same as they came; `events`: how many events
    with content were complete with it; `partial`: whether it ended in the middle of an event.
    """

    at: float
    size: int
    wire: int
    events: int
    partial: bool = False


@dataclass
class Numbered:
    """One event of the emitter: its number, when it was due and sent, when it arrived.

    `due` and `sent` are seconds since the emission began, by the backend's clock; `at` is seconds
    since the request was sent, by ours.
    """

    n: int
    due: float
    sent: float
    at: float


@dataclass
class Observation:
    """One request and everything that came of it. Times: seconds since the request was sent."""

    way: Way
    status: int = 0
    http_version: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    connect_seconds: float | None = None
    headers_seconds: float | None = None
    first_byte_seconds: float | None = None
    first_token_seconds: float | None = None
    end_seconds: float | None = None
    # terminal, end, cut, error_event, left, timeout, too_long, refused
    ended: str = ""
    error: str | None = None
    arrivals: list[Arrival] = field(default_factory=list)
    events: int = 0
    tokens: int | None = None
    comments: int = 0
    text: str = ""
    # The beginning of the body, for what is no stream.
    body: bytes = b""
    # The answer's own id: the same twice means that it was kept somewhere.
    answer_id: str = ""
    # Whether a choice said why it ended: the answer was complete, terminal event or not.
    finish_seen: bool = False
    # The emitter's.
    numbered: list[Numbered] = field(default_factory=list)
    start: dict[str, Any] = field(default_factory=dict)
    digest_right: bool | None = None
    # Seconds from the epoch of our monotonic clock to the request.
    requested_at: float = 0.0
    # Whether both what was asked and the server behind it are so near that distance costs nothing.
    is_near: bool = False
    # The worst delay of our own timer meanwhile, seconds.
    noise_seconds: float = 0.0
    # How much of this machine's processors was at work meanwhile, 0 to 1.
    busy_share: float = 0.0


@dataclass(frozen=True)
class Finding:
    """A way in which a hop breaks the stream. `confidence` is between 0 and 1."""

    kind: str
    confidence: float
    summary: str
    detail: dict[str, Any] = field(default_factory=dict)
    ways: tuple[str, ...] = ()
    source: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as the report has it."""
        return {**dataclasses.asdict(self), "ways": list(self.ways)}


@dataclass
class Hop:
    """A hop with all that was seen and found there."""

    target: Target
    observations: list[Observation] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    # Why it could not be asked.
    error: str | None = None
    # Why nothing certain can be said, although something looked wrong.
    doubts: list[str] = field(default_factory=list)

    def of(self, source: str) -> list[Observation]:
        """Return the observations of one source."""
        return [seen for seen in self.observations if seen.way.source == source]
