"""What to draw of a report: when its events came, hop by hop, and the axis to draw them on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from streamcheck.values import DASH, Report, number

PLAIN = ("generation", "POST http/1.1 identity")
ENDED_BADLY = {"cut", "error_event", "timeout", "too_long"}


def shown(hop: Report, alike: tuple[Any, Any] = PLAIN) -> Report:
    """Return the probe that tells most: the one a broken hop was found out by, else one `alike`."""
    findings = hop.get("findings") or [] if hop.get("verdict") == "broken" else []
    finding: Report = min(findings, key=lambda f: f.get("kind") != hop.get("kind"), default={})
    ways, source = finding.get("ways") or [], finding.get("source") or "generation"

    def rank(probe: Report) -> tuple[bool, ...]:
        named, own = probe.get("way") in ways, (probe.get("source"), probe.get("way"))
        return named and own[0] == source, named, own == alike, own == PLAIN

    return max(hop.get("probes") or [], key=rank, default={})


class Timeline(NamedTuple):
    """What to draw of one hop or one request."""

    hop: Report
    probe: Report
    bursts: list[tuple[float, int]]  # when events came, and how many together
    seconds: float
    said: str


def reads(probe: Report) -> list[tuple[float, int]]:
    """Return when each read came, and how many events it brought."""
    arrivals = [read for read in probe.get("arrivals") or [] if number(read[0]) is not None]
    return [(at, events or 0) for at, _, events in arrivals]


def together(report: Report) -> dict[Any, float]:
    """Return for each source within which time reads count as one arrival.

    Much less than its pace, whatever the speed of the model; taken at its innermost hop, since
    those behind it may have gathered what it gave.
    """
    apart: dict[Any, float] = {}
    for hop in report.get("hops") or []:
        found: dict[Any, float] = {}
        for probe in hop.get("probes") or []:
            source, came = probe.get("source"), reads(probe)
            spread = came[-1][0] - came[0][0] if came else 0.0
            pace = spread / max(1, sum(events for _, events in came))
            found[source] = max(found.get(source, 0.0), min(max(0.0001, pace / 4), 0.002))
        apart = found | apart
    return apart


def timeline(hop: Report, probe: Report, apart: Mapping[Any, float]) -> Timeline:
    """Return what to draw of one request at a hop; `apart` is what `together` said."""
    bursts: list[tuple[float, int]] = []
    last = -math.inf
    for at, events in reads(probe):
        if at - last < apart.get(probe.get("source"), 0.0):
            bursts[-1] = (bursts[-1][0], bursts[-1][1] + events)
        else:
            bursts.append((at, events))
        last = at
    seconds = max(last, number(probe.get("end_seconds")) or 0.0)
    return Timeline(hop, probe, bursts, seconds, _said(hop, probe, bursts, seconds))


def hop_timelines(report: Report) -> list[Timeline]:
    """Return one timeline per hop, of requests that are alike where possible: hops compare."""
    hops, apart = report.get("hops") or [], together(report)
    lead = shown(next((hop for hop in hops if hop.get("name") == report.get("culprit")), {}))
    alike = (lead.get("source"), lead.get("way")) if lead else PLAIN
    return [timeline(hop, shown(hop, alike), apart) for hop in hops]


def asked_with(probe: Report) -> str:
    """Return in which way a request was made."""
    return f"{probe.get('way') or ''}{', emitter' if probe.get('source') == 'emitter' else ''}"


def _said(hop: Report, probe: Report, bursts: Sequence[tuple[float, int]], seconds: float) -> str:
    """Return in two or three words how a stream went."""
    if not bursts:
        return f"status {probe['status']}" if probe.get("status") else "no stream"
    if hop.get("verdict") in ("broken", "unsure"):
        most = max(events for _, events in bursts)
        first = next((at for at, events in bursts if events), bursts[0][0])
        if hop.get("kind") == "cached":
            return "from a cache"
        if hop.get("kind") in ("whole_response_held", "first_byte_held"):
            return f"held {span(first)}"
        if probe.get("ended") in ENDED_BADLY:
            return f"{probe['ended'].replace('_', ' ')} at {span(seconds)}"
        if most >= 4:
            return f"{most} at once"
    pace = number(probe.get("gap_p50_ms"))
    return DASH if pace is None else f"every {pace:.{0 if pace >= 10 else 1}f} ms"


def span(seconds: float) -> str:
    """Return a time for a label."""
    return f"{seconds:.{2 if seconds < 1 else 1 if seconds < 10 else 0}f} s"


def marks(scale: float, most: int) -> list[tuple[float, str]]:
    """Return round times for an axis from zero to `scale` seconds, `most` steps at the most."""
    power = 10.0 ** math.floor(math.log10(scale / most))
    step = next((power * n for n in (1, 2, 5) if power * n * most >= scale), power * 10)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(step * n, f"{step * n:.{decimals}f}") for n in range(int(scale / step + 1e-9) + 1)]
