"""From what was seen to what is wrong: pure functions, a hop beside the hop behind it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from streamcheck import emission, generation
from streamcheck.emission import Plan
from streamcheck.kinds import KINDS, PORTIONS, remedy
from streamcheck.model import HTTP1, IDENTITY, Finding, Hop, Observation

_RANK = {kind: rank for rank, kind in enumerate(KINDS)}
TIMING_KINDS = {*PORTIONS, "compression_held", "first_byte_held", "slow_hop", "delayed"}
"""Kinds that a stalled machine could feign."""


def plainest(hop: Hop | None) -> Observation | None:
    """Return the hop's generation over POST, HTTP/1.1, identity, if there is one."""
    for seen in hop.of("generation") if hop else ():
        way = seen.way
        if (way.protocol, way.encoding, way.method) == (HTTP1, IDENTITY, "POST"):
            return seen
    return None


SETUP_SECONDS = {"litellm": 0.1}
"""What a hop may take before the first token: LiteLLM's router needs 10 to 40 ms of CPU for it."""


def findings_of(
    seen: Observation, behind: Observation | None, plan: Plan, hop: str = ""
) -> list[Finding]:
    """Return what is wrong with one answer of the hop of that name."""
    if seen.status != 200:
        summary = f"{seen.way}: {seen.error}"
        return [Finding("request_refused", 0.9, summary, {"status": seen.status})]
    if seen.way.source == "emitter":
        return emission.judge(seen, plan)
    found = generation.judge(seen, behind)
    # One that was seen by another machine, at another time, has no connection of ours: its portions
    # count, its pace may have changed since.
    if behind is not None and behind.connect_seconds is not None and not found:
        allowed = SETUP_SECONDS.get(hop, emission.ADDED_SECONDS)
        beside = (generation.slower(seen, behind), generation.later(seen, behind, allowed))
        found = [worse for worse in beside if worse]
    return found


def judge(hop: Hop, behind: Hop | None, plan: Plan) -> list[Finding]:
    """Return the hop's findings, the most telling first, each with the ways it was seen in."""
    reference = plainest(behind)
    raw: list[tuple[Finding, Observation]] = []
    for source in ("emitter", "generation"):
        seen_before: list[Observation] = []
        for seen in hop.of(source):
            found = findings_of(seen, reference, plan, hop.target.name)
            raw += [(each, seen) for each in found]
            for earlier in seen_before:
                if kept := generation.kept_somewhere(earlier, seen):
                    raw.append((kept, seen))
                    break
            seen_before.append(seen)
    raw = [(f, s) for f, s in raw if f.kind != "delayed" or _always_late(hop, raw, s)]
    if _only_compressed(hop, raw):
        raw = [(_as_compression(found), seen) for found, seen in raw]
    return sorted(_merge(raw), key=_order)


def _always_late(hop: Hop, raw: list[tuple[Finding, Observation]], seen: Observation) -> bool:
    """Whether every answer of the same source came late: a hop that waits does so every time.

    Where the emitter answers, its word counts alone: it knows the delay of each event.
    """
    source = seen.way.source
    late = sum(f.kind == "delayed" and s.way.source == source for f, s in raw)
    telling = sum(tells_delay(each) for each in hop.of(source))
    return late == telling and (source == "emitter" or not hop.of("emitter"))


def tells_delay(seen: Observation) -> bool:
    """Whether an answer could show a delay; from afar or in a busy moment the emitter cannot."""
    return seen.way.source != "emitter" or emission.added_seconds(seen) is not None


def _order(found: Finding) -> tuple[int, int]:
    # The emitter's answers are longer and stamped: of two portions kinds its word counts.
    if found.kind in PORTIONS:
        return _RANK["whole_response_held"], 0 if found.source == "emitter" else 1
    return _RANK[found.kind], 0


def _merge(raw: Iterable[tuple[Finding, Observation]]) -> list[Finding]:
    """One finding per kind and source: the surest one, with every way it was seen in.

    The kinds of portions count as one: short answers do not always tell them apart.
    """
    merged: dict[tuple[str, str], Finding] = {}
    for found, seen in raw:
        key = ("portions" if found.kind in PORTIONS else found.kind, seen.way.source)
        had = merged.get(key)
        best = found if had is None or found.confidence > had.confidence else had
        ways = dict.fromkeys([*(had.ways if had else ()), str(seen.way)])
        merged[key] = dataclasses.replace(best, ways=tuple(ways), source=seen.way.source)
    return list(merged.values())


def _only_compressed(hop: Hop, raw: list[tuple[Finding, Observation]]) -> bool:
    """Whether portions came in compressed answers alone, and others of the same source streamed."""
    held = [seen for found, seen in raw if found.kind in PORTIONS]
    if not held or not all(seen.headers.get("content-encoding") for seen in held):
        return False
    sources = {seen.way.source for seen in held}
    return all(
        any(not seen.headers.get("content-encoding") and seen.events for seen in hop.of(source))
        for source in sources
    )


def _as_compression(found: Finding) -> Finding:
    if found.kind not in PORTIONS:
        return found
    return dataclasses.replace(
        found, kind="compression_held", confidence=max(found.confidence, 0.95),
        summary=f"compressed answers are held ({found.summary}), others stream",
    )  # fmt: skip


def verdict(hops: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return verdict, culprit, kind, confidence, summary, remedy and error of a report's hops."""
    said: dict[str, Any] = {
        "verdict": "streams", "culprit": None, "kind": None, "confidence": 0.99,
        "summary": "", "remedy": None, "error": None,
    }  # fmt: skip
    for hop in hops:
        name, title = hop["name"], hop["title"]
        if hop["verdict"] == "broken":
            server = next((p["headers"].get("server", "") for p in hop["probes"]), "")
            return {
                **said, "verdict": "broken", "culprit": name, "kind": hop["kind"],
                "confidence": hop["confidence"],
                "summary": _sentence(f"{title} breaks the stream: {hop['summary']}"),
                "remedy": remedy(name, hop["kind"], server),
            }  # fmt: skip
        if hop["verdict"] == "unreachable":
            return {
                **said, "verdict": "unreachable", "culprit": name, "confidence": 1.0,
                "summary": hop["summary"], "error": hop["summary"],
            }  # fmt: skip
    for hop in hops:
        if hop["verdict"] == "unsure":
            summary = _sentence(f"{hop['title']}: {hop['summary']}")
            return {**said, "verdict": "unsure", "confidence": 0.5, "summary": summary}
    told = _sentence("every hop streams" if len(hops) > 1 else f"{hops[0]['title']} streams")
    stamped = any(p["source"] == "emitter" for hop in hops for p in hop["probes"])
    return {**said, "summary": told, "confidence": 0.99 if stamped else 0.9}


def _sentence(text: str) -> str:
    """End it with a full stop, and begin it with a capital, but for names: nginx keeps its n."""
    first = text[:1].upper() if text.startswith(("the ", "every ")) else text[:1]
    return f"{first}{text[1:]}."
