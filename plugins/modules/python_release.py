#!/usr/bin/python
"""Build one release of a Python component: a virtual environment from a hashed lock file."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
---
module: python_release
short_description: Build a virtual environment from hashed requirements, whole or not at all
description:
  - Makes C(path/venv) and installs C(requirements) into it, hashes checked, nothing resolved.
  - Writes C(path/.complete) last. A release without that mark is torn down and built again.
  - While it works, C(path/.progress) holds a line that says how far it is.
  - Who comes while another one is at it waits for that one.
options:
  path:
    description: The release's folder.
    type: path
    required: true
  requirements:
    description: Lock file on the server, every line with a hash.
    type: path
    required: true
  bootstrap:
    description: Lock file that pins pip itself.
    type: path
    required: true
  python:
    description: Interpreter that the environment is made from.
    type: str
    default: python3
  wheelhouse:
    description: Folder of wheels on the server. When given, nothing is fetched from the network.
    type: path
  extra_index_url:
    description: A further package index, asked only for builds with a local version (C(+cpu)).
    type: str
author: Millrace
"""

PROGRESS_BYTES = re.compile(r"^Progress (\d+) of (\d+)")
COLLECTING = re.compile(r"^\s*Collecting (\S+)")
MIB = 1 << 20
SHOWN_LINES = 30


class Install:
    """A pip run, told as progress lines."""

    def __init__(self, path: Path, total: int) -> None:
        self.path = path
        self.total = total
        self.seen = 0
        self.name = ""
        self.tail: list[str] = []

    def say(self, text: str) -> None:
        """Replace the progress line; readers see the old or the new one, never half."""
        fresh = self.path / ".progress.new"
        fresh.write_text(text + "\n")
        fresh.replace(self.path / ".progress")

    def read(self, line: str) -> None:
        """Take in one line of pip's output."""
        if match := PROGRESS_BYTES.match(line):
            done, size = int(match[1]), int(match[2])
            if size > MIB:
                percent = 100 * done // size
                self.say(f"{self.counted()}: {self.name} {percent}% of {size // MIB} MiB")
            return
        self.tail = [*self.tail[-SHOWN_LINES:], line]
        if match := COLLECTING.match(line):
            self.seen += 1
            self.name = re.split(r"[=<>!;\[]", match[1])[0]
            self.say(f"{self.counted()}: {self.name}")
        elif line.startswith("Installing collected"):
            self.say(f"unpacking {self.total} packages")

    def counted(self) -> str:
        """Return how many of the packages were reached."""
        return f"{min(self.seen, self.total)}/{self.total} packages"


def pip(module: AnsibleModule, python: Path, arguments: list[str], install: Install) -> None:
    """Run pip, following its output. Fails the module with pip's last words."""
    command = [
        str(python), "-m", "pip", "install", "--no-input", "--disable-pip-version-check",
        "--require-hashes", "--no-deps", "--only-binary=:all:", *arguments,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PIP_ROOT_USER_ACTION": "ignore"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            install.read(line.rstrip())
    if process.returncode:
        said = "\n".join(install.tail)
        module.fail_json(
            msg=(
                f"pip could not install {arguments[-1]} (exit status {process.returncode}). Mend "
                "what it says below and run the playbook again; a half-built release is rebuilt."
                f"\n{said}"
            )
        )


def byte_compile(python: Path, install: Install) -> None:
    """Compile what pip unpacked, on every core: pip does it on one, and it is most of its work.

    What does not compile, templates and files for other Pythons, packages ship as well; pip passes
    over them, too.
    """
    install.say(f"byte-compiling {install.total} packages")
    library = python.parents[1] / "lib"
    command = [str(python), "-m", "compileall", "-qq", "-j", "0", str(library)]
    subprocess.run(command, capture_output=True, check=False)


def split(locked: str) -> tuple[str, str]:
    """Split a lock file in two: what the default index has, and builds with a local version.

    `torch==2.13.0+cpu` is on PyTorch's own index alone. Asked for all packages, that index costs
    a round trip for each, and minutes where it cannot be reached.
    """
    entries = re.findall(r"^\S.*(?:\n[ \t].*)*", locked, re.M)
    local = [entry for entry in entries if re.match(r"[^#\s]+==[^\s\\;]*\+", entry)]
    rest = [entry for entry in entries if entry not in local]
    return "\n".join(rest) + "\n", "\n".join(local)


def build(module: AnsibleModule) -> None:
    """Build the release from nothing."""
    params = module.params
    path = Path(params["path"])
    # A run whose controller was killed leaves its installer working: wait for it, don't race it.
    lock = (path / ".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    if (path / ".complete").exists():
        return
    venv = path / "venv"
    locked = Path(params["requirements"]).read_text()
    install = Install(path, len(re.findall(r"^[A-Za-z0-9]", locked, re.M)))
    install.say("making the virtual environment")
    if venv.exists():
        shutil.rmtree(venv)
    result = subprocess.run(
        [params["python"], "-m", "venv", str(venv)], capture_output=True, text=True, check=False
    )
    if result.returncode:
        said = (result.stdout + result.stderr).strip()
        module.fail_json(msg=f"{params['python']} could not make a virtual environment: {said}")
    python = venv / "bin" / "python"
    wheelhouse = params["wheelhouse"]
    offline = ["--no-index", "--find-links", wheelhouse] if wheelhouse else []
    pip(module, python, [*offline, "-r", params["bootstrap"]], install)
    install.seen = 0
    quick = ["--no-compile", "--progress-bar", "raw"]
    main, local = split(locked)
    for name, text in (("main.txt", main), ("local.txt", local)):
        if not text:
            continue
        part = path / f".{name}"
        part.write_text(text)
        extra = params["extra_index_url"] if text is local and not wheelhouse else ""
        index = ["--extra-index-url", extra] if extra else []
        pip(module, python, [*quick, *offline, *index, "-r", str(part)], install)
    byte_compile(python, install)
    (path / ".progress").unlink(missing_ok=True)
    (path / ".complete").write_text(json.dumps({"packages": install.total}) + "\n")


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "requirements": {"type": "path", "required": True},
            "bootstrap": {"type": "path", "required": True},
            "python": {"type": "str", "default": "python3"},
            "wheelhouse": {"type": "path"},
            "extra_index_url": {"type": "str"},
        },
        supports_check_mode=True,
    )
    complete = (Path(module.params["path"]) / ".complete").exists()
    if not complete and not module.check_mode:
        build(module)
    module.exit_json(changed=not complete)


if __name__ == "__main__":
    main()
