"""The part of a check that runs on the server: over ssh, with its progress passed on."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable
from typing import Any

from streamcheck.model import CheckError

COMMAND = "millrace-check"
"""What roles/streamcheck installs on the server."""
SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15")
PROGRESS = "progress: "
SECONDS = 900.0


def command(ssh: list[str], *arguments: str) -> list[str]:
    """Return the command line that runs the check on the server.

    `ssh` is what roles/verify wrote down: options, the destination last, perhaps `sudo` after it.
    """
    return [*SSH, *ssh, COMMAND, *arguments]


def inner_report(
    ssh: list[str], arguments: list[str], say: Callable[[str], None]
) -> dict[str, Any]:
    """Run the check of the inner hops and return its report. Raises CheckError."""
    process = subprocess.Popen(
        command(ssh, "--json", "--progress", *arguments), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    said: list[str] = []

    def follow() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(PROGRESS):
                say(line.removeprefix(PROGRESS).strip())
            else:
                said.append(line.strip())

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    timer = threading.Timer(SECONDS, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        out = process.stdout.read()
        code = process.wait()
    except BaseException:
        process.kill()
        raise
    finally:
        timer.cancel()
        follower.join(5)
    try:
        told = json.loads(out)
        if isinstance(told, dict) and "hops" in told:
            return told
    except ValueError:
        pass
    raise CheckError(
        f"{_reason(code, said)}. To check the public address alone: ./millrace check URL"
    )


def _reason(code: int, said: list[str]) -> str:
    last = next((line for line in reversed(said) if line), "")
    if code == 127:
        return f"the server has no {COMMAND}: run ./millrace site first"
    if code == 255:
        return f"the server cannot be reached over ssh: {last or 'no reason given'}"
    return f"the check on the server ended with {code}: {last or 'it said nothing'}"
