"""Which secrets a server has, and where they are looked for: on it, here, and in what a run prints.

Secrets are found by the controller's folder and not by a list of names, so that one which a role
keeps there tomorrow is looked for as well.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leak_probe import PEM, Needles, lines_of_key
from servers import Server

PROBE = Path(__file__).with_name("leak_probe.py")

# Where the service is: addresses and paths, for `./millrace ask` and `check`.
NO_SECRET = ("service.json",)
SHORTEST = 12


def texts_of(content: str) -> list[str]:
    """Return the texts by which a file's secrets are known; none where all of it is public."""
    if keys := PEM.findall(content):
        return [line for kind, body in keys for line in lines_of_key(kind, body)]
    if "-----BEGIN" in content:
        return []
    if content.lstrip().startswith("{"):
        pairs = re.findall(r'"([^"]+)":\s*"([^"]+)"', content)
        return [text for name, text in pairs if re.search(r"(?i)secret|token|key|password", name)]
    return [line.strip() for line in content.splitlines() if len(line.strip()) >= SHORTEST]


def as_base64(text: str) -> str:
    """Return how it stands in base64, alone or with a line end behind it."""
    whole = text.encode()
    return base64.b64encode(whole[: len(whole) // 3 * 3]).decode()


def needles_of(folder: Path) -> Needles:
    """Return the secrets in a folder of the controller, as they are and as base64."""
    found: Needles = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        if file.name in NO_SECRET:
            continue
        if texts := texts_of(file.read_text()):
            name = str(file.relative_to(folder))
            found[name] = [*texts, *map(as_base64, texts)]
    return found


def command(server: Server | None, mode: str) -> list[str]:
    """Return the command that runs the probe on a server, or here; its text is an argument."""
    if server is None:
        return [sys.executable, str(PROBE), mode]
    probe = shlex.join(["python3", "-c", PROBE.read_text(), mode])
    return ["ssh", *server.ssh_arguments, f"root@{server.address}", probe]


def everywhere(server: Server, needles: Needles | None = None) -> dict[str, Any]:
    """Look everywhere on a server for its own secrets, or for those that are given."""
    texts = needles_of(server.secrets) if needles is None else needles
    done = subprocess.run(
        command(server, "everywhere"), input=json.dumps(texts) + "\n",
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@dataclass
class Watch:
    """What was seen in processes' arguments and environments, over so many looks."""

    processes: list[list[str]] = field(default_factory=list)
    looks: int = 0


@contextmanager
def watched(server: Server | None, needles: Needles) -> Iterator[Watch]:
    """Look at processes all the time that the `with` block takes."""
    seen = Watch()
    with subprocess.Popen(
        command(server, "watch"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as probe:
        assert probe.stdin is not None
        assert probe.stdout is not None
        probe.stdin.write(json.dumps(needles) + "\n")
        probe.stdin.flush()
        assert probe.stdout.readline() == "watching\n"
        try:
            yield seen
        finally:
            told, _ = probe.communicate(timeout=60)
    found = json.loads(told)
    seen.processes, seen.looks = found["processes"], found["looks"]


def told_in(output: str, needles: Needles) -> list[str]:
    """Return the names of the secrets that a text holds."""
    return sorted(name for name, texts in needles.items() if any(t in output for t in texts))


def holding(found: dict[str, Any], places: Sequence[str]) -> list[str]:
    """Return the files under `places` that hold a secret."""
    paths = [str(file["path"]) for file in found["files"]]
    return [path for path in paths if path.startswith(tuple(places))]
