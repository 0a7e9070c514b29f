"""Changes that could lock everybody out: tried for a while, and taken back unless confirmed.

    python3 trial.py undo NAME    put back what was there before (the timer runs this)
    python3 trial.py recover      the same for all, files only: at boot, before services start

What is on trial is one file and the command that makes it hold. Before the file is touched, what
was there is written down under STATE and a timer of systemd's is armed, so that whoever dies in
between (controller, connection, this program, the whole server) the way back is open. Only a
confirmation removes the record; it is the moment from which the change holds.

Standard library only: carried by the module `timed_trial`, and copied to the server for timer and
boot.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

STATE = Path("/var/lib/millrace/trials")
PROGRAM = "/usr/local/lib/millrace/trial.py"
COMMAND_SECONDS = 60


class TrialError(Exception):
    """Something an owner can read and mend."""


def run(argv: Sequence[str]) -> None:
    """Run a command; say what it said when it fails.

    Raises:
        TrialError: it failed, is missing, or did not end in COMMAND_SECONDS.
    """
    try:
        done = subprocess.run(
            list(argv), capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TrialError(f"{' '.join(argv)}: {error}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-2000:]
        raise TrialError(f"{' '.join(argv)}: exit status {done.returncode}: {said}")


def read(path: Path) -> str | None:
    """Return a file's text, or None where there is none."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def write(path: Path, text: str | None, mode: int = 0o600) -> None:
    """Write a file whole and for good, or remove it (None)."""
    if text is None:
        path.unlink(missing_ok=True)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w") as file:
            file.write(text)
            os.fchmod(handle, mode)
            file.flush()
            os.fsync(handle)
        Path(name).replace(path)
    with contextlib.suppress(FileNotFoundError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Keep timer, boot and controller from acting at once."""
    STATE.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(STATE, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def pending(name: str) -> Path:
    """Return where a trial that is not confirmed is written down."""
    return STATE / f"{name}.json"


def undone(name: str) -> Path:
    """Return where it is kept that a trial was taken back, for the next run to say so."""
    return STATE / f"{name}.undone"


def timer(name: str) -> str:
    """Name a trial's timer."""
    return f"millrace-trial-{name}"


def disarm(name: str) -> None:
    """Stop the timer, if there is one. Not its service: that may be who asks."""
    for verb, unit in (("stop", "timer"), ("reset-failed", "service")):
        subprocess.run(
            ["systemctl", verb, f"{timer(name)}.{unit}"], capture_output=True, check=False
        )


def arm(name: str, seconds: int) -> None:
    """Have the server put back what was there, after some seconds, by itself."""
    disarm(name)
    run(
        [
            *("systemd-run", "--quiet", "--collect", f"--unit={timer(name)}"),
            *(f"--on-active={seconds}s", "--timer-property=AccuracySec=100ms"),
            f"--description=Take back the unconfirmed {name}",
            *("/usr/bin/python3", PROGRAM, "undo", name),
        ]
    )


def take_back(name: str, *, apply: bool) -> bool:
    """Put back what a trial replaced, under the lock; tell whether there was one."""
    text = read(pending(name))
    if text is None:
        return False
    record = json.loads(text)
    write(Path(record["path"]), record["previous"], record["mode"])
    if apply:
        run(record["apply"])
    write(undone(name), time.strftime("%F %T %Z"))
    write(pending(name), None)
    return True


def undo(name: str) -> bool:
    """Take an unconfirmed trial back; tell whether there was one."""
    with held():
        return take_back(name, apply=True)


def recover() -> list[str]:
    """Put back the files of every unconfirmed trial: at boot, before anything reads them."""
    with held():
        names = sorted(path.stem for path in STATE.glob("*.json"))
        return [name for name in names if take_back(name, apply=False)]


def begin(
    name: str,
    path: Path,
    text: str,
    *,
    mode: int,
    check: Sequence[str],
    apply: Sequence[str],
    agrees: Sequence[str],
    seconds: int,
    dry: bool = False,
) -> dict[str, Any]:
    """Put `text` at `path` and make it hold, on trial.

    `check`: a command that judges a candidate, whose path stands for `%s`; `apply` makes the file
    hold, also when it is gone; `agrees` ends with 0 when what holds is what the file says, and may
    be empty. `dry`: only look.

    Returns `changed`, `trial` (what `confirm` is given; empty when nothing was to be done),
    `before`, `after` (for a diff) and `notes`.

    Raises:
        TrialError: the candidate is no good (nothing was changed), or it could not be made to hold
            (what was there holds again).
    """
    with held():
        notes = []
        if pending(name).exists():
            notes.append(f"a run before this one ended before it had confirmed {name}")
            if not dry:
                disarm(name)
                take_back(name, apply=True)
        elif (when := read(undone(name))) is not None:
            notes.append(f"an unconfirmed {name} was taken back at {when}")
        if not dry:
            write(undone(name), None)
        current = read(path)
        held_now = current == text and path.stat().st_mode & 0o7777 == mode
        drifted = held_now and bool(agrees) and not succeeds(agrees)
        if drifted:
            notes.append(f"what held was not what {path} says")
        told = {"before": current or "", "after": text, "notes": notes}
        if held_now and not drifted:
            return {"changed": False, "trial": "", **told}
        judge(text, check)
        if dry:
            return {"changed": True, "trial": "", **told}
        trial = hashlib.sha256(f"{time.time_ns()}{text}".encode()).hexdigest()[:16]
        record = {
            "trial": trial,
            "path": str(path),
            "previous": current,
            "mode": mode,
            "apply": list(apply),
        }
        write(pending(name), json.dumps(record))
        try:
            arm(name, seconds)
        except TrialError:
            write(pending(name), None)
            raise
        try:
            write(path, text, mode)
            run(apply)
        except (TrialError, OSError) as error:
            disarm(name)
            take_back(name, apply=True)
            write(undone(name), None)
            raise TrialError(f"it was taken back at once: {error}") from error
        return {"changed": True, "trial": trial, **told}


def succeeds(argv: Sequence[str]) -> bool:
    """Tell whether a command ends with 0."""
    try:
        run(argv)
    except TrialError:
        return False
    return True


def judge(text: str, check: Sequence[str]) -> None:
    """Have a candidate judged, outside the place where it would count."""
    with tempfile.TemporaryDirectory(prefix="millrace-trial-") as folder:
        candidate = Path(folder, "candidate")
        candidate.write_text(text)
        run([part.replace("%s", str(candidate)) for part in check])


def confirm(name: str, trial: str, seconds: int) -> None:
    """Let a trial hold for good.

    Raises:
        TrialError: it was taken back already.
    """
    with held():
        text = read(pending(name))
        if text is None or json.loads(text)["trial"] != trial:
            raise TrialError(
                f"nobody could come back within {seconds} s, so the server has put the {name} from "
                "before in force again. Look at what was to change (--check --diff)."
            )
        write(pending(name), None)
        disarm(name)


def main(arguments: Sequence[str]) -> int:
    """Be what timer and boot call."""
    try:
        if arguments[:1] == ["undo"] and len(arguments) == 2:
            if undo(arguments[1]):
                print(f"nobody confirmed the new {arguments[1]}: the one before is in force again")
            return 0
        if list(arguments) == ["recover"]:
            for name in recover():
                print(f"the server went down before the new {name} was confirmed: put back")
            return 0
    except TrialError as error:
        print(error, file=sys.stderr)
        return 1
    print("usage: trial.py undo NAME | recover", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
