"""What looks broken is asked for again, until it is sure, refuted, or plainly unsure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from streamcheck import features, generation
from streamcheck.asker import Asker
from streamcheck.emission import AT_ONCE_SHARE
from streamcheck.judge import TIMING_KINDS, findings_of, plainest, tells_delay
from streamcheck.kinds import PORTIONS
from streamcheck.model import Finding, Hop, Observation

LONGER_TOKENS = 320
NOISY_SECONDS = 0.05
"""When this machine itself slept so long, a late event is no sign of anything."""
BUSY_SHARE = 0.9
"""When this machine's processors had so little rest, a hop on it may be slow for want of them."""
LOAD_KINDS = ("slow_hop", "delayed")
TRIES = 3
SPLIT_TRIES = 5
"""So many when three do not agree enough: one answer may come late or early by chance."""
NOISY_TRIES = 6
SURE = 0.7
LEAST_SURE = 0.55
"""Below this a finding is a doubt."""


class Doubts:
    """Settles a hop's findings. `elsewhere`: a hop that only another machine can ask."""

    def __init__(self, asker: Asker, say: Callable[[str], None], *, elsewhere: Hop | None) -> None:
        self._asker = asker
        self._say = say
        self._elsewhere = elsewhere

    def settle(self, hop: Hop, behind: Hop | None) -> None:
        """Keep the findings that come again; drop with a note what came once only."""
        kept: list[Finding] = []
        for found in hop.findings:
            if kept:
                # One is proved and names the hop: the others stand as they were seen.
                kept.append(found)
                continue
            sure = self._repeat(hop, behind, found)
            if sure is not None:
                kept.append(sure)
        hop.findings = kept
        # A longer answer tells more of these: what is a doubt so far may become sure.
        if kept and kept[0].kind in PORTIONS and kept[0].source == "generation":
            self._weigh(hop, behind, kept[0])

    def _repeat(self, hop: Hop, behind: Hop | None, found: Finding) -> Finding | None:
        """Ask again in a way that showed `found` until it is clear; None when it did not hold."""
        if found.kind == "cached":
            return found  # It took two answers to be seen.
        first = next(s for s in hop.observations if str(s.way) in found.ways
                     and s.way.source == found.source)  # fmt: skip
        way = first.way
        came = asked = counted = 0 if _is_excused(found.kind, first) else 1
        for tried in range(NOISY_TRIES):
            self._say(f"{hop.target.name}: again, for {found.kind}")
            reference = plainest(behind)
            if behind not in (None, self._elsewhere) and way.source == "generation":
                assert behind is not None
                reference = self._asker.generation(
                    behind.target, reference.way if reference else way
                )
            seen = self._asker.again(hop.target, way)
            now = {
                f.kind: f for f in findings_of(seen, reference, self._asker.plan, hop.target.name)
            }
            portions = [now[kind] for kind in PORTIONS if kind in now]
            same = found.kind in now or (
                found.kind in (*PORTIONS, "compression_held") and bool(portions)
            )
            if (same and _is_excused(found.kind, seen)) or (
                found.kind == "delayed" and not tells_delay(seen)
            ):
                # An answer that came well is a proof on any machine; this one is none, and what
                # kept the machine busy, a service that starts perhaps, may soon be over.
                self._asker.pause(tried)
                continue
            came, asked = came + same, asked + 1
            if found.kind in PORTIONS and portions and found.source == "emitter":
                # Asked for alone, the portions are the hop's own and not those of a crowd.
                found = dataclasses.replace(portions[0], ways=found.ways, source=found.source)
            if came == asked == 2 or (asked >= TRIES and came <= 1):
                break
            if asked >= (TRIES if found.confidence * came / asked >= LEAST_SURE else SPLIT_TRIES):
                break
        if asked == counted:
            hop.doubts.append(
                f"{found.summary}; but this machine itself is too busy to tell (its timers are "
                f"{1000 * NOISY_SECONDS:.0f} ms late and more, or its processors never rest)"
            )
            return None
        if came * 2 <= asked:
            often = "once, and not again" if came <= 1 else f"{came} times of {asked} only"
            self._asker.notes.append(f"{hop.target.title}: {often}: {found.summary}")
            return None
        confidence = round(found.confidence * came / asked, 2)
        if confidence < LEAST_SURE and not (found.kind in PORTIONS and way.source == "generation"):
            hop.doubts.append(f"{came} times of {asked}: {found.summary}")
            return None
        return dataclasses.replace(found, confidence=confidence)

    def _weigh(self, hop: Hop, behind: Hop | None, found: Finding) -> None:
        """Portions of real answers: ask for a longer one, which tells a hold from a batch, and a
        quick engine from both.
        """
        way = next(s.way for s in hop.of("generation") if str(s.way) in found.ways)
        self._say(f"{hop.target.name}: a longer answer, for {found.kind}")
        emitted = [f for f in hop.findings if f.source == "emitter" and f.kind in PORTIONS]
        short = self._asker.generation(hop.target, way, 16)
        long = self._asker.generation(hop.target, way, LONGER_TOKENS)
        rest = [f for f in hop.findings if f is not found]
        streams_otherwise = bool(hop.of("emitter")) and not emitted
        better = [f for f in generation.judge(long, plainest(behind)) if f.kind in PORTIONS]
        if _is_held(short, long):
            found = dataclasses.replace(
                found, kind="whole_response_held", confidence=max(found.confidence, 0.95),
                summary=f"{found.summary}; the first token of a longer answer comes later still",
            )  # fmt: skip
        elif not better:
            # A longer answer flows: the short one was quick, and nobody held it.
            hop.findings = rest
            return
        elif len([b for b in features.content_bursts(long) if b.events]) > 2:
            found = dataclasses.replace(better[0], ways=found.ways, source=found.source)
        elif behind is None and features.lasting(long) > max(0.05, 4 * features.lasting(short)):
            # It takes as long as it is: a stream so quick that its reads touch one another.
            hop.findings = rest
            return
        elif behind is None:
            hop.findings = rest
            hop.doubts.append(
                "short and long answers alike come all at once: either the engine is quicker than "
                "can be seen, or something answers in its place"
            )
            return
        if found.confidence >= SURE:
            if not streams_otherwise:
                hop.findings = [found, *rest]
            elif behind and behind is self._elsewhere:
                # Behind the backend nobody can be asked from here, and what was seen there is over.
                hop.findings = rest
                hop.doubts.append(
                    f"{found.summary}; but the backend's emitter streams through the same address, "
                    "and the hops behind were seen to stream: either the model's answers are "
                    "treated otherwise here, or what lies behind the backend was too busy just "
                    "now; check again"
                )
            else:
                hop.findings = [found, *rest]
                self._asker.notes.append(
                    "The backend's emitter streams through the same address: what holds the "
                    "model's answers lies behind the backend."
                )
            return
        hop.findings = rest
        if streams_otherwise:
            self._asker.notes.append(
                f"{hop.target.title}: the model gives several tokens at a time."
            )
        else:
            hop.doubts.append(
                f"{found.summary}: a buffer on the way, or an engine that gives several tokens at "
                "a time; check the hop behind it as well (--hop) to know"
            )


def _is_excused(kind: str, seen: Observation) -> bool:
    """Whether this machine could have done it, and not the hop."""
    stalled = kind in TIMING_KINDS and seen.noise_seconds > NOISY_SECONDS
    return stalled or (kind in LOAD_KINDS and seen.busy_share > BUSY_SHARE)


def _is_held(short: Observation, long: Observation) -> bool:
    """Whether the first token waits for the last one, and the rest is soon written.

    However slowly it is written: on a busy machine LiteLLM takes two milliseconds for an event, and
    then none comes together with another.
    """
    first, later = short.first_token_seconds, long.first_token_seconds
    if not first or not later or later < 1.5 * first or later - first < 0.05:
        return False
    return features.lasting(long) < AT_ONCE_SHARE * later
