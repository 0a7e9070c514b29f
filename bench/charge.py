"""CPU time and memory of process trees, as the kernel counts them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")
PROC = Path("/proc")


def parents(proc: Path = PROC) -> dict[int, int]:
    """Return every process's parent."""
    found = {}
    for entry in proc.iterdir():
        if entry.name.isdigit():
            # It may end while we look.
            with contextlib.suppress(OSError):
                found[int(entry.name)] = int(_after_name(entry / "stat")[1])
    return found


def tree(root: int, parent_of: Mapping[int, int]) -> list[int]:
    """Return a process and all that descend from it, itself first."""
    children: dict[int, list[int]] = {}
    for child, parent in parent_of.items():
        children.setdefault(parent, []).append(child)
    found = [root]
    for process in found:
        found += children.get(process, [])
    return found


def cpu_seconds(pids: list[int], proc: Path = PROC) -> float:
    """Return the CPU time that these processes have used, their children that ended included.

    In nanoseconds where the kernel tells them (schedstat, a thread each), else in ticks of 10 ms.
    """
    return sum(_cpu_of(proc / str(pid)) for pid in pids)


def memory_bytes(pids: list[int], proc: Path = PROC) -> int:
    """Return what these processes hold: what they share counts once, in shares (PSS)."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in (proc / str(pid) / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def machine_seconds(proc: Path = PROC) -> tuple[float, float]:
    """Return the CPU time of the whole machine: how much was used, and how much there was."""
    fields = [int(n) for n in (proc / "stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) * TICK_SECONDS, sum(fields) * TICK_SECONDS


def _cpu_of(process: Path) -> float:
    try:
        fields = _after_name(process / "stat")
    except OSError:
        return 0.0
    reaped = (int(fields[13]) + int(fields[14])) * TICK_SECONDS
    threads = 0
    with contextlib.suppress(OSError):
        for task in (process / "task").iterdir():
            threads += int((task / "schedstat").read_text().split()[0])
    if threads:
        return threads / 1e9 + reaped
    return (int(fields[11]) + int(fields[12])) * TICK_SECONDS + reaped


def _after_name(stat: Path) -> list[str]:
    # A process's name may have spaces and brackets in it.
    return stat.read_text().rpartition(")")[2].split()
