"""The commands: each reads one server's specification on stdin and prints a JSON object."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from . import image, server
from .host import SandboxError, locked
from .supervisor import supervise

TOOLS = {
    "systemd-nspawn": "systemd-container",
    "mmdebstrap": "mmdebstrap",
    "nft": "nftables",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
}
FREE_BYTES = 4 << 30


def preflight(spec: dict[str, Any]) -> dict[str, Any]:
    """Refuse what cannot work, before anything is changed; list the packages to install."""
    if os.geteuid() != 0:
        raise SandboxError("the sandbox needs root on this machine: it makes namespaces and mounts")
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?", spec["name"]):
        raise SandboxError(f"{spec['name']!r} is no host name of lower-case letters and digits")
    if not 1 <= spec["index"] <= 254:
        raise SandboxError(f"{spec['name']}: set sandbox_index, 1 to 254, unique on this machine")
    for key in ("state_dir", "cache_dir"):
        path = Path(spec[key])
        if not path.is_absolute() or len(path.parts) < 3:
            raise SandboxError(f"sandbox_{key}: {path} must be absolute, and a folder of its own")
        while not path.exists():
            path = path.parent
        free = shutil.disk_usage(path).free
        if free < FREE_BYTES:
            raise SandboxError(
                f"sandbox_{key}: {free >> 20} MiB free on {path}, {FREE_BYTES >> 20} MiB needed"
            )
    missing = {package for tool, package in TOOLS.items() if not shutil.which(tool)}
    if not image.KEYRING.exists():
        missing.add("debian-archive-keyring")
    if missing and not shutil.which("apt-get"):
        raise SandboxError(f"this machine has no apt: install {', '.join(sorted(missing))} by hand")
    return {"changed": False, "missing": sorted(missing)}


def ensure_image(spec: dict[str, Any]) -> dict[str, Any]:
    """Build the base image, if the server is going to need it."""
    return {"changed": server.needs_image(spec) and image.ensure(spec)}


def harvest(spec: dict[str, Any]) -> dict[str, Any]:
    """Keep the package files that a server has fetched so far."""
    home = server.home_of(spec)
    if not home.exists():
        return {"changed": False}
    with locked(home):
        kept = server.harvest(home, spec)
    return {"changed": kept > 0, "kept": kept}


COMMANDS = {
    "preflight": preflight,
    "image": ensure_image,
    "up": server.up,
    "down": server.down,
    "harvest": harvest,
}


def main() -> int:
    """Run one command."""
    os.umask(0o022)  # what is written into a root is read by its users
    os.environ["PATH"] += ":/usr/local/sbin:/usr/sbin:/sbin"
    arguments = sys.argv[1:]
    if len(arguments) == 2 and arguments[0] == "supervise":
        return supervise(arguments[1])
    if len(arguments) != 1 or arguments[0] not in COMMANDS:
        print(f"usage: millrace_sandbox {{{','.join(COMMANDS)}}} < spec.json", file=sys.stderr)
        return 2
    began = time.monotonic()
    try:
        result = COMMANDS[arguments[0]](json.load(sys.stdin))
    except SandboxError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps({**result, "seconds": round(time.monotonic() - began, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
