"""Walks the chain from the engine outwards and asks each hop in every way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from streamcheck.asker import ANY_MODEL, Asker, no_stream
from streamcheck.doubts import Doubts
from streamcheck.judge import findings_of, judge
from streamcheck.model import (
    COMPRESSED,
    HTTP1,
    HTTP2,
    IDENTITY,
    CheckError,
    Hop,
    Observation,
    Target,
    Way,
)
from streamcheck.silence import Silence
from streamcheck.wire import NotOfferedError

SILENCE_SECONDS = 32.0
"""Twice the interval of heartbeats, and some: a hop must bear one that is late."""


class Walk:
    """One walk over the hops of `targets`. `say` is told each step, in a few words.

    `silence_seconds`: without a byte, beside everything else; 0: none.
    """

    def __init__(
        self,
        targets: Iterable[Target],
        asker: Asker,
        say: Callable[[str], None],
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        self.hops = [Hop(target) for target in targets]
        self.asker = asker
        self.say = say
        self._silent = asker.silent_plan(silence_seconds)
        self._quiet: list[Silence] = []

    def begin(self) -> None:
        """Start the long silences: they wait beside everything else. Raises CheckError."""
        self.asker.look_around([hop.target for hop in self.hops])
        if self._silent.silence_seconds:
            self._begin_silences()

    def run(self, behind: Hop | None = None, *, brief: bool = False) -> list[Hop]:
        """Walk, after begin(). `behind`: the hop behind the first one, as it was seen from
        elsewhere; `brief`: one behind is broken, so it is enough to show what arrives here.
        """
        doubts = Doubts(self.asker, self.say, elsewhere=behind)
        broken = brief
        for hop in self.hops:
            self._look(hop, behind, brief=broken)
            if hop.error:
                break
            if hop.findings and not broken:
                doubts.settle(hop, behind)
            broken = broken or bool(hop.findings)
            behind = hop
        self._end_silences()
        return [hop for hop in self.hops if hop.observations or hop.error]

    # One hop --------------------------------------------------------------------------------

    def _ways(self, target: Target, brief: bool) -> Iterable[Way]:
        protocols = [HTTP1, HTTP2] if target.url.startswith("https") and not brief else [HTTP1]
        for protocol in protocols:
            for encoding in [IDENTITY] if brief else [IDENTITY, COMPRESSED]:
                yield Way("generation", "POST", protocol, encoding)

    def _look(self, hop: Hop, behind: Hop | None, *, brief: bool) -> None:
        target = hop.target
        offered = {HTTP1, HTTP2}
        try:
            why = self._look_at_generations(hop, behind, brief=brief, offered=offered)
            if why:
                hop.error = f"{target.title} ({target.url}): {why}"
                if self.asker.model == ANY_MODEL:
                    hop.error += "; is this the address of an OpenAI-compatible API?"
                return
            if self.asker.has_emitter(target):
                self._look_at_emissions(hop, brief=brief, protocols=offered)
        except (CheckError, NotOfferedError) as error:
            hop.error = str(error)
            return
        hop.findings = judge(hop, behind, self.asker.plan)
        if (kept := self.asker.cached.get(target.name)) and "cached" not in {
            found.kind for found in hop.findings
        }:
            hop.findings.insert(0, kept)

    def _look_at_generations(
        self, hop: Hop, behind: Hop | None, *, brief: bool, offered: set[str]
    ) -> str | None:
        """Ask the model; return why nothing can be judged. What is not offered leaves `offered`."""
        left = list(self._ways(hop.target, brief))
        while left and not hop.observations:
            seen = self._generation(hop, left.pop(0), offered)
            while seen and hop is self.hops[0] and self.asker.lengthen(seen):
                seen = self.asker.generation(hop.target, seen.way)
            if seen and (why := no_stream(seen)):
                return why
            hop.observations += [seen] if seen else []
        if behind is None and len(left) > 1:
            self.say(f"{hop.target.name}: {len(left)} more ways at once")
            hop.observations += _beside_each_other(
                left,
                lambda way: self.asker.generation(hop.target, way),
                lambda way: self._generation(hop, way, offered),
            )
        else:
            # Their pace is held to that of the hop behind, so they must not slow one another.
            answers = (self._generation(hop, way, offered) for way in left)
            hop.observations += [seen for seen in answers if seen]
        return None

    def _generation(self, hop: Hop, way: Way, offered: set[str]) -> Observation | None:
        if way.protocol not in offered:
            return None
        self.say(f"{hop.target.name}: {way}")
        try:
            return self.asker.generation(hop.target, way)
        except NotOfferedError:
            offered.discard(way.protocol)
            return None

    def _look_at_emissions(self, hop: Hop, *, brief: bool, protocols: set[str]) -> None:
        ways = [dataclasses.replace(w, source="emitter") for w in self._ways(hop.target, brief)]
        if not brief:
            ways += [dataclasses.replace(w, method="GET") for w in ways if w.compressed]
        ways = [way for way in ways if way.protocol in protocols]
        self.say(f"{hop.target.name}: the emitter, in {len(ways)} ways at once")

        def ask(way: Way) -> Observation:
            return self.asker.emission(hop.target, way, self.asker.plan)

        # It is the clock that they wait for. What looks wrong is asked for again, alone.
        hop.observations += _beside_each_other(ways, ask, ask)

    # Silence --------------------------------------------------------------------------------

    def _begin_silences(self) -> None:
        """Start an emission with a silence at each hop that has the emitter, beside the rest."""
        self._quiet = [
            Silence(self.asker, hop, self._silent)
            for hop in self.hops
            if self.asker.has_emitter(hop.target)
        ]

    def _end_silences(self) -> None:
        if any(hop.error for hop in self.hops):
            return
        for quiet in self._quiet:
            if not (seen := quiet.end(self.say)):
                continue
            found = [f for f in findings_of(seen, None, self._silent) if f.kind == "cut_on_silence"]
            if found and not any(f.kind == "cut_on_silence" for f in quiet.hop.findings):
                first = dataclasses.replace(found[0], ways=(str(seen.way),), source="emitter")
                # What else is wrong there, a truncation above all, may have cut it as well.
                quiet.hop.findings = [*quiet.hop.findings, first]


def _beside_each_other(
    ways: list[Way],
    ask: Callable[[Way], Observation],
    alone: Callable[[Way], Observation | None],
) -> list[Observation]:
    """Ask in several ways at once; one by one where that was too many for somebody."""

    def attempt(way: Way) -> Observation | None:
        try:
            return ask(way)
        except (CheckError, NotOfferedError):
            return None  # Asked for again below, which says why.

    with ThreadPoolExecutor(len(ways)) as pool:
        asked = list(pool.map(attempt, ways))
    again = [
        seen if seen and seen.status == 200 else alone(way)
        for way, seen in zip(ways, asked, strict=True)
    ]
    return [seen for seen in again if seen]
