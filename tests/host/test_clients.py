"""Clients that people have, unchanged, against the service as it is: through nginx, with TLS.

What each does is in tests/clients, a program a library, run in environments of their own:
.venv.clients and tests/clients/node_modules, made here from their locks. Where the packages cannot
be had the tests are skipped.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from servers import INVENTORY, ROOT, Server

pytestmark = pytest.mark.timing

CLIENTS = ROOT / "tests/clients"
VENV = ROOT / ".venv.clients"
PROGRAMS = (
    "openai_python.py", "openai_node.mjs", "langchain_openai_chat.py", "llm_cli.py", "ai_sdk.mjs",
)  # fmt: skip
PROGRAM_SECONDS = 120
FREE_SECONDS = 3
OLDEST_NODE = 22
LIMITED = "host-test-clients"


class NotHereError(Exception):
    """Why an environment cannot be had on this machine."""


def scenarios(program: str) -> list[str]:
    """Ask a program what it would do."""
    return re.findall(r'scenario\("([^"]+)"', (CLIENTS / program).read_text())


@dataclass
class Told:
    """What a program told of its scenarios. `busy` is how long the engine worked on for those
    who had left, in seconds; None when it did not stop."""

    errors: dict[str, str | None] = field(default_factory=dict)
    busy: dict[str, float | None] = field(default_factory=dict)
    output: str = ""


@functools.cache
def python() -> str:
    """Return the Python that has the clients, made once for a lock."""
    lock = ROOT / "requirements/clients.txt"
    done, interpreter = VENV / "lock.txt", VENV / "bin/python"
    if not done.exists() or done.read_text() != lock.read_text():
        shutil.rmtree(VENV, ignore_errors=True)
        venv.create(VENV, with_pip=True)
        for name in ("pip", "clients"):
            install(
                [interpreter, "-m", "pip", "install", "--quiet", "--require-hashes", "--no-deps",
                 "-r", ROOT / f"requirements/{name}.txt"],
            )  # fmt: skip
        done.write_text(lock.read_text())
    return str(interpreter)


@functools.cache
def node() -> str:
    """Return the Node to run with, its packages installed: .venv's own, else the machine's."""
    beside = Path(sys.executable).with_name("node")
    found = str(beside) if beside.exists() else shutil.which("node")
    if found is None:
        raise NotHereError("there is no Node on this machine")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
    if int(version.stdout.lstrip("v").split(".")[0]) < OLDEST_NODE:
        raise NotHereError(f"Node is {version.stdout.strip()}: v{OLDEST_NODE} is needed")
    lock = CLIENTS / "package-lock.json"
    done = CLIENTS / "node_modules/lock.json"
    if not done.exists() or done.read_text() != lock.read_text():
        npm = Path(found).with_name("npm")
        path = f"{Path(found).parent}:{os.environ['PATH']}"
        install([npm, "ci"], cwd=CLIENTS, env={**os.environ, "PATH": path})
        done.write_text(lock.read_text())
    return found


def install(command: list[str | Path], **more: object) -> None:
    """Run an installer; its failure is a reason to skip."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **more)  # type: ignore[call-overload]
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason"])[-1]
        raise NotHereError(f"{Path(command[0]).name} cannot install the clients: {last}")


@functools.cache
def told(server: Server, program: str, limited_key: str) -> Told:
    """Run a program once and return all that it told."""
    interpreter = node() if program.endswith(".mjs") else python()
    certificate = str(server.secrets / "server.crt")
    environment = {
        **os.environ,
        "MILLRACE_URL": f"https://{server.address}/v1",
        "MILLRACE_KEY": server.key,
        "MILLRACE_LIMITED_KEY": limited_key,
        "SSL_CERT_FILE": certificate,
        "NODE_EXTRA_CA_CERTS": certificate,
    }
    result = Told()
    with subprocess.Popen(
        [interpreter, str(CLIENTS / program)],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        watchdog = threading.Timer(PROGRAM_SECONDS, process.kill)
        watchdog.start()
        for line in process.stdout:
            try:
                said = json.loads(line)
            except ValueError:
                result.output += line
                continue
            result.errors[said["scenario"]] = said["error"]
            if said["held"]:
                result.busy[said["scenario"]] = until_free(server)
                process.stdin.write("\n")
                process.stdin.flush()
        watchdog.cancel()
    return result


def until_free(server: Server) -> float | None:
    """Return after how many seconds the engine runs nothing; None when it goes on."""
    began = time.monotonic()
    while (took := time.monotonic() - began) < FREE_SECONDS:
        if server.engine_metric("vllm:num_requests_running") == 0:
            return took
        time.sleep(0.1)
    return None


@pytest.fixture(scope="module")
def limited_key(server: Server) -> Iterator[str]:
    """A key that may ask once a minute."""

    def verb(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [ROOT / "millrace", "key", *words, server.name, "-i", INVENTORY],
            cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    verb("revoke", LIMITED)
    made = verb("add", LIMITED, "--requests-per-minute", "1")
    assert made.returncode == 0, made.stderr
    yield made.stdout.strip()
    verb("revoke", LIMITED)


@pytest.mark.timeout(PROGRAM_SECONDS + 600)
@pytest.mark.parametrize(
    ("program", "scenario"),
    [(program, scenario) for program in PROGRAMS for scenario in scenarios(program)],
)
def test_client(engine: Server, limited_key: str, program: str, scenario: str) -> None:
    try:
        all_told = told(engine, program, limited_key)
    except NotHereError as reason:
        pytest.skip(str(reason))
    assert scenario in all_told.errors, all_told.output
    assert all_told.errors[scenario] is None, all_told.errors[scenario]
    if scenario.startswith("leaving"):
        assert all_told.busy[scenario] is not None, "the engine works on for one who left"
