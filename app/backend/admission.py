"""Who may send work to the engine now, and how much of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from limits.errors import ConfigurationError, StorageError
from redis.exceptions import RedisError

from backend.errors import ApiError
from backend.house import House
from backend.keys import Key
from backend.metrics import Metrics
from backend.rates import Header, RequestRate, Reservation, TokenRate, open_store
from backend.settings import ConfigError, Settings
from backend.slots import NO_SLOT, LocalSlots, SharedSlots, Slots
from backend.usage import BYTES_PER_TOKEN, Usage

log = logging.getLogger(__name__)

_RETRY_AFTER_SECONDS = "1"
"""For who has all its streams under way: nobody knows when one ends."""
_STORE_REST_SECONDS = 5.0
"""A store that fails is left alone for so long, or each request would wait for it to fail."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request would take. `most_tokens` bounds its answer, where the client said so."""

    prompt_bytes: int
    most_tokens: int | None
    stream: bool


class Permit:
    """One request that was let in. Whoever has it must close it."""

    def __init__(self, admission: Admission, key: Key) -> None:
        # x-ratelimit-* of the answer.
        self.headers: list[Header] = []
        self._admission = admission
        self._key = key
        self._lease: str | None = None
        self._reservation: Reservation | None = None
        self._placed = False
        self._closed = False

    def place_at_once(self) -> bool:
        """Take a place in the house if one is free now; return whether there was one."""
        self._placed = self._placed or self._admission.house.enter_at_once()
        return self._placed

    async def place(self) -> None:
        """Wait for a place in the house; raise ApiError 503 when it takes too long."""
        if self._placed:
            return
        await self._admission.house.enter()
        # Nothing awaits in between: a place is either here or was given back.
        if self._closed:
            self._admission.house.leave()
        else:
            self._placed = True

    async def close(self, usage: Usage | None, *, is_known: bool = True) -> None:
        """Settle what was used and give back what was held. May be called twice; never raises.

        Where it is not known what was used, what had been reserved counts.
        """
        if self._closed:
            return
        self._closed = True
        if self._placed:
            self._admission.house.leave()
        if not is_known:
            self._reservation = None
        # Not in our own task: who is cancelled now would leave with what belongs to others.
        giving_back = asyncio.create_task(self._give_back(usage))
        self._admission.closing.add(giving_back)
        giving_back.add_done_callback(self._admission.closing.discard)
        await asyncio.shield(giving_back)

    async def _give_back(self, usage: Usage | None) -> None:
        admission, lease, reservation = self._admission, self._lease, self._reservation
        if lease is not None:
            await admission.from_store(lambda: admission.slots.give_back(self._key.name, lease))
        if reservation is not None:
            used = usage.prompt_tokens + usage.completion_tokens if usage else 0
            await admission.from_store(lambda: admission.tokens.settle(reservation, used))

    async def take(self, ask: Ask, default_answer_tokens: int) -> None:
        """Take the key's share; raise ApiError 429 when there is none left. For Admission alone."""
        limits = self._key.limits
        if limits.concurrent_streams is not None:
            await self._take_slot(limits.concurrent_streams)
        # Tokens can be given back when there is no request left, and not the other way round.
        if limits.tokens_per_minute is not None:
            await self._reserve(ask, limits.tokens_per_minute, default_answer_tokens)
        if limits.requests_per_minute is not None:
            await self._take_request(limits.requests_per_minute)

    async def _take_slot(self, most: int) -> None:
        admission = self._admission
        lease = await admission.from_store(lambda: admission.slots.take(self._key.name, most))
        if lease == NO_SLOT:
            raise ApiError(
                429,
                f"This key has {most} answers under way, which is all it may have at once.",
                kind="streams",
                code="too_many_streams",
                headers={"retry-after": _RETRY_AFTER_SECONDS},
            )
        self._lease = lease

    async def _take_request(self, limit: int) -> None:
        admission = self._admission
        found = await admission.from_store(lambda: admission.requests.take(self._key.name, limit))
        if found is None:
            return
        taken, stand = found
        self.headers = [*stand.headers(), *self.headers]
        if not taken:
            raise stand.refusal(
                f"Rate limit reached on requests per minute: limit {limit}.", self.headers
            )

    async def _reserve(self, ask: Ask, limit: int, default_answer_tokens: int) -> None:
        prompt = ask.prompt_bytes // BYTES_PER_TOKEN + 1
        wanted = prompt + (ask.most_tokens or 0)
        if wanted > limit:
            raise ApiError(
                429,
                f"Request too large for {self._key.name}: it may take {wanted} tokens and the key "
                f"has {limit} a minute. Shorten it, or ask for fewer tokens.",
                kind="tokens",
                code="rate_limit_exceeded",
                # No waiting helps; OpenAI's clients know this one.
                headers={"retry-after": "60", "x-should-retry": "false"},
            )
        if ask.most_tokens is None:
            wanted = min(prompt + default_answer_tokens, limit)
        admission = self._admission
        found = await admission.from_store(
            lambda: admission.tokens.reserve(self._key.name, limit, wanted)
        )
        if found is None:
            return
        reservation, stand = found
        self._reservation = reservation
        self.headers = stand.headers()
        if reservation is None:
            raise stand.refusal(
                f"Rate limit reached on tokens per minute: limit {limit}, left {stand.remaining}, "
                f"requested {wanted}.",
                self.headers,
            )


class Admission:
    """Gives out permits.

    When the store fails, its limits are not kept and the log says so: people are served.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Raise ConfigError for a store that is not known."""
        try:
            store = open_store(settings.store_url)
        except (ConfigurationError, ValueError) as error:
            raise ConfigError(f"store_url: {error}") from error
        self.requests = RequestRate(store)
        self.tokens = TokenRate(store)
        self.slots: Slots = SharedSlots(settings.store_url) if settings.has_redis else LocalSlots()
        self.house = House(
            settings.house_streams,
            settings.house_queue_length,
            settings.house_wait_seconds,
            counted=lambda: metrics.waiting("place"),
        )
        self.closing: set[asyncio.Task[None]] = set()
        self._default_answer_tokens = settings.reserved_answer_tokens
        self._store_fails = False
        self._store_rests_until = 0.0

    async def admit(self, key: Key, ask: Ask) -> Permit:
        """Let a request in; raise ApiError 429 when the key has had its share."""
        permit = Permit(self, key)
        try:
            await permit.take(ask, self._default_answer_tokens)
        except BaseException:
            await permit.close(None)
            raise
        return permit

    async def close(self) -> None:
        """Wait for what is being given back, and let the store go."""
        if self.closing:
            await asyncio.wait(self.closing, timeout=2)
        await self.slots.close()

    async def from_store(self, ask: Callable[[], Awaitable[T]]) -> T | None:
        """Return what the store says; None while it fails, which the log tells once."""
        if time.monotonic() < self._store_rests_until:
            return None
        try:
            told = await ask()
        except (StorageError, RedisError, OSError) as error:
            if not self._store_fails:
                log.error("the store of limits fails; they are not kept meanwhile", exc_info=error)
            self._store_fails = True
            self._store_rests_until = time.monotonic() + _STORE_REST_SECONDS
            return None
        if self._store_fails:
            log.info("the store of limits works again")
            self._store_fails = False
        return told
