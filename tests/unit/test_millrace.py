"""The entry point: what it says to someone who does not know it yet."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from unit_kit import ROOT, clean_environment


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Copy the entry point alone, so that nothing of this checkout is used or made."""
    shutil.copy2(ROOT / "millrace", tmp_path / "millrace")
    (tmp_path / "requirements").mkdir()
    return tmp_path


def run(clone: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the entry point from another folder."""
    return subprocess.run(
        [clone / "millrace", *arguments],
        cwd="/", env=clean_environment(), capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


def verbs() -> list[str]:
    """Return the verbs that the script knows, from its own last `case`."""
    case = (ROOT / "millrace").read_text().rsplit("case $verb in", 1)[1]
    found = re.findall(r"^    ([a-z][a-z |-]*)\)", case, re.M)
    return [word for words in found for word in words.split(" | ") if not word.startswith("-")]


def test_a_plain_shell_can_read_it() -> None:
    script = ROOT / "millrace"
    assert script.read_text().startswith("#!/bin/sh\n")
    subprocess.run(["sh", "-n", script], check=True)


@pytest.mark.parametrize("asked", [(), ("help",), ("-h",), ("--help",)])
def test_help_names_every_verb(clone: Path, asked: tuple[str, ...]) -> None:
    done = run(clone, *asked)
    assert done.returncode == 0
    assert done.stderr == ""
    assert verbs() == ["help", "demo", "test", "site", "check", "plan", "key", "bench", "ask"]
    for verb in verbs():
        assert f"./millrace {verb}" in done.stdout


def test_an_unknown_verb_shows_the_help_and_says_which(clone: Path) -> None:
    done = run(clone, "deploy")
    assert done.returncode == 2
    assert "there is no verb 'deploy'" in done.stderr
    assert "./millrace site" in done.stderr
    assert done.stdout == ""


def test_site_without_an_inventory_says_what_to_copy(clone: Path) -> None:
    done = run(clone, "site", "--check")
    assert done.returncode == 2
    assert "cp" in done.stderr or "copy" in done.stderr
    assert "inventory/hosts.example.yml" in done.stderr
    assert not (clone / ".venv").exists()


def test_a_stale_environment_is_not_replaced_with_its_own_python(clone: Path) -> None:
    """With .venv activated, `python3` is the one that lies in what is about to be removed."""
    venv = clone / ".venv/bin"
    venv.mkdir(parents=True)
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        (venv / name).write_text("#!/bin/sh\nexit 0\n")
        (venv / name).chmod(0o755)
    for lock in ("controller", "dev", "pip"):
        (clone / f"requirements/{lock}.txt").write_text(f"{lock}==1\n")
    done = subprocess.run(
        [clone / "millrace", "check", "--help"], cwd="/", capture_output=True, text=True,
        env=clean_environment(PATH=f"{venv}:{os.environ['PATH']}"), timeout=120, check=False,
    )  # fmt: skip
    assert "Making .venv" in done.stderr
    assert "not found" not in done.stderr
    assert "pip could not install requirements/pip.txt" in done.stderr, "it has no hash"
    assert done.stdout == "", "what a check prints may go on into another program"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--bogus"], "--bogus"), (["--model"], "--model needs a name"), (["up"], "'up'")],
)
def test_demo_refuses_what_it_does_not_know(clone: Path, arguments: list[str], said: str) -> None:
    done = run(clone, "demo", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (clone / ".venv").exists()
