"""Plugins are loaded once in a run, not once in each of its tasks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

FILTER = """
with open({seen!r}, "a") as seen:
    seen.write("loaded\\n")


class FilterModule:
    def filters(self):
        return {{"twice": lambda value: value * 2}}
"""

PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.debug: { msg: "{{ 1 | twice }}" }
    - ansible.builtin.debug: { msg: "{{ 2 | twice }}" }
    - ansible.builtin.debug: { msg: "{{ 3 | twice }}" }
"""


def test_a_filter_is_loaded_once_for_a_run(playbook: Callable[..., Any], tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    (tmp_path / "filter_plugins").mkdir()
    (tmp_path / "filter_plugins/twice.py").write_text(FILTER.format(seen=str(seen)))
    (tmp_path / "play.yml").write_text(PLAY)
    playbook("-i", "brook,", str(tmp_path / "play.yml"))
    assert seen.read_text().split() == ["loaded"]
