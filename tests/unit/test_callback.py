"""What a run prints: a line per task, failures in plain words, and no secret."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from millrace import clock

SECRET = "hunter2-hunter2-hunter2"

PLAY = """
- name: Try the output
  hosts: all
  gather_facts: false
  tasks:
    - name: Look at something
      ansible.builtin.assert: {that: true}
      changed_when: false
    - name: Change something
      ansible.builtin.assert: {that: true}
      changed_when: true
    - name: Skip something
      ansible.builtin.assert: {that: true}
      when: false
    - name: Change some of several
      ansible.builtin.assert: {that: true, success_msg: "{{ item }}"}
      loop: [one, two]
      changed_when: item == 'two'
    - name: Handle a secret
      ansible.builtin.command: "echo hunter2-hunter2-hunter2"
      no_log: true
      changed_when: true
    - name: Show a text
      ansible.builtin.debug:
        msg: ["first line", "second line"]
    - name: Fail and go on
      ansible.builtin.fail: {msg: "No."}
      ignore_errors: true
      changed_when: false
    # A module's failure, with what it was told and what it printed.
    - name: Fail with a secret
      ansible.builtin.command: "cat /hunter2-hunter2-hunter2"
      no_log: true
      ignore_errors: true
      changed_when: false
    - name: Refuse
      ansible.builtin.assert:
        that: false
        fail_msg: ["This server is not ready:", "port 443 is taken by \\"apache2\\"."]
        quiet: true
    - name: Never reached
      ansible.builtin.assert: {that: true}
"""


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0, "0s"), (4.9, "4s"), (59.9, "59s"), (60, "1m00s"), (92, "1m32s"), (3599, "59m59s"),
     (3600, "1h00m"), (3725, "1h02m"), (90061, "25h01m")],
)  # fmt: skip
def test_durations_are_told_as_people_do(seconds: float, told: str) -> None:
    assert clock(seconds) == told


@pytest.fixture(scope="module")
def said(
    playbook: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> subprocess.CompletedProcess[str]:
    """Run a playbook with two servers in it, and keep what it printed."""
    book = tmp_path_factory.mktemp("callback") / "play.yml"
    book.write_text(PLAY)
    done: subprocess.CompletedProcess[str] = playbook("-i", "brook,lake,", str(book), check=False)
    return done


def lines(said: subprocess.CompletedProcess[str], word: str) -> list[str]:
    """Return the printed lines that hold `word`, without what only a busy machine adds: seconds
    behind a task, a line while it runs, and its place among the slowest.
    """
    found = [line.strip() for line in said.stdout.splitlines() if word in line]
    kept = [line for line in found if not line.endswith("…") and word in line.split("slowest:")[0]]
    return [re.sub(r" \(\d+s\)$", "", line) for line in kept]


def test_the_plays_name_is_printed(said: subprocess.CompletedProcess[str]) -> None:
    assert len(lines(said, "== Try the output")) == 1


def test_each_task_is_one_line_with_its_state_and_server(
    said: subprocess.CompletedProcess[str],
) -> None:
    told = sorted(lines(said, "Look at something"))
    assert told == ["ok      Look at something [brook]", "ok      Look at something [lake]"]
    told = sorted(lines(said, "Change something"))
    assert told == ["changed Change something [brook]", "changed Change something [lake]"]
    assert "TASK [" not in said.stdout


def test_what_is_skipped_is_not_news(said: subprocess.CompletedProcess[str]) -> None:
    assert lines(said, "Skip something") == []
    assert lines(said, "Never reached") == []


def test_of_several_items_those_that_changed_are_named(
    said: subprocess.CompletedProcess[str],
) -> None:
    assert lines(said, "changed two") != []
    assert lines(said, "changed one") == []


def test_a_secret_is_not_printed(said: subprocess.CompletedProcess[str]) -> None:
    assert SECRET not in said.stdout + said.stderr
    assert "changed Handle a secret [brook]" in [line.strip() for line in lines(said, "secret")]


def test_a_debug_message_is_printed_line_by_line(said: subprocess.CompletedProcess[str]) -> None:
    assert lines(said, "first line")[0] == "first line"
    assert lines(said, "second line")[0] == "second line"


def test_a_failure_that_is_ignored_is_printed_and_no_failed_task(
    said: subprocess.CompletedProcess[str],
) -> None:
    assert lines(said, "FAILED  Fail and go on") == []
    assert lines(said, "...ignoring") != []


def test_our_own_refusals_are_printed_plainly_and_once(
    said: subprocess.CompletedProcess[str],
) -> None:
    for line in ("This server is not ready:", 'port 443 is taken by "apache2".'):
        told = lines(said, line)
        assert told == [line] * 2, "once for each server, as it was written"


def test_a_failure_names_the_task_and_the_server(said: subprocess.CompletedProcess[str]) -> None:
    told = lines(said, "FAILED  Refuse")
    assert len(told) == 2
    for server in ("brook", "lake"):
        assert [line for line in told if server in line], f"which server is it? {told}"


def test_the_recap_counts_changes(said: subprocess.CompletedProcess[str]) -> None:
    (brook,) = [line for line in lines(said, "brook") if "ok=" in line]
    assert "changed=3" in brook
    assert "failed=1" in brook
    assert lines(said, "took ") != []
    assert said.returncode != 0


def test_check_mode_is_said(playbook: Callable[..., Any], tmp_path: Path) -> None:
    book = tmp_path / "play.yml"
    book.write_text("- {name: Look, hosts: all, gather_facts: false, tasks: []}\n")
    done = playbook("-i", "brook,", "--check", str(book), check=False)
    assert "nothing is changed" in done.stdout


NO_PYTHON = """
- hosts: all
  strategy: {strategy}
  gather_facts: {facts}
  tasks:
    - name: Use one that is elsewhere
      ansible.builtin.shell: {{cmd: /none/python3}}
      vars: {{ansible_python_interpreter: "{python}"}}
"""
HELP = "brook has no Python, by which Ansible works."


@pytest.mark.parametrize("strategy", ["mitogen_or_linear", "ansible.builtin.linear"])
def test_a_server_without_python_is_told_how_to_get_one(
    playbook: Callable[..., Any], tmp_path: Path, strategy: str
) -> None:
    play = NO_PYTHON.format(strategy=strategy, facts="true", python="/none/python3")
    (tmp_path / "play.yml").write_text(play)
    arguments = ("-i", "brook,", str(tmp_path / "play.yml"))
    done = playbook(*arguments, "-e", "ansible_python_interpreter=/none/python3", check=False)
    assert HELP in done.stdout, done.stdout
    assert "apt-get install -y python3" in done.stdout


def test_a_task_that_lacks_a_python_of_its_own_is_not_the_server(
    playbook: Callable[..., Any], tmp_path: Path
) -> None:
    play = NO_PYTHON.format(strategy="mitogen_or_linear", facts="false", python=sys.executable)
    (tmp_path / "play.yml").write_text(play)
    done = playbook("-i", "brook,", str(tmp_path / "play.yml"), check=False)
    assert "/none/python3" in done.stdout
    assert HELP not in done.stdout
