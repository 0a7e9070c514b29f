"""The report: what was seen, found and judged, as one JSON document (docs/streamcheck.md)."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from streamcheck import features
from streamcheck.judge import verdict
from streamcheck.model import Arrival, Hop, Observation, Target, Way

SCHEMA = 1


def _round(value: float | None, digits: int = 4) -> float | None:
    return None if value is None else round(value, digits)


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 2)


def probe(seen: Observation) -> dict[str, Any]:
    """Return one request's figures. Times in seconds since the request; gaps in milliseconds."""
    gaps = features.gaps(seen)
    reads = [arrival for arrival in seen.arrivals if arrival.events]
    delays = features.delays(seen)
    tokens = seen.tokens
    return {
        "source": seen.way.source,
        "way": str(seen.way),
        "method": seen.way.method,
        "protocol": seen.way.protocol,
        "encoding": seen.way.encoding,
        "status": seen.status,
        "http_version": seen.http_version,
        "headers": seen.headers,
        "connect_seconds": _round(seen.connect_seconds),
        "headers_seconds": _round(seen.headers_seconds),
        "first_byte_seconds": _round(seen.first_byte_seconds),
        "first_token_seconds": _round(seen.first_token_seconds),
        "end_seconds": _round(seen.end_seconds),
        "events": seen.events,
        "tokens": tokens,
        "comments": seen.comments,
        "bytes": sum(arrival.size for arrival in seen.arrivals),
        "wire_bytes": sum(arrival.wire for arrival in seen.arrivals),
        "reads": len(seen.arrivals),
        "gap_p50_ms": _ms(features.quantile(gaps, 0.5)) if gaps else None,
        "gap_p95_ms": _ms(features.quantile(gaps, 0.95)) if gaps else None,
        "gap_max_ms": _ms(max(gaps)) if gaps else None,
        "events_per_read": round(seen.events / len(reads), 2) if reads else None,
        "short_gap_share": _short_gaps(seen),
        "events_per_token": round(seen.events / tokens, 2) if tokens else None,
        "longest_silence_seconds": _round(features.longest_silence(seen)),
        "delay_p50_ms": _ms(features.quantile(delays, 0.5)) if delays else None,
        "delay_max_ms": _ms(max(delays)) if delays else None,
        "ended": seen.ended,
        "error": seen.error,
        "noise_max_ms": _ms(seen.noise_seconds),
        "arrivals": [[round(a.at, 5), a.size, a.events] for a in seen.arrivals],
    }


def _short_gaps(seen: Observation) -> float | None:
    gaps = features.event_gaps(seen)
    return round(sum(gap < features.GLUE_SECONDS for gap in gaps) / len(gaps), 3) if gaps else None


def hop_entry(hop: Hop) -> dict[str, Any]:
    """Return one hop of the report."""
    target = hop.target
    first = hop.findings[0] if hop.findings else None
    said, summary = "streams", ""
    if first:
        said, summary = "broken", first.summary
    elif hop.error:
        said, summary = "unreachable", hop.error
    elif hop.doubts:
        said, summary = "unsure", hop.doubts[0]
    elif not hop.observations:
        said = "not_judged"
    return {
        "name": target.name,
        "title": target.title,
        "address": target.connect if target.connect.startswith("unix:") else target.url,
        "seen_from": target.seen_from,
        "verdict": said,
        "kind": first.kind if first else None,
        "confidence": round(first.confidence, 2) if first else None,
        "summary": summary,
        "findings": [found.to_dict() for found in hop.findings],
        "probes": [probe(seen) for seen in hop.observations],
    }


def report(
    hops: Sequence[dict[str, Any]],
    *,
    started: datetime.datetime,
    took_seconds: float,
    noise: Sequence[dict[str, Any]],
    notes: Sequence[str],
    checks: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Return the whole document."""
    return {
        "schema": SCHEMA,
        **verdict(hops),
        "started": started.isoformat(timespec="seconds"),
        "took_seconds": round(took_seconds, 1),
        "noise": list(noise),
        "hops": list(hops),
        "checks": list(checks),
        "notes": list(notes),
    }


def remembered(entry: dict[str, Any]) -> Hop:
    """Return a hop that was asked elsewhere, with its plainest answer, for the next to be held to.

    Raises KeyError, TypeError or ValueError when `entry` is no hop of a report.
    """
    target = Target(entry["name"], entry["title"], entry["address"], seen_from=entry["seen_from"])
    hop = Hop(target)
    for told in entry["probes"]:
        way = Way(told["source"], told["method"], told["protocol"], told["encoding"])
        seen = Observation(way, told["status"], told["http_version"], told["headers"])
        seen.first_token_seconds = told["first_token_seconds"]
        seen.end_seconds = told["end_seconds"]
        seen.events, seen.ended = told["events"], told["ended"]
        seen.arrivals = [Arrival(at, size, size, events) for at, size, events in told["arrivals"]]
        hop.observations.append(seen)
    return hop


def could_not(error: str, started: datetime.datetime, took_seconds: float) -> dict[str, Any]:
    """Return the document that says why nothing was checked."""
    return {
        "schema": SCHEMA, "verdict": "unreachable", "culprit": None, "kind": None,
        "confidence": 1.0, "summary": error, "remedy": None, "error": error,
        "started": started.isoformat(timespec="seconds"), "took_seconds": round(took_seconds, 1),
        "noise": [], "hops": [], "checks": [], "notes": [],
    }  # fmt: skip
