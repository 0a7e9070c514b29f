"""Answers made by hand, for the stream check's tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from streamcheck.emission import Plan
from streamcheck.model import Arrival, Numbered, Observation, Way

PLAN = Plan("run", events=100, paces_ms=(5, 15), lead_ms=200)


def answered(times: list[float], **more: Any) -> Observation:
    """A model's answer with an event at each time, seconds since the request."""
    seen = Observation(Way("generation"), 200, "1.1", {"content-type": "text/event-stream"})
    seen.arrivals = [Arrival(at, 220, 220, 1) for at in times]
    seen.events, seen.ended, seen.finish_seen = len(times), "terminal", True
    seen.first_token_seconds, seen.end_seconds = times[0], times[-1]
    seen.connect_seconds = 0.0002
    return dataclasses.replace(seen, **more)


def steady(pace: float = 0.012, count: int = 64, start: float = 0.1) -> Observation:
    """A model's answer as a steady engine gives it."""
    return answered([start + n * pace for n in range(count)])


def emitted(arrives: Callable[[float], float], **more: Any) -> Observation:
    """An emission of PLAN whose event sent at s arrives at arrives(s)."""
    due, times = PLAN.lead_ms / 1000, []
    for n in range(PLAN.events):
        due += PLAN.paces_ms[n * 2 // PLAN.events] / 1000
        times.append(due)
    seen = Observation(Way("emitter"), 200, "1.1", {"content-type": "text/event-stream"})
    seen.numbered = [Numbered(n + 1, s, s, arrives(s)) for n, s in enumerate(times)]
    seen.arrivals = [Arrival(0.001, 8, 8, 0)]
    seen.arrivals += [Arrival(event.at, 300, 300, 1) for event in seen.numbered]
    seen.first_byte_seconds = seen.headers_seconds = 0.001
    seen.first_token_seconds = seen.numbered[0].at
    seen.end_seconds, seen.ended, seen.events, seen.comments = 2.0, "terminal", PLAN.events, 1
    seen.digest_right, seen.start = True, {"request": {"http_version": "1.1"}}
    return dataclasses.replace(seen, **more)
