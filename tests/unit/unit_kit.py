"""What the unit tests share: where things lie, a clean environment, answers over HTTP.

Not in conftest.py, for tests/app has one as well and only one module can have that name.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import importlib
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "tests/unit"

Handler = http.server.BaseHTTPRequestHandler


def clean_environment(**more: str) -> dict[str, str]:
    """Return an environment in which nothing of the developer's own pip or Ansible counts."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "ANSIBLE_"))}
    kept = {k: v for k, v in kept.items() if not k.lower().endswith("_proxy")}
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    return {**kept, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1", **more}


class _Declared(Exception):  # noqa: N818 - no error: it carries what was declared
    """Raised in place of a module's run."""


@functools.cache
def declared(module: str) -> dict[str, dict[str, Any]]:
    """Return the options of one of our modules, as it hands them to Ansible."""

    def declare(argument_spec: dict[str, dict[str, Any]], **_: Any) -> None:
        raise _Declared(argument_spec)

    loaded = importlib.import_module(module)
    with mock.patch.object(loaded, "AnsibleModule", declare):
        try:
            loaded.main()
        except _Declared as told:
            return dict(told.args[0])
    raise AssertionError(f"{module} makes no AnsibleModule")


def answer_json(request: Handler, status: int, body: Any) -> None:
    """Answer a request with JSON."""
    data = json.dumps(body).encode()
    request.send_response(status)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    request.wfile.write(data)


@contextlib.contextmanager
def mail_server() -> Iterator[int]:
    """Listen on a free port, and answer one caller with something that is no HTTP at all."""

    def talk() -> None:
        with contextlib.suppress(OSError):
            client, _ = server.accept()
            with client:
                client.recv(4096)
                client.sendall(b"220 mail.example ESMTP\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        thread = threading.Thread(target=talk)
        thread.start()
        yield server.getsockname()[1]
        thread.join()
