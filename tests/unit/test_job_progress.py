"""How far a background job is, whatever state its files are in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Return the job's results file and its progress file."""
    return tmp_path / "job.results", tmp_path / ".progress"


def progress(module: Run, files: tuple[Path, Path], **more: Any) -> Any:
    """Run the module on the job's files."""
    return module(
        "job_progress", job=files[0].name, folder=str(files[0].parent), file=str(files[1]), **more
    )


def test_a_running_job_tells_its_last_line(module: Run, files: tuple[Path, Path]) -> None:
    files[0].write_text(json.dumps({"started": 1, "finished": 0, "ansible_job_id": "j1"}))
    files[1].write_text("12/96 packages: torch\n13/96 packages: numpy\n")
    told = progress(module, files)
    assert told["progress"] == "13/96 packages: numpy"
    assert told["finished"] is False
    assert told["changed"] is False
    assert files[0].exists()


def test_a_job_that_has_not_said_anything_yet(module: Run, files: tuple[Path, Path]) -> None:
    files[0].write_text(json.dumps({"started": 1, "finished": 0}))
    assert progress(module, files)["progress"] == ""
    files[1].write_text("")
    assert progress(module, files)["progress"] == ""


def test_a_finished_job_gives_its_own_result(module: Run, files: tuple[Path, Path]) -> None:
    files[0].write_text(json.dumps({"changed": True, "msg": "built"}))
    told = progress(module, files)
    assert (told["finished"], told["changed"], told["msg"]) == (True, True, "built")
    assert told.returncode == 0
    assert not files[0].exists()


def test_check_mode_looks_as_well(module: Run, files: tuple[Path, Path]) -> None:
    files[0].write_text(json.dumps({"started": 1, "finished": 0}))
    assert progress(module, files, check_mode=True)["finished"] is False


def test_a_failed_job_fails_with_its_own_words(module: Run, files: tuple[Path, Path]) -> None:
    files[0].write_text(json.dumps({"failed": True, "msg": "pip could not install", "rc": 1}))
    told = progress(module, files)
    assert told["failed"] is True
    assert told["finished"] is True
    assert told["msg"] == "pip could not install"
    assert told["rc"] == 1
    assert told.returncode != 0


def test_a_failed_job_without_words_still_says_something(
    module: Run, files: tuple[Path, Path]
) -> None:
    files[0].write_text(json.dumps({"failed": 1}))
    assert "failed without a word" in progress(module, files)["msg"]


def test_without_its_results_file_the_way_on_is_told(module: Run, files: tuple[Path, Path]) -> None:
    told = progress(module, files)
    assert told["failed"] is True
    assert "run the playbook again" in told["msg"]


@pytest.mark.parametrize("half", ["", '{"changed": tr', "\x00\x00"])
def test_a_results_file_caught_half_written_means_it_still_runs(
    module: Run, files: tuple[Path, Path], half: str
) -> None:
    files[0].write_text(half)
    files[1].write_text("unpacking\n")
    told = progress(module, files)
    assert told["finished"] is False
    assert told["progress"] == "unpacking"
    assert files[0].exists()


def test_a_line_caught_in_the_middle_of_a_letter_is_no_failure(
    module: Run, files: tuple[Path, Path]
) -> None:
    """Progress bars of other people's tools are drawn with letters of three bytes."""
    files[0].write_text(json.dumps({"started": 1, "finished": 0}))
    files[1].write_bytes("70% █".encode()[:-1])
    told = progress(module, files)
    assert told["finished"] is False
    assert told["progress"].startswith("70%")
