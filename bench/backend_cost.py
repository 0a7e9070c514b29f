#!/usr/bin/env python3
"""What a token event costs on its way through: the backend, bare nginx, FastAPI with httpx.

    bench/backend_cost.py                       64 streams, five rounds, about two minutes
    bench/backend_cost.py --nginx PATH          an nginx that is not on PATH

The processor time is each process's own, as the kernel counts it (/proc/PID/stat), while every
stream gets a token at each step of a stand-in for the engine, which steps at a steady pace. All
are asked in turn, round after round, so that what else the machine does falls on each alike; told
are medians. Absolute figures are this machine's: compare the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KEY = "mr-" + "b" * 43
BODY = json.dumps(
    {"model": "bench", "stream": True, "messages": [{"role": "user", "content": "Go on."}]}
).encode()
TICKS = os.sysconf("SC_CLK_TCK")
WARM_UP_SECONDS = 1.0

NGINX = """\
daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr error;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{engine};
            proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
        }}
    }}
}}
"""


@dataclass
class Relay:
    """One way through: where it listens, its process, and what its rounds cost in microseconds."""

    name: str
    port: int
    pid: int
    costs: list[float] = field(default_factory=list)


def main() -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=64, help="at once (64)")
    parser.add_argument("--steps", type=float, default=25, help="of the engine, a second (25)")
    parser.add_argument("--seconds", type=float, default=6, help="measured, of each round (6)")
    parser.add_argument("--rounds", type=int, default=5, help="of all relays (5)")
    parser.add_argument("--nginx", default=shutil.which("nginx"), help="(the one on PATH)")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        relays = start(stack, folder, options)
        for _ in range(options.rounds):
            for relay in relays:
                relay.costs.append(asyncio.run(measure(relay, options)))
    print(table(relays, options))
    if not options.nginx:
        print("bare nginx: left out, there is none on PATH (apt install nginx, or --nginx PATH)")
    return 0


def start(stack: contextlib.ExitStack, folder: Path, options: argparse.Namespace) -> list[Relay]:
    """Start the engine and every relay, each to end with `stack`."""
    engine = free_port()
    standins = [sys.executable, str(ROOT / "bench/standins.py")]
    stack.enter_context(process([*standins, "engine", str(engine), str(options.steps)], engine))
    relays = []

    def add(name: str, port: int, command: list[str], **environment: str) -> None:
        pid = stack.enter_context(process(command, port, **environment))
        relays.append(Relay(name, port, pid))

    if options.nginx:
        port = free_port()
        config = folder / "nginx.conf"
        config.write_text(NGINX.format(folder=folder, port=port, engine=engine))
        add("bare nginx", port, [options.nginx, "-p", str(folder), "-c", str(config)])
    port = free_port()
    command = [sys.executable, "-m", "backend", "--config", str(settings(folder, engine))]
    add(
        "the backend", port, [*command, "--port", str(port)],
        PYTHONPATH=str(ROOT / "app"), CREDENTIALS_DIRECTORY=str(folder),
    )  # fmt: skip
    port = free_port()
    add("FastAPI with httpx", port, [*standins, "plain", str(port), str(engine)])
    return relays


def settings(folder: Path, engine: int) -> Path:
    """Write what the backend is told and return where."""
    entry = {"name": "bench", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}
    (folder / "keys.json").write_text(json.dumps({"version": 2, "keys": [entry]}))
    (folder / "upstream-key").write_text("sk-bench")
    told = {
        "upstream_url": f"http://127.0.0.1:{engine}",
        "upstream_key_credential": "upstream-key",
        "keys_file": str(folder / "keys.json"),
        "models": [{"id": "bench"}],
        # The stand-in's streams do not end, and so would no probe.
        "ready_probe_interval_seconds": 3600,
    }
    path = folder / "backend.json"
    path.write_text(json.dumps(told))
    return path


@contextlib.contextmanager
def process(command: list[str], port: int, **environment: str) -> Iterator[int]:
    """Run a process until the block ends; give its id once it listens."""
    with subprocess.Popen(
        command, env={**os.environ, **environment}, stderr=subprocess.DEVNULL
    ) as child:
        try:
            deadline = time.monotonic() + 60
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                if child.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"did not start: {' '.join(command)}")
                time.sleep(0.1)
            yield child.pid
        finally:
            child.terminate()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()


async def measure(relay: Relay, options: argparse.Namespace) -> float:
    """Return the processor time of one event through `relay`, in microseconds."""
    counts = [0]
    readers = [asyncio.create_task(read(relay.port, counts)) for _ in range(options.streams)]
    try:
        await asyncio.sleep(WARM_UP_SECONDS)
        seen, spent = counts[0], processor_seconds(relay.pid)
        await asyncio.sleep(options.seconds)
        seen, spent = counts[0] - seen, processor_seconds(relay.pid) - spent
    finally:
        for reader in readers:
            reader.cancel()
        ended = await asyncio.gather(*readers, return_exceptions=True)
    for error in ended:
        if not isinstance(error, asyncio.CancelledError):
            raise SystemExit(f"{relay.name}: a stream broke: {error!r}")
    if not seen:
        raise SystemExit(f"{relay.name}: no event came")
    return 1e6 * spent / seen


async def read(port: int, counts: list[int]) -> None:
    """Read one stream for ever and count its events."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\n"
            b"Authorization: Bearer %b\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (KEY.encode(), len(BODY), BODY)
        )
        status = await reader.readline()
        if b" 200 " not in status:
            raise ConnectionError(f"it was answered with {status!r}")
        while data := await reader.read(65536):
            counts[0] += data.count(b"data: {")
        raise ConnectionError("it ended")
    finally:
        writer.close()


def processor_seconds(pid: int) -> float:
    """Return the processor time that a process has used."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / TICKS


def table(relays: list[Relay], options: argparse.Namespace) -> str:
    """Return what was measured, in words."""
    medians = {relay.name: statistics.median(relay.costs) for relay in relays}
    first = relays[0].name
    lines = [
        f"{options.streams} streams, {options.steps:g} steps a second, {options.rounds} rounds of "
        f"{options.seconds:g} s on {cpu()}, Python {platform.python_version()}, "
        f"load {os.getloadavg()[0]:.1f}",
        "",
        f"{'':20} {'µs an event':>12} {'least':>7} {'most':>7}   to {first}",
    ]
    for relay in relays:
        median = medians[relay.name]
        lines.append(
            f"{relay.name:20} {median:12.1f} {min(relay.costs):7.1f} {max(relay.costs):7.1f}   "
            f"{median / medians[first]:.2f}"
        )
    return "\n".join(lines)


def cpu() -> str:
    """Return the processor's name and how many of them there are."""
    text = Path("/proc/cpuinfo").read_text()
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if "model name" in line]
    return f"{len(names)} × {names[0] if names else platform.machine()}"


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())
