#!/usr/bin/python
"""Observe what a run needs to know before it changes a server. Read-only."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
---
module: preflight_facts
short_description: Observe ports, space, memory, ways out and the model, before anything is changed
description:
  - Read-only. Judging what is found is the C(preflight_problems) filter's work.
options:
  ports:
    description: TCP ports that the service will listen on.
    type: list
    elements: int
    required: true
  paths:
    description: Folders whose free space and presence matter; they need not exist.
    type: list
    elements: path
    required: true
  python:
    description: Interpreter that the services will run on.
    type: str
    required: true
  index_url:
    description: Package index to try to reach; empty when none is needed.
    type: str
    default: ""
  try_package_sources:
    description: Whether to try to reach the package sources at all.
    type: bool
    required: true
  installed_mark:
    description: A path whose presence says that all is installed, so that no source is needed.
    type: path
    required: true
  model:
    description: The model as the plan names it, with C(source), C(id), C(revision) and C(path).
    type: dict
    required: true
  hub_url:
    description: The model hub's address.
    type: str
    required: true
  hub_token:
    description: Token for gated models.
    type: str
    default: ""
author: Millrace
"""

CONNECT_SECONDS = 10
LISTEN = "0A"  # TCP_LISTEN, include/net/tcp_states.h of the kernel
MIB = 1 << 20


def open_files(process: Path) -> set[str]:
    """Return what a process has open; files that it closes meanwhile are left out."""
    links = set()
    try:
        for descriptor in os.listdir(process / "fd"):  # noqa: PTH208
            with contextlib.suppress(OSError):
                links.add(os.readlink(process / "fd" / descriptor))  # noqa: PTH115
    except OSError:
        pass  # it ended meanwhile
    return links


def listeners(ports: list[int]) -> dict[str, dict[str, str]]:
    """Return who listens on which of `ports`: port to `{process, unit}`."""
    inodes: dict[str, int] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            cells = row.split()
            port = int(cells[1].rsplit(":", 1)[1], 16)
            if cells[3] == LISTEN and port in ports:
                inodes[f"socket:[{cells[9]}]"] = port
    found: dict[str, dict[str, str]] = {
        str(port): {"process": "unknown", "unit": ""} for port in inodes.values()
    }
    for process in Path("/proc").glob("[0-9]*"):
        mine = open_files(process) & inodes.keys()
        if not mine:
            continue
        try:
            name = (process / "comm").read_text().strip()
            cgroup = (process / "cgroup").read_text()
        except OSError:
            continue  # it ended meanwhile
        units = [part for part in cgroup.replace("\n", "/").split("/") if part.endswith(".service")]
        unit = units[-1] if units else ""
        for link in mine:
            known = found[str(inodes[link])]
            # Socket activation: systemd holds the port too; the service's name says more.
            if known["process"] in ("unknown", "systemd"):
                known.update(process=name, unit=unit)
    return found


def space(path: str) -> dict[str, Any]:
    """Return free MiB and the file system of `path`, or of its nearest parent that exists."""
    at = Path(path)
    while not at.exists():
        at = at.parent
    return {
        "exists": Path(path).exists(),
        "free_mib": shutil.disk_usage(at).free // MIB,
        "device": at.stat().st_dev,
    }


def reach(url: str) -> str:
    """Try to open a connection to the host of `url`. Returns what went wrong, or nothing."""
    proxy = urllib.request.getproxies().get(urllib.parse.urlsplit(url).scheme)
    parts = urllib.parse.urlsplit(proxy or url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname or "", port), CONNECT_SECONDS):
            return ""
    except OSError as error:
        return f"{parts.hostname}:{port}: {error}"


def apt_sites(module: AnsibleModule) -> list[str]:
    """Return the addresses that apt is configured to fetch from."""
    rc, out, _ = module.run_command(["apt-get", "indextargets", "--format", "$(SITE)"])
    return sorted({line for line in out.splitlines() if line.startswith("http")}) if not rc else []


def folder_model(path: str) -> dict[str, Any]:
    """Describe a model that should lie on the server."""
    root = Path(path)
    if not root.is_dir():
        return {"problem": "missing"}
    if not (root / "config.json").is_file():
        return {"problem": "no_config"}
    size = sum(f.stat().st_size for f in root.rglob("*") if f.is_file())
    return {"problem": "", "bytes": size, "revision": ""}


def hub_model(model: dict[str, str], hub: str, token: str) -> dict[str, Any]:
    """Ask the hub for a model's size (bytes of what vLLM loads) and commit."""
    kept = Path(model["path"]) / ".revision"
    if kept.is_file() and model["revision"] in ("", kept.read_text().strip()):
        return {"problem": "", "bytes": 0, "revision": kept.read_text().strip(), "present": True}
    name = urllib.parse.quote(model["id"])
    revision = urllib.parse.quote(model["revision"] or "main", safe="")
    request = urllib.request.Request(  # noqa: S310
        f"{hub.rstrip('/')}/api/models/{name}/revision/{revision}?blobs=true",
        headers={"Authorization": f"Bearer {token}"} if token else {},
    )
    try:
        with urllib.request.urlopen(request, timeout=CONNECT_SECONDS) as answer:  # noqa: S310
            told = json.load(answer)
    except urllib.error.HTTPError as error:
        return {"problem": f"http_{error.code}"}
    except (OSError, ValueError, http.client.HTTPException) as error:
        return {"problem": "unreachable", "detail": str(error)}
    files = {f["rfilename"]: int(f.get("size") or 0) for f in told.get("siblings", [])}
    # The same model often comes in several formats; safetensors is what will be fetched.
    safe = any(name.endswith(".safetensors") for name in files)
    skip = (".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack") if safe else (".gguf",)
    size = sum(n for name, n in files.items() if not name.endswith(skip))
    return {"problem": "", "bytes": size, "revision": told.get("sha", ""), "present": False}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "ports": {"type": "list", "elements": "int", "required": True},
            "paths": {"type": "list", "elements": "path", "required": True},
            "python": {"type": "str", "required": True},
            "index_url": {"type": "str", "default": ""},
            "try_package_sources": {"type": "bool", "required": True},
            "installed_mark": {"type": "path", "required": True},
            "model": {"type": "dict", "required": True},
            "hub_url": {"type": "str", "required": True},
            "hub_token": {"type": "str", "default": "", "no_log": True},
        },
        supports_check_mode=True,
    )
    params = module.params
    asked = "import sys; print('%d.%d' % sys.version_info[:2])"
    python = module.get_bin_path(params["python"])
    version = module.run_command([python, "-c", asked])[1].strip() if python else ""
    model = params["model"]
    if model["source"] == "builtin":
        weights: dict[str, Any] = {"problem": "", "bytes": 0, "revision": "", "present": True}
    elif model["source"] == "path":
        weights = {**folder_model(model["path"]), "present": True}
    else:
        weights = hub_model(model, params["hub_url"], params["hub_token"])
    unreachable = []
    if params["try_package_sources"] and not Path(params["installed_mark"]).exists():
        sites = [*apt_sites(module), *filter(None, [params["index_url"]])]
        unreachable = [problem for site in sites if (problem := reach(site))]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MIB
    module.exit_json(
        changed=False,
        user_id=os.geteuid(),
        python_version=version,
        listeners=listeners(params["ports"]),
        space={path: space(path) for path in params["paths"]},
        memory_mib=memory,
        unreachable=unreachable,
        model=weights,
    )


if __name__ == "__main__":
    main()
