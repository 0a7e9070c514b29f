"""uvicorn's server, with an end that loses nobody."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable

import uvicorn
from uvicorn.supervisors import Multiprocess

from backend.service_manager import notify

# Whoever was accepted in the last moment sends a request at once: nginx connects only for one.
_FIRST_REQUEST_SECONDS = 1.0
_TICK_SECONDS = 0.1


class Server(uvicorn.Server):
    """Serves, tells systemd when it does, and ends in two steps.

    uvicorn closes every connection that has no request in hand when it is told to stop, also the
    one that it accepted a moment ago and has not read yet: its client gets no answer at all. So
    first only the shared listener is closed, where another instance goes on accepting, and we
    wait until whatever came in is answered or the drain time is over. The private listener stays
    open as long: streams that live here are still asked for through the other instance. Then
    uvicorn's own end follows, which cancels what is left.

    The first of the sockets that it is run with is the shared one.
    """

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve."""
        await super().startup(sockets)
        if self.started:
            _say_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting at once, finish within the drain time, then end the rest."""
        until = time.monotonic() + (self.config.timeout_graceful_shutdown or 0)
        self.servers[0].close()
        if sockets:
            sockets[0].close()
        notify("STOPPING=1")
        await self._drain(until)
        self.config.timeout_graceful_shutdown = max(0, round(until - time.monotonic()))
        await super().shutdown(sockets)

    async def _drain(self, until: float) -> None:
        """Wait until nothing is left to do; `until` is in `time.monotonic()` seconds."""
        arrived_by = time.monotonic() + _FIRST_REQUEST_SECONDS
        told = ""
        while (now := time.monotonic()) < until and not self.force_exit:
            # First, for a connection that was just accepted is not among the others yet.
            await asyncio.sleep(min(_TICK_SECONDS, until - now))
            left = len(self.server_state.tasks) + self._elsewhere()
            if now < arrived_by:
                left += sum(
                    getattr(connection, "cycle", None) is None
                    for connection in self.server_state.connections
                )
            if not left:
                return
            status = f"STATUS=drains: {left} open, {until - now:.0f} s left for them"
            if status != told:
                told = status
                notify(status)

    def _elsewhere(self) -> int:
        """Return how many answers pass us by whose end we are to hear of (exchange.py)."""
        told: Callable[[], int] | None = getattr(self.config.loaded_app, "elsewhere", None)
        return told() if told else 0


def _say_ready() -> None:
    # The one word that must not be lost: systemd would wait for it, and then kill us.
    notify("READY=1", "STATUS=serves", patience_seconds=10)


class Workers(Multiprocess):
    """uvicorn's worker processes; they end as uvicorn ends them.

    Limits and streams live in one process's memory, so several workers are for whoever needs more
    events per second than one relays and does without them.
    """

    def init_processes(self) -> None:
        """Start them, and tell systemd once they serve."""
        super().init_processes()
        patience = self.processes[0].config.timeout_worker_healthcheck
        if all(worker.wait_until_ready(patience) for worker in self.processes):
            _say_ready()
