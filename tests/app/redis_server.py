"""A real Redis for tests: the machine's own, or Debian's package unpacked beside the tests.

Unpacked and not installed: an installed one would start a service on the machine of whoever runs
the tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import redis

# Its libraries are those that a base system lacks.
_PACKAGES = ("redis-tools", "redis-server", "libjemalloc2", "liblzf1")
_UNPACK_SECONDS = 120


def find_redis(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Return the command of a redis-server and its environment; skips the test without one."""
    named = os.environ.get("MILLRACE_TEST_REDIS") or shutil.which("redis-server")
    if named:
        return [named], dict(os.environ)
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        pytest.skip("no redis-server here (install it, or name one: MILLRACE_TEST_REDIS)")
    try:
        subprocess.run(
            ["apt-get", "download", "-qq", *_PACKAGES],
            cwd=folder, check=True, capture_output=True, timeout=_UNPACK_SECONDS,
        )  # fmt: skip
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        pytest.skip("no redis-server here, and Debian's package cannot be had")
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, folder], check=True)
    (libraries,) = {str(path.parent) for path in folder.glob("usr/lib/*/libjemalloc.so.2")}
    return [str(folder / "usr/bin/redis-server")], {**os.environ, "LD_LIBRARY_PATH": libraries}


class Redis:
    """A server on a Unix socket, which can be killed and started again with what it had."""

    def __init__(self, folder: Path, command: list[str], environment: dict[str, str]) -> None:
        self._folder = folder
        self._command = command
        self._environment = environment
        self.socket = folder / "redis.sock"
        self.url = f"redis+unix://{self.socket}"
        self.client = redis.Redis(unix_socket_path=str(self.socket))
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = ["--port", "0", "--unixsocket", str(self.socket), "--save", ""]
        self.process = subprocess.Popen(
            [*self._command, *options, "--dir", str(self._folder), "--appendonly", "yes"],
            env=self._environment,
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while True:
            try:
                self.client.ping()
                return
            except redis.RedisError:
                assert time.monotonic() < deadline, "redis-server did not start"
                time.sleep(0.05)

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(10)
