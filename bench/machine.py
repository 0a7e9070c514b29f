"""The machine and the moment, which stand beside every figure."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Return what this machine is."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(_memory_kib() / 2**20, 1),
        "kernel": platform.release(),
        "system": _system(),
        "python": platform.python_version(),
    }


def load() -> list[float]:
    """Return the load of the last minute, five, fifteen."""
    return [round(value, 2) for value in os.getloadavg()]


def now() -> str:
    """Return the moment, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory_kib() -> int:
    return int(Path("/proc/meminfo").read_text().split()[1])


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return platform.system()
