"""How many answers one key has under way at once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections import Counter
from typing import Protocol

from redis.asyncio import Redis
from redis.exceptions import RedisError

log = logging.getLogger(__name__)

# What a process that died held is free again after this.
_LEASE_SECONDS = 60
_RENEW_SECONDS = 20
_STORE_TIMEOUT_SECONDS = 1.0

NO_SLOT = ""

_TAKE = """
redis.call('zremrangebyscore', KEYS[1], '-inf', ARGV[1])
if redis.call('zcard', KEYS[1]) >= tonumber(ARGV[3]) then return 0 end
redis.call('zadd', KEYS[1], ARGV[2], ARGV[4])
redis.call('expire', KEYS[1], ARGV[5])
return 1
"""


class Slots(Protocol):
    """Where slots are counted."""

    async def take(self, name: str, most: int) -> str:
        """Take one of `most`; return what gives it back, or NO_SLOT when there is none."""

    async def give_back(self, name: str, lease: str) -> None:
        """Give it back; once for each that was taken."""

    async def close(self) -> None:
        """Let go of everything."""


class LocalSlots:
    """Counts in this process, which is all there is."""

    def __init__(self) -> None:
        self.taken: Counter[str] = Counter()

    async def take(self, name: str, most: int) -> str:
        """Take one; in one step, whatever else runs."""
        if self.taken[name] >= most:
            return NO_SLOT
        self.taken[name] += 1
        return name

    async def give_back(self, name: str, lease: str) -> None:
        """Give one back."""
        self.taken[name] -= 1
        if not self.taken[name]:
            del self.taken[name]

    async def close(self) -> None:
        """There is nothing to let go of."""


class SharedSlots:
    """Counts in Redis, for several backends. Leases end by themselves unless they are renewed."""

    def __init__(self, url: str) -> None:
        self._redis = Redis.from_url(
            url.replace("redis+unix", "unix"),
            socket_timeout=_STORE_TIMEOUT_SECONDS,
            socket_connect_timeout=_STORE_TIMEOUT_SECONDS,
        )
        self._take = self._redis.register_script(_TAKE)
        self._held: dict[str, str] = {}
        self._renewal: asyncio.Task[None] | None = None

    async def take(self, name: str, most: int) -> str:
        """Take one, by a script that runs in one step."""
        if self._renewal is None:
            self._renewal = asyncio.create_task(self._renew())
        lease = uuid.uuid4().hex
        now = time.time()
        given: list[float | str] = [now, now + _LEASE_SECONDS, most, lease, _LEASE_SECONDS]
        if not await self._take(keys=[_key(name)], args=given):
            return NO_SLOT
        self._held[lease] = name
        return lease

    async def give_back(self, name: str, lease: str) -> None:
        """Give one back."""
        self._held.pop(lease, None)
        await self._redis.zrem(_key(name), lease)

    async def close(self) -> None:
        """Stop renewing and disconnect."""
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.wait({self._renewal})
        with contextlib.suppress(RedisError, OSError):
            await self._redis.aclose()

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            try:
                for lease, name in list(self._held.items()):
                    end = {lease: time.time() + _LEASE_SECONDS}
                    await self._redis.zadd(_key(name), end, xx=True)
                    await self._redis.expire(_key(name), _LEASE_SECONDS)
            except (RedisError, OSError):
                log.exception("slots could not be renewed")


def _key(name: str) -> str:
    return f"millrace:slots:{name}"
