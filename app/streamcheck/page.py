"""The report of a stream check as one page: nothing to load, nothing to run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from streamcheck.timeline import (
    ENDED_BADLY,
    Timeline,
    asked_with,
    hop_timelines,
    marks,
    timeline,
    together,
)
from streamcheck.values import Report, cleaned, figure, number

# The drawing's own units: ticks that fall into the same one are drawn as one.
WIDTH, HEIGHT = 1000, 100
BATCH = 4  # events that came together from here on are drawn as a batch
FULL = 64  # events that came together from here on are drawn at full height
SIGNS = {"streams": "✓", "broken": "✗", "unreachable": "✗", "passed": "✓", "failed": "✗"}
SEEN_FROM = {"here": "seen from this machine", "server": "seen on the server"}
FIGURES = (
    ("connected after", "connect_seconds", 3, " s"),
    ("headers after", "headers_seconds", 3, " s"),
    ("first byte after", "first_byte_seconds", 3, " s"),
    ("first token after", "first_token_seconds", 3, " s"),
    ("ended after", "end_seconds", 3, " s"),
    ("gap, p50", "gap_p50_ms", 1, " ms"),
    ("gap, p95", "gap_p95_ms", 1, " ms"),
    ("gap, longest", "gap_max_ms", 1, " ms"),
    ("share of gaps under 2 ms", "short_gap_share", 2, ""),
    ("longest silence", "longest_silence_seconds", 3, " s"),
    ("delay, p50", "delay_p50_ms", 1, " ms"),
    ("delay, longest", "delay_max_ms", 1, " ms"),
    ("events", "events", 0, ""),
    ("tokens", "tokens", 0, ""),
    ("comments", "comments", 0, ""),
    ("reads", "reads", 0, ""),
    ("events a read", "events_per_read", 2, ""),
    ("events a token", "events_per_token", 2, ""),
    ("bytes", "bytes", 0, ""),
    ("bytes on the wire", "wire_bytes", 0, ""),
)


def height(events: int) -> float:
    """Return how high to draw so many events: by their logarithm, 1 and 1000 must both be seen."""
    if events < 1:
        return 0.14 * HEIGHT
    return HEIGHT * min(1.0, 0.4 + 0.6 * math.log(events) / math.log(FULL))


def plot(line: Timeline, scale: float) -> dict[str, Any]:
    """Return the paths of one timeline, `scale` seconds wide, and what they show in words."""
    columns: dict[int, int] = {}
    for time, events in line.bursts:
        at = min(WIDTH, max(0, round(time / scale * WIDTH)))
        columns[at] = max(columns.get(at, 0), events)
    paths = {"comment": "", "single": "", "batch": ""}
    for at, events in columns.items():
        kind = "batch" if events >= BATCH else "single" if events else "comment"
        paths[kind] += f"M{at} {HEIGHT}v-{height(events):.0f}"
    most = max((events for _, events in line.bursts), default=0)
    count = sum(events for _, events in line.bursts)
    bad = line.probe.get("ended") in ENDED_BADLY
    return {
        "paths": paths,
        "grid": "".join(f"M{time / scale * WIDTH:.0f} 0v{HEIGHT}" for time, _ in marks(scale, 6)),
        "axis": [(f"{time / scale:.2%}", text) for time, text in marks(scale, 6)],
        "broken_off": f"{min(1.0, line.seconds / scale):.2%}" if bad else "",
        "drawn": bool(line.bursts),
        "said": line.said,
        "words": f"{count} events in {len(line.bursts)} arrivals over {line.seconds:.2f} seconds, "
        f"at most {most} at once",
    }


def seconds(lines: list[Timeline]) -> float:
    """Return the longest of them, as a scale."""
    return max((line.seconds for line in lines), default=0.0) or 1.0


def details(hop: Report, apart: Mapping[Any, float]) -> list[dict[str, Any]]:
    """Return what there is to see of each of a hop's requests, each on its own scale."""
    lines = [timeline(hop, probe, apart) for probe in hop.get("probes") or []]
    return [
        {
            "probe": line.probe,
            "asked_with": asked_with(line.probe),
            "plot": plot(line, seconds([line])),
            "figures": [
                (label, figure(line.probe[name], decimals) + unit)
                for label, name, decimals, unit in FIGURES
                if number(line.probe.get(name)) is not None
            ],
        }
        for line in lines
    ]


def render_page(report: Report) -> str:
    """Return the report as one HTML page."""
    report = cleaned(report)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    lines, apart = hop_timelines(report), together(report)
    scale = seconds(lines)
    sure = number(report.get("confidence")) if report.get("verdict") != "unreachable" else None
    return environment.get_template("page.html.j2").render(
        report=report,
        sure="" if sure is None else f"{sure:.0%} sure",
        rows=[
            {
                "hop": line.hop,
                "asked_with": asked_with(line.probe),
                "plot": plot(line, scale),
                "requests": details(line.hop, apart),
            }
            for line in lines
        ],
        axis_plot=plot(Timeline({}, {}, [], 0.0, ""), scale),
        sign=lambda verdict: SIGNS.get(verdict, "?" if verdict == "unsure" else "·"),
        words=lambda name: str(name or "").replace("_", " "),
        seen_from=lambda place: SEEN_FROM.get(place, ""),
        figure=figure,
    )
