"""What was proved holds while nothing changed, and not a moment longer."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from streamcheck import __main__ as cli
from streamcheck import proved
from streamcheck.model import CheckError

UNIT = "Id=nginx.service\nActiveState=active\nInvocationID={id}\nControlGroup=/system.slice/nginx\n"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a chain's files, what systemctl says, and the processes of its unit."""
    for folder in ("bin", "cgroup/system.slice/nginx", "etc/sites", "releases/1"):
        (tmp_path / folder).mkdir(parents=True)
    systemctl = tmp_path / "bin/systemctl"
    systemctl.write_text(f"#!/bin/sh\ncat {tmp_path}/units\n")
    systemctl.chmod(0o755)
    (tmp_path / "units").write_text(UNIT.format(id="one"))
    (tmp_path / "cgroup/system.slice/nginx/cgroup.procs").write_text("10\n11\n")
    (tmp_path / "etc/nginx.conf").write_text("proxy_buffering off;")
    (tmp_path / "current").symlink_to("releases/1")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.setattr(proved, "CGROUPS", tmp_path / "cgroup")
    return tmp_path


def now(server: Path) -> str:
    """The server's state."""
    return proved.state(["nginx.service"], [str(server / "etc"), str(server / "current")])


def restart(server: Path) -> None:
    (server / "units").write_text(UNIT.format(id="two"))


def reload(server: Path) -> None:
    (server / "cgroup/system.slice/nginx/cgroup.procs").write_text("10\n12\n")


def edit(server: Path) -> None:
    (server / "etc/nginx.conf").write_text("proxy_buffering on;")


def add(server: Path) -> None:
    (server / "etc/sites/other.conf").write_text("")


def take_away(server: Path) -> None:
    (server / "etc/nginx.conf").unlink()


def switch(server: Path) -> None:
    (server / "current").unlink()
    (server / "current").symlink_to("releases/2")


CHANGES = [restart, reload, edit, add, take_away, switch]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_changes_the_state(server: Path, change: Callable[[Path], None]) -> None:
    before = now(server)
    assert now(server) == before
    change(server)
    assert now(server) != before


def test_without_systemd_there_is_no_state(server: Path) -> None:
    (server / "bin/systemctl").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(CheckError, match="systemd does not say what runs"):
        now(server)


def report(minutes_ago: float = 1) -> dict[str, object]:
    """A report of a stream that was whole."""
    began = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=minutes_ago)
    return {"verdict": "streams", "started": began.isoformat(), "notes": ["a note"], "hops": []}


def test_it_holds_for_its_state_and_its_hours(tmp_path: Path) -> None:
    file = tmp_path / "proved.json"
    proved.remember(file, "this", 32, report(minutes_ago=90))
    assert file.stat().st_mode & 0o777 == 0o600
    known = proved.remembered(file, "this", 2, 32)
    assert known is not None
    assert known["proved_before"] is True
    assert known["notes"][0] == "a note"
    assert "nothing changed" in known["notes"][1]
    assert proved.remembered(file, "that", 2, 32) is None
    assert proved.remembered(file, "this", 1, 32) is None
    assert proved.remembered(file, "this", 0, 32) is None
    # A longer silence than was proved.
    assert proved.remembered(file, "this", 2, 40) is None
    assert proved.remembered(file, "this", 2, 0) is not None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"report": {"started": 5}}', "\xff"])
def test_what_is_no_proof_is_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "proved.json"
    assert proved.remembered(file, "this", 2, 0) is None
    file.write_text(text)
    assert proved.remembered(file, "this", 2, 0) is None


def test_a_clock_that_was_put_back_makes_no_proof_young(tmp_path: Path) -> None:
    proved.remember(tmp_path / "proved.json", "this", 32, report(minutes_ago=-60))
    assert proved.remembered(tmp_path / "proved.json", "this", 24, 32) is None


def test_asked_once_and_again_after_a_change(
    server: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    verdicts = iter(["streams", "streams", "broken", "broken"])

    def check(*_: object) -> dict[str, object]:
        asked.append("all of it")
        return {**report(), "verdict": next(verdicts), "error": None}

    monkeypatch.setattr(cli, "_check", check)
    chain = server / "chain.json"
    proof = {"file": str(server / "proved.json"), "units": ["nginx.service"],
             "paths": [str(server / "etc")]}  # fmt: skip
    chain.write_text(json.dumps({"proof": proof}))

    def run(hours: float = 24) -> dict[str, object]:
        cli.main(["--json", "--silence=0", f"--chain={chain}", f"--unless-proved={hours}"])
        told: dict[str, object] = json.loads(capsys.readouterr().out)
        return told

    assert "proved_before" not in run()
    assert run()["proved_before"] is True
    assert len(asked) == 1
    edit(server)
    assert "proved_before" not in run()
    assert len(asked) == 2
    # Who wants all of it asked gets it; and what is broken is never taken for proved.
    assert run(hours=0)["verdict"] == "broken"
    restart(server)
    assert run()["verdict"] == "broken"
    assert len(asked) == 4


def test_what_changes_meanwhile_is_not_proved(
    server: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(*_: object) -> dict[str, object]:
        edit(server)
        return {**report(), "error": None}

    monkeypatch.setattr(cli, "_check", check)
    chain = server / "chain.json"
    file = server / "proved.json"
    paths = [str(server / "etc")]
    chain.write_text(json.dumps({"proof": {"file": str(file), "units": [], "paths": paths}}))
    assert cli.main(["--json", f"--chain={chain}", "--unless-proved=24"]) == 0
    capsys.readouterr()
    assert not file.exists()


def test_it_is_for_a_servers_own_chain(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["https://example.org", "--unless-proved=24", "--json"]) == 2
    assert "for a server's own chain" in capsys.readouterr().err
