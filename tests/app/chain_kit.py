"""The whole chain as processes of this machine: nginx as the role has it, the backend, a gateway
and engines. The gateway is a stand-in, or LiteLLM itself where MILLRACE_LITELLM names a venv."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
import edge_kit
from backend_client import KEY
from chain_engine import KEY as ENGINE_KEY
from litellm_kit import VENV, running_litellm
from planner.budget import timeout_budget
from test_gateway_live import free_port
from unit_kit import clean_environment

ROOT = Path(__file__).parents[2]
GATEWAY_KEY = "sk-" + "g" * 40
MODEL = "tiny"
ENGINES = ("main", "engine2")
INSTANCES = ("a", "b")


def chain_plan(ports: dict[str, int]) -> dict[str, Any]:
    """Return what of a plan the roles render of."""
    engines = [
        {"name": name, "port": port, "weight": 1, "model": {"served_name": MODEL}}
        for name, port in ports.items()
    ]
    backend = {"streams": 64, "workers": 1}
    return {"engines": engines, "backend": backend, "budget": timeout_budget()}


def running_json(port: int) -> dict[str, Any]:
    """Return what an engine tells of itself."""
    return dict(httpx.get(f"http://127.0.0.1:{port}/told").json())


def until(good: Callable[[], Any], seconds: float = 10, what: str = "it never came about") -> Any:
    """Ask again and again until the answer is a yes; return it."""
    deadline = time.monotonic() + seconds
    while not (found := good()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return found


@dataclass
class Chain:
    """A running chain. `stop()` ends all of it."""

    home: Path
    express: bool
    engine_ports: dict[str, int]
    https_port: int
    environment: dict[str, str]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    listener: socket.socket | None = None

    @property
    def url(self) -> str:
        return f"https://localhost:{self.https_port}"

    def spawn(self, name: str, *command: Any, **how: Any) -> None:
        log = (self.home / f"{name}.log").open("ab")
        environment = {**self.environment, **how.pop("env", {})}
        self.processes[name] = subprocess.Popen(
            [str(word) for word in command], stdout=log, stderr=log, env=environment,
            start_new_session=True, cwd=self.home, **how,
        )  # fmt: skip

    def start_engine(self, name: str) -> None:
        """Start an engine and wait until it answers."""
        port = self.engine_ports[name]
        self.spawn(f"engine-{name}", sys.executable, ROOT / "tests/app/chain_engine.py", port)
        until(lambda: listens(port), 20)

    def start_backend(self, instance: str) -> None:
        """Start an instance of the backend on the shared socket and wait until it serves."""
        if self.listener is None:
            path = self.home / "backend.sock"
            path.unlink(missing_ok=True)
            self.listener = socket.socket(socket.AF_UNIX)
            self.listener.bind(str(path))
            path.chmod(0o666)
            self.listener.listen(512)
        ends = self.home / f"ends-{instance}.sock"
        ends.unlink(missing_ok=True)
        fd = self.listener.fileno()
        self.spawn(
            f"backend-{instance}", sys.executable, "-m", "backend",
            "--config", self.home / "backend.json", "--fd", fd,
            "--private", self.home / f"private-{instance}.sock",
            pass_fds=[fd], env={"MILLRACE_INSTANCE": instance},
        )  # fmt: skip
        # It is made when the backend begins to serve.
        until(ends.exists, 20)

    def end(self, name: str, how: int = signal.SIGKILL, wait: bool = True) -> None:
        """Send a process a signal; wait for its end."""
        self.processes[name].send_signal(how)
        if wait:
            self.processes[name].wait(20)

    def stop(self) -> None:
        for process in self.processes.values():
            with_group(process)
        if self.listener is not None:
            self.listener.close()

    def client(self, **how: Any) -> httpx.Client:
        headers = {"Authorization": f"Bearer {how.pop('key', KEY)}"}
        told = {"base_url": self.url, "verify": False, "timeout": 30, "headers": headers}
        return httpx.Client(**{**told, **how})

    def log(self, name: str) -> str:
        return (self.home / f"{name}.log").read_text(errors="replace")

    def lines(self, instance: str = "a") -> list[dict[str, Any]]:
        """Return the backend's lines about requests, probes left out."""
        found = []
        for line in self.log(f"backend-{instance}").splitlines():
            told = json.loads(line) if line.startswith("{") else {}
            if told.get("event") == "request" and told["path"] not in ("/healthz", "/readyz"):
                found.append(told)
        return found

    def line_of(self, request_id: str, instance: str = "a", seconds: float = 10) -> dict[str, Any]:
        """Wait for the line of a request."""

        def look() -> Any:
            return next((x for x in self.lines(instance) if x["request_id"] == request_id), None)

        return dict(until(look, seconds, f"no line of {request_id}: {self.lines(instance)}"))

    def told(self, name: str = "main") -> dict[str, Any]:
        return running_json(self.engine_ports[name])

    def release(self) -> None:
        """Have answers go on that hold."""
        for port in self.engine_ports.values():
            httpx.get(f"http://127.0.0.1:{port}/release")

    def asked(self, request_id: str) -> list[dict[str, Any]]:
        """Return the requests with an id that came to any engine that runs."""
        found = []
        for name, port in self.engine_ports.items():
            if self.processes[f"engine-{name}"].poll() is None:
                told = running_json(port)["asked"]
                found += [x for x in told if x["headers"].get("x-request-id") == request_id]
        return found


