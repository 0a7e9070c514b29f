"""An even delay, and from where it can be seen: one busy moment makes no distance."""

from __future__ import annotations

import dataclasses
import socket
import time
from typing import Any

import pytest
from streamcheck import asker, judge
from streamcheck.asker import Asker
from streamcheck.doubts import Doubts
from streamcheck.model import Hop, Observation, Target, Way
from streamcheck_kit import PLAN, emitted

LATE = emitted(lambda s: s + 0.041, is_near=True)
UNTOLD = emitted(lambda s: s + 0.041)
SHAKEN = emitted(lambda s: s + 0.041 + (s * 997 % 1) * 0.030, is_near=True)
IN_TIME = emitted(lambda s: s, is_near=True)
PROXY = Target("public", "the proxy", "http://p/v1", origin="http://n")


def kinds_of(*observations: Observation) -> list[str]:
    return [found.kind for found in judge.judge(Hop(PROXY, list(observations)), None, PLAN)]


def test_what_cannot_tell_a_delay_does_not_deny_it() -> None:
    assert kinds_of(LATE, UNTOLD, LATE) == ["delayed"]
    assert kinds_of(LATE, SHAKEN, LATE) == ["delayed"]
    assert kinds_of(LATE, IN_TIME, LATE) == []
    assert kinds_of(UNTOLD, UNTOLD) == []


@pytest.mark.parametrize(
    ("again", "settled"),
    [
        ([LATE], "delayed"),
        ([UNTOLD, SHAKEN, LATE], "delayed"),
        ([IN_TIME], ""),
        ([UNTOLD], "a doubt"),
    ],
)
def test_a_delay_is_settled_by_what_can_tell(again: list[Observation], settled: str) -> None:
    answers = iter(again + again[-1:] * 6)

    class Script:
        plan, notes = PLAN, []  # type: ignore[var-annotated]

        def pause(self, tried: int) -> None:
            pass

        def again(self, target: Target, way: Way) -> Observation:
            return next(answers)

    hop = Hop(PROXY, [LATE], judge.judge(Hop(PROXY, [LATE]), None, PLAN))
    Doubts(Script(), lambda _: None, elsewhere=None).settle(hop, None)  # type: ignore[arg-type]
    assert [found.kind for found in hop.findings] == ([settled] if settled == "delayed" else [])
    assert bool(hop.doubts) == (settled == "a doubt")


@pytest.mark.parametrize(
    ("seconds", "near"),
    [((0.0,), True), ((0.05, 0.05, 0.0), True), ((0.03, 0.03, 0.03), False), ((None,), False)],
)
def test_near_is_what_the_quickest_connection_says(
    seconds: Any, near: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter(seconds)

    def connect(*_: Any, **__: Any) -> socket.socket:
        took = next(left)
        if took is None:
            raise ConnectionRefusedError
        time.sleep(took)
        return socket.socket()

    monkeypatch.setattr(asker.socket, "create_connection", connect)
    assert asker._is_near(PROXY) == near


def test_one_slow_connection_makes_no_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    took = iter([0.005, 0.2, 0.004])
    monkeypatch.setattr(
        asker, "observe", lambda *_: dataclasses.replace(UNTOLD, connect_seconds=next(took))
    )
    asking = Asker("model")
    asking._near = {PROXY.name}
    ways = [asking.emission(PROXY, Way("emitter"), PLAN).is_near for _ in range(3)]
    assert ways == [True, True, True]
    far = Target("far", "far away", "http://f/v1")
    monkeypatch.setattr(asker, "observe", lambda *_: dataclasses.replace(UNTOLD))
    assert not asking.emission(far, Way("emitter"), PLAN).is_near
