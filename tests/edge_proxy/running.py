"""An edge in a process of its own, here or in another host's network."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from .certificates import Authority, Pair

TESTS = Path(__file__).resolve().parents[1]
START_SECONDS = 60


class RunningEdge:
    """`with RunningEdge(…) as edge:` runs `python -m edge_proxy`; `edge.url` is where it listens.

    `network` is a network namespace to run in; visitors trust `edge.ca`.
    """

    def __init__(
        self,
        origin: str,
        *switches: str,
        address: str = "127.0.0.1",
        port: int = 443,
        names: Sequence[str] = (),
        origin_ca: Path | None = None,
        origin_name: str = "",
        pull: Pair | None = None,
        network: str = "",
    ) -> None:
        self.address, self.port = address, port
        self.url = f"https://{address}:{port}" if port != 443 else f"https://{address}"
        self._files = tempfile.TemporaryDirectory(prefix="edge-")
        folder = Path(self._files.name)
        authority = Authority(folder, "edge-authority")
        own = authority.sign("edge", address, *names)
        self.ca = authority.certificate
        self.log = folder / "log"
        self._command = [
            *(["ip", "netns", "exec", network] if network else []),
            sys.executable, "-m", "edge_proxy", "--listen", f"{address}:{port}",
            "--certificate", str(own.certificate), "--certificate-key", str(own.key),
            "--origin", origin, "--origin-name", origin_name,
            *(["--origin-ca", str(origin_ca)] if origin_ca else []),
            *(["--pull-certificate", str(pull.certificate), "--pull-key", str(pull.key)]
              if pull else []),
            *switches,
        ]  # fmt: skip

    def __enter__(self) -> RunningEdge:
        """Start it, and wait until it listens."""
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                env={**os.environ, "PYTHONPATH": str(TESTS), "PYTHONDONTWRITEBYTECODE": "1"},
            )  # fmt: skip
        assert self._process.stdout
        ready, _, _ = select.select([self._process.stdout], [], [], START_SECONDS)
        said = self._process.stdout.readline() if ready else b""
        if said != b"ready\n":
            self._stop()
            raise AssertionError(f"the edge did not start: {self.log.read_text()}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop it."""
        if error is not None:
            print(f"the edge said:\n{self.log.read_text()[-4000:]}")
        self._stop()
        self._files.cleanup()

    def _stop(self) -> None:
        assert self._process.stdin
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
