"""The last report in a few kilobytes, for the status view: verdicts, and when events came."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from streamcheck.timeline import Timeline, hop_timelines
from streamcheck.values import Report, cleaned, number

MOST_READS = 200
"""Points of a timeline; more are not told apart on a screen."""

MOST_CHARACTERS = 1000


def summary(report: Report) -> dict[str, Any]:
    """Return what the backend shows of `report` at /v1/status."""
    report = cleaned(report)
    return {
        "when": report.get("started"),
        "verdict": report.get("verdict"),
        "summary": (report.get("summary") or "")[:MOST_CHARACTERS],
        "hops": [_hop(drawn) for drawn in hop_timelines(report)],
    }


def _hop(drawn: Timeline) -> dict[str, Any]:
    first_token = number(drawn.probe.get("first_token_seconds"))
    return {
        "name": drawn.hop.get("name"),
        "verdict": drawn.hop.get("verdict"),
        "summary": (drawn.hop.get("summary") or "")[:MOST_CHARACTERS],
        "median_gap_ms": number(drawn.probe.get("gap_p50_ms")),
        "first_token_ms": None if first_token is None else round(1000 * first_token, 1),
        "reads": thinned(drawn.bursts),
    }


def thinned(reads: Sequence[tuple[float, int]], most: int = MOST_READS) -> list[tuple[float, int]]:
    """Return at most `most` points: neighbours in time become one, and no event is lost."""
    if len(reads) <= most:
        return list(reads)
    begin, end = reads[0][0], reads[-1][0]
    width = (end - begin) / most
    kept: dict[int, tuple[float, int]] = {}
    for at, events in reads:
        place = min(most - 1, int((at - begin) / width)) if width else 0
        since, before = kept.get(place, (at, 0))
        kept[place] = (since, before + events)
    return list(kept.values())
