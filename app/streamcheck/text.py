"""The report of a stream check as a person reads it in a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from streamcheck.timeline import ENDED_BADLY, Timeline, asked_with, hop_timelines, marks
from streamcheck.values import DASH, Report, cleaned, figure, number

GLYPHS = ((10, "█"), (4, "▪"), (2, ":"), (1, "·"), (0, "'"))
LEGEND = ("events that came together:", "· 1", ": 2-3", "▪ 4-9", "█ 10 or more")
ASCII = str.maketrans("█▪·✗▶│└→" + DASH, "#o.x>|+>-")
STYLES = {"bold": "1", "dim": "2", "red": "1;31", "green": "32", "yellow": "33"}
TONES = {"streams": "green", "broken": "red", "unreachable": "red", "unsure": "yellow"}
RESULTS = {"passed": ("ok", "green"), "failed": ("FAILED", "red"), "unsure": ("unsure", "yellow")}
# Two lines of heading, the figure, its decimals; and what goes first in a narrow terminal.
COLUMNS = (
    ("first", "byte s", "first_byte_seconds", 3),
    ("first", "token s", "first_token_seconds", 3),
    ("gap", "p50 ms", "gap_p50_ms", 1),
    ("gap", "p95 ms", "gap_p95_ms", 1),
    ("gap", "max ms", "gap_max_ms", 1),
    ("events", "a read", "events_per_read", 2),
    ("events", "a token", "events_per_token", 2),
)
EXPENDABLE = ("gap_p95_ms", "events_per_token", "first_byte_seconds", "gap_p50_ms", "gap_max_ms")
# Until the lines are laid out: follows what takes two columns; a space at which no line ends.
WIDE, KEEP = "\ue000", "\ue001"


class Sheet:
    """Lines of a terminal, none wider than it."""

    def __init__(self, width: int, color: bool) -> None:
        self.width, self.color = width, color
        self.lines: list[str] = []

    def add(self, *fragments: tuple[str, str]) -> None:
        """Add one line of texts, each with the name of its style or none."""
        whole = "".join(text for text, _ in fragments).rstrip()[: self.width]
        line, place = "", 0
        for text, style in fragments:
            shown = whole[place : place + len(text)]
            place += len(text)
            styled = self.color and style and shown.strip()
            line += f"\x1b[{STYLES[style]}m{shown}\x1b[0m" if styled else shown
        self.lines.append(line)

    def item(self, head: str, style: str, text: str) -> None:
        """Add a text behind a head, wrapped beside it."""
        wrapped = textwrap.wrap(text, max(20, self.width - len(head)), break_on_hyphens=False)
        for place, line in enumerate(wrapped or [""]):
            self.add((head if place == 0 else " " * len(head), style), (line, ""))

    def section(self, title: str, style: str = "bold") -> None:
        """Begin a part of the report."""
        self.add()
        self.add((title, style))


def _draw(sheet: Sheet, report: Report, lines: Sequence[Timeline]) -> None:
    """Draw what came when at each hop, all on one scale from their requests on."""
    names = [str(line.hop.get("name"))[:16] for line in lines]
    scale = max((line.seconds for line in lines), default=0.0) or 1.0
    left = max(map(len, names), default=0)
    room = sheet.width - left - 6 - max((len(line.said) for line in lines), default=0)
    asked: dict[str, list[str]] = {}
    glyphs = set()
    sheet.section("What arrived when, in seconds since the request")
    for name, line in zip(names, lines, strict=True):
        cells = [-1] * room
        for time, events in line.bursts:
            column = min(room - 1, max(0, int(time / scale * room)))
            cells[column] = max(cells[column], events)
        row = [next((glyph for least, glyph in GLYPHS if n >= least), " ") for n in cells]
        if line.probe.get("ended") in ENDED_BADLY:
            row[min(room - 1, int(line.seconds / scale * room))] = "✗"
        tone = TONES.get(str(line.hop.get("verdict")), "")
        mark = "▶" if line.hop.get("name") == report.get("culprit") else " "
        sheet.add((f"{mark} {name:{left}} │", tone), ("".join(row), tone), (f"│ {line.said}", tone))
        asked.setdefault(asked_with(line.probe), []).append(name)
        glyphs.update(row)
    axis = ""
    for time, text in marks(scale, max(1, room // 8)):
        axis = axis.ljust(left + 3 + int(time / scale * room)) + f"└{text}"
    sheet.add((axis, "dim"))
    extra = (("'", "part of one, or a comment"), ("✗", "broken off"))
    legend = [*LEGEND, *(f"{glyph} {meaning}" for glyph, meaning in extra if glyph in glyphs)]
    ways = [f"{way} ({', '.join(who)})" if len(asked) > 1 else way for way, who in asked.items()]
    indent = " " * (left + 4)
    sheet.item(indent, "", "   ".join(part.replace(" ", KEEP) for part in legend))
    if any(asked):
        sheet.item(indent, "", f"asked with {'; '.join(ways)}")


def _tabulate(sheet: Sheet, lines: Sequence[Timeline], verbose: bool) -> None:
    """Add the table of figures: a row per hop, or per request."""
    rows: list[tuple[str, Report, str, str]] = []
    for line in lines:
        name, verdict = str(line.hop.get("name")), str(line.hop.get("verdict"))
        probe: Report = {} if verbose else line.probe
        rows.append((name, probe, verdict.replace("_", " "), TONES.get(verdict, "")))
        for probe in line.hop.get("probes") or [] if verbose else []:
            said = "" if probe.get("status") == 200 else f"status {probe.get('status') or DASH}"
            rows.append((f"  {asked_with(probe)}", probe, said, ""))
    left = min(sheet.width * 2 // 5, max((len(name) for name, *_ in rows), default=0))
    columns = list(COLUMNS)
    for expendable in EXPENDABLE:
        if left + sum(2 + max(len(c[1]), 6) for c in columns) + 23 > sheet.width:
            columns = [column for column in columns if column[2] != expendable]
    sheet.section("Figures")
    for titles in (0, 1):
        heads = "".join(f"  {column[titles]!s:>6}" for column in columns)
        sheet.add((" " * left + heads + f"  {'ended':11} verdict" * titles, "dim"))
    for name, probe, said, tone in rows:
        row = "".join(f"  {figure(probe.get(c[2]), c[3]):>{max(6, len(c[1]))}}" for c in columns)
        ended = str(probe.get("ended") or DASH).replace("_", " ")
        text = f"{row}  {ended:11} "
        sheet.add((f"{name[:left]:{left}}{text if probe else ' ' * len(text)}", ""), (said, tone))


def _conclude(sheet: Sheet, report: Report, verbose: bool) -> None:
    """Add the checks, the notes, and last, where eyes rest, the verdict."""
    checks, notes = report.get("checks") or [], [*(report.get("notes") or [])]
    for check in checks:
        if check is checks[0]:
            sheet.section("Checks")
        result, tone = RESULTS.get(check.get("result"), (str(check.get("result"))[:8], "dim"))
        about = f"{check.get('name')} ({check.get('hop')}): {check.get('summary') or ''}"
        sheet.item(f"{result:8} ", tone, about)
    for hop in report.get("hops") or []:
        said = [hop["summary"]] if hop.get("summary") else []
        if hop.get("verdict") in ("streams", "broken", "not_judged") and not verbose:
            continue
        probes = hop.get("probes") or []
        said += [f"{asked_with(p)}: {p['error']}" for p in probes if p.get("error")]
        notes += [f"{hop.get('name')}: {text}" for text in said]
    for noise in report.get("noise") or []:
        p99, most = figure(noise.get("p99_ms"), 1), figure(noise.get("max_ms"), 1)
        if verbose or (number(noise.get("p99_ms")) or 0) > 5:
            where = {"here": "this machine", "server": "the server"}.get(noise.get("where"))
            notes.append(f"timers of {where} were late by {p99} ms (p99), {most} ms at most")
    if notes:
        sheet.section("Notes")
    for note in notes:
        sheet.item("- ", "", str(note))
    verdict, sure = str(report.get("verdict")), number(report.get("confidence"))
    where = f" at {report['culprit']}" if report.get("culprit") else ""
    percent = "" if sure is None else f" ({sure:.0%} sure)"
    sheet.section(f"{verdict.upper()}{where}{percent}", TONES.get(verdict, "bold"))
    sheet.item("", "", str(report.get("summary") or ""))
    remedy = report.get("remedy") or {}
    how = str(report.get("kind") or "").replace("_", " ")
    told = (how, remedy.get("setting"), remedy.get("file"), remedy.get("why"))
    for head, text in zip(("how", "change", "in", "why"), told, strict=True):
        if text:
            sheet.item(f"  {head:6}  ", "dim", str(text))


def render(
    report: Report,
    *,
    width: int = 100,
    color: bool = False,
    verbose: bool = False,
    ascii_only: bool = False,
) -> str:
    """Return the report for a terminal of `width` columns, 60 at least; its last line is ended."""
    report, sheet = cleaned(report, WIDE), Sheet(max(60, width), color)
    if report.get("verdict") == "unreachable":
        sheet.item("", "", str(report.get("error") or report.get("summary") or "unreachable"))
    else:
        lines = hop_timelines(report)
        _draw(sheet, report, lines)
        _tabulate(sheet, lines, verbose)
        _conclude(sheet, report, verbose)
    text = "\n".join(sheet.lines).strip("\n").replace(WIDE, "").replace(KEEP, " ") + "\n"
    return text.translate(ASCII).encode("ascii", "replace").decode() if ascii_only else text
