"""What is on trial is taken back unless confirmed, wherever a run dies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trial


@pytest.fixture
def armed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A state of its own, and a list of what systemd was asked."""
    asked: list[str] = []
    monkeypatch.setattr(trial, "STATE", tmp_path / "trials")
    monkeypatch.setattr(trial, "arm", lambda name, seconds: asked.append(f"arm {name} {seconds}"))
    monkeypatch.setattr(trial, "disarm", lambda name: asked.append(f"disarm {name}"))
    return asked


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The file, as it is before."""
    file = tmp_path / "etc/rules"
    file.parent.mkdir()
    file.write_text("old")
    file.chmod(0o644)
    return file


def begin(place: Path, text: str = "new", **more: Any) -> dict[str, Any]:
    """Begin a trial whose file is in force once it was copied to `live`."""
    live = place.with_name("live")
    copy = f"cp {place} {live} 2>/dev/null || rm -f {live}"
    given: dict[str, Any] = {
        "mode": 0o644,
        "check": ["grep", "-qv", "bad", "%s"],
        "apply": ["sh", "-c", copy],
        "agrees": ["cmp", "-s", str(place), str(live)],
        "seconds": 60,
        **more,
    }
    return trial.begin("rules", place, text, **given)


def live(place: Path) -> str:
    """What is in force."""
    file = place.with_name("live")
    return file.read_text() if file.exists() else ""


def test_confirmed_it_holds_and_a_second_run_does_nothing(armed: list[str], place: Path) -> None:
    told = begin(place)
    assert told["changed"]
    assert (live(place), armed) == ("new", ["arm rules 60"])
    trial.confirm("rules", told["trial"], 60)
    assert armed[-1] == "disarm rules"
    assert not trial.undo("rules")
    again = begin(place)
    assert (again["changed"], again["trial"], again["notes"]) == (False, "", [])
    assert live(place) == "new"


def test_unconfirmed_it_is_taken_back_and_the_next_run_says_so(
    armed: list[str], place: Path
) -> None:
    told = begin(place)
    assert trial.undo("rules")
    assert (place.read_text(), live(place)) == ("old", "old")
    with pytest.raises(trial.TrialError, match="nobody could come back within 60 s"):
        trial.confirm("rules", told["trial"], 60)
    (note,) = begin(place)["notes"]
    assert note.startswith("an unconfirmed rules was taken back at 20")
    assert live(place) == "new"


def test_where_there_was_nothing_there_is_nothing_again(armed: list[str], place: Path) -> None:
    place.unlink()
    begin(place)
    assert trial.undo("rules")
    assert not place.exists()
    assert live(place) == ""


def test_a_run_that_died_is_finished_by_the_next(armed: list[str], place: Path) -> None:
    begin(place)
    told = begin(place)
    assert told["notes"] == ["a run before this one ended before it had confirmed rules"]
    trial.confirm("rules", told["trial"], 60)
    assert live(place) == "new"
    assert not list(trial.STATE.glob("*"))


def test_another_runs_trial_cannot_be_confirmed(armed: list[str], place: Path) -> None:
    first = begin(place)
    begin(place, "newer")
    with pytest.raises(trial.TrialError):
        trial.confirm("rules", first["trial"], 60)


def test_a_bad_candidate_never_reaches_its_place(armed: list[str], place: Path) -> None:
    with pytest.raises(trial.TrialError, match="exit status 1"):
        begin(place, "bad")
    assert (place.read_text(), live(place), armed) == ("old", "", [])


def test_what_cannot_be_put_in_force_is_taken_back_at_once(armed: list[str], place: Path) -> None:
    apply = ["sh", "-c", f"cp {place} {place.with_name('live')}; grep -q old {place}"]
    with pytest.raises(trial.TrialError, match="taken back at once"):
        begin(place, apply=apply)
    assert (place.read_text(), live(place)) == ("old", "old")
    assert armed == ["arm rules 60", "disarm rules"]
    assert not list(trial.STATE.glob("*.json"))


def test_without_a_timer_nothing_is_changed(
    armed: list[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, seconds: int) -> None:
        raise trial.TrialError("no timer")

    monkeypatch.setattr(trial, "arm", refuse)
    with pytest.raises(trial.TrialError, match="no timer"):
        begin(place)
    assert (place.read_text(), live(place)) == ("old", "")
    assert not list(trial.STATE.glob("*.json"))


def test_a_boot_puts_the_file_back_before_anything_reads_it(armed: list[str], place: Path) -> None:
    begin(place)
    assert trial.recover() == ["rules"]
    assert (place.read_text(), live(place)) == ("old", "new")
    assert trial.recover() == []


def test_check_mode_only_looks(armed: list[str], place: Path) -> None:
    told = begin(place, dry=True)
    assert told["changed"]
    assert (told["before"], told["after"]) == ("old", "new")
    assert (place.read_text(), live(place), armed) == ("old", "", [])
    with pytest.raises(trial.TrialError):
        begin(place, "bad", dry=True)


def test_what_somebody_else_changed_is_mended(armed: list[str], place: Path) -> None:
    trial.confirm("rules", begin(place)["trial"], 60)
    place.with_name("live").write_text("tinkered")
    told = begin(place)
    assert told["changed"]
    assert told["notes"] == [f"what held was not what {place} says"]
    assert live(place) == "new"


def test_the_record_tells_all_that_the_way_back_needs(armed: list[str], place: Path) -> None:
    begin(place)
    record = json.loads(trial.pending("rules").read_text())
    assert record["previous"] == "old"
    assert trial.pending("rules").stat().st_mode & 0o777 == 0o600
