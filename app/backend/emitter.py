"""The emitter: a stream whose every byte and time is known, for the stream check to measure."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
import uuid
from pathlib import Path
from typing import Any

from starlette.types import Receive, Scope, Send

from backend.answer import GuardedAnswer
from backend.emission import (
    AWKWARD_TEXTS,
    EMOJI,
    EMOJI_PAUSE_SECONDS,
    EventMaker,
    Plan,
    cut_in_two,
    text_of,
)
from backend.errors import DONE_EVENT, ApiError
from backend.exchange import Exchange
from backend.outlet import Outlet
from backend.settings import Settings

MODEL = "streamcheck"
MOST_EMISSIONS = 64

_RETRY_AFTER_SECONDS = "5"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
BOOT_VARIABLE = "MILLRACE_BOOT_ID"
# A timer of the loop is good to a millisecond: asking it for less would only spin.
_SHORTEST_SLEEP_SECONDS = 0.001


class Emitter:
    """Makes emissions, and keeps so many of them from running at once that it hurts. One a process.

    `boot` tells whoever has it too that both run on one machine, whose monotonic clock they share.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.running = 0
        self.boot = _boot()

    def answer(self, exchange: Exchange, plan: Plan, request: dict[str, Any]) -> Emission:
        """Return the answer to one request; `request` is told back in its first event."""
        exchange.model = MODEL
        exchange.stream = True
        exchange.pace = None
        return Emission(self, exchange, plan, request)


class Emission(GuardedAnswer):
    """Answers with the events of a plan, through the same guard and outlet as the relay's.

    The pace is kept against the plan: whatever made an event late, the next one is due when it
    was. Events that fell due while the client did not read go out at once, one after another, and
    their `due` and `sent` tell. Each is made when it is sent, so memory stays small.
    """

    def __init__(
        self, emitter: Emitter, exchange: Exchange, plan: Plan, request: dict[str, Any]
    ) -> None:
        super().__init__(settings=emitter.settings, exchange=exchange, as_events=True)
        self._emitter = emitter
        self._plan = plan
        self._request = request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request, or refuse it with 429 when too many run already."""
        if self._emitter.running >= MOST_EMISSIONS:
            await _too_many().response()(scope, receive, send)
            return
        self._emitter.running += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._emitter.running -= 1

    def _may_beat(self, outlet: Outlet) -> bool:
        return self._plan.heartbeats and super()._may_beat(outlet)

    async def _pump(self, outlet: Outlet) -> None:
        started_unix, started = time.time(), time.monotonic()
        plan = self._plan
        events = EventMaker(f"emit-{uuid.uuid4().hex}", int(started_unix))
        await outlet.start_events(b"text/event-stream; charset=utf-8")
        await outlet.write(b": open\n\n", between_events=True)
        told_once = {
            "request": self._request,
            "started_unix": started_unix,
            "started_monotonic": started,
            "boot": self._emitter.boot,
        }
        for number, due in enumerate(plan.due_times(), 1):
            text = text_of(number, plan.least_bytes)
            await _sleep_until(started + due)
            event = events.event(text, due, time.monotonic() - started, **told_once)
            await outlet.write(event, between_events=True)
            told_once = {}
        await _sleep_until(started + plan.numbered_seconds)
        if plan.awkward:
            await _emit_awkward(outlet, events, started)
        await outlet.write(events.end(), between_events=True)
        await outlet.write(DONE_EVENT, between_events=True)
        await outlet.finish()


async def _emit_awkward(outlet: Outlet, events: EventMaker, started: float) -> None:
    for text in AWKWARD_TEXTS:
        sent = time.monotonic() - started
        event = events.event(text, sent, sent)
        if text == EMOJI:
            half, event = cut_in_two(event)
            await outlet.write(half)
            await asyncio.sleep(EMOJI_PAUSE_SECONDS)
        await outlet.write(event, between_events=True)


async def _sleep_until(when: float) -> None:
    """Wait until the monotonic clock shows `when`, and in any case let others run."""
    while True:
        left = when - time.monotonic()
        await asyncio.sleep(max(left, _SHORTEST_SLEEP_SECONDS) if left > 0 else 0)
        if time.monotonic() >= when:
            return


def _boot() -> str | None:
    """Return a digest of the kernel's boot id; the unit hands the id over, for /proc hides it."""
    said = os.environ.get(BOOT_VARIABLE, "")
    try:
        said = said or _BOOT_ID.read_text(encoding="ascii")
    except OSError:
        return None
    return hashlib.sha256(said.replace("-", "").strip().encode()).hexdigest()[:16]


def _too_many() -> ApiError:
    return ApiError(
        429,
        f"{MOST_EMISSIONS} stream checks run already. Try again in a few seconds.",
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        headers={"retry-after": _RETRY_AFTER_SECONDS},
    )
