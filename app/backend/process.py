"""What this process takes of the machine."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_FDS = Path("/proc/self/fd")
_STATM = Path("/proc/self/statm")


class ProcessFigures(Collector):
    """The figures of prometheus_client's own ProcessCollector, under the same names.

    That one says nothing at all where the machine's boot time cannot be read, and the unit hides
    /proc/stat.
    """

    def __init__(self) -> None:
        self._started = time.time()

    def collect(self) -> Iterator[Metric]:
        """Return the figures."""
        yield CounterMetricFamily(
            "process_cpu_seconds", "CPU time of this process", value=time.process_time()
        )
        pages = int(_STATM.read_text(encoding="ascii").split()[1])
        yield GaugeMetricFamily(
            "process_resident_memory_bytes",
            "Memory that it holds",
            value=pages * resource.getpagesize(),
        )
        yield GaugeMetricFamily(
            "process_open_fds",
            "Files and sockets that it has open",
            value=sum(1 for _ in _FDS.iterdir()),
        )
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        yield GaugeMetricFamily("process_max_fds", "How many it may have open", value=most)
        yield GaugeMetricFamily(
            "process_start_time_seconds", "When it started, Unix time", value=self._started
        )
