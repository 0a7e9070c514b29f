"""Who may send work to the engine now, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass

from backend.keys import Key
from backend.usage import Usage


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request would take. `most_tokens` bounds its answer, where the client said so."""

    prompt_bytes: int
    most_tokens: int | None
    stream: bool


class Permit:
    """One request that was let in. Whoever has it must close it."""

    def __init__(self) -> None:
        # x-ratelimit-* of the answer.
        self.headers: list[tuple[bytes, bytes]] = []

    async def place(self) -> None:
        """Wait for a place in the house; raise ApiError 503 when it takes too long."""

    async def close(self, usage: Usage | None) -> None:
        """Settle what was used and give back what was held. May be called twice; never raises."""


class Admission:
    """Gives out permits."""

    async def admit(self, key: Key, ask: Ask) -> Permit:
        """Let a request in; raise ApiError 429 when the key has had its share."""
        return Permit()
