"""One run: a chain under a load, its hops' CPU time by the kernel, and what the load saw."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import charge, figures
from bench.hops import Call, Chain, Hop, Process, UnavailableError, free_port, running
from bench.parts import ROOT

PROBE_TOKENS = 3
FIRST_SECONDS = 0.01
"""The stand-in's own time to a first token."""
STREAMS_BEGUN_A_SECOND = 64
STREAMS_OPENED_A_SECOND = 25
"""To be held idle: slow enough for every chain."""
SETTLE_SECONDS = 1.0
START_SECONDS = 1.0
PATIENCE_SECONDS = 5.0
DRAIN_SECONDS = 20.0
IDLE_RATE = 0.01
MESSAGES = [{"role": "user", "content": "Go on."}]
FIRST_IN_LINE = -10
"""The engine and the load run before the chain: what they see shall be the chain's doing."""


@dataclass(frozen=True)
class Point:
    """How many streams at which pace (tokens a second, each)."""

    streams: int
    rate: float


@dataclass(frozen=True)
class Phases:
    """How long a run's phases are, in seconds, and how many short requests come in the second."""

    window: float
    probing: float
    probes: int
    settle: float = SETTLE_SECONDS
    keep_alive: bool = False


@dataclass
class Engine:
    """The stand-in as a process, or a real engine somewhere."""

    port: int
    pid: int = 0
    key: str = "bench"
    model: str = "bench"

    @property
    def numbered(self) -> bool:
        """Whether its tokens tell which they are."""
        return bool(self.pid)

    def ask(self, path: str, **document: object) -> dict[str, float]:
        """Ask the stand-in about itself."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/bench/{path}", data=json.dumps(document).encode()
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            told: dict[str, float] = json.load(answer)
            return told

    def set_pace(self, rate: float, *, aligned: bool) -> None:
        """Set the pace of what begins from now on."""
        if self.pid:
            self.ask("pace", rate=rate, first_seconds=FIRST_SECONDS, aligned=aligned)

    def lag(self) -> float:
        """Return how late its timer was, p99 in seconds; of a real engine nobody knows."""
        return self.ask("state").get("lag_p99_seconds", 0.0) if self.pid else 0.0

    def drain(self) -> bool:
        """Wait until nothing streams any more; return whether that came."""
        if not self.pid:
            time.sleep(1)
            return True
        until = time.monotonic() + DRAIN_SECONDS
        while self.ask("state")["open"]:
            if time.monotonic() > until:
                return False
            time.sleep(0.1)
        return True


@dataclass
class Live:
    """A chain that runs: the processes of each hop, by name."""

    chain: Chain
    processes: dict[str, Process] = field(default_factory=dict)
    idle: dict[str, float] = field(default_factory=dict)
    """CPU seconds a second that each hop takes when nothing is asked."""

    def start(self, home: Path) -> None:
        """Start every hop, waiting for none: chains come up side by side."""
        for hop in self.chain.hops:
            self.processes[hop.name] = Process(hop, home)

    def wait(self) -> None:
        """Wait until every hop serves. Raises UnavailableError, and then none is left."""
        try:
            for process in self.processes.values():
                process.wait()
        except UnavailableError:
            self.end()
            raise

    def end(self) -> None:
        """End every hop."""
        while self.processes:
            self.processes.popitem()[1].end()

    def trees(self) -> dict[str, list[int]]:
        """Return every hop's processes."""
        parents = charge.parents()
        return {name: charge.tree(process.pid, parents) for name, process in self.processes.items()}

    def cpu(self) -> dict[str, float]:
        """Return every hop's CPU time so far, in seconds."""
        return {name: charge.cpu_seconds(pids) for name, pids in self.trees().items()}

    def memory(self) -> dict[str, int]:
        """Return every hop's memory (PSS), in bytes."""
        return {name: charge.memory_bytes(pids) for name, pids in self.trees().items()}


@contextlib.contextmanager
def stand_in(home: Path) -> Iterator[Engine]:
    """Run the engine's stand-in."""
    port = free_port()
    ends = f"{home}/express/run/millrace-backend-{{}}/ends.sock"
    command = (sys.executable, "-m", "bench.engine", "--port", str(port), "--ends", ends)
    hop = Hop("engine", command, port, health="/health", environment={"PYTHONPATH": str(ROOT)})
    with running(hop, home) as pid:
        first_in_line(pid)
        yield Engine(port, pid)


def first_in_line(pid: int) -> bool:
    """Let a process run before others, where this user may; return whether it does."""
    try:
        os.setpriority(os.PRIO_PROCESS, pid, FIRST_IN_LINE)
    except PermissionError:
        return False
    return True


def rest(live: Live, seconds: float) -> None:
    """Note what the chain's hops take when nothing is asked."""
    before = live.cpu()
    time.sleep(seconds)
    after = live.cpu()
    live.idle = {name: (after[name] - before[name]) / seconds for name in after}


