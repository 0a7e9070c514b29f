"""The results for a terminal: ratios first, for machines differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Document = Mapping[str, Any]


def text(document: Document) -> str:
    """Return the results as text."""
    return "\n".join(_lines(document)) + "\n"


def _lines(document: Document) -> Iterator[str]:
    machine, settings = document["machine"], document["settings"]
    yield f"Millrace bench, {document['at']}"
    yield (
        f"{machine['cores']} × {machine['cpu']}, {machine['memory_gib']:g} GiB, "
        f"{machine['system']}, Linux {machine['kernel']}, Python {machine['python']}"
    )
    loads = f"load {document['load_before'][0]:g} before, {document['load_after'][0]:g} after"
    yield f"{settings['engine']}; {loads}; {settings['phases']}"
    busy = document["load_before"][0] > 0.5 * machine["cores"]
    if busy:
        yield "! The machine was not quiet: believe the ratios, and nothing that is timed."
    titles = {chain["name"]: chain["title"] for chain in document["chains"]}
    for point in document["points"]:
        yield ""
        yield f"{point['streams']} streams × {point['rate']:g} tokens/s, {_rounds(point)}"
        yield from _table(_point_rows(point, titles))
    yield ""
    yield "Over all points"
    yield from _table(_chain_rows(document["chains"]))
    yield ""
    yield "Chains"
    for chain in document["chains"]:
        versions = ", ".join(f"{name} {version}" for name, version in chain["versions"].items())
        told = "; ".join(part for part in (chain["note"], versions) if part)
        yield f"  {chain['title']}: {told}" if told else f"  {chain['title']}"
    for name, why in document["unavailable"].items():
        yield f"  left out, {name}: {why.splitlines()[0]}"
    yield from _doubts(document, titles)


def _rounds(point: Document) -> str:
    most = max((found["rounds"] for found in point["chains"].values()), default=0)
    return f"{most} round{'s' if most != 1 else ''}"


def _point_rows(point: Document, titles: Mapping[str, str]) -> Iterator[Sequence[str]]:
    yield (
        "", "CPU ÷ tutorials'", "÷ nginx", "µs a token", "by hop", "ms a request",
        "first token + p50, p99 ms", "gap + p50, p99, max ms", "tokens/s", "held",
    )  # fmt: skip
    for name, found in point["chains"].items():
        cost = found["token_us"]
        hops = " + ".join(f"{hop} {_number(cost[hop])}" for hop in cost if hop != "all")
        has_hops = len(cost) > 1
        first, gap = found["added_first_token_ms"], found["added_gap_ms"]
        mark = " !" if found["limits"] else ""
        yield (
            titles[name],
            _ratio(found.get("cpu_to_tutorial")) if has_hops else "",
            _ratio(found.get("cpu_to_nginx")) if has_hops else "",
            _spread(cost["all"]) if has_hops else "",
            hops,
            _number(found["request_ms"]) if has_hops else "",
            f"{_number(first['p50'])}, {_number(first['p99'])}{mark}",
            f"{_number(gap['p50'])}, {_number(gap['p99'])}, {_number(gap['max'])}{mark}",
            _number(found["tokens_per_second"], 0),
            "yes" if not found["stalls"] else f"no: {found['stalls'][0]}",
        )


def _chain_rows(chains: Sequence[Document]) -> Iterator[Sequence[str]]:
    yield (
        "",
        "streams held without a stall",
        "most tokens/s",
        "KB a stream, idle",
        "idle, % of a core",
    )
    for chain in chains:
        held = ", ".join(
            f"{found['streams']} at {rate}/s" + ("" if found["stalled_at"] else " (all asked)")
            for rate, found in chain["held"].items()
        )
        most = chain["most_tokens_per_second"]
        shown = "" if most is None else f"{most:,.0f}"
        if most is not None and not chain["more_were_offered"]:
            shown += " or more"
        memory = chain["memory_bytes"]
        yield (
            chain["title"],
            held,
            shown,
            ", ".join(f"{hop} {value / 1000:.1f}" for hop, value in memory.items()),
            ", ".join(f"{hop} {100 * value:.1f}" for hop, value in chain["idle_cores"].items()),
        )


def _doubts(document: Document, titles: Mapping[str, str]) -> Iterator[str]:
    said = [
        f"  {titles[name]}, {point['streams']} × {point['rate']:g}: {', '.join(found['limits'])}"
        for point in document["points"]
        for name, found in point["chains"].items()
        if found["limits"]
    ]
    if said:
        yield ""
        yield "! Invalid as to time: what measured was late itself in every round."
        yield from said


def _table(rows: Iterator[Sequence[str]]) -> Iterator[str]:
    cells = [list(row) for row in rows]
    # A column that nobody has anything to say in is left out.
    kept = [c for c in range(len(cells[0])) if c == 0 or any(row[c] for row in cells[1:])]
    widths = [max(len(row[c]) for row in cells) for c in kept]
    for row in cells:
        line = "  ".join(row[c].ljust(width) for c, width in zip(kept, widths, strict=True))
        yield f"  {line}".rstrip()


def _number(spread: Document, decimals: int = 1) -> str:
    value = spread["median"]
    return "?" if value is None else f"{value:,.{decimals}f}"


def _spread(spread: Document) -> str:
    if spread["median"] is None:
        return "?"
    least, most = spread["least"], spread["most"]
    between = "" if least == most else f" ({least:.1f} to {most:.1f})"
    return f"{spread['median']:.1f}{between}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
