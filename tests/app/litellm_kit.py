"""LiteLLM itself with our hooks, configured as the role does it.

MILLRACE_LITELLM names a venv made from requirements/litellm.txt: LiteLLM is not among the
development requirements, for it would pin half of them elsewhere.
"""

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
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
VENV = os.environ.get("MILLRACE_LITELLM", "")


@contextlib.contextmanager
def running_litellm(
    home: Path, port: int, engines: Mapping[str, int], *, model: str, engine_key: str, key: str
) -> Iterator[Path]:
    """Run LiteLLM with the role's own template, rendered by Ansible, and give its log.

    `engines` are names and ports. Raises AssertionError when it does not start.
    """
    known = {
        "millrace_plan": {
            "engines": [
                {"name": name, "port": at, "weight": 1, "model": {"served_name": model}}
                for name, at in engines.items()
            ],
            "budget": {"gateway_read_seconds": 30},
        },
        "litellm_engine_key": engine_key,
        "litellm_gateway_key": key,
        "ansible_python_interpreter": sys.executable,
    }
    (home / "known.json").write_text(json.dumps(known))
    template = ROOT / "roles/litellm/templates/etc/millrace/litellm/config.yaml.j2"
    subprocess.run(
        [sys.executable, "-m", "ansible", "adhoc", "localhost", "-c", "local",
         "-m", "ansible.builtin.template", "-a", f"src={template} dest={home}/config.yaml",
         "-e", f"@{home}/known.json"],
        check=True, capture_output=True, env={**os.environ, "ANSIBLE_HOME": str(home)},
    )  # fmt: skip
    unit = (ROOT / "templates/systemd/millrace-litellm.service.j2").read_text()
    settings = dict(
        setting.split("=", 1)
        for line in re.findall(r"^Environment=([^{\n]+)$", unit, re.M)
        for setting in line.split()
    )
    log = home / "litellm.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [f"{VENV}/bin/litellm", "--config", home / "config.yaml", "--host", "127.0.0.1",
             "--port", str(port), "--num_workers", "1"],
            stdout=out, stderr=out, cwd=home, start_new_session=True,
            env={
                "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", **settings,
                "PYTHONPATH": str(ROOT / "app"), "PYTHONDONTWRITEBYTECODE": "1",
                "LITELLM_WORKER_STARTUP_HOOKS": "gateway.hooks:install",
            },
        )  # fmt: skip
    try:
        until = time.monotonic() + 120
        while not _listens(port):
            alive = process.poll() is None and time.monotonic() < until
            assert alive, f"LiteLLM did not start:\n{log.read_text()[-3000:]}"
            time.sleep(0.2)
        yield log
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as wire:
        return wire.connect_ex(("127.0.0.1", port)) == 0
