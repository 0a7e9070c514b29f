"""What every other module needs from this machine: commands, locks, processes, mounts."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


# Locks that this process holds, shared with the commands it runs: should it be killed, whoever
# comes next waits for them too, and does not clear away what a command is still writing.
HELD: list[int] = []


class SandboxError(Exception):
    """Something an owner can read and mend; printed without a traceback."""


def run(
    argv: Sequence[str],
    *,
    check: bool = True,
    stdin: str = "",
    timeout: float = 300,
    env: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command and keep what it printed; say which command failed and why."""
    try:
        done = subprocess.run(
            list(argv),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            pass_fds=HELD,
            timeout=timeout,
            env=env,
        )
    except FileNotFoundError as error:
        raise SandboxError(f"{argv[0]} is not installed on this machine") from error
    except subprocess.TimeoutExpired as error:
        raise SandboxError(f"{' '.join(argv)}: no end after {timeout:.0f} s") from error
    if check and done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-2000:]
        raise SandboxError(f"{' '.join(argv)}: exit status {done.returncode}: {said}")
    return done


@contextlib.contextmanager
def locked(directory: Path, timeout: float = 600) -> Iterator[None]:
    """Hold a directory against every other process; it may be removed while held.

    The lock lives on the directory itself, so nothing is left over after it is gone. Whoever
    waited for one that was removed finds another inode under the name, and starts again.
    """
    deadline = time.monotonic() + timeout
    while True:
        directory.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        try:
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise SandboxError(
                            f"{directory} has been held by another run for {timeout:.0f} s"
                        ) from error
                    time.sleep(0.1)
            if directory.exists() and os.path.samestat(os.fstat(handle), directory.stat()):
                HELD.append(handle)
                yield
                return
        finally:
            if handle in HELD:
                HELD.remove(handle)
            os.close(handle)


def write(path: Path, text: str, mode: int = 0o644) -> bool:
    """Write a file whole or not at all; tell whether it changed.

    Whole for whoever reads it after a killed run. Not synced: after a crash of the machine there
    is no server either, and syncing would wait for a whole root to reach the disk.
    """
    if path.is_file() and not path.is_symlink() and path.read_text() == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "w") as file:
        file.write(text)
    new.replace(path)
    return True


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a missing or broken file is an empty one."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: Path, value: dict[str, Any]) -> bool:
    """Write a JSON object whole or not at all; tell whether it changed."""
    return write(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def boot_id() -> str:
    """Name this boot of the machine: what was recorded in another one is history."""
    return BOOT_ID.read_text().strip()


# Processes. A pid alone may have been given to somebody else since: it is always kept together
# with the time its process started, and only a process that matches both is ever signalled.


def started_at(pid: int) -> str:
    """Return when a process started, in clock ticks since boot; empty when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]


def record_pid(path: Path, pid: int) -> None:
    """Write down a process that we started."""
    write(path, f"{pid} {started_at(pid)} {boot_id()}\n")


def recorded_pid(path: Path) -> int:
    """Return the process that was written down, or 0 when it is gone."""
    try:
        pid, started, boot = path.read_text().split()
    except (OSError, ValueError):
        return 0
    alive = boot == boot_id() and started_at(int(pid)) == started
    return int(pid) if alive else 0


def wait_gone(path: Path, seconds: float) -> bool:
    """Wait for a recorded process to end; False when it is still there."""
    deadline = time.monotonic() + seconds
    while recorded_pid(path):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def send(path: Path, signum: int) -> None:
    """Signal a recorded process, if it still is the one that was recorded."""
    pid = recorded_pid(path)
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)


# Control groups. Every server lives in one of its own, so that whatever it started can be found
# and ended, even after its supervisor and systemd-nspawn itself were killed.


def cgroup_roots() -> list[Path]:
    """Return the mounted hierarchies that systemd-nspawn tracks processes in."""
    roots = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(maxsplit=2)
        if kind == "cgroup2" or (kind == "cgroup" and "name=systemd" in options.split(",")):
            roots.append(Path(left.split()[4]))
    return roots


def cgroup_pids(group: Path) -> list[int]:
    """Return every process in a control group and below it."""
    pids: list[int] = []
    for procs in group.rglob("cgroup.procs"):
        with contextlib.suppress(OSError):
            pids += [int(pid) for pid in procs.read_text().split() if pid != "0"]
    return pids


def cgroup_kill(group: Path) -> None:
    """End every process in a control group that we made, and wait until it is empty."""
    for _ in range(200):
        pids = cgroup_pids(group)
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    raise SandboxError(f"processes {cgroup_pids(group)} in {group} do not end")


def cgroup_remove(group: Path) -> None:
    """Remove an empty control group with all below it; a busy one stays."""
    if group.is_dir():
        for child in [entry for entry in group.iterdir() if entry.is_dir()]:
            cgroup_remove(child)
        with contextlib.suppress(OSError):
            group.rmdir()


def remove_tree(path: Path) -> None:
    """Remove a folder of ours, after every mount below it: never what is mounted there."""
    below = f"{path}/"
    mounts = [
        line.split()[4].encode().decode("unicode_escape")
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
    ]
    for mount in sorted((m for m in mounts if m.startswith(below) or m == str(path)), reverse=True):
        run(["umount", "--lazy", mount])
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        # --one-file-system: should a mount appear meanwhile, its content stays
        run(["rm", "-rf", "--one-file-system", str(path)])


def room_for_tree(parent: Path, name: str) -> Path:
    """Return a new path for a system's root, where the file system will be quick.

    ext4 is slow to make files near many that were removed in the last minutes, as roots are all
    the time: ten times slower. A folder so marked spreads its children over the disk by name.
    """
    parent.mkdir(parents=True, exist_ok=True)
    if shutil.which("chattr"):
        run(["chattr", "+T", str(parent)], check=False)
    return parent / f"{name}-{secrets.token_hex(4)}"


def copy_tree(source: Path, target: Path) -> None:
    """Copy a system's root as it is; shared blocks where the file system can."""
    shutil.rmtree(target, ignore_errors=True)
    run(["cp", "-a", "--reflink=auto", str(source), str(target)])
