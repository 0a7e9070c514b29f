"""What is asked again, how often, and what is made of it: with an asker that has a script."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from streamcheck.doubts import Doubts
from streamcheck.emission import Plan
from streamcheck.judge import judge
from streamcheck.model import Hop, Observation, Target, Way
from streamcheck_kit import answered, emitted, steady

PLAN = Plan("run")


HELD = answered([0.9] * 64)
SLOW = steady(0.06)
CUT = dataclasses.replace(steady(), ended="cut")


class Script:
    """Answers from a list, the last one for ever; counts what it was asked."""

    plan = PLAN

    def __init__(self, answers: list[Observation], lengths: dict[int, Observation]) -> None:
        self.answers, self.lengths = answers, lengths
        self.notes: list[str] = []
        self.asked = 0
        self.pauses: list[int] = []

    def pause(self, tried: int) -> None:
        self.pauses.append(tried)

    def again(self, target: Target, way: Way) -> Observation:
        self.asked += 1
        return self.answers[min(self.asked, len(self.answers)) - 1]

    def generation(self, target: Target, way: Way, tokens: int = 0) -> Observation:
        return self.lengths.get(tokens, steady())


def settle(
    first: Observation,
    then: list[Observation],
    *others: Observation,
    alone: bool = False,
    elsewhere: bool = False,
    **lengths: Observation,
) -> tuple[Hop, Script]:
    """Settle a hop that gave `first` and `others`, and then what stands in the list.

    `elsewhere`: only another machine could ask the hop behind.
    """
    behind = None if alone else Hop(Target("backend", "the backend", "http://b/v1"), [steady()])
    hop = Hop(Target("nginx", "nginx", "http://n/v1"), [first, *others])
    hop.findings = judge(hop, behind, PLAN)
    by_tokens = {int(name[1:]): seen for name, seen in lengths.items()}
    script = Script(then, by_tokens)
    doubts = Doubts(script, lambda _: None, elsewhere=behind if elsewhere else None)  # type: ignore[arg-type]
    doubts.settle(hop, behind)
    return hop, script


def test_what_comes_again_at_once_is_sure() -> None:
    hop, script = settle(CUT, [CUT])
    assert [(f.kind, f.confidence) for f in hop.findings] == [("truncated", 0.97)]
    assert script.asked == 1


def test_what_came_once_only_is_a_note() -> None:
    hop, script = settle(CUT, [steady()])
    assert (hop.findings, hop.doubts) == ([], [])
    assert "once, and not again" in script.notes[0]


def test_two_of_three_is_less_sure() -> None:
    hop, script = settle(CUT, [steady(), CUT])
    assert [(f.kind, f.confidence) for f in hop.findings] == [("truncated", 0.65)]
    assert script.asked == 2


def test_two_of_three_of_an_unsure_kind_is_asked_twice_more() -> None:
    hop, script = settle(SLOW, [steady(), SLOW])
    assert [(f.kind, f.confidence) for f in hop.findings] == [("slow_hop", 0.6)]
    assert script.asked == 3


def test_three_of_five_of_an_unsure_kind_is_a_doubt() -> None:
    hop, script = settle(SLOW, [steady(), SLOW, steady(), SLOW])
    assert hop.findings == []
    assert "3 times of 5" in hop.doubts[0]
    assert script.asked == 4


def test_two_of_five_is_a_note_that_says_so() -> None:
    hop, script = settle(SLOW, [steady(), SLOW, steady()])
    assert (hop.findings, hop.doubts) == ([], [])
    assert "2 times of 5 only" in script.notes[0]


def busy(seen: Observation) -> Observation:
    return dataclasses.replace(seen, busy_share=0.99)


def stalled(seen: Observation) -> Observation:
    return dataclasses.replace(seen, noise_seconds=0.3)


@pytest.mark.parametrize(("bad", "excuse"), [(SLOW, busy), (HELD, stalled)])
def test_a_machine_too_busy_to_tell_says_so(bad: Observation, excuse: Any) -> None:
    hop, script = settle(excuse(bad), [excuse(bad)])
    assert hop.findings == []
    assert "too busy to tell" in hop.doubts[0]
    assert script.asked == 6
    assert script.pauses == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("bad", "excuse"), [(SLOW, busy), (HELD, stalled)])
def test_an_answer_that_comes_well_is_a_proof_on_any_machine(bad: Observation, excuse: Any) -> None:
    hop, script = settle(excuse(bad), [excuse(steady())])
    assert (hop.findings, hop.doubts) == ([], [])
    assert script.notes
    assert script.asked == 3, "no more is asked where nothing came again"


def test_a_hold_is_told_from_a_buffer_by_a_longer_answer() -> None:
    longer = answered([0.9 + 0.8 * (n // 75) for n in range(320)])
    hop, _ = settle(HELD, [HELD], n16=answered([0.3] * 16), n320=longer)
    assert hop.findings[0].kind == "batched_bytes"
    hop, _ = settle(HELD, [HELD], n16=answered([0.3] * 16), n320=answered([4.0] * 320))
    assert hop.findings[0].kind == "whole_response_held"
    assert "comes later still" in hop.findings[0].summary


def test_alone_a_quick_engine_is_no_hold() -> None:
    quick = answered([0.05 + n * 0.0005 for n in range(64)])
    hop, _ = settle(quick, [quick], alone=True, n16=steady(0.0005, 16),
                    n320=steady(0.0005, 320))  # fmt: skip
    assert (hop.findings, hop.doubts) == ([], [])


def test_alone_a_quick_and_uneven_engine_is_no_hold() -> None:
    """Short answers come in a burst or two; a longer one flows."""
    short = answered([0.05 + n * 0.001 for n in range(64)])
    longer = answered([0.05 + n * 0.001 + (n // 40) * 0.004 for n in range(320)])
    hop, _ = settle(short, [short], alone=True, n16=steady(0.001, 16), n320=longer)
    assert (hop.findings, hop.doubts) == ([], [])


def test_alone_what_is_as_quick_at_any_length_is_a_doubt() -> None:
    at_once = answered([0.05] * 64)
    hop, _ = settle(at_once, [at_once], alone=True, n16=answered([0.05] * 16),
                    n320=answered([0.05] * 320))  # fmt: skip
    assert hop.findings == []
    assert "alike come all at once" in hop.doubts[0]


def test_alone_a_timer_that_a_short_answer_does_not_show_is_seen_in_a_longer_one() -> None:
    def every(milliseconds: int, tokens: int, pace: float) -> Observation:
        at = [n * pace * 1000 // milliseconds * milliseconds / 1000 for n in range(tokens)]
        return answered([0.1 + second for second in at])

    short = every(40, 64, 0.008)
    hop, _ = settle(short, [short], alone=True, n16=every(40, 16, 0.008),
                    n320=every(40, 320, 0.006))  # fmt: skip
    assert [(f.kind, f.confidence) for f in hop.findings] == [("batched_time", 0.75)]
    hop, _ = settle(short, [short], alone=True, n16=every(40, 16, 0.008),
                    n320=every(40, 320, 0.008))  # fmt: skip
    assert hop.findings == []
    assert "several tokens at a time" in hop.doubts[0]


@pytest.mark.parametrize("pace", [0.0006, 0.001, 0.0025])
def test_a_longer_answer_that_was_held_takes_longer_to_write(pace: float) -> None:
    """As long as the whole short one of the hop behind took to make: it was held all the same."""
    longer = answered([4.0 + n * pace for n in range(320)])
    hop, _ = settle(HELD, [HELD], n16=answered([0.3] * 16), n320=longer)
    assert [f.kind for f in hop.findings] == ["whole_response_held"]
    late = answered([0.25 + n * 0.0025 for n in range(320)])
    hop, _ = settle(HELD, [HELD], n16=answered([0.1] * 16), n320=late)
    assert hop.findings == [], "late once, and then it flows"


def test_a_hold_that_the_emitter_does_not_meet_is_no_fault_of_a_hop_with_others_behind_it() -> None:
    """LiteLLM held it, and was well when the server was asked: from outside nobody can know."""
    longer = {"n16": answered([0.3] * 16), "n320": answered([4.0] * 320)}
    flows = emitted(lambda sent: sent + 0.001)
    hop, _ = settle(HELD, [HELD], flows, elsewhere=True, **longer)
    assert hop.findings == []
    assert "too busy just now; check again" in hop.doubts[0]
    # The hop behind is asked beside it, or the emitter is held as well: then it is this hop.
    hop, _ = settle(HELD, [HELD], flows, **longer)
    assert [f.kind for f in hop.findings] == ["whole_response_held"]
    hop, _ = settle(HELD, [HELD], elsewhere=True, **longer)
    assert [f.kind for f in hop.findings] == ["whole_response_held"]
