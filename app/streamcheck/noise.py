"""How late this machine wakes us and how busy it is: what must not be blamed on a hop."""

from __future__ import annotations

import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from streamcheck.features import quantile

STEP_SECONDS = 0.004
KEPT = 60_000


def processor_ticks() -> tuple[int, int]:
    """Return the ticks that all processors spent at work, and all ticks, since the start.

    Zeros where the kernel does not tell (proc(5), /proc/stat: idle and iowait are no work).
    """
    try:
        first = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0]
        ticks = [int(word) for word in first.split()[1:9]]
    except (OSError, ValueError):
        return 0, 0
    return sum(ticks) - sum(ticks[3:5]), sum(ticks)


class Metronome:
    """Sleeps a few milliseconds over and over in a thread, and notes how late it woke.

    What delays it delays our reads as well: a core that is taken, a stalled virtual machine.
    """

    def __init__(self) -> None:
        """Start."""
        self._late: deque[tuple[float, float]] = deque(maxlen=KEPT)
        self._asleep_since = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="metronome")
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._asleep_since = began = time.monotonic()
            time.sleep(STEP_SECONDS)
            now = time.monotonic()
            self._late.append((now, now - began - STEP_SECONDS))

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(1)

    def worst(self, since: float, until: float) -> float:
        """Return the longest delay between two moments of `time.monotonic()`, seconds.

        What held us up may hold the metronome still: a sleep that should have ended by now counts.
        """
        overdue = min(until, time.monotonic()) - self._asleep_since - STEP_SECONDS
        late = [late for at, late in list(self._late) if since <= at and at - late <= until]
        return max([*late, overdue, 0.0])

    def summary(self, where: str) -> dict[str, Any]:
        """Return the report's entry: median, 99th percentile and maximum, milliseconds."""
        late = [late for _, late in list(self._late)]

        def at(share: float) -> float:
            return round(1000 * max(quantile(late, share), 0.0), 2)

        return {"where": where, "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": at(1.0)}
