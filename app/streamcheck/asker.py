"""Asks a hop: the model, the emitter, the list of models. Knows what a service does not know."""

from __future__ import annotations

import dataclasses
import json
import socket
import time
import urllib.parse
from collections.abc import Sequence
from typing import Any

from streamcheck import features, generation
from streamcheck.emission import Plan, new_run
from streamcheck.model import CheckError, Finding, Observation, Target, Way
from streamcheck.noise import Metronome, processor_ticks
from streamcheck.probe import Ask, chat, observe

TOKENS = 64
MOST_TOKENS = 512
SHORTEST_SECONDS = 0.25
ANY_MODEL = "default"
GENERATION_SECONDS = 60.0
EMISSION_SLACK_SECONDS = 15.0
PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 4.0
NEAR_SECONDS = 0.02
"""To connect and to shake hands over TLS takes no longer in the same room."""
NEAR_TRIES = 3
"""Distance makes every connection slow, a busy machine only some."""


class Asker:
    """Sends the requests of one run. `model`: empty until look_around() found one."""

    def __init__(self, model: str = "", tokens: int = TOKENS) -> None:
        self.model = model
        self.tokens = tokens
        self.run_name = new_run()
        self.plan = Plan(self.run_name)
        self.metronome = Metronome()
        self.notes: list[str] = []
        # By hop: what its emitter gave twice.
        self.cached: dict[str, Finding] = {}
        self._stream_options = True
        self._limit_name = "max_tokens"
        self._near: set[str] = set()
        self._quickest: dict[str, float] = {}
        self._emitters: dict[str, bool] = {}

    def look_around(self, targets: Sequence[Target]) -> None:
        """Note which servers are near, and find a model if none was named. Raises CheckError."""
        self.model = self.model or self._first_model(targets[0])
        self._near = {target.name for target in targets if _is_near(target)}

    def ask(self, target: Target, way: Way, ask: Ask) -> Observation:
        """Observe, with the noise of this machine meanwhile."""
        before = processor_ticks()
        seen = observe(target, way, ask)
        worked, passed = (b - a for a, b in zip(before, processor_ticks(), strict=True))
        seen.busy_share = worked / passed if passed else 0.0
        seen.noise_seconds = self.metronome.worst(seen.requested_at, time.monotonic())
        return seen

    def generation(self, target: Target, way: Way, tokens: int = 0) -> Observation:
        """Ask the model; what a service does not know is left out from then on."""
        for _ in range(3):
            fields: dict[str, Any] = {self._limit_name: tokens or self.tokens}
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
        # The quickest connection tells the distance: any other may have met a busy moment.
        quickest = min(self._quickest.get(target.name, 1.0), seen.connect_seconds or 1.0)
        self._quickest[target.name] = quickest
        seen.is_near = target.name in self._near and quickest < NEAR_SECONDS
        return seen

    def lengthen(self, seen: Observation) -> bool:
        """Ask for longer answers from now on if `seen` was over at once; whether it is so.

        A thousand tokens a second make an answer that one stall of the machine can cover.
        """
        reads = sum(arrival.events > 0 for arrival in seen.arrivals)
        short = reads > 1 and features.lasting(seen) < SHORTEST_SECONDS
        quick = short and (seen.end_seconds or 9) < 2 * SHORTEST_SECONDS
        if not quick or self.tokens >= MOST_TOKENS:
            return False
        self.tokens = min(MOST_TOKENS, 4 * self.tokens)
        return True

    def pause(self, tried: int) -> None:
        """Leave a busy machine alone for a moment, the longer the more often it was tried."""
        time.sleep(min(PAUSE_SECONDS * 2**tried, LONGEST_PAUSE_SECONDS))

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
            self.cached[target.name] = kept
        return bool(first.numbered)

    def _first_model(self, target: Target) -> str:
        seen = self.ask(target, Way("generation", "GET"), Ask("/models", limit_seconds=20))
        where = f"{target.title} ({target.url}/models)"
        if seen.status in (404, 405, 501):
            # Small servers list none and take any name.
            self.notes.append(f"{where} lists no model: asked for {ANY_MODEL!r} (or give --model).")
            return ANY_MODEL
        if seen.status in (401, 403):
            raise CheckError(f"{where}: {no_stream(seen)}")
        if seen.status != 200:
            said = seen.error if seen.status else no_stream(seen)
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

    def silent_plan(self, seconds: float, *, heartbeats: bool = False) -> Plan:
        """Return an emission of few events around a silence."""
        run = f"{self.run_name}-quiet"
        return Plan(run, 8, (10,), 0, silence_seconds=seconds, heartbeats=heartbeats)


def _is_near(target: Target) -> bool:
    """Whether the server itself is near: what lies between it and us costs no time then."""
    if not target.origin:
        return False
    parts = urllib.parse.urlsplit(target.origin)
    place = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
    for _ in range(NEAR_TRIES):
        try:
            began = time.monotonic()
            socket.create_connection(place, timeout=5).close()
        except OSError:
            return False
        if time.monotonic() - began < NEAR_SECONDS / 2:
            return True
    return False


def no_stream(seen: Observation) -> str | None:
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
