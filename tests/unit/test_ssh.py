"""Who may not be shut out by keys only, and how a run that came in by ssh is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ssh_facts
from ssh_problems import ssh_problems

SEEN: dict[str, Any] = {"user": "root", "authorized_keys": 1, "authorized_otherwise": False}


def judged(
    root_login: str = "prohibit-password",
    password: bool = False,
    key_works: bool = True,
    **seen: Any,
) -> list[str]:
    """The problems of a server that is well but for this."""
    return ssh_problems({**SEEN, **seen}, root_login, password=password, key_works=key_works)


def test_has_nothing_against_keys_where_keys_work() -> None:
    assert judged() == []
    assert judged("no", user="admin") == []
    assert judged(authorized_keys=0, authorized_otherwise=True) == []


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"password": True}, "logs in with a password"),
        ({"authorized_keys": 0}, "no key is authorized for root"),
        ({"key_works": False}, "root cannot come in by key alone"),
        ({"root_login": "no"}, "ssh_root_login is no, and this run comes in as root"),
    ],
)
def test_refuses(settings: dict[str, Any], told: str) -> None:
    (problem,) = judged(**settings)
    assert told in problem


def test_tells_a_file_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "drop-in").write_text("Port 22\n")
    assert ssh_facts.text(str(tmp_path / "drop-in")) == "Port 22\n"
    assert ssh_facts.text(str(tmp_path / "none")) == ssh_facts.text(None) == ""


def test_keys_are_looked_for_where_sshd_does(tmp_path: Path) -> None:
    pattern = ".ssh/authorized_keys /etc/keys/%u %h/more 100%%"
    assert ssh_facts.key_files(pattern, "ann", "/home/ann") == [
        Path("/home/ann/.ssh/authorized_keys"), Path("/etc/keys/ann"), Path("/home/ann/more"),
        Path("/home/ann/100%"),
    ]  # fmt: skip
    keys = tmp_path / "keys"
    keys.write_text("# mine\n\nssh-ed25519 AAAA ann\n  # old\nssh-rsa AAAA\n")
    assert ssh_facts.count_keys([keys, tmp_path / "none"]) == 2


def test_a_session_is_found_above_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    above = {9: 8, 8: 7, 7: 1}
    said = {7: {"SSH_CONNECTION": "::ffff:192.0.2.7 5 192.0.2.1 2222", "USER": "ann"}}
    monkeypatch.setattr(ssh_facts, "parent", lambda pid: above.get(pid, 0))
    monkeypatch.setattr(ssh_facts, "environment", lambda pid: said.get(pid, {}))
    assert ssh_facts.session(9) == {"address": "192.0.2.7", "port": 2222, "user": "ann"}
    assert ssh_facts.session(1) == {}
