"""Walks the chain from the engine outwards, asks each hop in every way, repeats what is unclear."""

from __future__ import annotations

import dataclasses
import json
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from streamcheck import features, generation
from streamcheck.chain import Chain
from streamcheck.emission import Plan, new_run
from streamcheck.judge import TIMING_KINDS, findings_of, judge, plainest
from streamcheck.kinds import PORTIONS
from streamcheck.model import (
    COMPRESSED,
    HTTP1,
    HTTP2,
    IDENTITY,
    CheckError,
    Finding,
    Hop,
    Observation,
    Target,
    Way,
)
from streamcheck.noise import Metronome
from streamcheck.probe import Ask, chat, observe
from streamcheck.wire import NotOfferedError

TOKENS = 64
LONGER_TOKENS = 320
ANY_MODEL = "default"
GENERATION_SECONDS = 60.0
EMISSION_SLACK_SECONDS = 15.0
NOISY_SECONDS = 0.05
"""When this machine itself slept so long, a late event is no sign of anything."""
TRIES = 3
NOISY_TRIES = 6
SURE = 0.7
NEAR_SECONDS = 0.02
"""To connect and to shake hands over TLS takes no longer in the same room."""
LEAST_SURE = 0.55
"""Below this a finding is a doubt."""


@dataclass(frozen=True)
class Options:
    """How much is asked. `silence_seconds`: without a byte, beside everything else; 0: not."""

    silence_seconds: float = 32.0
    tokens: int = TOKENS


