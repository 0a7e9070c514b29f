"""Fixtures of the unit tests: playbooks, modules and a small HTTP server to script."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ansible.module_utils
import hypothesis
import pytest
from unit_kit import ROOT, UNIT, Handler, clean_environment

# Where a run of Ansible puts what our modules share.
ansible.module_utils.__path__.append(str(ROOT / "plugins/module_utils"))

# Leaves no folder of examples behind; a busy machine is no failure.
hypothesis.settings.register_profile("unit", database=None, deadline=None)
hypothesis.settings.load_profile("unit")


@pytest.fixture(scope="session")
def playbook(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Return a function that runs `ansible-playbook` with the repository's ansible.cfg."""
    home = tmp_path_factory.mktemp("ansible-home")

    def run(
        *arguments: str, callbacks: str = "", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        environment = clean_environment(
            ANSIBLE_CONFIG=str(ROOT / "ansible.cfg"),
            ANSIBLE_HOME=str(home),
            ANSIBLE_LOCAL_TEMP=str(home / "tmp"),
            ANSIBLE_REMOTE_TEMP=str(home / "remote"),
            ANSIBLE_FORCE_COLOR="0",
            ANSIBLE_PIPELINING="1",
            ANSIBLE_ACTION_PLUGINS=f"{ROOT / 'plugins/action'}:{UNIT / 'actions'}",
            LC_ALL="C.UTF-8",
        )
        if callbacks:
            environment["ANSIBLE_CALLBACKS_ENABLED"] = callbacks
        done = subprocess.run(
            [sys.executable, "-m", "ansible", "playbook", "-c", "local",
             "-e", f"ansible_python_interpreter={sys.executable}", *arguments],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        if check and done.returncode:
            pytest.fail(f"ansible-playbook ended with {done.returncode}:\n{done.stdout[-4000:]}"
                        f"\n{done.stderr[-2000:]}")  # fmt: skip
        return done

    return run


class Result(dict[str, Any]):
    """What a module printed, as a dictionary, with its exit status."""

    returncode = 0


@pytest.fixture
def module(tmp_path: Path) -> Callable[..., Result]:
    """Return a function that runs one of our modules as Ansible does: arguments in a file."""

    def run(name: str, *, check_mode: bool = False, **arguments: Any) -> Result:
        given = tmp_path / f"{name}.arguments.json"
        common = {"_ansible_check_mode": check_mode, "_ansible_remote_tmp": str(tmp_path)}
        given.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": {**arguments, **common}}))
        done = subprocess.run(
            [sys.executable, ROOT / f"plugins/modules/{name}.py", given],
            env=clean_environment(
                PIP_CONFIG_FILE=os.devnull, PIP_NO_COMPILE="1", HOME=str(tmp_path)
            ),
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        if not done.stdout.strip().startswith("{"):
            pytest.fail(f"no JSON from {name}: {done.stdout}{done.stderr}", pytrace=False)
        result = Result(json.loads(done.stdout))
        result.returncode = done.returncode
        return result

    return run


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Return a function that serves HTTP by a function of the request, and gives its address."""
    running: list[http.server.ThreadingHTTPServer] = []

    def start(answer: Callable[[Handler], None], context: Any = None) -> str:
        class Scripted(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                answer(self)

            def do_POST(self) -> None:
                answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
        server.daemon_threads = True
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        running.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return f"http{'s' if context else ''}://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in running:
        server.shutdown()
        server.server_close()
