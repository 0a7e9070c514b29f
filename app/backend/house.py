"""How many answers are under way at once, in all: a number of places, and a queue in front."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from backend.errors import ApiError

_RETRY_AFTER_SECONDS = "10"


class House:
    """Gives out `places`, first come, first served.

    Whoever finds none waits `wait_seconds` at most, in a queue of `queue_length` at most; who
    leaves the queue frees the place in it. `counted` goes round each wait, for the metrics.
    """

    def __init__(
        self,
        places: int,
        queue_length: int,
        wait_seconds: float,
        counted: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._counted = counted
        self._free = places
        self._queue_length = queue_length
        self._wait_seconds = wait_seconds
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def free(self) -> int:
        """How many places nobody has."""
        return self._free

    @property
    def waiting(self) -> int:
        """How many wait for one."""
        return len(self._queue)

    def enter_at_once(self) -> bool:
        """Take a place if one is free; return whether there was one."""
        if not self._free:
            return False
        self._free -= 1
        return True

    async def enter(self) -> None:
        """Take a place; raise ApiError 503 when none came free in time, or too many wait."""
        if self.enter_at_once():
            return
        if len(self._queue) >= self._queue_length:
            raise _full("Every place is taken and the queue is full. Try again a little later.")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            with self._counted():
                async with asyncio.timeout(self._wait_seconds):
                    await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                # It came in the very moment that we gave up.
                self.leave()
            else:
                self._queue.remove(turn)
            if isinstance(error, TimeoutError):
                raise _full(
                    f"No place came free within {self._wait_seconds:g} seconds. Try again later."
                ) from None
            raise

    def leave(self) -> None:
        """Give a place back: to who has waited longest, if anybody does."""
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


def _full(message: str) -> ApiError:
    return ApiError(
        503,
        message,
        kind="server_error",
        code="server_busy",
        headers={"retry-after": _RETRY_AFTER_SECONDS},
        ended="refused",
    )
