"""What was proved and has not changed since, so that a run that changes nothing asks for less.

A proof holds for a state: the start of each unit in the chain, and every byte that they were told.
Whoever restarts one of them or writes to a file, by whatever way, has it asked anew.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streamcheck.keep import write_whole
from streamcheck.model import CheckError

CGROUPS = Path("/sys/fs/cgroup")


def state(units: Sequence[str], paths: Sequence[str]) -> str:
    """Return a digest of how `units` run and of what lies at `paths`, folders with all in them.

    A link counts as where it leads, and what lies there is not looked at. Raises CheckError.
    """
    digest = hashlib.sha256()

    def add(*parts: str | bytes) -> None:
        for part in parts:
            digest.update(hashlib.sha256(part.encode() if isinstance(part, str) else part).digest())

    add(*_started(units))
    try:
        for top in map(Path, sorted(paths)):
            for path in sorted(top.rglob("*")) if top.is_dir() and not top.is_symlink() else [top]:
                if path.is_symlink():
                    add(str(path), str(path.readlink()))
                elif path.is_file():
                    add(str(path), path.read_bytes())
                elif not path.exists():
                    add(str(path), "absent")
    except OSError as error:
        raise CheckError(f"{error.filename} cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def _started(units: Sequence[str]) -> list[str]:
    """Return for each unit which start of it runs, and its processes. Raises CheckError.

    By the processes a reload is seen too: what nginx was told may be in no file any more.
    """
    shown = "--property=Id,ActiveState,InvocationID,ControlGroup"
    try:
        told = subprocess.run(
            ["systemctl", "show", shown, *units], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise CheckError(f"systemd does not say what runs: {error}") from None
    groups = [
        line.partition("=")[2] for line in told.stdout.splitlines() if "ControlGroup=" in line
    ]
    files = [CGROUPS / group.strip("/") / "cgroup.procs" for group in groups if group]
    return [told.stdout, *(file.read_text() for file in files if file.exists())]


def remembered(file: Path, now: str, hours: float, silence: float) -> dict[str, Any] | None:
    """Return the report that `file` holds, with a note, if it is of the state `now`.

    None where it is older than `hours`, where its silences were shorter than `silence` seconds,
    and where there is none.
    """
    try:
        kept = json.loads(file.read_bytes())
        report: dict[str, Any] = kept["report"]
        began = datetime.datetime.fromisoformat(report["started"])
        age = datetime.datetime.now(datetime.UTC) - began
        if kept["state"] != now or float(kept["silence"]) < silence:
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # A clock that was put back makes no proof young.
    if not datetime.timedelta(0) <= age <= datetime.timedelta(hours=hours):
        return None
    note = f"The hops on the server are as they were proved at {began:%H:%M} UTC: nothing changed."
    return {**report, "proved_before": True, "notes": [*report["notes"], note]}


def remember(file: Path, now: str, silence: float, report: dict[str, Any]) -> None:
    """Write a report down as the proof of the state `now`. Raises OSError."""
    kept = {"state": now, "silence": silence, "report": report}
    write_whole(file, json.dumps(kept), 0o600)
