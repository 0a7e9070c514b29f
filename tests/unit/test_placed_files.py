"""Folders and files are as they should be after one visit, and nothing changes at the second."""

from __future__ import annotations

import base64
import os
import pwd
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ME = pwd.getpwuid(os.getuid()).pw_name
MINE = {"owner": ME, "group": str(os.getgid())}

PLAY = """
- hosts: all
  gather_facts: false
  vars: {{ who: you }}
  tasks:
    - name: Place them
      placed_files:
        entries:
          - {{ path: "{there}/deep/er", state: directory, mode: "0750", {mine} }}
          - {{ path: "{there}/deep/er/hello", template: "{here}/hello.j2", {mine} }}
          - {{ path: "{there}/copy", src: "{here}/copy.txt", mode: "0600", {mine} }}
          - {{ path: "{there}/said", content: "{{{{ [who] | to_json }}}}", {mine} }}
          - {{ path: "{there}/gone", state: absent }}
      register: placed
    - ansible.builtin.copy:
        content: "{{{{ placed | to_json }}}}"
        dest: "{there}.json"
      check_mode: false
      diff: false
"""


def text(content: str) -> str:
    """Return a text as the controller's half hands it over."""
    return base64.b64encode(content.encode()).decode()


def mode(path: Path) -> int:
    """Return who may do what."""
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def place(module: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that runs the module with one entry."""

    def run(check_mode: bool = False, **entry: Any) -> Any:
        return module("placed_files", check_mode=check_mode, entries=[{**MINE, **entry}])

    return run


def test_a_file_is_written_once(place: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "file"
    first = place(path=str(file), content=text("hello\n"))
    assert first["changed"] is True
    assert first["changed_paths"] == [str(file)]
    assert (file.read_text(), mode(file)) == ("hello\n", 0o644)
    (difference,) = first["diff"]
    assert (difference["before"], difference["after"]) == ("", "hello\n")
    again = place(path=str(file), content=text("hello\n"))
    assert (again["changed"], again["changed_paths"], again["diff"]) == (False, [], [])


def test_a_mode_alone_is_put_right_and_told(place: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("hello\n")
    file.chmod(0o644)
    seen = place(path=str(file), content=text("hello\n"), mode="0600")
    assert mode(file) == 0o600
    assert seen["diff"][0]["before"]["mode"] == "0644"
    assert seen["diff"][0]["after"]["mode"] == "0600"


def test_check_mode_changes_nothing_and_says_the_same(
    place: Callable[..., Any], tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    kept.write_text("before")
    for entry in (
        {"path": str(kept), "content": text("after")},
        {"path": str(kept), "state": "absent"},
        {"path": str(tmp_path / "new"), "content": text("x")},
        {"path": str(tmp_path / "folder/in/it"), "state": "directory"},
    ):
        assert place(check_mode=True, **entry)["changed"] is True
    assert kept.read_text() == "before"
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "folder").exists()


def test_a_folder_and_what_it_is_in_get_the_same_mode(
    place: Callable[..., Any], tmp_path: Path
) -> None:
    assert place(path=str(tmp_path / "a/b"), state="directory", mode="0751")["changed"] is True
    assert (mode(tmp_path / "a"), mode(tmp_path / "a/b")) == (0o751, 0o751)
    assert place(path=str(tmp_path / "a/b"), state="directory", mode="0751")["changed"] is False


def test_what_should_not_be_is_removed_once(place: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("folder", "link"):
        assert place(path=str(tmp_path / name), state="absent")["changed"] is True
        assert not (tmp_path / name).is_symlink()
        assert not (tmp_path / name).exists()
        assert place(path=str(tmp_path / name), state="absent")["changed"] is False


def test_a_link_to_a_folder_goes_and_the_folder_stays(
    place: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    place(path=str(tmp_path / "link"), state="absent")
    assert (tmp_path / "folder").is_dir()
    assert not (tmp_path / "link").is_symlink()


def test_a_file_that_would_not_do_is_never_put_in_place(
    place: Callable[..., Any], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("good")
    said = place(path=str(file), content=text("bad"), validate="grep -q good %s")
    assert said.returncode == 1
    assert str(file) in said["msg"]
    assert file.read_text() == "good"
    done = place(path=str(file), content=text("good too"), validate="grep -q good %s")
    assert done["changed"] is True


@pytest.mark.parametrize("state", ["file", "directory"])
def test_neither_takes_the_place_of_the_other(
    place: Callable[..., Any], tmp_path: Path, state: str
) -> None:
    there = tmp_path / "there"
    if state == "file":
        there.mkdir()
    else:
        there.write_text("x")
    content = {"content": text("x")} if state == "file" else {}
    said = place(path=str(there), state=state, **content)
    assert said.returncode == 1
    assert str(there) in said["msg"]


@pytest.fixture(scope="module")
def played(
    playbook: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """Run the play for a look, in earnest and again; return where, and what each run printed."""
    here = tmp_path_factory.mktemp("placed")
    there = here / "server"
    there.mkdir()
    (there / "gone").write_text("x")
    (here / "hello.j2").write_text(
        "# {{ ansible_managed }}\n{% if true %}\nHello {{ who }}\n{% endif %}\n"
    )
    (here / "copy.txt").write_text("a {{ copy }}\n")
    mine = ", ".join(f'{key}: "{value}"' for key, value in MINE.items())
    (here / "play.yml").write_text(PLAY.format(there=there, here=here, mine=mine))
    runs = (["--check", "--diff"], [], [])
    said = [playbook("-i", "brook,", *more, str(here / "play.yml")).stdout for more in runs]
    return there, said


def test_templates_and_files_of_the_controller_arrive(played: tuple[Path, list[str]]) -> None:
    there, _ = played
    assert (there / "deep/er/hello").read_text() == "# Ansible managed\nHello you\n"
    assert (there / "copy").read_text() == "a {{ copy }}\n", "what is copied is no template"
    assert (there / "said").read_text() == '["you"]'
    assert mode(there / "copy") == 0o600
    assert not (there / "gone").exists()


def test_a_look_shows_differences_and_a_run_what_changed(played: tuple[Path, list[str]]) -> None:
    there, (looked, ran, again) = played
    assert "+Hello you" in looked
    assert f"changed {there}/deep/er/hello" in ran
    assert "changed Place them [brook]" in ran
    assert "ok      Place them [brook]" in again


@pytest.mark.parametrize(
    "entry",
    ['{ path: /tmp/x, content: "x", src: y }', "{ path: /tmp/x }",
     "{ path: /tmp/x, state: directory, content: x }", "{ path: /tmp/x, content: { a: 1 } }"],
)  # fmt: skip
def test_an_entry_that_makes_no_sense_is_refused(
    playbook: Callable[..., Any], tmp_path: Path, entry: str
) -> None:
    play = (
        f"- hosts: all\n  gather_facts: false\n  tasks:\n    - placed_files: {{entries: [{entry}]}}"
    )
    (tmp_path / "play.yml").write_text(play)
    done = playbook("-i", "brook,", str(tmp_path / "play.yml"), check=False)
    assert done.returncode == 2
    assert "exactly one of" in done.stdout or "content is no text" in done.stdout
