#!/usr/bin/python
"""Build the chat page on this machine: sources and a lock in, one archive of files out."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
---
module: web_release
short_description: Build the chat page, whole or not at all
description:
  - Copies C(parts) of C(source) to a folder of its own, installs what their lock names with its
    hashes checked and none of its scripts run, and builds.
  - Leaves C(path/release.tar.gz), owned by root inside, and writes C(path/.complete) last.
options:
  source:
    description: The page's folder in the repository.
    type: path
    required: true
  parts:
    description: Files and folders of it that the build takes.
    type: list
    elements: str
    required: true
  tools:
    description: Folder that holds node and npm.
    type: path
    required: true
  path:
    description: Where the release is kept.
    type: path
    required: true
author: Millrace
"""

SHOWN_LINES = 30
LONGEST_SECONDS = 600


def run(module: AnsibleModule, command: list[str], folder: Path, wish: str) -> None:
    """Run a step of the build. Fails the module with the step's last words."""
    tools = module.params["tools"]
    environment = {**os.environ, "PATH": f"{tools}:{os.environ.get('PATH', os.defpath)}"}
    try:
        done = subprocess.run(
            [f"{tools}/{command[0]}", *command[1:]],
            cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, check=False, timeout=LONGEST_SECONDS,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        module.fail_json(msg=f"{command[0]} could not {wish}: {error}")
    if done.returncode:
        said = "\n".join(done.stdout.splitlines()[-SHOWN_LINES:])
        module.fail_json(
            msg=(
                f"{command[0]} could not {wish} (exit status {done.returncode}). Mend what it says "
                "below and run the playbook again, or set millrace_page: false to do without the "
                f"page.\n{said}"
            )
        )


def pack(folder: Path, archive: Path) -> None:
    """Pack a folder's content, readable by everybody and root's."""

    def roots(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = "root"
        entry.mode = 0o755 if entry.isdir() else 0o644
        return entry

    with tarfile.open(archive, "w:gz") as packed:
        for entry in sorted(folder.iterdir()):
            packed.add(entry, arcname=entry.name, filter=roots)


def build(module: AnsibleModule) -> None:
    """Build the release beside its place, and move it there when it is whole."""
    source, path = Path(module.params["source"]), Path(module.params["path"])
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".building-") as name:
        work, fresh = Path(name) / "work", Path(name) / "fresh"
        work.mkdir()
        fresh.mkdir()
        for part in module.params["parts"]:
            here = source / part
            if here.is_dir():
                shutil.copytree(here, work / part)
            else:
                shutil.copy(here, work / part)
        install = ["npm", "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund"]
        run(module, install, work, "install what package-lock.json names")
        run(module, ["node", "build.mjs", str(work / "dist")], work, "build the page")
        pack(work / "dist", fresh / "release.tar.gz")
        (fresh / ".complete").touch()
        if path.exists():
            shutil.rmtree(path)
        fresh.rename(path)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "path", "required": True},
            "parts": {"type": "list", "elements": "str", "required": True},
            "tools": {"type": "path", "required": True},
            "path": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    complete = (Path(module.params["path"]) / ".complete").exists()
    if not complete and not module.check_mode:
        build(module)
    module.exit_json(changed=not complete)


if __name__ == "__main__":
    main()
