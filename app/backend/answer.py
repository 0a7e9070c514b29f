"""An answer that takes its time: one task makes it while another watches over it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from backend.errors import DONE_EVENT, ApiError, server_error
from backend.exchange import Exchange
from backend.outlet import Outlet
from backend.settings import Settings
from backend.upstream import unavailable

log = logging.getLogger(__name__)

# At the end of the drain time: how long a client may take to accept the last event.
_LAST_WORDS_SECONDS = 2.0
# A cancelled task ends at once; this only keeps a defect from hanging the request.
_STOP_SECONDS = 5.0
# Makes one look enough: a timer may fire a moment early.
SLACK_SECONDS = 0.01


class GuardedAnswer(Response):
    """An answer made by one task, the *pump*, and watched over by the request's own, the *guard*.

    The pump writes to the client and does nothing else: it is what every token costs. The guard
    listens for the client to leave and sends heartbeats, at the cost of one timer per heartbeat
    interval and not per token. Whatever happens, the guard stops the pump.

    How an answer ends that is not complete:

    - Nothing was sent yet: a real status code.
    - It is an event stream: an error event, then `data: [DONE]`. When part of an event is out, it
      is closed with a blank line first.
    - It is something else: the connection is cut, so that the length is wrong.
    - The client left: there is nobody to tell.
    - The drain time is over: as any other failure, with a message that says so.
    """

    def __init__(self, *, settings: Settings, exchange: Exchange, as_events: bool) -> None:
        super().__init__()
        self._settings = settings
        self._exchange = exchange
        # Whether the answer is an event stream, as far as is known.
        self._as_events = as_events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request; raises nothing but the cancellation of a second shutdown."""
        outlet = Outlet(send, self._exchange)
        pump = asyncio.create_task(self._pump(outlet))
        leaving = asyncio.create_task(_wait_until_client_left(receive))
        last_words: float | None = None
        failure: ApiError | None
        try:
            failure = await self._guard(outlet, pump, leaving)
        except asyncio.CancelledError:
            # uvicorn cancels what is still open at the end of the drain time. Not raised again:
            # the client must be told, and the process waits for us (see application.py).
            failure = unavailable(
                "The server is restarting. Please send the request again.", ended="server_stopping"
            )
            last_words = _LAST_WORDS_SECONDS
        finally:
            interrupted = outlet.busy
            await _stop(pump, leaving)
        if failure is None:
            return
        if self._is_complete and not interrupted:
            await outlet.finish()
        else:
            self._exchange.ended = failure.ended
            self._exchange.fault = failure.fault
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(last_words):
                    await self._end_badly(outlet, failure, scope, receive, send)

    async def _pump(self, outlet: Outlet) -> None:
        """Write the answer to its end; raise ApiError when it fails."""
        raise NotImplementedError

    @property
    def _is_complete(self) -> bool:
        """Whether all of the answer was written, so that a failure after it does not matter."""
        return False

    async def _guard(
        self, outlet: Outlet, pump: asyncio.Task[None], leaving: asyncio.Task[None]
    ) -> ApiError | None:
        """Watch over the pump until it is done or must stop; return what went wrong."""
        while True:
            done, _ = await asyncio.wait(
                {pump, leaving},
                timeout=self._seconds_to_next_look(outlet),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if pump in done:
                return _outcome(pump)
            if leaving in done:
                self._exchange.ended = "client_left"
                return None
            # While a write waits for a slow client the silence is the client's.
            if outlet.busy:
                continue
            failure = await self._look(outlet)
            if failure is not None:
                return failure

    async def _look(self, outlet: Outlet) -> ApiError | None:
        """Send a heartbeat when one is due; return why the answer must stop, if it must."""
        if self._may_beat(outlet) and time.monotonic() >= self._next_beat(outlet):
            await outlet.beat()
        return None

    def _seconds_to_next_look(self, outlet: Outlet) -> float:
        if outlet.busy or not self._may_beat(outlet):
            return self._settings.heartbeat_seconds
        return max(self._next_beat(outlet) - time.monotonic(), 0) + SLACK_SECONDS

    def _may_beat(self, outlet: Outlet) -> bool:
        """Only a stream has comments; before it has begun, a heartbeat begins it."""
        return self._as_events and (outlet.between_events or not outlet.started)

    def _next_beat(self, outlet: Outlet) -> float:
        return outlet.last_write + self._settings.heartbeat_seconds

    async def _end_badly(
        self, outlet: Outlet, failure: ApiError, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if not outlet.started:
            await failure.response()(scope, receive, send)
        elif self._as_events and not outlet.finished:
            close = b"" if outlet.between_events else b"\n\n"
            await outlet.finish(close + self._last_events(failure))
        # Else we return without an end, and uvicorn cuts the connection.

    def _last_events(self, failure: ApiError) -> bytes:
        """Return how a stream ends that `failure` cuts short."""
        return failure.event() + DONE_EVENT


async def _wait_until_client_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _stop(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks, timeout=_STOP_SECONDS)
    for task in tasks:
        if task.done() and not task.cancelled():
            task.exception()  # Taken, or asyncio complains that nobody did.


def _outcome(pump: asyncio.Task[None]) -> ApiError | None:
    error = pump.exception()
    if error is None or isinstance(error, ApiError):
        return error
    log.error("the answer failed", exc_info=error)
    return server_error("The server failed to answer this request.")
