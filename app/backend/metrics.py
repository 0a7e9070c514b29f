"""What is counted, for Prometheus. Never a word of a prompt or an answer, and few labels.

Every label has few values: routes, statuses and outcomes are a handful, and the names of keys are
those of the keys file. A process counts for itself, which is why the backend runs as one.
"""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from backend.pace import GapCounts, Pace
from backend.process import ProcessFigures

if TYPE_CHECKING:
    from backend.exchange import Exchange

# From a cached prompt on a fast card to the longest queue that is waited out.
_FIRST_TOKEN_BUCKETS = (
    0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 30, 60, 120, 300, 600,
)  # fmt: skip
_STREAM_BUCKETS = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600)
_WAIT_BUCKETS = (0.01, 0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)

UNROUTED = "other"
"""The route of a request that met none: refused at the door, or for what is not there."""

Waiting = Literal["place", "engine"]


class Metrics:
    """Counts what goes through one process. One a process; every method is cheap and never raises.

    `begin` and `end` go round every exchange: the requests themselves (exchange.py does it), and a
    generation that outlives the request which began it.
    """

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._open: set[Exchange] = set()
        self._gaps = GapCounts(
            "millrace_stream_gap_seconds",
            "Time from one piece of a stream that carries events to the next, as it was sent",
        )
        self.registry.register(self._gaps)
        self.registry.register(_OpenRequests(self._open))
        self.registry.register(ProcessFigures())
        self._requests = self._counter(
            "requests", "Requests that ended", ["route", "status", "ended"]
        )
        self._first_token = self._histogram(
            "first_token_seconds",
            "Time from a streamed request's arrival to its first token sent",
            _FIRST_TOKEN_BUCKETS,
        )
        self._stream_seconds = self._histogram(
            "stream_seconds", "How long streams took, from request to end", _STREAM_BUCKETS
        )
        self._tokens = self._counter("tokens", "Tokens by the engine's own count", ["key", "kind"])
        self._upstream_errors = self._counter(
            "upstream_errors", "Answers that failed behind the backend", ["kind"]
        )
        self._heartbeats = self._counter("heartbeats", "Heartbeat comments sent")
        self._sent = self._counter("sent_bytes", "Bytes of bodies sent")
        self._resumes = self._counter("resumes", "Streams that a client came back to")
        self._waiting = Gauge(
            "millrace_waiting_requests",
            "Requests that wait for a place among the streams, or for an engine that restarts",
            ["what"],
            registry=self.registry,
        )
        self._waited = Histogram(
            "millrace_wait_seconds",
            "How long requests waited for a place, or for an engine that restarted",
            ["what"],
            buckets=_WAIT_BUCKETS,
            registry=self.registry,
        )
        for what in ("place", "engine"):
            self._waiting.labels(what)
            self._waited.labels(what)
        build = Info("millrace_build", "What runs", registry=self.registry)
        build.info({"release": _release(Path(__file__)), "python": platform.python_version()})

    def _counter(self, name: str, said: str, labels: list[str] | None = None) -> Counter:
        return Counter(f"millrace_{name}", said, labels or [], registry=self.registry)

    def _histogram(self, name: str, said: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"millrace_{name}", said, buckets=buckets, registry=self.registry)

    def begin(self, exchange: Exchange) -> None:
        """Take an exchange into the count of those in hand; `end` must follow."""
        self._open.add(exchange)

    def forget(self, exchange: Exchange) -> None:
        """Count an exchange no more that another one goes on with."""
        self._open.discard(exchange)

    def active_streams(self) -> int:
        """Return how many streams are in hand."""
        return sum(exchange.stream for exchange in self._open)

    def pace(self) -> Pace:
        """Return what notes when the pieces of one stream go out."""
        return Pace(self._gaps)

    def end(self, exchange: Exchange) -> None:
        """Count an exchange that has ended, by what its record says."""
        self._open.discard(exchange)
        self._requests.labels(
            exchange.route or UNROUTED, str(exchange.status), exchange.ended
        ).inc()
        self._sent.inc(exchange.body_bytes)
        self._heartbeats.inc(exchange.heartbeats)
        if exchange.fault is not None:
            self._upstream_errors.labels(exchange.fault).inc()
        if exchange.usage is not None and exchange.key_name is not None:
            self._tokens.labels(exchange.key_name, "prompt").inc(exchange.usage.prompt_tokens)
            self._tokens.labels(exchange.key_name, "completion").inc(
                exchange.usage.completion_tokens
            )
        pace = exchange.pace
        if pace is None or not pace.began:
            return
        self._stream_seconds.observe(time.monotonic() - exchange.started)
        if pace.first_token is not None:
            self._first_token.observe(pace.first_token - exchange.started)

    @contextlib.contextmanager
    def waiting(self, what: Waiting) -> Iterator[None]:
        """Count a request as waiting for as long as the block runs, and how long that was."""
        began = time.monotonic()
        gauge = self._waiting.labels(what)
        gauge.inc()
        try:
            yield
        finally:
            gauge.dec()
            self._waited.labels(what).observe(time.monotonic() - began)

    def resumed(self) -> None:
        """Count a stream that was picked up again behind its beginning."""
        self._resumes.inc()

    def watch_tokens(self, age: Callable[[], float | None]) -> None:
        """Show how long ago the engine gave a token; `age` is in seconds, None for never."""
        gauge = Gauge(
            "millrace_last_token_age_seconds",
            "Time since a token came out of the engine; NaN before the first",
            registry=self.registry,
        )
        gauge.set_function(lambda: float("nan") if (found := age()) is None else found)


class _OpenRequests(Collector):
    """The requests in hand, counted when asked: a gauge that cannot drift."""

    def __init__(self, exchanges: set[Exchange]) -> None:
        self._exchanges = exchanges

    def collect(self) -> Iterator[Metric]:
        """Return the gauges."""
        # The scrape has a thread of its own; a copy of a set is made in one step.
        in_hand = list(self._exchanges)
        streams: dict[str, int] = {}
        for exchange in in_hand:
            if exchange.stream:
                route = exchange.route or UNROUTED
                streams[route] = streams.get(route, 0) + 1
        yield GaugeMetricFamily("millrace_open_requests", "Requests in hand", value=len(in_hand))
        active = GaugeMetricFamily(
            "millrace_active_streams",
            "Streams in hand, waiting ones too",
            labels=["route"],
        )
        for route, count in sorted(streams.items()):
            active.add_metric([route], count)
        yield active


def _release(file: Path) -> str:
    """Return the name of the release that `file` lies in, for a tree: `development`."""
    parts = file.resolve().parts
    return parts[parts.index("releases") + 1] if "releases" in parts[:-1] else "development"
