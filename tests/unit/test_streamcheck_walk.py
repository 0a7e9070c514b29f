"""In which order a hop is asked: the model's answers beside each other, or one after the other."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest
from streamcheck.asker import ANY_MODEL
from streamcheck.model import HTTP2, Finding, Hop, Observation, Target, Way
from streamcheck.walk import Walk
from streamcheck.wire import NotOfferedError
from streamcheck_kit import PLAN, steady

PUBLIC = Target("public", "the public address", "https://p/v1", has_emitter=False)
BEHIND = Hop(Target("nginx", "nginx", "https://n/v1"), [steady()])


class Script:
    """An asker whose answers are made by hand. `meeting`: so many ways must come together."""

    plan, model, notes = PLAN, ANY_MODEL, []  # type: ignore[var-annotated]

    def __init__(self, answer: Callable[[Way, int], Observation], meeting: int = 0) -> None:
        self.cached: dict[str, Finding] = {}
        self.asked: Counter[str] = Counter()
        self.most = 0
        self._answer = answer
        self._open = 0
        self._lock = threading.Lock()
        self._meeting = threading.Barrier(meeting, timeout=10) if meeting else None

    def again(self, target: Target, way: Way) -> Observation:
        return self.generation(target, way)

    def silent_plan(self, seconds: float) -> object:
        return dataclasses.replace(PLAN, silence_seconds=seconds)

    def has_emitter(self, target: Target) -> bool:
        return False

    def lengthen(self, seen: Observation) -> bool:
        return False

    def generation(self, target: Target, way: Way, tokens: int = 0) -> Observation:
        with self._lock:
            self.asked[str(way)] += 1
            self._open += 1
            self.most = max(self.most, self._open)
            first = sum(self.asked.values()) == 1
        try:
            if self._meeting and not first and self.asked[str(way)] == 1:
                self._meeting.wait()
            # An answer that takes no time would never be seen beside another.
            time.sleep(0.02)
            return dataclasses.replace(self._answer(way, self.asked[str(way)]), way=way)
        finally:
            with self._lock:
                self._open -= 1


def walked(script: Script, behind: Hop | None = None) -> Hop:
    walk = Walk([PUBLIC], script, lambda _: None, 0)  # type: ignore[arg-type]
    return walk.run(behind)[0]


def test_ways_are_asked_beside_each_other_once_the_first_answered() -> None:
    script = Script(lambda way, tried: steady(), meeting=3)
    hop = walked(script)
    assert len(hop.observations) == 4
    assert (hop.findings, hop.error, script.most) == ([], None, 3)
    assert str(hop.observations[0].way) == "POST http/1.1 identity"


def test_one_after_the_other_where_their_pace_is_held_to_a_hop_behind() -> None:
    script = Script(lambda way, tried: steady())
    hop = walked(script, BEHIND)
    assert (len(hop.observations), script.most) == (4, 1)


def test_who_is_asked_too_much_at_once_is_asked_alone() -> None:
    busy = dataclasses.replace(steady(), status=429, error="one at a time")
    script = Script(lambda way, tried: busy if tried == 1 and way.compressed else steady(), 3)
    hop = walked(script)
    assert [seen.status for seen in hop.observations] == [200] * 4
    assert hop.findings == []
    # Who refuses alone as well is told of.
    script = Script(lambda way, tried: busy if way.compressed else steady(), 3)
    assert [found.kind for found in walked(script).findings] == ["request_refused"]


@pytest.mark.parametrize("behind", [None, BEHIND])
def test_a_protocol_that_is_not_offered_is_left_out(behind: Hop | None) -> None:
    def answer(way: Way, tried: int) -> Observation:
        if way.protocol == HTTP2:
            raise NotOfferedError
        return steady()

    hop = walked(Script(answer), behind)
    assert [str(seen.way) for seen in hop.observations] == [
        "POST http/1.1 identity",
        "POST http/1.1 gzip, br, zstd",
    ]
    assert hop.error is None


def test_nothing_that_could_be_judged_is_said_at_the_first_answer() -> None:
    refused = dataclasses.replace(steady(), status=503, error="no engine", events=0)
    script = Script(lambda way, tried: refused)
    hop = walked(script)
    assert "no engine" in str(hop.error)
    assert sum(script.asked.values()) == 1
