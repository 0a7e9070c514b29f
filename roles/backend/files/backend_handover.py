"""Hands the backend's work over from one of its two instances to the other: nobody is refused.

The instances, millrace-backend@a and @b, listen on one socket, which is systemd's. Each has its own
copies of the settings and the secrets, and a link to its release, so that whatever it is
started again for, it is what it was. When the staged ones (settings.json and so on in the folder
of the configuration), the unit or the release are not what serves, the idle instance gets
copies of them and is started. Once it serves, it is the one for the next boot and for the socket
to start; the other one accepts nobody from then on and has the drain time to finish its streams.
Where the new one does not start, the old one was never touched.

What an interrupted run left undone is done by the next one. Exit status: 0 when the right
instance serves, 1 when that could not be brought about.

Standard library only: it runs under the system's Python.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

INSTANCES = ("a", "b")
TEMPLATE = "millrace-backend@.service"
SOCKET = "millrace-backend.socket"
FORMER = "millrace-backend.service"
"""The one service that there was before the two."""
FROZEN = ("settings.json", "gateway_key", "session_secret")
"""What the unit finds in an instance's own folder."""
UP = ("active", "activating", "reloading")
JOURNAL_LINES = 10
GONE_SECONDS = 600
"""Longer than an instance may drain: its own unit kills it much sooner."""


class HandoverError(Exception):
    """It could not be done; the text says how things are now, and what to do."""


def unit(instance: str) -> str:
    """Return an instance's unit."""
    return TEMPLATE.replace("@", f"@{instance}")


