"""The real application under the real uvicorn, with a scripted upstream behind it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import pytest_asyncio
import uvicorn
from backend.application import build
from backend.logs import JsonFormatter
from backend.settings import load_settings
from backend_client import KEY
from backend_upstream import Upstream, eventually
from redis_server import Redis, find_redis

# Leaves no folder of examples behind.
hypothesis.settings.register_profile("app", database=None)
hypothesis.settings.load_profile("app")

APP = Path(__file__).parents[2] / "app"
UPSTREAM_KEY = "sk-upstream-secret"
SESSION_SECRET = "0123456789abcdef" * 4

# Short enough for tests; each test lengthens or shortens what it is about.
QUICK: dict[str, Any] = {
    "heartbeat_seconds": 5,
    "connect_timeout_seconds": 1,
    "first_byte_timeout_seconds": 5,
    "idle_timeout_seconds": 5,
    "ready_probe_interval_seconds": 30,
    "ready_max_age_seconds": 60,
    "restart_wait_seconds": 0,
    "max_body_bytes": 1_000_000,
    "drain_seconds": 3,
    "wrong_keys_per_minute": 100_000,
}


def key_entry(name: str, key: str, **more: Any) -> dict[str, Any]:
    """Return an entry of a keys file."""
    return {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest(), **more}


def write_keys(path: Path, *entries: dict[str, Any], **keys: str) -> None:
    """Write the keys file as a release would: a new file in the place of the old one."""
    entries = (*entries, *(key_entry(name, key) for name, key in keys.items()))
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"version": 2, "keys": entries}))
    fresh.replace(path)


class Files:
    """The folder that a unit would find: settings, keys, credential."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = folder / "keys.json"
        self.issued_keys = folder / "keys.issued.json"
        self.config = folder / "backend.json"
        write_keys(self.keys, alice=KEY)
        credentials = folder / "credentials"
        credentials.mkdir()
        (credentials / "upstream-key").write_text(UPSTREAM_KEY + "\n")
        (credentials / "session-secret").write_text(SESSION_SECRET + "\n")

    def write_config(self, upstream_port: int, **changes: Any) -> Path:
        settings = {
            "upstream_url": f"http://127.0.0.1:{upstream_port}/vllm",
            "upstream_key_credential": "upstream-key",
            "keys_file": str(self.keys),
            "issued_keys_file": str(self.issued_keys),
            "session_secret_credential": "session-secret",
            "models": [{"id": "tiny"}],
            **QUICK,
            **changes,
        }
        self.config.write_text(json.dumps(settings))
        return self.config


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    made = Files(tmp_path)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    return made


@pytest_asyncio.fixture
async def upstream() -> AsyncIterator[Upstream]:
    server = Upstream()
    await server.start()
    yield server
    await server.stop()
    assert not server.errors


class Logs(logging.Handler):
    """What would be on stderr."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    def requests(self) -> list[dict[str, Any]]:
        parsed = [json.loads(line) for line in self.lines]
        return [line for line in parsed if line.get("event") == "request"]

    async def next_request(self) -> dict[str, Any]:
        """Wait for the line of the request that has just ended."""
        await eventually(self.requests)
        return self.requests()[-1]


@pytest.fixture
def logs() -> Iterator[Logs]:
    handler = Logs()
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield handler
    root.removeHandler(handler)
    root.setLevel(before)


class ThreadBackend:
    """The backend in a thread of this process, on its own uvloop."""

    def __init__(self, config: Path) -> None:
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        self.port: int = sock.getsockname()[1]
        self.server = uvicorn.Server(
            uvicorn.Config(
                build(load_settings(config)),
                loop="uvloop",
                http="httptools",
                ws="none",
                lifespan="on",
                access_log=False,
                log_config=None,
                timeout_graceful_shutdown=0,
            )
        )
        self._thread = threading.Thread(target=self.server.run, args=([sock],), daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 10
        while not self.server.started:
            assert self._thread.is_alive(), "the backend did not start"
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def stop(self) -> None:
        self.server.should_exit = True

    def join(self) -> None:
        self._thread.join(10)
        assert not self._thread.is_alive()


StartBackend = Callable[..., ThreadBackend]


@pytest.fixture(scope="session")
def stopping() -> Iterator[list[ThreadBackend]]:
    """Backends take a moment to stop: that is waited for once, at the very end."""
    backends: list[ThreadBackend] = []
    yield backends
    for backend in backends:
        backend.join()


@pytest.fixture
def start_backend(
    files: Files, upstream: Upstream, logs: Logs, stopping: list[ThreadBackend]
) -> Iterator[StartBackend]:
    """Start a backend with changed settings; it is stopped after the test."""
    started: list[ThreadBackend] = []

    def start(**changes: Any) -> ThreadBackend:
        started.append(ThreadBackend(files.write_config(upstream.port, **changes)))
        return started[-1]

    yield start
    for backend in started:
        # A request's line may come a moment after its last byte: it belongs to this test, and
        # the next one would take it for its own.
        until = time.monotonic() + 1
        while backend.server.server_state.tasks and time.monotonic() < until:
            time.sleep(0.005)
        backend.stop()
        stopping.append(backend)


@pytest.fixture
def port(start_backend: StartBackend) -> int:
    """Return the port of a backend with the usual settings."""
    return start_backend().port


class ProcessBackend:
    """`python -m backend` as systemd would start it, stderr in a file.

    Without a `listener` of the caller's, a dead backend refuses: only it holds the socket.
    """

    def __init__(
        self,
        files: Files,
        config: Path,
        *options: str,
        listener: socket.socket | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        own = listener or socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = own.getsockname()[1]
        self.log_path = files.folder / f"stderr-{time.monotonic_ns()}"
        with self.log_path.open("wb") as log:
            command = [sys.executable, "-m", "backend", "--config", str(config), *options]
            self.process = subprocess.Popen(
                [*command, "--fd", str(own.fileno())],
                env={**os.environ, "PYTHONPATH": str(APP), **(environment or {})},
                pass_fds=[own.fileno()],
                stderr=log,
                start_new_session=True,
            )
        if listener is None:
            own.close()

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    async def wait(self, seconds: float) -> int:
        await eventually(lambda: self.process.poll() is not None, seconds)
        return self.process.returncode


StartProcess = Callable[..., ProcessBackend]


@pytest.fixture
def start_process(files: Files, upstream: Upstream) -> Iterator[StartProcess]:
    started: list[ProcessBackend] = []

    def start(
        *options: str,
        listener: socket.socket | None = None,
        environment: Mapping[str, str] | None = None,
        **changes: Any,
    ) -> ProcessBackend:
        config = files.write_config(upstream.port, **changes)
        started.append(
            ProcessBackend(files, config, *options, listener=listener, environment=environment)
        )
        return started[-1]

    yield start
    for backend in started:
        # Its workers with it: they outlive a supervisor that is killed.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(backend.process.pid, signal.SIGKILL)
        backend.process.wait(10)


@pytest.fixture(scope="session")
def redis_command(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, str]]:
    """How a redis-server is started here."""
    return find_redis(tmp_path_factory.mktemp("redis"))


@pytest.fixture
def store(tmp_path: Path, redis_command: tuple[list[str], dict[str, str]]) -> Iterator[Redis]:
    """A redis-server of the test's own."""
    made = Redis(tmp_path, *redis_command)
    yield made
    made.stop()
