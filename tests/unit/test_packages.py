"""Packages: apt is asked where dpkg lacks one, and else left alone."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PYTHON = "/usr/bin/python3"
PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - name: Install
      packages: {{ names: {names} }}
      register: told
    # apt's module tells of its cache.
    - ansible.builtin.assert:
        that: [told is not changed, told.cache_updated is not defined]
"""


@pytest.fixture
def install(playbook: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Return a function that has packages installed on this machine, and returns what is said."""
    if shutil.which("dpkg-query") is None:
        pytest.skip("this machine has no dpkg")

    def run(names: str, check: bool = True) -> str:
        (tmp_path / "play.yml").write_text(PLAY.format(names=names))
        arguments = ("-i", "brook,", str(tmp_path / "play.yml"), "--check")
        done = playbook(*arguments, "-e", f"ansible_python_interpreter={PYTHON}", check=check)
        assert (done.returncode == 0) == check
        return str(done.stdout + done.stderr)

    return run


@pytest.mark.parametrize("names", ["[]", "[dpkg]", "[dpkg, coreutils]"])
def test_what_is_there_is_left_alone(install: Callable[..., Any], names: str) -> None:
    install(names)


@pytest.mark.parametrize("names", ["[millrace-none]", "[dpkg, millrace-none]", "['dpkg=0.1']"])
def test_apt_is_asked_for_what_is_not(install: Callable[..., Any], names: str) -> None:
    if subprocess.run([PYTHON, "-c", "import apt"], capture_output=True, check=False).returncode:
        pytest.skip(f"{PYTHON} has no apt")
    wanted = names.strip("[]'").rpartition(" ")[2]
    said = install(names, check=False)
    assert "No package matching" in said or "no available installation candidate" in said
    assert wanted.partition("=")[0] in said


@pytest.mark.parametrize("names", ["dpkg", "[[dpkg]]", "{dpkg: 1}"])
def test_names_are_a_list_of_texts(install: Callable[..., Any], names: str) -> None:
    assert "packages needs names, a list of packages" in install(names, check=False)