def with_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def listens(port: int) -> bool:
    with socket.socket() as wire:
        return wire.connect_ex(("127.0.0.1", port)) == 0


def render_edges(home: Path, plan: dict[str, Any]) -> Path:
    """Render nginx.conf for both stream paths."""
    edges = {
        path: {"millrace_edge": "direct", "nginx_stream_path": path}
        for path in ("inline", "express")
    }

    def playbook(*words: str) -> None:
        environment = clean_environment(
            ANSIBLE_CONFIG=str(ROOT / "ansible.cfg"), ANSIBLE_HOME=str(home / "ansible"),
            ANSIBLE_LOCAL_TEMP=str(home / "ansible/tmp"), LC_ALL="C.UTF-8",
            ANSIBLE_ACTION_PLUGINS=str(ROOT / "tests/unit/actions"),
            ANSIBLE_REMOTE_TEMP=str(home / "ansible/remote"),
        )  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "ansible", "playbook", "-c", "local", "-e",
             f"ansible_python_interpreter={sys.executable}", *words],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]

    return edge_kit.render(home, playbook, plan, edges, (edge_kit.release_here(),))


def start_chain(
    home: Path, rendered: Path, ports: dict[str, int], gateway_port: int, express: bool,
    keys: list[dict[str, Any]], **changes: Any,
) -> Chain:  # fmt: skip
    """Start everything but the gateway."""
    https_port = free_port()
    environment = {
        "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": f"{ROOT}/app:{ROOT}/tests/app:{ROOT}/tests/unit",
        "CREDENTIALS_DIRECTORY": str(home), "MILLRACE_ENDS": f"{home}/ends-{{}}.sock",
    }  # fmt: skip
    chain = Chain(home, express, ports, https_port, environment)
    (home / "upstream-key").write_text(GATEWAY_KEY)
    (home / "session-secret").write_text("0123456789abcdef" * 4)
    (home / "keys.json").write_text(json.dumps({"version": 2, "keys": keys}))
    settings = {
        "upstream_url": f"http://127.0.0.1:{gateway_port}/vllm",
        "upstream_key_credential": "upstream-key",
        "session_secret_credential": "session-secret",
        "keys_file": str(home / "keys.json"),
        "models": [{"id": MODEL}],
        "restart_wait_seconds": 10,
        "express_ends": {name: str(home / f"ends-{name}.sock") for name in INSTANCES},
        "stream_peers": {name: str(home / f"private-{name}.sock") for name in INSTANCES},
        "ready_probe_interval_seconds": 3600,
        "ready_max_age_seconds": 3600,
        "drain_seconds": 20,
        "house_streams": 64,
        **changes,
    }
    (home / "backend.json").write_text(json.dumps(settings))
    try:
        for name in ports:
            chain.start_engine(name)
        chain.start_backend("a")
        start_nginx(chain, rendered)
    except BaseException:
        chain.stop()
        raise
    return chain


def start_nginx(chain: Chain, rendered: Path) -> None:
    """Start nginx with what was rendered, at ports of this chain's own."""
    path = "express" if chain.express else "inline"
    text = (rendered / f"{path}-{edge_kit.release_here()}.conf").read_text()
    text = edge_kit.at_home(text, chain.home)
    for port in (edge_kit.PLAIN, edge_kit.TUNNEL):
        text = text.replace(str(port), str(free_port()))
    text = text.replace(str(edge_kit.TLS), str(chain.https_port))
    text = re.sub(r"listen \[::1?\]:\d+[^;]*;", "", text)
    (chain.home / "nginx.conf").write_text(text)
    nginx = edge_kit.find_nginx()
    chain.spawn("nginx", nginx, "-c", chain.home / "nginx.conf", "-p", chain.home,
                "-g", "daemon off;")  # fmt: skip
    until(lambda: listens(chain.https_port), 10, "nginx did not start")


@contextlib.contextmanager
def running_gateway(home: Path, port: int, ports: dict[str, int]) -> Iterator[None]:
    """Run LiteLLM where there is one, else a stand-in."""
    if VENV:
        with running_litellm(
            home, port, ports, model=MODEL, engine_key=ENGINE_KEY, key=GATEWAY_KEY
        ):
            yield
        return
    command = [sys.executable, ROOT / "tests/app/chain_gateway.py", port]
    command += [f"{name}={engine}" for name, engine in ports.items()]
    with (home / "gateway.log").open("ab") as log:
        process = subprocess.Popen(
            [str(word) for word in command], stdout=log, stderr=log, start_new_session=True,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}/app:{ROOT}/tests/app"},
        )  # fmt: skip
    try:
        until(lambda: listens(port), 20)
        yield
    finally:
        with_group(process)
