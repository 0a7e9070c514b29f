"""The hand-over between the backend's two instances, with systemd played."""

from __future__ import annotations

import json
import re
from pathlib import Path

import backend_handover
import pytest
from backend_handover import (
    FORMER,
    SOCKET,
    TEMPLATE,
    Handover,
    HandoverError,
    Places,
    Systemd,
    unit,
)
from unit_kit import ROOT

SECRETS = ("gateway_key", "session_secret")


class Played(Systemd):
    """Units as systemd has them: a stopped one drains for as many looks as `drains` says."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.enabled: set[str] = set()
        self.broken = False
        self.drains = 0
        self.looks: dict[str, int] = {}
        self.log: list[str] = []

    def show(self, name: str) -> dict[str, str]:
        state = self.states.get(name, "inactive")
        if state == "deactivating":
            self.looks[name] -= 1
            if self.looks[name] < 0:
                state = self.states[name] = "inactive"
        return {
            "ActiveState": state,
            "StatusText": "drains: 2 open, 9 s left for them" if state == "deactivating" else "",
            "UnitFileState": "enabled" if name in self.enabled else "disabled",
        }

    def start(self, name: str) -> bool:
        self.log.append(f"start {name}")
        self.states[name] = "failed" if self.broken else "active"
        return not self.broken

    def stop(self, name: str, wait: bool = False) -> None:
        self.log.append(f"stop {name}")
        self.states[name] = "inactive" if wait or not self.drains else "deactivating"
        self.looks[name] = self.drains

    def enable(self, name: str) -> None:
        self.log.append(f"enable {name}")
        self.enabled.add(name)

    def disable(self, name: str) -> None:
        self.log.append(f"disable {name}")
        self.enabled.discard(name)

    def reload(self) -> None:
        self.log.append("reload")

    def journal(self, name: str, since: float) -> list[str]:
        return ["settings.json: models: List should have at least 1"]


class Server:
    """A server's folders, and what one run after another does to them."""

    def __init__(self, folder: Path) -> None:
        self.places = Places(folder / "root", folder / "config", folder / "units")
        for place in (self.places.root / "releases", self.places.config, self.places.units):
            place.mkdir(parents=True)
        self.systemd = Played()
        self.said: list[str] = []
        self.release("one")
        self.stage("settings.json", "first")
        for name in SECRETS:
            self.stage(name, "sk-first")
            (self.places.config / name).chmod(0o600)
        (self.places.units / TEMPLATE).write_text("[Service]\n")

    def release(self, name: str) -> None:
        self.path = self.places.root / "releases" / name
        self.path.mkdir(exist_ok=True)

    def stage(self, name: str, text: str) -> None:
        (self.places.config / name).write_text(text)

    def handover(self) -> Handover:
        return Handover(
            self.places, self.systemd, self.path, self.said.append, sleep=lambda _: None
        )

    def run(self, again: bool = False) -> Handover:
        made = self.handover()
        made.run(again)
        return made

    def up(self) -> set[str]:
        return {name for name, state in self.systemd.states.items() if state == "active"}

    def runs_from(self, instance: str) -> tuple[str, ...]:
        folder = self.places.config / instance
        link = (self.places.root / instance).readlink()
        return link.name, *((folder / name).read_text() for name in backend_handover.FROZEN)


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


def settled(server: Server, instance: str) -> None:
    """What is true after each run that ended well."""
    assert server.up() == {unit(instance)}
    assert server.systemd.enabled == {unit(instance), SOCKET}
    assert server.handover().serving() == instance
    assert f"Service={unit(instance)}\n" in server.places.choice.read_text()
    assert (server.places.root / "current").resolve() == server.path
    assert server.handover().outdated() == server.handover().undone() == []


def test_the_first_time(server: Server) -> None:
    assert server.handover().outdated() == ["the first time"]
    assert server.run().changed
    settled(server, "a")
    assert server.runs_from("a") == ("one", "first", "sk-first", "sk-first")


def test_nothing_changed_nothing_handed_over(server: Server) -> None:
    server.run()
    server.systemd.log.clear()
    assert not server.run().changed
    assert server.systemd.log == []


