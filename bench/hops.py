"""Hops: the processes of a chain, started, waited for, ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

START_SECONDS = 150
END_SECONDS = 10
LAST_LINES = 15


class UnavailableError(Exception):
    """A part that a chain needs is not on this machine; the text says how to get it."""


@dataclass(frozen=True)
class Hop:
    """One process of a chain: what is run, and how to see that it serves.

    `port` is where it listens on `host`, `health` the path that then answers with 200 (empty: that
    it listens must do). With `socket` it gets that Unix socket as descriptor 3, as from systemd.
    """

    name: str
    command: tuple[str, ...]
    port: int = 0
    host: str = "127.0.0.1"
    health: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    socket: Path | None = None


@dataclass(frozen=True)
class Call:
    """How a chain is asked for a chat completion."""

    port: int
    host: str = "127.0.0.1"
    path: str = "/v1/chat/completions"
    headers: Mapping[str, str] = field(default_factory=dict)
    model: str = "bench"
    tls: bool = False
    more: Mapping[str, object] = field(default_factory=dict)
    """Fields of the request besides."""


@dataclass(frozen=True)
class Chain:
    """Hops in the order in which a request meets them, and how the first is called."""

    name: str
    title: str
    hops: tuple[Hop, ...]
    call: Call
    note: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


class Process:
    """A hop that was started; what it prints goes into a file of `home`."""

    def __init__(self, hop: Hop, home: Path) -> None:
        self._hop = hop
        self._log = home / f"{hop.name}.log"
        environment = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "HOME": str(home),
            "LANG": "C.UTF-8",
            **hop.environment,
        }
        with self._log.open("ab") as out, contextlib.ExitStack() as stack:
            listener = stack.enter_context(_listener(hop.socket)) if hop.socket else None

            def hand_over() -> None:
                if listener is not None:
                    os.dup2(listener.fileno(), 3)

            self._process = subprocess.Popen(
                hop.command, env=environment, cwd=home, stdin=subprocess.DEVNULL, stdout=out,
                stderr=out, start_new_session=True, preexec_fn=hand_over,
                pass_fds=(3,) if listener is not None else (),
            )  # fmt: skip
        self.pid = self._process.pid

    def wait(self) -> None:
        """Wait until it serves. Raises UnavailableError, with its last words, where it ends."""
        until = time.monotonic() + START_SECONDS
        while not _serves(self._hop):
            if self._process.poll() is not None or time.monotonic() > until:
                last = self._log.read_text(errors="replace").splitlines()[-LAST_LINES:]
                started = f"{self._hop.name} did not start: {' '.join(self._hop.command)}"
                raise UnavailableError("\n".join([started, *last]))
            time.sleep(0.1)

    def end(self) -> None:
        """End it, and whatever it left behind in its session."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait(END_SECONDS)


@contextlib.contextmanager
def running(hop: Hop, home: Path) -> Iterator[int]:
    """Run a hop until the block ends; give its process id once it serves."""
    process = Process(hop, home)
    try:
        process.wait()
        yield process.pid
    finally:
        process.end()


def _listener(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    # nginx's workers are of another user.
    path.chmod(0o666)
    listener.listen(2048)
    return listener


def _serves(hop: Hop) -> bool:
    try:
        if hop.socket is not None:
            link = socket.socket(socket.AF_UNIX)
            link.settimeout(5)
            link.connect(str(hop.socket))
        else:
            link = socket.create_connection((hop.host, hop.port), 5)
        with link:
            if not hop.health:
                return True
            link.sendall(f"GET {hop.health} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
            return b" 200 " in link.recv(4096).split(b"\n", 1)[0]
    except OSError:
        return False
