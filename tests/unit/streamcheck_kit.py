"""Answers made by hand, for the stream check's tests."""

from __future__ import annotations

import dataclasses
from typing import Any

from streamcheck.model import Arrival, Observation, Way


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
