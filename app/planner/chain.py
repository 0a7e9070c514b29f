"""The chain in front of the engines: how many workers, and whether the processor keeps up.

What a token and a request cost is what `./millrace bench` measured on two cores of a server
processor, 64 streams × 50 tokens/s, medians (bench/results/2026-11-26-two-cores.txt); another
processor has other figures, which is what the headroom is for. What a request costs is coarse.
That an engine keeps cores to itself is an estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from planner.fleet import Placement


@dataclass(frozen=True)
class Cost:
    """CPU time that a hop takes, in seconds: for a streamed token, and for a request besides."""

    token: float
    request: float

    @property
    def spread(self) -> float:
        """The cost of a token with its share of its request."""
        return self.token + self.request / ANSWER_TOKENS


ANSWER_TOKENS = 300
"""A usual answer's length; a shorter one makes each of its tokens dearer."""
NGINX = Cost(32e-6, 0.6e-3)
BACKEND = Cost(72e-6, 3e-3)
GATEWAY = Cost(90e-6, 12e-3)
BACKEND_WORKERS = 1
"""Limits and resumable streams live in one process's memory."""
BUSY_SHARE = 0.5
"""A worker this busy still answers at once."""
HEADROOM = 0.7
"""Of the processor that the chain may take: the rest is for peaks and for the system."""
LEAST_CONNECTIONS = 8192
"""What nginx's worker has in any case (nginx_worker_connections)."""


@dataclass(frozen=True)
class Chain:
    """What the chain is made for, and what it will do."""

    tokens_per_second: int
    streams: int
    gateway: int
    connections: int
    most_tokens_per_second: int

    @property
    def problem(self) -> str:
        """What is to be said where the processor would hold the cards back; else nothing."""
        if self.tokens_per_second <= self.most_tokens_per_second:
            return ""
        return (
            f"the processor would hold the cards back: they make about {self.tokens_per_second:,} "
            f"tokens a second for all readers, and nginx, the backend and LiteLLM pass on about "
            f"{self.most_tokens_per_second:,} here. More cores would help, or a larger model; "
            "./millrace bench measures it"
        )


def plan(placed: Sequence[Placement], cores: int, tokens: float) -> Chain:
    """Return the chain for these engines, which make `tokens` a second together."""
    streams = sum(place.fit.load.max_num_seqs * place.data_parallel_size for place in placed) or 64
    left = max(1, cores - sum(engine_cores(place) for place in placed))
    wanted = ceil(tokens * GATEWAY.spread / BUSY_SHARE)
    return Chain(
        tokens_per_second=round(tokens),
        streams=streams,
        gateway=max(1, min(left, wanted)),
        # Each stream is a connection to the browser and one to the backend, and as many wait.
        connections=max(LEAST_CONNECTIONS, 4 * streams),
        most_tokens_per_second=round(capacity(left)),
    )


def engine_cores(place: Placement) -> int:
    """Return the cores that an engine keeps busy: its HTTP server, and of each copy the scheduler
    and, where cards share a model, a process for each.
    """
    workers = place.tensor_parallel_size if place.tensor_parallel_size > 1 else 0
    return 1 + place.data_parallel_size * (1 + workers)


def capacity(cores: int) -> float:
    """Return the tokens a second that the chain passes on with so many cores to itself."""
    together = NGINX.spread + BACKEND.spread + GATEWAY.spread
    return HEADROOM * min(cores / together, BACKEND_WORKERS / BACKEND.spread)
