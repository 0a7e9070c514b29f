"""Runs in, one document of results out. Pure: figures.py has the arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bench.figures import KEPT_UP, Spread, ratio, sustained

BASE = "direct"
FLOOR = "nginx"
FIELD = "tutorial"
"""What others build: the ratio to it comes first."""

Run = Mapping[str, Any]


def of_point(rounds: Mapping[str, Sequence[Run]]) -> dict[str, dict[str, Any]]:
    """Return what each chain's rounds at one point come to; the first run of each is of round one.

    What is added to the engine alone is taken round by round, for a machine is not the same at two
    moments.
    """
    base = rounds.get(BASE, ())
    return {name: _of_chain(runs, base) for name, runs in rounds.items() if runs}


def _of_chain(runs: Sequence[Run], base: Sequence[Run]) -> dict[str, Any]:
    # Where the measuring programs ran late, what is said of time is about them.
    good = [number for number, run in enumerate(runs) if not run["limits"]]
    timed = good or list(range(len(runs)))
    hops = list(runs[0]["token_us"])
    quantiles = ("p50", "p99", "max")
    # And so where they did beside the engine alone, of what is added to it.
    paired = [n for n in good if n < len(base) and not base[n]["limits"]]
    limits = [] if good else list(runs[0]["limits"])
    if good and base and not paired:
        limits = [f"{BASE}: {text}" for text in base[0]["limits"]]
        paired = good
    picture = sorted(timed, key=lambda n: _number(runs[n]["gap_seconds"]["p99"]))[len(timed) // 2]
    return {
        "rounds": len(runs),
        "token_us": {
            **{hop: _spread(run["token_us"][hop] for run in runs) for hop in hops},
            "all": _spread(sum(run["token_us"].values()) for run in runs),
        },
        "request_ms": _spread(sum(run["request_ms"].values()) for run in runs),
        "tokens_per_second": _spread(run["tokens_per_second"] for run in runs),
        "first_token_ms": _times(runs, timed, "first_token_seconds", quantiles),
        "added_first_token_ms": _added(
            runs, base, paired or timed, "first_token_seconds", quantiles
        ),
        "gap_ms": _times(runs, timed, "gap_seconds", quantiles),
        "added_gap_ms": _added(runs, base, paired or timed, "gap_seconds", quantiles),
        "gaps": [[share, round(1000 * value, 3)] for share, value in runs[picture]["gaps"]],
        "events_per_read": _spread(run["events_per_read"] for run in runs),
        "cores": {hop: _spread(run["cores"][hop] for run in runs) for hop in hops},
        "machine_busy": _spread(run["machine_busy"] for run in runs),
        "stalls": list(dict.fromkeys(text for run in runs for text in run["stalls"])),
        "errors": list(dict.fromkeys(text for run in runs for text in run["errors"]))[:3],
        "limits": limits,
    }


def _times(
    runs: Sequence[Run], timed: Sequence[int], name: str, quantiles: Sequence[str]
) -> dict[str, Any]:
    return {q: _spread(1000 * _number(runs[n][name][q]) for n in timed) for q in quantiles}


def _added(
    runs: Sequence[Run], base: Sequence[Run], timed: Sequence[int], name: str,
    quantiles: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    pairs = [(runs[n], base[n]) for n in timed if n < len(base)]
    return {
        q: _spread(1000 * (_number(run[name][q]) - _number(alone[name][q])) for run, alone in pairs)
        for q in quantiles
    }


def compare(points: Sequence[Mapping[str, Any]]) -> None:
    """Put each chain's CPU time beside nginx's and the tutorials' chain's, point by point."""
    for point in points:
        cost = {name: found["token_us"]["all"]["median"] for name, found in point["chains"].items()}
        for name, found in point["chains"].items():
            found["cpu_to_tutorial"] = _rounded(ratio(cost[name], cost.get(FIELD)))
            found["cpu_to_nginx"] = _rounded(ratio(cost[name], cost.get(FLOOR)))


def of_chain(name: str, points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what a chain's points come to together: streams held, by pace, and its most tokens."""
    seen = [(point, point["chains"][name]) for point in points if name in point["chains"]]
    held: dict[str, Any] = {}
    for rate in sorted({point["rate"] for point, _ in seen}):
        of_rate = {
            point["streams"]: found["stalls"] for point, found in seen if point["rate"] == rate
        }
        held[f"{rate:g}"] = {
            "streams": sustained(of_rate),
            "stalled_at": min((n for n, said in of_rate.items() if said), default=None),
        }
    most = max(seen, key=lambda pair: pair[1]["tokens_per_second"]["median"], default=None)
    if most is None:
        return {"held": held, "most_tokens_per_second": None, "more_were_offered": False}
    point, found = most
    tokens = found["tokens_per_second"]["median"]
    return {
        "held": held,
        "most_tokens_per_second": tokens,
        # Else it kept up with all it was offered, and how much more it takes nobody knows.
        "more_were_offered": tokens < KEPT_UP * point["streams"] * point["rate"],
    }


def to_skip(point: tuple[int, float], stalled: Sequence[tuple[int, float]]) -> bool:
    """Say whether a chain need not be asked: at two smaller points of this pace it stalled."""
    streams, rate = point
    return sum(n < streams and pace == rate for n, pace in stalled) >= 2


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _spread(values: Any) -> dict[str, float | None]:
    return Spread.of(values).as_json()


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
