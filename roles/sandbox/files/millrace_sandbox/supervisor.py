"""The process that stays: it starts systemd-nspawn again when the server reboots.

A reboot inside ends systemd-nspawn with status 133; a power-off ends it with 0, and the
supervisor with it. SIGTERM to the supervisor shuts the server down in order.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from .host import (
    cgroup_kill,
    cgroup_remove,
    cgroup_roots,
    read_json,
    record_pid,
    recorded_pid,
    send,
)

REBOOTED = 133
SYSTEMD_HERE = Path("/run/systemd/system")
# systemd-nspawn arranges the group it starts in as it likes, so the supervisor keeps out of it
KEEPER, BOX = "keeper", "box"


def unit(name: str) -> str:
    """Name a server's supervisor, where this machine runs systemd."""
    return f"millrace-sandbox-{name}.service"


def cgroups(name: str) -> list[Path]:
    """Return a server's control groups, one per hierarchy."""
    group = f"system.slice/{unit(name)}" if SYSTEMD_HERE.is_dir() else f"millrace-{name}"
    return [root / group for root in cgroup_roots()]


def enter_cgroups(name: str) -> None:
    """Move this process to its corner of the server's control groups."""
    for group in cgroups(name):
        (group / KEEPER).mkdir(parents=True, exist_ok=True)
        (group / KEEPER / "cgroup.procs").write_text("0")
        with contextlib.suppress(OSError):
            controllers = (group / "cgroup.controllers").read_text().split()
            (group / "cgroup.subtree_control").write_text(" ".join(f"+{c}" for c in controllers))


def log(text: str) -> None:
    """Say what happened, with the time."""
    print(f"{time.strftime('%F %T')} {text}", flush=True)


def init_of(nspawn: int) -> int:
    """Return the server's process 1 as this machine numbers it, or 0 before there is one."""
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{nspawn}/task/{nspawn}/children").read_text().split():
            for line in Path(f"/proc/{child}/status").read_text().splitlines():
                if line.startswith("NSpid:") and line.split()[-1] == "1" and len(line.split()) > 2:
                    return int(child)
    return 0


class Supervisor:
    """Keeps one server running until it powers off or is told to stop."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.launch = read_json(home / "launch.json")
        self.stopping = False
        self.deadline = 0.0

    def run(self) -> int:
        """Run the server, boot after boot; return what systemd-nspawn ended with."""
        record_pid(self.home / "supervisor.pid", os.getpid())
        enter_cgroups(self.launch["name"])
        signal.signal(signal.SIGTERM, self.stop)
        signal.signal(signal.SIGINT, self.stop)
        signal.signal(signal.SIGALRM, self.ask)
        quick = 0
        while True:
            began = time.monotonic()
            status = self.boot()
            quick = quick + 1 if time.monotonic() - began < 2 else 0
            if self.stopping or status != REBOOTED or quick >= 5:
                log(f"ended with status {status}{', on request' if self.stopping else ''}")
                return 0 if status in (0, REBOOTED) or self.stopping else 1
            log("rebooting")

    def boot(self) -> int:
        """Run the server once."""
        boxes = [group / BOX for group in cgroups(self.launch["name"])]
        for box in boxes:
            cgroup_kill(box)
            cgroup_remove(box)
            box.mkdir()

        def enter_box() -> None:
            for box in boxes:
                (box / "cgroup.procs").write_text("0")

        with (self.home / "console.log").open("ab") as console:
            nspawn = subprocess.Popen(
                self.launch["argv"],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                cwd="/",
                env={"PATH": os.environ["PATH"], **self.launch["environment"]},
                preexec_fn=enter_box,
            )
        record_pid(self.home / "nspawn.pid", nspawn.pid)
        log(f"started systemd-nspawn, process {nspawn.pid}")
        while not self.stopping and nspawn.poll() is None:
            init = init_of(nspawn.pid)
            if init:
                record_pid(self.home / "init.pid", init)
                break
            time.sleep(0.02)
        if self.stopping and not recorded_pid(self.home / "init.pid"):
            nspawn.kill()
        status = nspawn.wait()
        signal.setitimer(signal.ITIMER_REAL, 0)
        for box in boxes:  # killed, systemd-nspawn leaves the whole server behind
            cgroup_kill(box)
            cgroup_remove(box)
        return status

    def stop(self, _signal: int, _frame: FrameType | None) -> None:
        """Ask the server to power off, and give it a bounded time for that."""
        if not self.stopping:
            self.stopping = True
            self.deadline = time.monotonic() + self.launch["stop_seconds"]
            signal.setitimer(signal.ITIMER_REAL, 0.01, 1)

    def ask(self, _signal: int, _frame: FrameType | None) -> None:
        """Ask again, since a server that is just booting does not hear; kill it in the end."""
        if time.monotonic() < self.deadline:
            send(self.home / "init.pid", signal.SIGRTMIN + 3)
            return
        signal.setitimer(signal.ITIMER_REAL, 0)
        log("no answer to the request to power off: killing it")
        for group in cgroups(self.launch["name"]):
            cgroup_kill(group / BOX)


def supervise(home: str) -> int:
    """Be the supervisor of the server in a folder."""
    if not (Path(home) / "launch.json").exists():
        print(f"{home} holds no server", file=sys.stderr)
        return 1
    with (Path(home) / "supervisor.log").open("a") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    return Supervisor(Path(home)).run()
