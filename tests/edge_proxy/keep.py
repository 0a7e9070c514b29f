"""The edge's cache: whole answers, for as long as the origin and the documentation say."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from .behaviour import KEPT_EXTENSIONS, KEPT_SECONDS, Behaviour
from .headers import Headers, directives, value


@dataclass
class Kept:
    """One answer, and until when it is good (monotonic seconds)."""

    status: int
    headers: Headers
    body: bytes
    until: float


@dataclass
class Cache:
    """Answers by host and path."""

    behaviour: Behaviour
    answers: dict[tuple[str, str], Kept] = field(default_factory=dict)

    def eligible(self, method: str, path: str) -> bool:
        """Whether an answer may be kept at all: by the name's extension, not by its type."""
        if self.behaviour.keep_everything:
            return True
        name = path.partition("?")[0].rpartition("/")[2]
        extension = name.rpartition(".")[2].lower() if "." in name else ""
        return method in ("GET", "HEAD") and extension in KEPT_EXTENSIONS

    def find(self, host: str, path: str) -> Kept | None:
        """Return what is kept and still good."""
        kept = self.answers.get((host, path))
        return kept if kept and kept.until > time.monotonic() else None

    def seconds(self, status: int, headers: Headers) -> int:
        """Return how long an answer may be kept; 0 for not at all."""
        if self.behaviour.keep_everything:
            return KEPT_SECONDS[200]
        said = directives(headers)
        if {"private", "no-store", "no-cache"} & set(said) or value(headers, "set-cookie"):
            return 0
        for name in ("s-maxage", "max-age"):
            if said.get(name, "").isdigit():
                return int(said[name])
        return KEPT_SECONDS.get(status, 0)

    def put(self, host: str, path: str, status: int, headers: Headers, body: bytes) -> None:
        """Keep a whole answer, if it may be."""
        seconds = self.seconds(status, headers)
        if seconds:
            until = time.monotonic() + seconds
            self.answers[host, path] = Kept(status, headers, body, until)
