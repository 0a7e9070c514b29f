"""What the stand-in keeps: zones, tokens, faults to come, and what it was asked."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

EVERYTHING = {
    "Zone > Zone > Read",
    "Zone > Zone Settings > Edit",
    "Zone > DNS > Edit",
    "Zone > Cache Rules > Edit",
    "Zone > Config Rules > Edit",
    "Zone > Response Compression > Edit",
    "Zone > Zone WAF > Edit",
    "Zone > SSL and Certificates > Edit",
    "Account > Cloudflare Tunnel > Edit",
}


def new_id() -> str:
    """Return an identifier of the API's form."""
    return uuid.uuid4().hex


def now() -> str:
    """Return the time as the API writes it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


@dataclass
class Zone:
    """A zone. `extra` is for files that add their part of the API."""

    name: str
    plan: str = "free"
    id: str = field(default_factory=new_id)
    account: str = field(default_factory=new_id)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    rulesets: dict[str, dict[str, Any]] = field(default_factory=dict)
    withheld: set[str] = field(default_factory=set)
    """Parameters of configuration rules that this zone's plan has not, and settings likewise."""
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Fault:
    """An error to come: `times` answers with `status`, after `after` calls that match pass.

    `method` and `path` are patterns. With `done` the call is carried out, and only its
    answer is lost.
    """

    status: int
    method: str = ""
    path: str = ""
    times: int = 1
    after: int = 0
    retry_after: str = ""
    done: bool = False

    def strikes(self, method: str, path: str) -> bool:
        """Tell whether this call gets the fault, and count it."""
        if self.times <= 0 or not re.fullmatch(self.method or ".*", method):
            return False
        if not re.search(self.path, path):
            return False
        if self.after > 0:
            self.after -= 1
            return False
        self.times -= 1
        return True


@dataclass(frozen=True)
class Call:
    """What was asked and how it was answered."""

    method: str
    path: str
    status: int
    body: Any
    query: dict[str, str]


@dataclass
class World:
    """All of it."""

    zones: dict[str, Zone] = field(default_factory=dict)
    tokens: dict[str, set[str]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)

    def zone(self, name: str, plan: str = "free") -> Zone:
        """Make a zone."""
        made = Zone(name, plan)
        self.zones[made.id] = made
        return made

    def token(self, token: str, permissions: set[str] | None = None) -> str:
        """Make a token; without permissions it may do everything."""
        self.tokens[token] = set(EVERYTHING if permissions is None else permissions)
        return token

    def writes(self) -> list[Call]:
        """Return the calls that changed something."""
        return [c for c in self.calls if c.method != "GET" and c.status < 300]

    def attempts(self) -> list[Call]:
        """Return the calls that would have changed something, done or refused."""
        return [c for c in self.calls if c.method != "GET"]
