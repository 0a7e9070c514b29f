"""GET /metrics, on a listener of its own that only this machine reaches."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

from prometheus_client import start_http_server

from backend.metrics import Metrics
from backend.settings import Settings

INSTANCE_VARIABLE = "MILLRACE_INSTANCE"
_HOST = "127.0.0.1"

log = logging.getLogger(__name__)


@contextlib.contextmanager
def serving(settings: Settings, metrics: Metrics) -> Iterator[None]:
    """Serve the metrics while the block runs, where the settings name a port for this instance.

    A scrape is answered by a thread, so that it holds no stream up. Nobody's stream depends on it:
    where the port cannot be had, that is logged, and all else goes on.
    """
    port = settings.metrics_ports.get(os.environ.get(INSTANCE_VARIABLE, "a"))
    if port is None:
        yield
        return
    if settings.workers > 1:
        # A scrape would meet one worker or another, and rates of nothing would come out.
        log.warning("no /metrics: each of several workers counts for itself; set workers to 1")
        yield
        return
    try:
        server, thread = start_http_server(port, addr=_HOST, registry=metrics.registry)
    except OSError as error:
        log.error("no /metrics: cannot listen on %s port %d: %s", _HOST, port, error.strerror)
        yield
        return
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
