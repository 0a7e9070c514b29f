"""`./millrace test` itself: what runs side by side is counted, shown and waited for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from unit_kit import ROOT

sys.path.insert(0, str(ROOT / "tests"))
import run as runner
from run import Tally

FAILS = [sys.executable, "-c", "print('so it is'); raise SystemExit(1)"]
PASSES = [sys.executable, "-c", "print('all is well')"]


@pytest.fixture
def tally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tally:
    """A tally that prints into a file."""
    monkeypatch.setattr(runner, "REPORTS", tmp_path)
    return Tally(out=(tmp_path / "out").open("w+"))


def said(tally: Tally) -> str:
    """What was printed."""
    tally.out.seek(0)
    return tally.out.read()


def lane(name: str, command: list[str]) -> Callable[[Tally], bool]:
    """A lane of one check."""
    return lambda own: runner.run(own, name, command)


def test_a_lane_that_fails_is_counted_and_shown(tally: Tally) -> None:
    with runner.beside(tally, {"left": lane("a", FAILS), "right": lane("b", PASSES)}) as results:
        assert runner.run(tally, "middle", PASSES)
    assert results == [False, True]
    assert (tally.passed, tally.failed) == (2, 1)
    assert set(tally.seconds) == {"a", "b", "middle"}
    assert "so it is" in said(tally)
    assert "-- a: FAILED" in said(tally)


def test_what_lanes_print_is_not_mixed(tally: Tally) -> None:
    slowly = [sys.executable, "-uc", "import time\nfor n in range(9): print(n); time.sleep(0.02)"]
    with runner.beside(tally, {"left": lane("a", slowly), "right": lane("b", slowly)}):
        pass
    assert said(tally).count("\n".join("012345678")) == 2


def test_they_are_waited_for_when_the_main_one_breaks_off(tally: Tally) -> None:
    with pytest.raises(KeyError), runner.beside(tally, {"left": lane("a", FAILS)}):
        raise KeyError
    assert tally.failed == 1


def test_an_error_of_a_lane_is_an_error(tally: Tally) -> None:
    def broken(own: Tally) -> bool:
        own.say("about to break")
        raise OSError("no such thing")

    with pytest.raises(OSError, match="no such thing"), runner.beside(tally, {"left": broken}):
        pass
    assert "about to break" in said(tally)


def test_a_pytest_without_a_report_failed(tally: Tally) -> None:
    assert not runner.pytest(tally, "none", ["--no-such-option"])
    assert (tally.passed, tally.failed) == (0, 1)