class Walk:
    """One walk. `say` is told each step, in a few words."""

    def __init__(self, chain: Chain, options: Options, say: Callable[[str], None]) -> None:
        self.chain = chain
        self.options = options
        self.say = say
        self.run_name = new_run()
        self.plan = Plan(self.run_name)
        self.hops = [Hop(target) for target in chain.hops]
        self.model = chain.model
        self.notes: list[str] = []
        self.metronome = Metronome()
        self._stream_options = True
        self._limit_name = "max_tokens"
        self._near: set[str] = set()
        self._emitters: dict[str, bool] = {}
        self._cached: dict[str, Finding] = {}
        self._elsewhere: Hop | None = None
        self._quiet: list[tuple[Hop, threading.Thread, list[Observation]]] = []

    def begin(self) -> None:
        """Start the long silences: they wait beside everything else. Raises CheckError."""
        self.model = self.model or self._first_model(self.hops[0].target)
        self._near = {hop.target.name for hop in self.hops if _is_near(hop.target)}
        if self.options.silence_seconds:
            self._begin_silences()

    def run(self, behind: Hop | None = None, *, brief: bool = False) -> list[Hop]:
        """Walk, after begin(). `behind`: the hop behind the first one, as it was seen from
        elsewhere; `brief`: one behind is broken, so it is enough to show what arrives here.
        """
        self._elsewhere = behind
        broken = brief
        for hop in self.hops:
            self._look(hop, behind, brief=broken)
            if hop.error:
                break
            if hop.findings and not broken:
                self._confirm(hop, behind)
            broken = broken or bool(hop.findings)
            behind = hop
        self._end_silences()
        return [hop for hop in self.hops if hop.observations or hop.error]

    # Asking ---------------------------------------------------------------------------------

    def ask(self, target: Target, way: Way, ask: Ask) -> Observation:
        """Observe, with the noise of this machine meanwhile."""
        seen = observe(target, way, ask)
        seen.noise_seconds = self.metronome.worst(seen.requested_at, time.monotonic())
        return seen

    def generation(self, target: Target, way: Way, tokens: int = 0) -> Observation:
        """Ask the model; what a service does not know is left out from then on."""
        for _ in range(3):
            fields: dict[str, Any] = {self._limit_name: tokens or self.options.tokens}
            if self._stream_options:
                fields["stream_options"] = {"include_usage": True}
            text = f"Tell how the water finds its way to the wheel. ({self.run_name})"
            body = chat(self.model, text, **fields)
            path = "/chat/completions"
            seen = self.ask(target, way, Ask(path, body, GENERATION_SECONDS))
            said = seen.error or ""
            if seen.status in (400, 422) and "stream_options" in said and self._stream_options:
                self._stream_options = False
            elif seen.status in (400, 422) and "max_completion_tokens" in said:
                self._limit_name = "max_completion_tokens"
            else:
                break
        return seen

    def emission(self, target: Target, way: Way, plan: Plan) -> Observation:
        """Ask the backend's emitter."""
        body = json.dumps({"run": plan.run}).encode() if way.method == "POST" else b""
        limit = plan.seconds + EMISSION_SLACK_SECONDS
        seen = self.ask(target, way, Ask(plan.path, body, limit))
        seen.is_near = target.name in self._near and (seen.connect_seconds or 1) < NEAR_SECONDS
        return seen

    def again(self, target: Target, way: Way) -> Observation:
        """Ask once more in the same way."""
        if way.source == "emitter":
            return self.emission(target, way, self.plan)
        return self.generation(target, way)

    def has_emitter(self, target: Target) -> bool:
        """Whether the backend's emitter answers through this hop."""
        if target.name not in self._emitters:
            self._emitters[target.name] = target.has_emitter and self._try_emitter(target)
        return self._emitters[target.name]

    def _try_emitter(self, target: Target) -> bool:
        """Ask for one event, twice: the same one again came out of a cache."""
        plan = Plan(self.run_name, events=1, lead_ms=0)
        way = Way("emitter", "GET")
        try:
            first, again = (self.emission(target, way, plan) for _ in range(2))
        except CheckError:
            return False
        if first.numbered and (kept := generation.kept_somewhere(first, again)):
            kept = dataclasses.replace(kept, ways=(str(way),), source="emitter")
            self._cached[target.name] = kept
        return bool(first.numbered)

    def _first_model(self, target: Target) -> str:
        seen = self.ask(target, Way("generation", "GET"), Ask("/models", limit_seconds=20))
        where = f"{target.title} ({target.url}/models)"
        if seen.status in (404, 405, 501):
            # Small servers list none and take any name.
            self.notes.append(f"{where} lists no model: asked for {ANY_MODEL!r} (or give --model).")
            return ANY_MODEL
        if seen.status in (401, 403):
            raise CheckError(f"{where}: {_no_stream(seen)}")
        if seen.status != 200:
            said = seen.error if seen.status else _no_stream(seen)
            raise CheckError(f"{where}: {said}; is this the address of an OpenAI-compatible API?")
        try:
            listed = json.loads(seen.body)["data"]
            return str(listed[0]["id"])
        except IndexError:
            raise CheckError(f"{where}: the list of models is empty: load one") from None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise CheckError(
                f"{where}: it answers with something else than a list of models; is this the "
                "address of an OpenAI-compatible API? If it lists none, give one with --model"
            ) from None

    # One hop --------------------------------------------------------------------------------

    def _ways(self, target: Target, brief: bool) -> Iterable[Way]:
        protocols = [HTTP1, HTTP2] if target.url.startswith("https") and not brief else [HTTP1]
        for protocol in protocols:
            for encoding in [IDENTITY] if brief else [IDENTITY, COMPRESSED]:
                yield Way("generation", "POST", protocol, encoding)

    def _look(self, hop: Hop, behind: Hop | None, *, brief: bool) -> None:
        target = hop.target
        offered = {HTTP1, HTTP2}
        for way in self._ways(target, brief):
            if way.protocol not in offered:
                continue
            self.say(f"{target.name}: {way}")
            try:
                seen = self.generation(target, way)
            except NotOfferedError:
                offered.discard(way.protocol)
                continue
            except CheckError as error:
                hop.error = str(error)
                return
            if not hop.observations and (why := _no_stream(seen)):
                hop.error = f"{target.title} ({target.url}): {why}"
                if self.model == ANY_MODEL:
                    hop.error += "; is this the address of an OpenAI-compatible API?"
                return
            hop.observations.append(seen)
        if self.has_emitter(target):
            self._look_at_emissions(hop, brief=brief, protocols=offered)
        hop.findings = judge(hop, behind, self.plan)
        if (kept := self._cached.get(target.name)) and "cached" not in {
            found.kind for found in hop.findings
        }:
            hop.findings.insert(0, kept)

    def _look_at_emissions(self, hop: Hop, *, brief: bool, protocols: set[str]) -> None:
        ways = [dataclasses.replace(w, source="emitter") for w in self._ways(hop.target, brief)]
        if not brief:
            ways += [dataclasses.replace(w, method="GET") for w in ways if w.compressed]
        ways = [way for way in ways if way.protocol in protocols]
        self.say(f"{hop.target.name}: the emitter, in {len(ways)} ways at once")
        # Beside each other: it is the clock that they wait for. What looks wrong is asked for
        # again, alone.
        with ThreadPoolExecutor(len(ways)) as pool:
            asked = [pool.submit(self.emission, hop.target, way, self.plan) for way in ways]
            hop.observations += [each.result() for each in asked]

    # What is doubtful -----------------------------------------------------------------------

    def _confirm(self, hop: Hop, behind: Hop | None) -> None:
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
        if kept and kept[0].kind in PORTIONS and kept[0].source == "generation":
            self._weigh(hop, behind, kept[0])

    def _repeat(self, hop: Hop, behind: Hop | None, found: Finding) -> Finding | None:
        """Ask again in a way that showed `found` until it is clear; None when it did not hold."""
        if found.kind == "cached":
            return found  # It took two answers to be seen.
        way = next(s.way for s in hop.observations if str(s.way) in found.ways
                   and s.way.source == found.source)  # fmt: skip
        came, asked = 1, 1
        for _ in range(NOISY_TRIES):
            self.say(f"{hop.target.name}: again, for {found.kind}")
            reference = plainest(behind)
            if behind not in (None, self._elsewhere) and way.source == "generation":
                assert behind is not None
                reference = self.generation(behind.target, reference.way if reference else way)
            seen = self.again(hop.target, way)
            now = {f.kind: f for f in findings_of(seen, reference, self.plan, hop.target.name)}
            portions = [now[kind] for kind in PORTIONS if kind in now]
            same = found.kind in now or (
                found.kind in (*PORTIONS, "compression_held") and bool(portions)
            )
            if found.kind in TIMING_KINDS and seen.noise_seconds > NOISY_SECONDS:
                continue
            came, asked = came + same, asked + 1
            if found.kind in PORTIONS and portions and found.source == "emitter":
                # Asked for alone, the portions are the hop's own and not those of a crowd.
                found = dataclasses.replace(portions[0], ways=found.ways, source=found.source)
            if asked >= TRIES or (came == asked == 2):
                break
        if asked == 1:
            hop.doubts.append(
                f"{found.summary}; but this machine itself is too busy to tell (its timers are up "
                f"to {1000 * NOISY_SECONDS:.0f} ms and more late)"
            )
            return None
        if came * 2 <= asked:
            self.notes.append(f"{hop.target.title}: once, and not again: {found.summary}")
            return None
        confidence = round(found.confidence * came / asked, 2)
        if confidence < LEAST_SURE:
            hop.doubts.append(f"{came} times of {asked}: {found.summary}")
            return None
        return dataclasses.replace(found, confidence=confidence)

    def _weigh(self, hop: Hop, behind: Hop | None, found: Finding) -> None:
        """Portions of real answers: ask for a longer one, which tells a hold from a batch, and a
        quick engine from both.
        """
        way = next(s.way for s in hop.of("generation") if str(s.way) in found.ways)
        self.say(f"{hop.target.name}: a longer answer, for {found.kind}")
        emitted = [f for f in hop.findings if f.source == "emitter" and f.kind in PORTIONS]
        short = self.generation(hop.target, way, 16)
        long = self.generation(hop.target, way, LONGER_TOKENS)
        rest = [f for f in hop.findings if f is not found]
        streams_otherwise = bool(hop.of("emitter")) and not emitted
        if len([b for b in features.content_bursts(long) if b.events]) > 2:
            for better in generation.judge(long, plainest(behind)):
                if better.kind in PORTIONS:
                    found = dataclasses.replace(better, ways=found.ways, source=found.source)
        elif _grows(short, long):
            found = dataclasses.replace(
                found, confidence=max(found.confidence, 0.95),
                summary=f"{found.summary}; the first token of a longer answer comes later still",
            )  # fmt: skip
        elif behind is None and _lasts(long) > max(0.05, 4 * _lasts(short)):
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
            hop.findings = [found, *rest]
            if streams_otherwise:
                self.notes.append(
                    "The backend's emitter streams through the same address: what holds the "
                    "model's answers lies behind the backend."
                )
            return
        hop.findings = rest
        if streams_otherwise:
            self.notes.append(f"{hop.target.title}: the model gives several tokens at a time.")
        else:
            hop.doubts.append(
                f"{found.summary}: a buffer on the way, or an engine that gives several tokens at "
                "a time; check the hop behind it as well (--hop) to know"
            )

    # Silence --------------------------------------------------------------------------------

    def _begin_silences(self) -> None:
        """Start an emission with a silence at each hop that has the emitter, beside the rest."""
        seconds = self.options.silence_seconds
        plan = self.silent_plan(seconds)
        for hop in self.hops:
            if not self.has_emitter(hop.target):
                continue
            got: list[Observation] = []

            def wait(target: Target = hop.target, got: list[Observation] = got) -> None:
                with_get = Way("emitter", "GET")
                got.append(self.emission(target, with_get, plan))

            thread = threading.Thread(target=wait, daemon=True, name=f"silence-{hop.target.name}")
            thread.start()
            self._quiet.append((hop, thread, got))

    def silent_plan(self, seconds: float, *, heartbeats: bool = False) -> Plan:
        """Return an emission of few events around a silence."""
        run = f"{self.run_name}-quiet"
        return Plan(run, 8, (10,), 0, silence_seconds=seconds, heartbeats=heartbeats)

    def _end_silences(self) -> None:
        plan = self.silent_plan(self.options.silence_seconds)
        for hop, thread, got in self._quiet:
            if any(other.error for other in self.hops):
                return
            if thread.is_alive():
                self.say(f"{hop.target.name}: waiting for a silence to end")
            thread.join(plan.seconds + EMISSION_SLACK_SECONDS)
            for seen in got:
                found = [f for f in findings_of(seen, None, plan) if f.kind == "cut_on_silence"]
                if found and not any(f.kind == "cut_on_silence" for f in hop.findings):
                    first = dataclasses.replace(found[0], ways=(str(seen.way),), source="emitter")
                    # What else is wrong there, a truncation above all, may have cut it as well.
                    hop.findings = [*hop.findings, first]


