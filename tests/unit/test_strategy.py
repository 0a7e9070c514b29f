"""A run goes over Mitogen where it is installed, and does the same where it is not."""

from __future__ import annotations

import configparser
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from unit_kit import ROOT

PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.command: { argv: [sh, -c, "echo $PPID"] }
      register: first
    - ansible.builtin.command: { argv: [sh, -c, "echo $PPID"] }
      register: second
    - ansible.builtin.assert:
        that: (first.stdout == second.stdout) == (lasting | bool)
        fail_msg: "{{ [first.stdout, second.stdout, lasting] | to_json }}"
    - ansible.builtin.command: { argv: [grep, Cpus_allowed_list, /proc/self/status] }
      register: cores
    - ansible.builtin.assert:
        that: cores.stdout.split()[1] == ours
        fail_msg: "{{ [cores.stdout, ours] | to_json }}"
"""


@pytest.mark.parametrize("installed", [True, False])
def test_one_python_for_a_whole_run_where_mitogen_is_installed(
    playbook: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    if not installed:
        (tmp_path / "ansible_mitogen.py").write_text("raise ImportError")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "play.yml").write_text(PLAY)
    status = Path("/proc/self/status").read_text().splitlines()
    (ours,) = (line.split()[1] for line in status if line.startswith("Cpus_allowed_list"))
    settings = json.dumps({"lasting": installed, "ours": ours})
    done = playbook("-i", "brook,", str(tmp_path / "play.yml"), "-e", settings)
    assert "DEPRECATION" not in done.stdout + done.stderr


UMASK = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.command: { argv: [sh, -c, umask] }
      register: before
    - placed_files:
        entries:
          - { path: "{{ there }}", state: directory, owner: "{{ me }}", group: "{{ me }}" }
    - ansible.builtin.command: { argv: [sh, -c, umask] }
      register: after
    - ansible.builtin.assert:
        that: before.stdout == after.stdout
        fail_msg: "{{ [before.stdout, after.stdout] | to_json }}"
"""


def test_a_task_leaves_nothing_to_the_next_in_the_same_python(
    playbook: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "play.yml").write_text(UMASK)
    settings = json.dumps({"there": str(tmp_path / "there"), "me": str(os.getuid())})
    playbook("-i", "brook,", str(tmp_path / "play.yml"), "-e", settings)


KEPT = """
import importlib.util, json, py_compile, sys
spec = importlib.util.spec_from_file_location("ours", sys.argv[1])
spec.loader.exec_module(importlib.util.module_from_spec(spec))
import mitogen.imports, mitogen.master, mitogen.minify

def imported(source, path):
    code = mitogen.master.compile(source, path, "exec")
    return [name for _, name, _ in mitogen.imports.codeobj_imports(code)]

path, told = sys.argv[2], []
for source in (b"import json\\n", b"import csv, io\\n"):
    open(path, "wb").write(source)
    told.append(imported(source, path))
    py_compile.compile(path)
    told.append(imported(b"never looked at", path))
told.append(imported(b"import zlib\\n", path + ".gone"))
print(json.dumps([told, mitogen.minify.minimize_source(b"x = 1\\n\\n\\n# Why.\\n")]))
"""


def test_imports_are_those_of_the_file_as_it_is(tmp_path: Path) -> None:
    """Mitogen sends what a module imports along with it."""
    arguments = [str(ROOT / "plugins/strategy/mitogen_or_linear.py"), str(tmp_path / "module.py")]
    done = subprocess.run(
        [sys.executable, "-c", KEPT, *arguments], capture_output=True, text=True, check=True
    )
    (first, again, changed, once_more, gone), source = json.loads(done.stdout)
    assert first == again == ["json"]
    assert changed == once_more == ["csv", "io"]
    assert (gone, source) == (["zlib"], "x = 1\n\n\n# Why.\n")


def test_no_connection_is_spent_on_looking_for_a_python() -> None:
    """Mitogen makes one for each name that Ansible knows, and on this machine itself fails."""
    told = configparser.ConfigParser()
    told.read(ROOT / "ansible.cfg")
    assert told["defaults"]["interpreter_python"] == "/usr/bin/python3"
