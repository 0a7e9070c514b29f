"""What times and counts say: quantiles, what stalled, medians with their spread. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

STALL_PACES = 10
"""A gap of more than so many of the engine's paces is a stall: a reader sees it stand still."""
ERROR_SHARE = 0.001
"""From this share of the requests on, a run is none that was sustained."""
KEPT_UP = 0.95
"""Of the tokens that were offered: with fewer, the engine waits for the chain."""
PICTURED = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)
"""The quantiles that are kept of a distribution, for the picture."""
LAG_PACES = 0.5
"""A timer that runs late by more than this share of a pace (p99) makes gaps of its own."""
LEAST_LAG_SECONDS = 0.006
"""Of lateness nothing is made below this: timers here have a resolution of 1 ms, or 2."""


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the least value that at least `share` of the values do not exceed; NaN of none.

    `ordered` is in ascending order. The nearest rank: always a value that was seen.
    """
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def quantiles(values: Iterable[float]) -> dict[str, float]:
    """Return p50, p99 and max of the values, by name; NaN where there are none."""
    ordered = sorted(values)
    named = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: quantile(ordered, share) for name, share in named.items()}


def distribution(values: Iterable[float]) -> list[list[float]]:
    """Return pairs of share and quantile, as many as a picture needs."""
    ordered = sorted(values)
    return [[share, quantile(ordered, share)] for share in PICTURED] if ordered else []


@dataclass(frozen=True)
class Spread:
    """A figure of several rounds: its median, and what the least and the greatest were."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Return the spread of the values that are numbers; NaN where none is."""
        known = [value for value in values if not math.isnan(value)]
        if not known:
            return cls(math.nan, math.nan, math.nan)
        return cls(statistics.median(known), min(known), max(known))

    def as_json(self) -> dict[str, float | None]:
        """Return it as it stands in the results: JSON knows no NaN."""
        values = {"median": self.median, "least": self.least, "most": self.most}
        return {name: None if math.isnan(v) else round(v, 6) for name, v in values.items()}


def stalls(run: Mapping[str, Any], rate: float, offered: float = 0.0) -> list[str]:
    """Say what keeps a run from being sustained; nothing where every stream was whole and on time.

    `run` is what load.py found; `rate` is in tokens a second and stream, `offered` those of all
    streams together, 0 where nobody knows.
    """
    found = []
    requests = max(1, run["requests"])
    if run["failed"] / requests >= ERROR_SHARE:
        found.append(f"{run['failed']} of {run['requests']} requests failed")
    if run["missing"]:
        found.append(f"{run['missing']} tokens missing")
    if run["disordered"]:
        found.append(f"{run['disordered']} tokens twice or out of order")
    if run["late"]:
        found.append(f"{run['late']} streams not over in time")
    came = run["tokens_per_second"]
    if came < KEPT_UP * offered:
        found.append(f"{came:,.0f} of {offered:,.0f} tokens/s came")
    longest = run["longest_gap_seconds"]
    if longest > STALL_PACES / rate:
        found.append(f"a gap of {longest:.2f} s")
    return found


def sustained(points: Mapping[int, Sequence[str]]) -> int:
    """Return the most streams up to which no point of the grid stalled; 0 where the first did."""
    most = 0
    for streams in sorted(points):
        if points[streams]:
            break
        most = streams
    return most


def limits(lags: Mapping[str, float], rate: float) -> list[str]:
    """Say which of the measuring programs ran late, by their own timers' p99 in seconds.

    What such a run says of gaps and first tokens is no longer about the chain.
    """
    bound = max(LEAST_LAG_SECONDS, LAG_PACES / rate)
    return [
        f"the {name}'s timer was {lag * 1000:.0f} ms late"
        for name, lag in lags.items()
        if lag > bound
    ]


def ratio(value: float | None, base: float | None) -> float | None:
    """Return how many times `base` the value is; None where either is not known."""
    if value is None or not base or math.isnan(value) or math.isnan(base):
        return None
    return value / base