@pytest.mark.parametrize("what", ["release", "settings.json", *SECRETS, "unit"])
def test_each_change_hands_over(server: Server, what: str) -> None:
    server.run()
    if what == "release":
        server.release("two")
    elif what == "unit":
        (server.places.units / TEMPLATE).write_text("[Service]\nNice=5\n")
    else:
        server.stage(what, "second")
    assert server.handover().outdated() == [what]
    assert server.run().changed
    settled(server, "b")


def test_the_new_one_serves_before_the_old_one_is_stopped(server: Server) -> None:
    server.run()
    server.systemd.log.clear()
    server.stage("settings.json", "second")
    server.run()
    log = server.systemd.log
    order = [f"start {unit('b')}", f"enable {unit('b')}", f"stop {unit('a')}"]
    assert [line for line in log if line in order] == order
    assert "reload" in log[log.index(order[1]) : log.index(order[2])]


def test_an_instance_is_what_it_was_whatever_is_staged(server: Server) -> None:
    server.run()
    server.stage("settings.json", "second")
    server.stage("gateway_key", "sk-second")
    server.release("two")
    server.run()
    assert server.runs_from("a") == ("one", "first", "sk-first", "sk-first")
    assert server.runs_from("b") == ("two", "second", "sk-second", "sk-first")
    assert server.run().releases() == sorted(
        str(server.places.root / "releases" / name) for name in ("one", "two")
    )


def test_copies_are_as_private_as_what_they_are_copies_of(server: Server) -> None:
    (server.places.config / "settings.json").chmod(0o640)
    server.places.config.chmod(0o750)
    server.run()
    folder = server.places.config / "a"
    modes = {file.name: file.stat().st_mode & 0o777 for file in [folder, *folder.iterdir()]}
    private = dict.fromkeys(("made.json", *SECRETS), 0o600)
    assert modes == {"a": 0o750, "settings.json": 0o640, **private}


def test_the_unit_reads_what_is_copied_and_nothing_else_of_the_configuration() -> None:
    text = (ROOT / "templates/systemd/millrace-backend@.service.j2").read_text()
    read = re.findall(r"\{\{ backend_config_dir \}\}/(\S+)", text)
    assert sorted(read) == sorted(f"%i/{name}" for name in backend_handover.FROZEN)


def test_one_that_does_not_start_leaves_the_old_one(server: Server) -> None:
    server.run()
    server.stage("settings.json", "broken")
    server.systemd.broken = True
    with pytest.raises(HandoverError) as raised:
        server.run()
    said = str(raised.value)
    assert "List should have at least 1" in said
    assert "a goes on serving as before" in said
    assert server.up() == {unit("a")}
    assert server.systemd.states[unit("b")] == "inactive"
    assert server.handover().serving() == "a"
    assert (server.places.root / "a").readlink().name == "one"
    # Mended, the next run finishes.
    server.systemd.broken = False
    server.run()
    settled(server, "b")


def test_a_third_waits_for_the_first_to_drain_and_says_so(server: Server) -> None:
    server.run()
    server.systemd.drains = 7
    for text in ("second", "third"):
        server.stage("settings.json", text)
        server.run()
    waits = [line for line in server.said if line.startswith("waiting for a, which drains: 2 open")]
    assert len(waits) > 1
    assert server.runs_from("a")[1] == "third"
    assert server.up() == {unit("a")}