def _is_near(target: Target) -> bool:
    """Whether the server itself is near: what lies between it and us costs no time then."""
    if not target.origin:
        return False
    parts = urllib.parse.urlsplit(target.origin)
    try:
        began = time.monotonic()
        place = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
        socket.create_connection(place, timeout=5).close()
        return time.monotonic() - began < NEAR_SECONDS / 2
    except OSError:
        return False


def _no_stream(seen: Observation) -> str | None:
    """Say why an answer is nothing that could be judged."""
    if not seen.status:
        if seen.ended == "timeout":
            return "it accepts the request and never answers"
        return f"it gives no answer: {seen.error}"
    if seen.status != 200 or seen.ended == "too_long" or (seen.error and not seen.events):
        if seen.status in (401, 403):
            return f"the key is refused: {seen.error}; give the right one with --key-file"
        return seen.error or f"it answers {seen.status}"
    if not seen.events:
        return "the answer held no token" if seen.ended != "timeout" else "no token came in time"
    return None


def _lasts(seen: Observation) -> float:
    times = [arrival.at for arrival in seen.arrivals if arrival.events]
    return times[-1] - times[0] if times else 0.0


def _grows(short: Observation, long: Observation) -> bool:
    """Whether the first token waits for the last one."""
    first, later = short.first_token_seconds, long.first_token_seconds
    return bool(first and later and later > 1.5 * first and later - first > 0.05)
