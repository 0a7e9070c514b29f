"""The results as one page: bars of cost per hop, and how the gaps are spread. Nothing to load."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

WIDTH = 1000
"""The drawing's own units across."""
GAP_DECADES = 4
"""The gaps' scale, by logarithm: from 1 ms to 10 s."""
MARKS = ((1, "1 ms"), (10, "10 ms"), (100, "100 ms"), (1000, "1 s"), (10_000, "10 s"))

Found = Mapping[str, Any]


def across(milliseconds: float) -> float:
    """Return where a gap is drawn, of WIDTH."""
    place = math.log10(max(milliseconds, 1)) / GAP_DECADES
    return WIDTH * min(1.0, place)


def bars(point: Found) -> dict[str, list[dict[str, Any]]]:
    """Return each chain's bar at a point: a piece for each hop."""
    costs = {name: found["token_us"] for name, found in point["chains"].items()}
    scale = max((cost["all"]["median"] or 0 for cost in costs.values()), default=0) or 1
    drawn = {}
    for name, cost in costs.items():
        at, pieces = 0.0, []
        for hop in cost:
            value = max(0.0, cost[hop]["median"] or 0)
            if hop == "all" or not value:
                continue
            width = WIDTH * value / scale
            pieces.append({"hop": hop, "at": round(at, 1), "width": round(width, 1), "us": value})
            at += width
        drawn[name] = pieces
    return drawn


def gap_shape(gaps: Sequence[Sequence[float]]) -> dict[str, float] | None:
    """Return where the quantiles of a chain's gaps are drawn; None where there are none."""
    if not gaps:
        return None
    places = {f"q{share * 100:g}": across(value) for share, value in gaps}
    return {name: round(place, 1) for name, place in places.items()}


def render_page(document: Found) -> str:
    """Return the results as one HTML page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    hops: list[str] = []
    for chain in document["chains"]:
        hops += [hop for hop in chain["hops"] if hop not in hops]
    return environment.get_template("page.html.j2").render(
        document=document,
        titles={chain["name"]: chain["title"] for chain in document["chains"]},
        hops=hops,
        points=[
            {
                "point": point,
                "bars": bars(point),
                "gaps": {name: gap_shape(f["gaps"]) for name, f in point["chains"].items()},
                "pace": round(across(1000 / point["rate"]), 1),
                "stall": round(across(10_000 / point["rate"]), 1),
            }
            for point in document["points"]
        ],
        marks=[(round(across(value), 1), text) for value, text in MARKS],
        width=WIDTH,
    )
