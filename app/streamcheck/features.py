"""What the arrivals of one answer look like: bursts, paces, delays. Pure functions; seconds."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from streamcheck.model import Arrival, Observation

GLUE_SECONDS = 0.002
"""Reads closer together than this came as one: no engine makes tokens so fast for one reader, and
no reader sees the difference."""
SEEN_SECONDS = 0.025
"""Portions closer together than this look like a stream to anybody."""


@dataclass(frozen=True)
class Burst:
    """Reads that came together: when the first and the last one came, and what they brought."""

    at: float
    end: float
    events: int
    size: int
    # It ends in the middle of an event: cut by a count of bytes, not by a writer.
    partial: bool


def bursts(arrivals: Sequence[Arrival], glue: float = GLUE_SECONDS) -> list[Burst]:
    """Gather reads less than `glue` seconds apart."""
    groups: list[list[Arrival]] = []
    for arrival in arrivals:
        if groups and arrival.at - groups[-1][-1].at < glue:
            groups[-1].append(arrival)
        else:
            groups.append([arrival])
    return [
        Burst(
            group[0].at,
            group[-1].at,
            sum(a.events for a in group),
            sum(a.size for a in group),
            group[-1].partial,
        )
        for group in groups
    ]


def content_bursts(seen: Observation, glue: float = GLUE_SECONDS) -> list[Burst]:
    """Return the bursts from the first that brought content to the last."""
    found = bursts(seen.arrivals, glue)
    with_events = [i for i, burst in enumerate(found) if burst.events]
    return found[with_events[0] : with_events[-1] + 1] if with_events else []


def came_at_once(seen: Observation, seconds: float) -> bool:
    """Say whether all came in one portion, or in one and a rest, written in less than `seconds`.

    Who held an answer takes its time to write it, so what a reader sees together is one portion.
    """
    found = [burst for burst in content_bursts(seen, SEEN_SECONDS) if burst.events]
    return len(found) <= 2 and sum(burst.end - burst.at for burst in found) <= seconds


def events_per_burst(seen: Observation) -> float:
    """Events with content that came together, on average; 1.0 is a stream, 0.0 means none."""
    counts = [burst.events for burst in content_bursts(seen) if burst.events]
    return sum(counts) / len(counts) if counts else 0.0


def gaps(seen: Observation) -> list[float]:
    """Return the seconds between reads that brought content, in their order."""
    times = [arrival.at for arrival in seen.arrivals if arrival.events]
    return [after - before for before, after in itertools.pairwise(times)]


def event_gaps(seen: Observation) -> list[float]:
    """Return the seconds between events with content; 0 for those of the same read."""
    times = [a.at for a in seen.arrivals for _ in range(a.events)]
    return [after - before for before, after in itertools.pairwise(times)]


def lasting(seen: Observation) -> float:
    """Return the seconds from the first read that brought content to the last; 0.0 of fewer."""
    times = [arrival.at for arrival in seen.arrivals if arrival.events]
    return times[-1] - times[0] if times else 0.0


def quiet_at_the_end(seen: Observation) -> float:
    """Return the seconds from the last byte to the end."""
    last = seen.arrivals[-1].at if seen.arrivals else 0.0
    return (seen.end_seconds or last) - last


def longest_silence(seen: Observation) -> float | None:
    """Return the longest time without a byte, from the request to the end."""
    if seen.end_seconds is None:
        return None
    times = [0.0, *(arrival.at for arrival in seen.arrivals), seen.end_seconds]
    return max((b - a for a, b in itertools.pairwise(times)), default=0.0)


def delays(seen: Observation) -> list[float]:
    """Return how much longer each event of the emitter took than the quickest one.

    Clocks need not agree: only differences of each count.
    """
    raw = [event.at - event.sent for event in seen.numbered]
    quickest = min(raw, default=0.0)
    return [delay - quickest for delay in raw]


def sent_bursts(seen: Observation) -> int:
    """Return in how many bursts the emitter itself wrote its events, by its own clock."""
    times = [event.sent for event in seen.numbered]
    return 1 + sum(b - a >= GLUE_SECONDS for a, b in itertools.pairwise(times)) if times else 0


def sent_lasting(seen: Observation) -> float:
    """Return the seconds in which the emitter wrote its events, by its own clock."""
    times = [event.sent for event in seen.numbered]
    return max(times) - min(times) if times else 0.0


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` of them lie; 0.0 of none."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


def spread(values: Sequence[float]) -> float:
    """Return the standard deviation over the mean; infinite of fewer than two values."""
    if len(values) < 2 or not statistics.fmean(values):
        return float("inf")
    return statistics.pstdev(values) / statistics.fmean(values)
