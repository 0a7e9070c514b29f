"""Measure what a streamed token costs on its way, chain beside chain.

    ./millrace bench              a few minutes: 1 to 512 streams at 50 tokens/s
    ./millrace bench --quick      seconds: that all of it works
    ./millrace bench --full       the whole grid, an hour
    ./millrace bench --list       which chains there are
    ./millrace bench --serve X    chain X stays up, for other tools to be pointed at

The engine is a stand-in with a steady pace, or a real one (--engine). Every chain is asked in turn,
round after round, so that what else the machine does falls on each alike. bench/README.md says how
to read what comes out, and what is not measured. Results go into artefacts/bench.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import chains, machine, measure, summary
from bench.hops import UnavailableError
from bench.measure import Live, Phases, Point
from bench.page import render_page
from bench.parts import ROOT
from bench.text import text

KEY_VARIABLE = "MILLRACE_BENCH_ENGINE_KEY"
REST_SECONDS = 3.0
GRID_STREAMS, GRID_RATES = (1, 16, 64, 256, 512), (20.0, 50.0, 100.0)
MAIN = Point(64, 50)
INSTEAD = {"inline": "backend"}
"""What is measured in the place of a chain that cannot be."""
STANDARD = (
    "direct", "nginx", "inline", "express", "backend", "tutorial", "litellm", "smg", "vllm-router"
)  # fmt: skip


@dataclass(frozen=True)
class Preset:
    """What is measured: points with their rounds, the phases of a run, which chains."""

    points: Sequence[tuple[Point, int]]
    phases: Phases
    chains: Sequence[str] = STANDARD
    idle_streams: int = 256


PRESETS = {
    "quick": Preset(
        [(Point(4, 50), 1)], Phases(1.0, 0.5, 5, settle=0.3),
        ("direct", "nginx", "inline"), idle_streams=8,
    ),
    "default": Preset(
        [(MAIN, 3), *((Point(n, 50), 1) for n in GRID_STREAMS if n != MAIN.streams)],
        Phases(3.0, 3.0, 30),
    ),
    "full": Preset(
        sorted(
            ((Point(n, rate), 3 if n == MAIN.streams else 1)
             for rate in GRID_RATES for n in GRID_STREAMS),
            key=lambda point: point[0] != MAIN,
        ),
        Phases(3.0, 3.0, 30),
    ),
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write the results; return the exit status."""
    options = _parser().parse_args(arguments)
    if options.list:
        for name, make in chains.CHAINS.items():
            print(f"{name:12} {(make.__doc__ or '').splitlines()[0].removeprefix('Return ')}")
        return 0
    if options.serve:
        return serve(options)
    preset = PRESETS["quick" if options.quick else "full" if options.full else "default"]
    chosen = tuple(options.chains.split(",")) if options.chains else preset.chains
    if unknown := set(chosen) - set(chains.CHAINS):
        print(f"there is no chain {', '.join(sorted(unknown))}: --list", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as name:
        home = Path(name)
        # nginx's workers are of another user.
        home.chmod(0o755)
        document = bench(home, options, _points(options, preset), preset, chosen)
    said = text(document)
    write(options.out, document, said)
    print(said)
    print(f"Written to {options.out}: results.json, results.txt, results.html", file=sys.stderr)
    return 0 if document["points"][0]["chains"] else 1


def bench(
    home: Path, options: argparse.Namespace, points: Sequence[tuple[Point, int]], preset: Preset,
    chosen: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """Start all chains, measure them by turns, and return the document of results."""
    at, load_before = machine.now(), machine.load()
    unavailable: dict[str, str] = {}
    with _stack() as stack:
        engine = _engine(stack, home, options)
        setting = _setting(home, engine, options)
        lives = _start(stack, setting, chosen, unavailable)
        for live in lives:
            _say(f"warming up {live.chain.name}")
            measure.run(live, engine, Point(4, 20), Phases(0.5, 0.1, 1, settle=0.2),
                        aligned=False)  # fmt: skip
        # Before the load: with room from streams that are over, a process grows by none.
        memory = {}
        if options.memory:
            for live in lives:
                _say(f"memory of {preset.idle_streams} idle streams, {live.chain.name}")
                memory[live.chain.name] = measure.memory_of_streams(
                    live, engine, preset.idle_streams
                )
        for live in lives:
            measure.rest(live, 0.5 if options.quick else REST_SECONDS)
        found = _rounds(lives, engine, points, preset.phases, options)
    summary.compare(found)
    return {
        "version": 1,
        "at": at,
        "machine": machine.machine(),
        "load_before": load_before,
        "load_after": machine.load(),
        "settings": {
            "engine": _engine_said(options),
            "phases": f"{preset.phases.window:g} s steady, {preset.phases.probes} short requests",
            "idle_streams": preset.idle_streams,
            "keep_alive": options.keep_alive,
            "first_in_line": os.geteuid() == 0,
        },
        "chains": [
            {
                "name": live.chain.name, "title": live.chain.title, "note": live.chain.note,
                "hops": [hop.name for hop in live.chain.hops],
                "versions": dict(live.chain.versions),
                "idle_cores": {name: round(v, 5) for name, v in live.idle.items()},
                "memory_bytes": {n: round(v) for n, v in memory.get(live.chain.name, {}).items()},
                **summary.of_chain(live.chain.name, found),
            }
            for live in lives
        ],
        "unavailable": unavailable,
        "points": found,
    }  # fmt: skip


def serve(options: argparse.Namespace) -> int:
    """Keep one chain up until a signal comes, and say how to ask it."""
    if options.serve not in chains.CHAINS:
        print(f"there is no chain {options.serve}: --list", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as name, _stack() as stack:
        home = Path(name)
        home.chmod(0o755)
        engine = _engine(stack, home, options)
        engine.set_pace(float((options.rates or "50").split(",")[0]), aligned=options.aligned)
        live = Live(chains.CHAINS[options.serve](_setting(home, engine, options)))
        stack.callback(live.end)
        live.start(home)
        live.wait()
        call = live.chain.call
        print(f"http{'s' if call.tls else ''}://{call.host}:{call.port}{call.path}")
        print(f"model {call.model}")
        for header, value in call.headers.items():
            print(f"{header}: {value}", flush=True)
        _say("Ctrl-C ends it.")
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
    return 0


def _stack() -> contextlib.ExitStack:
    # A plain end is an end like any other: everything that was started goes with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    return contextlib.ExitStack()


def _setting(home: Path, engine: measure.Engine, options: argparse.Namespace) -> chains.Setting:
    return chains.Setting(
        home, chains.Engine(engine.port, engine.key, engine.model), options.workers,
        install=options.install and not options.quick,
    )  # fmt: skip


def _start(
    stack: contextlib.ExitStack, setting: chains.Setting, chosen: Sequence[str],
    unavailable: dict[str, str],
) -> list[Live]:  # fmt: skip
    """Start chains until the stack ends; note why one cannot be, and take what stands for it."""
    started: dict[str, Live] = {}

    def leave_out(name: str, why: UnavailableError) -> None:
        unavailable[name] = str(why)
        _say(f"left out, {name}: {why}")
        started.pop(name, None)
        if name in INSTEAD and INSTEAD[name] not in chosen:
            start(INSTEAD[name])

    def start(name: str) -> None:
        _say(f"starting {name}")
        try:
            live = started[name] = Live(chains.CHAINS[name](setting))
            stack.callback(live.end)
            live.start(setting.logs(name))
        except UnavailableError as why:
            leave_out(name, why)

    for name in chosen:
        start(name)
    waiting = list(started)
    for name in waiting:
        try:
            started[name].wait()
        except UnavailableError as why:
            leave_out(name, why)
            waiting += [late for late in started if late not in waiting]
    return list(started.values())


def write(folder: Path, document: dict[str, Any], said: str) -> None:
    """Write the results in each form."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(document) + "\n")
    (folder / "results.txt").write_text(said)
    (folder / "results.html").write_text(render_page(document))


def _rounds(
    lives: Sequence[Live], engine: measure.Engine, points: Sequence[tuple[Point, int]],
    phases: Phases, options: argparse.Namespace,
) -> list[dict[str, Any]]:  # fmt: skip
    runs: dict[Point, dict[str, list[dict[str, Any]]]] = {point: {} for point, _ in points}
    stalled: dict[str, set[tuple[int, float]]] = {live.chain.name: set() for live in lives}
    if options.keep_alive:
        phases = Phases(phases.window, phases.probing, phases.probes, phases.settle, True)
    for number in range(max(rounds for _, rounds in points)):
        for point, rounds in points:
            for live in lives if number < rounds else ():
                name, place = live.chain.name, (point.streams, point.rate)
                if summary.to_skip(place, list(stalled[name])):
                    continue
                found = measure.run(live, engine, point, phases, aligned=options.aligned)
                runs[point].setdefault(name, []).append(found)
                if found["stalls"]:
                    stalled[name].add(place)
                _say(_line(number, point, name, found))
    return [
        {"streams": point.streams, "rate": point.rate, "chains": summary.of_point(runs[point])}
        for point, _ in points
    ]


def _line(number: int, point: Point, name: str, found: dict[str, Any]) -> str:
    cost = sum(found["token_us"].values())
    said = "; ".join([*found["stalls"], *found["limits"], *found["errors"][:1]])
    return (
        f"round {number + 1}  {point.streams:4} × {point.rate:<4g} {name:12} {cost:8.1f} µs a token"
        f"  first token {1000 * found['first_token_seconds']['p50']:7.1f} ms"
        f"  gap p99 {1000 * found['gap_seconds']['p99']:7.1f} ms  {said[:120]}"
    )


def _engine(stack: contextlib.ExitStack, home: Path, options: argparse.Namespace) -> measure.Engine:
    if not options.engine:
        return stack.enter_context(measure.stand_in(home))
    address = urllib.parse.urlsplit(options.engine)
    if address.hostname not in ("127.0.0.1", "localhost") or not address.port:
        raise SystemExit("--engine: http://127.0.0.1:PORT; chains reach an engine on this machine")
    key = os.environ.get(KEY_VARIABLE, "none")
    return measure.Engine(address.port, key=key, model=options.model)


def _engine_said(options: argparse.Namespace) -> str:
    if options.engine:
        return f"the engine at {options.engine}, {options.model}"
    how = "in step" if options.aligned else "spread over the pace"
    return f"a stand-in for the engine, tokens {how}"


def _points(options: argparse.Namespace, preset: Preset) -> list[tuple[Point, int]]:
    if options.streams or options.rates:
        streams = [int(n) for n in (options.streams or str(MAIN.streams)).split(",")]
        rates = [float(n) for n in (options.rates or str(MAIN.rate)).split(",")]
        return [(Point(n, rate), options.rounds or 3) for rate in rates for n in sorted(streams)]
    return [(point, options.rounds or rounds) for point, rounds in preset.points]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./millrace bench", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="smallest; installs nothing")
    size.add_argument("--full", action="store_true", help="the whole grid")
    parser.add_argument("--list", action="store_true", help="say which chains there are")
    parser.add_argument("--serve", metavar="X", help="keep one up, and say how to ask it")
    parser.add_argument("--chains", metavar="A,B", help="only these, in this order")
    parser.add_argument("--streams", metavar="N,N", help="how many streams at once")
    parser.add_argument("--rates", metavar="R,R", help="tokens a second and stream")
    parser.add_argument("--rounds", type=int, default=0, help="of every point")
    parser.add_argument("--workers", type=int, default=0, help="of our gateway (the plan's)")
    parser.add_argument("--aligned", action="store_true",
                        help="all streams get their tokens in the same millisecond")  # fmt: skip
    parser.add_argument("--keep-alive", action="store_true",
                        help="short requests over kept connections, as a browser's")  # fmt: skip
    parser.add_argument("--engine", metavar="URL",
                        help=f"a real engine on this machine; key in {KEY_VARIABLE}")  # fmt: skip
    parser.add_argument("--model", default="bench", help="the engine's name of its model")
    parser.add_argument("--no-install", dest="install", action="store_false",
                        help="leave out what is not there yet")  # fmt: skip
    parser.add_argument("--no-memory", dest="memory", action="store_false",
                        help="leave out the memory of idle streams")  # fmt: skip
    parser.add_argument("--out", type=Path, default=ROOT / "artefacts/bench",
                        help="folder of the results")  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