def run(
    live: Live, engine: Engine, point: Point, phases: Phases, *, aligned: bool
) -> dict[str, Any]:
    """Put a load on a chain and return what it came to."""
    engine.set_pace(point.rate, aligned=aligned)
    begin = time.monotonic() + START_SECONDS
    ramp = max(0.25, point.streams / STREAMS_BEGUN_A_SECOND)
    job = {
        **_call(live.chain.call, engine), "streams": point.streams, "rate": point.rate,
        "begin": begin, "ramp": ramp, "settle": phases.settle, "window": phases.window,
        "probing": phases.probing, "probes": phases.probes, "patience": PATIENCE_SECONDS,
        "keep_alive": phases.keep_alive, "probe_tokens": PROBE_TOKENS,
    }  # fmt: skip
    steady = begin + ramp + phases.settle
    with _load(job) as load:
        marks = []
        for at in (steady, steady + phases.window, steady + phases.window + phases.probing):
            time.sleep(max(0.0, at - time.monotonic()))
            marks.append((time.monotonic(), live.cpu(), charge.machine_seconds(),
                          charge.cpu_seconds([engine.pid]) if engine.pid else 0.0))  # fmt: skip
        found = _read(load)
    found["drained"] = engine.drain()
    found["lag_engine_p99_seconds"] = engine.lag()
    found |= _charged(live, found, marks, phases)
    offered = point.streams * point.rate if engine.numbered else 0.0
    return {**found, **_judged(found, point, offered)}


def memory_of_streams(live: Live, engine: Engine, streams: int) -> dict[str, float]:
    """Return the bytes that one open, idle stream takes in each hop; nothing where the chain did
    not open them all in time.
    """
    engine.set_pace(IDLE_RATE, aligned=False)
    before = live.memory()
    ramp = streams / STREAMS_OPENED_A_SECOND
    begin = time.monotonic() + START_SECONDS
    job = {
        **_call(live.chain.call, engine), "streams": streams, "rate": 1, "begin": begin,
        "ramp": ramp, "settle": 1.0, "window": 3.0, "probing": 0.0, "probes": 0, "patience": 0.0,
        "hold": 3.0,
    }  # fmt: skip
    with _load(job) as load:
        time.sleep(max(0.0, begin + ramp + 2.5 - time.monotonic()))
        held = live.memory()
        found = _read(load)
    engine.drain()
    if found["begun"] < streams:
        return {}
    return {name: (held[name] - before[name]) / streams for name in held}


def _call(call: Call, engine: Engine) -> dict[str, Any]:
    body = {"model": call.model, "stream": True, "messages": MESSAGES, **call.more}
    if not engine.numbered:
        body |= {"stream_options": {"include_usage": True}, "ignore_eos": True}
    return {
        "host": call.host, "port": call.port, "path": call.path, "tls": call.tls,
        "headers": dict(call.headers), "body": body, "numbered": engine.numbered,
    }  # fmt: skip


@contextlib.contextmanager
def _load(job: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "bench.load"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as load:
        try:
            first_in_line(load.pid)
            assert load.stdin is not None
            load.stdin.write(json.dumps(job))
            load.stdin.close()
            yield load
        finally:
            load.kill()


def _read(load: subprocess.Popen[str]) -> dict[str, Any]:
    assert load.stdout is not None
    text = load.stdout.read()
    if not text:
        raise RuntimeError("the load ended without a word; what it said is above")
    found: dict[str, Any] = json.loads(text)
    return found


def _charged(live: Live, found: dict[str, Any], marks: list[Any], phases: Phases) -> dict[str, Any]:
    """Return who used how much CPU time: a token's, a request's, and of the whole machine."""
    (t0, cpu0, machine0, engine0), (t1, cpu1, machine1, engine1), (t2, cpu2, _, _) = marks
    events = found["steady_events"]
    token, request = {}, {}
    for name in cpu0:
        idle = live.idle.get(name, 0.0)
        spent = cpu1[name] - cpu0[name] - idle * (t1 - t0)
        token[name] = 1e6 * spent / events if events else math.nan
        later = cpu2[name] - cpu1[name] - idle * (t2 - t1)
        stream_events = found["probing_events"] - phases.probes * (PROBE_TOKENS + 1)
        left = later - token[name] * stream_events / 1e6
        request[name] = 1e3 * left / phases.probes if phases.probes else math.nan
    used, there = machine1[0] - machine0[0], machine1[1] - machine0[1]
    return {
        "token_us": token,
        "request_ms": request,
        "cores": {name: (cpu1[name] - cpu0[name]) / (t1 - t0) for name in cpu0},
        "engine_cores": (engine1 - engine0) / (t1 - t0),
        "machine_busy": used / there if there else math.nan,
        "tokens_per_second": events / (t1 - t0),
    }


def _judged(found: dict[str, Any], point: Point, offered: float) -> dict[str, Any]:
    lags = {"load": found["lag_p99_seconds"], "engine": found["lag_engine_p99_seconds"]}
    said = figures.stalls(found, point.rate, offered)
    if not found["drained"]:
        said.append("the engine was not left")
    return {"stalls": said, "limits": figures.limits(lags, point.rate)}