def test_one_that_never_ends_is_not_waited_for_without_end(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.run()
    server.systemd.drains = 1_000_000
    server.stage("settings.json", "second")
    server.run()
    server.stage("settings.json", "third")
    monkeypatch.setattr(backend_handover, "GONE_SECONDS", 0.05)
    with pytest.raises(HandoverError, match="still deactivating"):
        server.run()
    assert server.handover().serving() == "b"
    assert unit("b") in server.up()


@pytest.mark.parametrize("after", ["_freeze", "_start", "_choose"])
def test_what_an_interrupted_run_left_is_finished(
    server: Server, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    server.run()
    server.stage("settings.json", "second")
    whole = getattr(Handover, after)

    def interrupted(*arguments: object) -> None:
        whole(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Handover, after, interrupted)
        with pytest.raises(KeyboardInterrupt):
            server.run()
    starts = server.systemd.log.count(f"start {unit('b')}")
    assert server.run().changed
    settled(server, "b")
    # One that serves already what it should is not started over.
    assert server.systemd.log.count(f"start {unit('b')}") == 1
    assert starts == (after != "_freeze")


def test_one_that_was_started_with_other_settings_and_never_chosen_is_not_taken(
    server: Server,
) -> None:
    server.run()
    server.stage("settings.json", "second")
    made = server.handover()
    made._freeze("b")
    server.systemd.start(unit("b"))
    server.stage("settings.json", "third")
    server.run()
    settled(server, "b")
    assert server.runs_from("b")[1] == "third"


def test_again_hands_over_what_did_not_change(server: Server) -> None:
    server.run()
    assert server.run(again=True).changed
    settled(server, "b")


@pytest.mark.parametrize("harm", ["stopped", "both up", "not enabled", "both enabled", "no socket"])
def test_what_somebody_changed_by_hand_is_put_right(server: Server, harm: str) -> None:
    server.run()
    systemd = server.systemd
    if harm == "stopped":
        systemd.stop(unit("a"))
    elif harm == "both up":
        systemd.start(unit("b"))
    elif harm == "not enabled":
        systemd.disable(unit("a"))
    elif harm == "both enabled":
        systemd.enable(unit("b"))
    else:
        systemd.disable(SOCKET)
    assert len(server.handover().undone()) == 1
    assert server.run().changed
    settled(server, "a")


def test_one_that_was_stopped_by_hand_and_does_not_start_says_so(server: Server) -> None:
    server.run()
    server.systemd.stop(unit("a"))
    server.systemd.broken = True
    with pytest.raises(HandoverError, match="nothing serves"):
        server.run()
    # It is left to systemd, which tries on.
    assert server.systemd.states[unit("a")] == "failed"


def test_the_former_service_goes_once_an_instance_serves(server: Server) -> None:
    former = server.places.units / FORMER
    former.write_text("[Service]\n")
    server.systemd.states[FORMER] = "active"
    server.systemd.enabled = {FORMER, SOCKET}
    server.run()
    assert not former.exists()
    settled(server, "a")
    log = server.systemd.log
    assert log.index(f"start {unit('a')}") < log.index(f"stop {FORMER}")
    assert log[-1] == "reload"


def test_the_former_service_stays_where_the_first_instance_does_not_start(server: Server) -> None:
    former = server.places.units / FORMER
    former.write_text("[Service]\n")
    server.systemd.states[FORMER] = "active"
    server.systemd.broken = True
    with pytest.raises(HandoverError, match="did not start"):
        server.run()
    assert former.exists()
    assert server.up() == {FORMER}


def test_the_command(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    places = server.places

    class Here(Places):
        def __init__(self, root: Path, config: Path) -> None:
            super().__init__(root, config, places.units)

    monkeypatch.setattr(backend_handover, "Places", Here)
    monkeypatch.setattr(backend_handover, "Systemd", lambda: server.systemd)
    where = ["--root", str(places.root), "--config", str(places.config)]
    log = places.config / "log"

    def run(*options: str) -> int:
        return backend_handover.main([*where, *options])

    first = [f"--release={server.path}", "--json"]
    assert run("--check", *first) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"changed": False, "left": ["the first time"], "serving": None, "releases": []}
    assert server.systemd.log == []
    assert run(*first, f"--log={log}") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["changed"] is True
    assert told["serving"] == "a"
    assert log.read_text().splitlines()[-1] == "a serves"
    # By hand: the release that serves is meant.
    assert run("--check") == 0
    assert capsys.readouterr().out == "a serves one\n"
    assert run("--again") == 0
    assert capsys.readouterr().out == "b serves one\n"
    server.stage("settings.json", "second")
    assert run("--check") == 0
    assert capsys.readouterr().out == "to do: settings.json\n"
    server.systemd.broken = True
    assert run(f"--log={log}") == 1
    assert log.read_text().splitlines()[-1] == "Mend it and run again."