class Systemd:
    """What we ask of systemd."""

    def show(self, name: str) -> dict[str, str]:
        """Return what matters of a unit; one that does not exist is inactive."""
        told = self._run("show", "--property=ActiveState,StatusText,UnitFileState", name)
        return dict(line.split("=", 1) for line in told.splitlines() if "=" in line)

    def start(self, name: str) -> bool:
        """Start a unit and wait until it says that it serves; return whether it did."""
        command = ["systemctl", "start", name]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def stop(self, name: str, wait: bool = False) -> None:
        """Stop a unit; without `wait` it ends in its own time."""
        self._run("stop", *([] if wait else ["--no-block"]), name)

    def enable(self, name: str) -> None:
        """Have a unit started at boot; a reload is the caller's."""
        self._run("enable", "--quiet", "--no-reload", name)

    def disable(self, name: str) -> None:
        """Have a unit not started at boot; a reload is the caller's."""
        self._run("disable", "--quiet", "--no-reload", name)

    def reload(self) -> None:
        """Read all units anew."""
        self._run("daemon-reload")

    def journal(self, name: str, since: float) -> list[str]:
        """Return a unit's last lines since a Unix time."""
        command = ["journalctl", "--no-pager", "--output=cat", f"--lines={JOURNAL_LINES}",
                   f"--since=@{since:.0f}", f"--unit={name}"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.splitlines()

    def _run(self, *arguments: str) -> str:
        command = ["systemctl", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = done.stderr.strip() or f"exit status {done.returncode}"
            raise HandoverError(f"{' '.join(command)}: {said}")
        return done.stdout


@dataclass(frozen=True)
class Places:
    """Where things lie: releases and links to them, the configuration, systemd's units."""

    root: Path = Path("/opt/millrace/backend")
    config: Path = Path("/etc/millrace/backend")
    units: Path = Path("/etc/systemd/system")

    @property
    def choice(self) -> Path:
        """The drop-in by which the socket starts the instance that was chosen."""
        return self.units / f"{SOCKET}.d" / "serving.conf"


@dataclass
class Handover:
    """One run. `release` is the folder of the release that shall serve."""

    places: Places
    systemd: Systemd
    release: Path
    say: Callable[[str], None]
    sleep: Callable[[float], None] = time.sleep
    changed: bool = field(default=False, init=False)

    def serving(self) -> str | None:
        """Return the instance that was chosen last; None before the first time."""
        if not self.places.choice.exists():
            return None
        found = re.search(
            r"^Service=millrace-backend@([ab])\.", self.places.choice.read_text(), re.M
        )
        return found[1] if found else None

    def outdated(self) -> list[str]:
        """Return what the instance that serves was not made from, a word each."""
        instance = self.serving()
        return self._differences(instance) if instance else ["the first time"]

    def undone(self) -> list[str]:
        """Return what else is left to do, a few words each."""
        serving = self.serving()
        left = []
        for name in INSTANCES:
            up = self._state(name) in UP
            if up != (name == serving):
                left.append(f"{'stop' if up else 'start'} {name}")
            if self._enabled(unit(name)) != (name == serving):
                left.append(f"{'have' if name == serving else 'do not have'} {name} start at boot")
        if not self._enabled(SOCKET):
            left.append("have the socket listen at boot")
        if (self.places.units / FORMER).exists():
            left.append(f"stop and remove {FORMER}")
        # Before the first time there is no such instance to start.
        return left if serving else []

    def run(self, again: bool = False) -> None:
        """Bring it about; raises HandoverError."""
        if reasons := self.outdated() or (["asked for"] if again else []):
            self.say(f"handing over ({', '.join(reasons)})")
            self._hand_over()
        for what in self.undone():
            self.changed = True
            self.say(what)
        self._settle()

    def releases(self) -> list[str]:
        """Return the releases that an instance runs or may be started from again."""
        links = [self.places.root / name for name in INSTANCES]
        return sorted({str(link.readlink()) for link in links if link.is_symlink()})

    def _hand_over(self) -> None:
        old = self.serving()
        new = "b" if old == "a" else "a"
        self.systemd.reload()
        # Else it is left from a run that was interrupted just before the choice.
        if self._state(new) != "active" or self._differences(new):
            self._wait_until_gone(new)
            self._freeze(new)
            self._start(new, f"{old} goes on serving as before" if old else "nothing serves yet")
        self._choose(new)
        self.changed = True
        self.say(f"{new} serves")

    def _differences(self, instance: str) -> list[str]:
        try:
            made = json.loads((self.places.config / instance / "made.json").read_text())
        except (FileNotFoundError, ValueError):
            made = {}
        return [name for name, value in self._wanted().items() if value != made.get(name)]

    def _wanted(self) -> dict[str, str]:
        sources = {name: self.places.config / name for name in FROZEN}
        sources["unit"] = self.places.units / TEMPLATE
        digests = {
            name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in sources.items()
        }
        return {"release": str(self.release), **digests}

    def _freeze(self, instance: str) -> None:
        """Give an instance its own copies, and write down what they were made from."""
        folder = self.places.config / instance
        folder.mkdir(exist_ok=True)
        _like(self.places.config, folder)
        made = folder / "made.json"
        made.unlink(missing_ok=True)
        for name in FROZEN:
            _replace(folder / name, (self.places.config / name).read_bytes())
            _like(self.places.config / name, folder / name)
        _link(self.places.root / instance, self.release)
        _replace(made, json.dumps(self._wanted(), indent=1).encode() + b"\n")

    def _start(self, instance: str, otherwise: str) -> None:
        """Start an instance and wait until it serves; raise what it said where it does not."""
        self.say(f"starting {instance}")
        began = time.time()
        if self.systemd.start(unit(instance)):
            return
        said = self.systemd.journal(unit(instance), began)
        if instance != self.serving():
            # Else it would be tried for ever, and take requests the moment it comes up.
            self.systemd.stop(unit(instance), wait=True)
        said.append(f"{unit(instance)} did not start, see above; {otherwise}.")
        said.append("Mend it and run again.")
        raise HandoverError("\n".join(said))

    def _wait_until_gone(self, instance: str) -> None:
        """Wait for what is left of an instance's drain time, no more."""
        if self._state(instance) in UP:
            self.systemd.stop(unit(instance))
        until = time.monotonic() + GONE_SECONDS
        while (state := self._state(instance)) not in ("inactive", "failed"):
            if time.monotonic() > until:
                raise HandoverError(
                    f"{instance} is still {state} after {GONE_SECONDS} s and must end before it "
                    f"can be used again. See `systemctl status {unit(instance)}`, run again."
                )
            status = self.systemd.show(unit(instance)).get("StatusText", "")
            self.say(f"waiting for {instance}, which {status or 'ends'}")
            self.sleep(1)

    def _choose(self, instance: str) -> None:
        """Make an instance the one that is started: at boot, and by the socket."""
        self.places.choice.parent.mkdir(mode=0o755, exist_ok=True)
        text = f"# Written by millrace-handover.\n[Socket]\nService={unit(instance)}\n"
        _replace(self.places.choice, text.encode(), 0o644)
        _link(self.places.root / "current", self.release)
        self._enable_only(instance)
        self.systemd.reload()

    def _enable_only(self, instance: str | None) -> None:
        for name in INSTANCES:
            enabled = self._enabled(unit(name))
            if enabled and name != instance:
                self.systemd.disable(unit(name))
            elif not enabled and name == instance:
                self.systemd.enable(unit(name))
        if not self._enabled(SOCKET):
            self.systemd.enable(SOCKET)

    def _settle(self) -> None:
        """Leave nothing but the instance that serves."""
        serving = self.serving()
        self._enable_only(serving)
        for name in INSTANCES:
            if name == serving and self._state(name) != "active":
                self._start(name, "nothing serves")
            elif name != serving and self._state(name) in UP:
                self.systemd.stop(unit(name))
        former = self.places.units / FORMER
        if former.exists():
            self.systemd.disable(FORMER)
            self.systemd.stop(FORMER)
            former.unlink()
            self.systemd.reload()

    def _state(self, instance: str) -> str:
        return self.systemd.show(unit(instance)).get("ActiveState", "inactive")

    def _enabled(self, name: str) -> bool:
        return self.systemd.show(name).get("UnitFileState") == "enabled"


def _replace(file: Path, content: bytes, mode: int = 0o600) -> None:
    """Write a file whole or not at all, and never readable by more than `mode` says."""
    fresh = file.with_name(f".{file.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(content)
    fresh.chmod(mode)
    fresh.replace(file)


def _like(model: Path, file: Path) -> None:
    """Give `file` the owner, group and mode of `model`."""
    seen = model.stat()
    os.chown(file, seen.st_uid, seen.st_gid)
    shutil.copymode(model, file)


def _link(link: Path, target: Path) -> None:
    """Have `link` point at `target`, without a moment in which it points nowhere."""
    fresh = link.with_name(f".{link.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(link)


def _alone(config: Path) -> TextIO:
    """Wait until no other run is at work; the lock lasts as long as the file is open."""
    lock = (config / ".handover.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=os.environ.get("MILLRACE_PROG"), description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "--again", action="store_true",
        help="hand over although nothing changed: a restart that drops nothing",
    )  # fmt: skip
    parser.add_argument("--check", action="store_true", help="only say what would be done")
    parser.add_argument("--release", type=Path, help="its folder (default: the one that serves)")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    parser.add_argument("--log", type=Path, help="a file for what is said, beside standard error")
    parser.add_argument("--root", type=Path, default=Places.root, help="where releases lie")
    parser.add_argument("--config", type=Path, default=Places.config, help="the configuration")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Do what was asked and return the exit status."""
    options = _parser().parse_args(arguments)
    log = options.log.open("w") if options.log else None

    def say(line: str) -> None:
        for out in (sys.stderr, log):
            if out:
                print(line, file=out, flush=True)

    release = options.release or (options.root / "current").resolve()
    handover = Handover(Places(options.root, options.config), Systemd(), release, say)
    try:
        with _alone(options.config):
            left = [*handover.outdated(), *handover.undone()] if options.check else []
            if not options.check:
                handover.run(options.again)
    except (HandoverError, OSError) as error:
        say(str(error))
        return 1
    outcome = {
        "changed": handover.changed,
        "left": left,
        "serving": handover.serving(),
        "releases": handover.releases(),
    }
    if options.json:
        print(json.dumps(outcome))
    elif left:
        print(f"to do: {', '.join(left)}")
    else:
        print(f"{handover.serving()} serves {release.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
