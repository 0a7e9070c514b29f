"""The load: opens streams, times every read, and looks through them when all is over.

    python -m bench.load < JOB.json > FOUND.json

One job is one run through one chain, in phases of known beginning (seconds of the monotonic clock,
which every process of a machine shares):

    begin        steady                    probing                      over
    | streams    | nothing begins or ends  | short requests come,       | the streams end
    | begin, one |                         | one by one, while the      |
    | by one     |                         | streams go on              |

A read costs two appends here; counting and judging waits for the end. A timer of its own tells how
late this program was, and with it whether it was the limit.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import math
import re
import ssl
import sys
import time
from dataclasses import dataclass, field
from typing import Any, cast

import uvloop

from bench.figures import distribution, quantile, quantiles

HEARTBEAT_SECONDS = 0.005
TEXT = re.compile(rb'"content": ?"[^"]')
NUMBERS = re.compile(rb'"content": ?" \w+ (\d+)"')
COUNTED = re.compile(rb'"completion_tokens": ?(\d+)')
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
SIZE = re.compile(rb"[0-9a-fA-F]+")
LAST_CHUNK = b"0\r\n\r\n"


@dataclass
class Job:
    """What to do; times in seconds, `begin` on the monotonic clock."""

    host: str
    port: int
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    streams: int
    rate: float
    begin: float
    ramp: float
    settle: float
    window: float
    probing: float
    probes: int
    patience: float
    """So long after all should be over, what is not is cut off."""
    probe_tokens: int = 3
    keep_alive: bool = False
    numbered: bool = True
    """Whether the engine numbers its tokens; else its own count must do."""
    tls: bool = False
    hold: float = 0.0
    """Instead of all that: open the streams and hold them so long, to see what one takes."""

    @property
    def steady(self) -> float:
        """When the last stream has begun, and settled."""
        return self.begin + self.ramp + self.settle

    @property
    def probing_from(self) -> float:
        """When the short requests begin."""
        return self.steady + self.window

    @property
    def over(self) -> float:
        """When the streams end."""
        return self.probing_from + self.probing


@dataclass
class Request:
    """One request, and when what of its answer came."""

    asked: float = 0.0
    tokens: int = 0
    times: list[float] = field(default_factory=list)
    parts: list[bytes] = field(default_factory=list)
    first: float = math.nan
    """When its first text came."""
    ended: float = math.nan
    error: str = ""


class Link(asyncio.Protocol):
    """A connection: one request at a time, each read noted."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.request: Request | None = None
        self.done = asyncio.Event()
        self.closed = False
        self._length = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = cast(asyncio.Transport, transport)

    def ask(self, request: Request, data: bytes) -> None:
        """Send a request; `done` is set when its answer is over."""
        self.request, self._length = request, -1
        self.done.clear()
        assert self.transport is not None
        self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        """Note the read."""
        now = time.monotonic()
        request = self.request
        if request is None:
            return
        request.times.append(now)
        request.parts.append(data)
        if request.first != request.first:  # NaN: nothing of it came yet
            self._look(request, now)
        if data.endswith(LAST_CHUNK) or len(data) < len(LAST_CHUNK) or self._length >= 0:
            self._maybe_over(request, now)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end; an answer without a length may end so."""
        self.closed = True
        request = self.request
        if request is not None:
            request.ended = time.monotonic()
            if exc is not None or not request.parts:
                request.error = f"cut off: {exc}" if exc else "closed without an answer"
        self.request = None
        self.done.set()

    def cut_off(self) -> None:
        """Close what is not over; its request is late, which is no failure of the connection."""
        self.request = None
        if self.transport is not None:
            self.transport.abort()

    def _look(self, request: Request, now: float) -> None:
        so_far = b"".join(request.parts)
        if len(request.parts) == 1 or not request.error:
            status = so_far.split(b" ", 2)[1:2]
            if status and status[0] != b"200":
                request.error = so_far[-300:].decode("latin-1")
        if TEXT.search(so_far):
            request.first = now
        length = LENGTH.search(so_far.partition(b"\r\n\r\n")[0])
        self._length = int(length[1]) if length else -1

    def _maybe_over(self, request: Request, now: float) -> None:
        if self._length >= 0:
            body = b"".join(request.parts).partition(b"\r\n\r\n")[2]
            over = len(body) >= self._length
        else:
            over = b"".join(request.parts[-6:]).endswith(b"\r\n" + LAST_CHUNK)
        if over:
            request.ended = now
            self.request = None
            self.done.set()


class Load:
    """Runs a job."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.streams = [Request() for _ in range(job.streams)]
        self.probes = [Request() for _ in range(job.probes)]
        self.lags: list[float] = []
        self._idle: list[Link] = []
        self._links: set[Link] = set()
        self._loop = asyncio.get_running_loop()
        self._tls: ssl.SSLContext | None = None
        if job.tls:
            self._tls = ssl.create_default_context()
            self._tls.check_hostname, self._tls.verify_mode = False, ssl.CERT_NONE

    async def run(self) -> None:
        """Do it all, and cut off what is not over when patience is."""
        job = self.job
        beat = asyncio.create_task(self._beat())
        tasks = []
        for number, stream in enumerate(self.streams):
            at = job.begin + job.ramp * number / max(1, job.streams)
            stream.tokens = max(2, round(job.rate * (job.over - at)))
            tasks.append(asyncio.create_task(self._one(stream, at, keep=False)))
        for number, probe in enumerate(self.probes):
            # Not in step with the streams, and none at the very end.
            at = job.probing_from + job.probing * 0.8 * number / job.probes
            probe.tokens = job.probe_tokens
            tasks.append(asyncio.create_task(self._one(probe, at, keep=job.keep_alive)))
        limit = job.steady + job.hold if job.hold else job.over + job.patience
        await asyncio.wait(tasks, timeout=max(0.0, limit - time.monotonic()))
        beat.cancel()
        for task in tasks:
            task.cancel()
        for link in self._links:
            link.cut_off()
        await asyncio.gather(*tasks, beat, return_exceptions=True)

    async def _beat(self) -> None:
        while True:
            due = time.monotonic() + HEARTBEAT_SECONDS
            await asyncio.sleep(HEARTBEAT_SECONDS)
            self.lags.append(time.monotonic() - due)

    async def _one(self, request: Request, at: float, *, keep: bool) -> None:
        await asyncio.sleep(max(0.0, at - time.monotonic()))
        request.asked = time.monotonic()
        link = None
        while keep and self._idle and link is None:
            kept = self._idle.pop()
            link = None if kept.closed else kept
        try:
            if link is None:
                # By asyncio's name, so that nothing is resolved.
                _, link = await self._loop.create_connection(
                    Link, self.job.host, self.job.port, ssl=self._tls
                )
                self._links.add(link)
            link.ask(request, self._bytes(request.tokens, keep=keep))
            await link.done.wait()
        except OSError as error:
            request.error = str(error)
            return
        if keep and not link.closed:
            self._idle.append(link)
        elif link.transport is not None:
            self._links.discard(link)
            link.transport.close()

    def _bytes(self, tokens: int, *, keep: bool) -> bytes:
        job = self.job
        body = json.dumps({**job.body, "max_tokens": tokens}).encode()
        told = {
            "Host": job.host,
            **job.headers,
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Connection": "keep-alive" if keep else "close",
        }
        lines = [f"POST {job.path} HTTP/1.1", *(f"{name}: {value}" for name, value in told.items())]
        return "\r\n".join([*lines, "", ""]).encode() + body

    # What was found ---------------------------------------------------------------------------

    def found(self) -> dict[str, Any]:
        """Return what the run came to; times in seconds. It is called as soon as all is over."""
        job, over = self.job, time.monotonic()
        asked = [*self.streams, *self.probes]
        gaps: list[float] = []
        longest, events, reads = 0.0, [0, 0], 0
        edges = ((job.steady, job.probing_from), (job.probing_from, job.over))
        for request in asked:
            counts = [part.count(b"data: {") for part in request.parts]
            before = math.nan
            for at, count in zip(request.times, counts, strict=True):
                if not count:
                    continue
                for phase, (start, stop) in enumerate(edges):
                    if start <= at < stop:
                        events[phase] += count
                        reads += phase == 0
                if before == before:
                    longest = max(longest, at - before)
                    if before >= job.steady and at < job.probing_from:
                        gaps.append(at - before)
                before = at
        checks = [self._check(request) for request in asked]

        def first_tokens(requests: list[Request]) -> list[float]:
            # One that never came took at least until now.
            return [
                (over if request.first != request.first else request.first) - request.asked
                for request in requests
                if request.asked and not request.error
            ]

        errors = sorted({request.error for request in asked if request.error})
        return {
            "requests": len(asked),
            "begun": sum(request.first == request.first for request in asked),
            "failed": sum(bool(request.error) for request in asked),
            "errors": errors[:3],
            "late": sum(not request.error and request.ended != request.ended for request in asked),
            "missing": sum(missing for missing, _ in checks),
            "disordered": sum(disordered for _, disordered in checks),
            "longest_gap_seconds": longest,
            "gap_seconds": quantiles(gaps),
            "gaps": distribution(gaps),
            "first_token_seconds": quantiles(first_tokens(self.probes)),
            "first_token_of_streams_seconds": quantiles(first_tokens(self.streams)),
            "steady_events": events[0],
            "probing_events": events[1],
            "events_per_read": events[0] / reads if reads else math.nan,
            "bytes": sum(map(len, (part for request in asked for part in request.parts))),
            "lag_p99_seconds": quantile(sorted(self.lags), 0.99),
            "lag_max_seconds": quantile(sorted(self.lags), 1.0),
        }

    def _check(self, request: Request) -> tuple[int, int]:
        """Return how many tokens an answer lacks, and how many came twice or out of order.

        Of what was cut off, only what is missing in between counts: it is late, which is said.
        """
        if request.error:
            return 0, 0
        whole = dechunked(b"".join(request.parts))
        cut_off = request.ended != request.ended
        if not self.job.numbered:
            counts = COUNTED.findall(whole)
            return (0 if cut_off else request.tokens - int(counts[-1] if counts else 0)), 0
        numbers = [int(number) for number in NUMBERS.findall(whole)]
        last = max(numbers, default=0) if cut_off else request.tokens
        missing = len(set(range(1, last + 1)) - set(numbers))
        risen = sum(b > a for a, b in itertools.pairwise(numbers))
        return missing, max(0, len(numbers) - 1 - risen)


def dechunked(answer: bytes) -> bytes:
    """Return the body of an answer as it came over the wire: without HTTP's chunks, up to where
    they are no longer any.
    """
    head, _, rest = answer.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head.lower():
        return rest
    body, at = [], 0
    while True:
        line = rest.find(b"\r\n", at)
        if line < 0:
            break
        stated = SIZE.match(rest, at, line)
        size = int(stated[0], 16) if stated else 0
        if not size:
            break
        body.append(rest[line + 2 : line + 2 + size])
        at = line + 2 + size + 2
    return b"".join(body)


async def run(job: Job) -> dict[str, Any]:
    """Run one job and return what was found."""
    load = Load(job)
    # It would stop the clock in the middle; and the lists that grow here hold no cycles.
    gc.disable()
    began = time.process_time()
    await load.run()
    used = time.process_time() - began
    return {**load.found(), "cpu_seconds": used}


def main() -> int:
    """Read a job, run it, write what was found."""
    print(json.dumps(uvloop.run(run(Job(**json.load(sys.stdin))))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
