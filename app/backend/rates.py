"""Requests and tokens a minute, by the library `limits`, in memory or in Redis."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, Storage
from limits.aio.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter
from limits.storage import storage_from_string

from backend.errors import ApiError

Header = tuple[bytes, bytes]

_MINUTE = 60
# Redis tells the end of a window in whole seconds.
_SAME_WINDOW_SECONDS = 1.5
_STORE_TIMEOUT_SECONDS = 1.0


def open_store(url: str) -> Storage:
    """Return the store that `url` names: memory://, redis://…, redis+unix://….

    Raises what `limits` raises for a URL that it does not know.
    """
    if not url.startswith("redis"):
        return Memory(wrap_exceptions=True)
    options: dict[str, float | str | bool] = {
        "wrap_exceptions": True,
        "implementation": "redispy",
        "key_prefix": "millrace",
        "socket_timeout": _STORE_TIMEOUT_SECONDS,
        "socket_connect_timeout": _STORE_TIMEOUT_SECONDS,
    }
    store = storage_from_string(f"async+{url}", **options)
    assert isinstance(store, Storage)
    return store


class Memory(MemoryStorage):
    """`limits` in this process, swept once a minute.

    Left alone it sweeps at every request, with a thread for each key: 3 ms of CPU with a hundred
    keys (measured, limits 5.8).
    """

    _swept_at = 0.0

    async def _MemoryStorage__schedule_expiry(self) -> None:  # noqa: N802 - theirs
        now = time.monotonic()
        if now - self._swept_at >= _MINUTE:
            self._swept_at = now
            await super()._MemoryStorage__schedule_expiry()  # type: ignore[misc]


@dataclass(frozen=True, slots=True)
class Stand:
    """How a limit stands: `reset` is in Unix seconds."""

    what: str
    limit: int
    remaining: int
    reset: float

    def headers(self) -> list[Header]:
        """Return it as OpenAI's clients know it."""
        told = {
            "limit": str(self.limit),
            "remaining": str(self.remaining),
            "reset": duration(self.reset - time.time()),
        }
        return [
            (f"x-ratelimit-{name}-{self.what}".encode("ascii"), value.encode("ascii"))
            for name, value in told.items()
        ]

    def refusal(self, message: str, headers: list[Header]) -> ApiError:
        """Make the 429 for who has had all of it."""
        left = max(math.ceil(self.reset - time.time()), 1)
        return ApiError(
            429,
            f"{message} Please try again in {left}s.",
            kind=self.what,
            code="rate_limit_exceeded",
            headers={
                **{str(name, "ascii"): str(value, "ascii") for name, value in headers},
                "retry-after": str(left),
            },
        )


class RequestRate:
    """Requests a minute: of any 60 seconds, whenever they begin, none sees more than the limit."""

    def __init__(self, store: Storage) -> None:
        self._limiter = MovingWindowRateLimiter(store)

    async def take(self, name: str, limit: int) -> tuple[bool, Stand]:
        """Take one, if there is one; tell whether there was, and how it stands now."""
        item = RateLimitItemPerMinute(limit, namespace="requests")
        taken = await self._limiter.hit(item, name)
        stats = await self._limiter.get_window_stats(item, name)
        return taken, Stand("requests", limit, stats.remaining, stats.reset_time)


@dataclass(slots=True)
class Reservation:
    """Tokens that were taken before it was known how many it would be."""

    name: str
    limit: int
    tokens: int
    reset: float


class TokenRate:
    """Tokens a minute, which begins with the first request: reserved first, settled at the end."""

    def __init__(self, store: Storage) -> None:
        self._store = store
        self._limiter = FixedWindowRateLimiter(store)

    async def reserve(self, name: str, limit: int, tokens: int) -> tuple[Reservation | None, Stand]:
        """Take `tokens`, if there are so many; tell whether there were, and how it stands now."""
        item = _tokens(limit)
        taken = await self._limiter.hit(item, name, cost=tokens)
        if not taken:
            await self._add(name, limit, -tokens)
        reset, remaining = await self._limiter.get_window_stats(item, name)
        stand = Stand("tokens", limit, remaining, reset)
        return Reservation(name, limit, tokens, reset) if taken else None, stand

    async def settle(self, reservation: Reservation, used: int) -> None:
        """Give back what was not used, or take what was used beyond what had been reserved.

        What is given back after its minute is over is nobody's any more; what is still owed is
        taken from the minute that runs then.
        """
        owed = used - reservation.tokens
        if owed > 0 or (owed < 0 and await self._still_runs(reservation)):
            await self._add(reservation.name, reservation.limit, owed)

    async def _still_runs(self, reservation: Reservation) -> bool:
        key = _tokens(reservation.limit).key_for(reservation.name)
        end = await self._store.get_expiry(key)
        return time.time() < reservation.reset and (
            abs(end - reservation.reset) <= _SAME_WINDOW_SECONDS
        )

    async def _add(self, name: str, limit: int, tokens: int) -> None:
        await self._store.incr(_tokens(limit).key_for(name), _MINUTE, amount=tokens)


def _tokens(limit: int) -> RateLimitItemPerMinute:
    return RateLimitItemPerMinute(limit, namespace="tokens")


def duration(seconds: float) -> str:
    """Return a duration as OpenAI writes it: `120ms`, `1s`, `6m0s`."""
    if seconds < 1:
        return f"{max(math.ceil(seconds * 1000), 0)}ms"
    whole = math.ceil(seconds)
    if whole < 60:
        return f"{whole}s"
    return f"{whole // 60}m{whole % 60}s"
