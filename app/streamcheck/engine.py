"""How many requests the engine works on: what only its own metrics tell."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from streamcheck.model import CheckError, Target, Way
from streamcheck.probe import Ask, observe

RUNNING = re.compile(rb"^vllm:num_requests_running(?:\{[^}]*\})? ([0-9.e+]+)$", re.M)
STEP_SECONDS = 0.05

Running = Callable[[], float | None]
"""Gives the number of running requests, None when it cannot be told."""


def local(metrics: Target) -> Running:
    """Ask the engine's metrics on this machine."""

    def running() -> float | None:
        try:
            seen = observe(metrics, Way("generation", "GET"), Ask("", limit_seconds=5))
        except CheckError:
            return None
        found = RUNNING.findall(seen.body)
        return sum(float(number) for number in found) if found else None

    return running


def print_counts(running: Running, seconds: float) -> None:
    """Print the count, a line each time, until the time is up or nobody reads."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        count = running()
        sys.stdout.write(f"{'' if count is None else count}\n")
        sys.stdout.flush()
        time.sleep(STEP_SECONDS)


class Watched:
    """The count as another machine prints it: `command` runs print_counts there."""

    def __init__(self, command: list[str]) -> None:
        """Start it; the count is None until the first line has come."""
        self._count: float | None = None
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self._thread = threading.Thread(target=self._follow, daemon=True, name="engine")
        self._thread.start()

    def _follow(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                self._count = float(line)
            except ValueError:
                self._count = None
        self._count = None

    def __call__(self) -> float | None:
        """Return the last count that came."""
        return self._count

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(10)
