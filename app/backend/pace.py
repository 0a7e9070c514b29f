"""When the pieces of a stream went out: counted for every piece, so every step here is counted."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from backend.tokens import shows_token

# A fast model's pace is 5 to 20 ms, a reader is disturbed from 200 ms on, a heartbeat is due at
# 15 s.
_BOUNDS = (
    0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2, 5,
    10, 15, 30, 60, 300,
)  # fmt: skip
_COMMENT = ord(":")


class GapCounts(Collector):
    """A histogram whose buckets are plain numbers.

    prometheus_client's own takes a lock at each observation, which the loop of a single process
    does not need; it costs several times as much as what is done here.
    """

    def __init__(self, name: str, documentation: str) -> None:
        self._name = name
        self._documentation = documentation
        self.counts = [0] * (len(_BOUNDS) + 1)
        self.sum_seconds = 0.0

    def collect(self) -> Iterator[Metric]:
        """Return the histogram as it stands."""
        labels = [*map(floatToGoString, _BOUNDS), "+Inf"]
        buckets = list(zip(labels, accumulate(self.counts), strict=True))
        yield HistogramMetricFamily(
            self._name, self._documentation, buckets=buckets, sum_value=self.sum_seconds
        )


class Pace:
    """One stream's times. `first_token` is `time.monotonic()` seconds, None until there is one."""

    __slots__ = ("_counts", "_gaps", "_last", "first_token")

    def __init__(self, gaps: GapCounts) -> None:
        self._gaps = gaps
        self._counts = gaps.counts
        self._last: float | None = None
        self.first_token: float | None = None

    @property
    def began(self) -> bool:
        """Whether an event went out."""
        return self._last is not None

    def told(self, first_token: float) -> None:
        """Take another's word for when the first token came; of the gaps it knows nothing."""
        self.first_token = self._last = first_token

    def note(self, piece: bytes, now: float) -> None:
        """Take note of a piece that has just been sent. Comments are signs of life and no more."""
        if self.first_token is None and shows_token(piece):
            # The first event is an empty role: what people wait for is the text.
            self.first_token = now
        if piece[0] == _COMMENT:
            return
        last = self._last
        self._last = now
        if last is not None:
            gap = now - last
            self._counts[bisect_left(_BOUNDS, gap)] += 1
            self._gaps.sum_seconds += gap
