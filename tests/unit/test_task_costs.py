"""Where the time of a run goes: two tables at its end, for those who ask."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from task_costs import Cost, table

PLAY = """
- name: Spend time
  hosts: all
  gather_facts: false
  tasks:
    - name: Wait
      ansible.builtin.command: sleep 0.6
      changed_when: false
    - name: Compute
      ansible.builtin.set_fact:
        much: "{{ range(4000) | map('string') | join | length }}"
    - name: Skip
      ansible.builtin.command: "true"
      when: false
    - name: Skip
      ansible.builtin.command: "true"
      when: false
"""


def test_the_costliest_comes_first_and_the_rest_is_summed_up() -> None:
    costs = {"b": Cost(1, 1.0, 0.5), "a": Cost(2, 3.0, 0.25), "c": Cost(3, 0.5, 0.5)}
    title, first, rest = table("task", costs, 1)
    assert title.split() == ["seconds", "cpu", "runs", "task"]
    assert first.split() == ["3.00", "0.25", "2", "a"]
    assert rest.split() == ["1.50", "1.00", "4", "2", "more"]
    assert len(table("task", costs)) == 4


def test_a_run_says_where_its_time_went_when_asked(
    playbook: Callable[..., Any], tmp_path: Path
) -> None:
    book = tmp_path / "play.yml"
    book.write_text(PLAY)
    assert "runs  role" not in playbook("-i", "brook,", str(book)).stdout
    said = playbook("-i", "brook,", str(book), callbacks="task_costs").stdout
    told = {}
    for line in said.split("runs  role")[1].splitlines():
        if row := re.match(r" *([\d.]+) +([\d.]+) +(\d+)  (.+)$", line):
            told[row[4]] = (float(row[1]), float(row[2]), int(row[3]))
    assert told["Wait"][0] >= 0.6
    assert told["Wait"][0] - told["Wait"][1] > 0.3, "a wait is no work"
    assert told["Compute"][1] > 0.05, "a worker's work is counted"
    assert told["Skip"][2] == 2
    assert told["all of it"][2] == 5, "three tasks, one of them twice, and the reading"
