#!/usr/bin/env python3
"""Write the lock files: NAME.in becomes NAME.txt, every package with its hashes.

    requirements/compile.py                  locks what changed, keeps the other versions
    requirements/compile.py --upgrade        takes the newest of everything
    requirements/compile.py dev litellm      only these

A lock holds for Python 3.11 to 3.13 on Linux, x86_64. It names no index and no
path, so that the same file serves from any mirror or wheelhouse. Only wheels
are listed (a source archive where a package has no wheel), so that installing
runs no build script. README.md in this folder says more.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TOOLS = ("uv==0.13.9", "packaging==26.3")
TOOLS_VENV = HERE.parent / ".venv.locks"
PYTHONS = ("3.11", "3.12", "3.13")
GLIBC_MINOR = 35  # Ubuntu 22.04; Debian 12 has 36

# In this order: what comes later agrees with what came before.
LOCKS: dict[str, tuple[str, ...]] = {
    "pip": (),
    "streamcheck": (),
    "controller": ("streamcheck",),
    # Both are in dev, which must agree with either.
    "backend": ("controller",),
    "web": (),
    "dev": ("controller", "backend", "web"),
    "clients": (),
    "bench": (),
    "litellm": (),
    "vllm-cpu": (),
    "vllm-cuda": (),
}


def enter_tools_venv() -> None:
    """Start again inside a venv that has uv and packaging, making it if need be."""
    if Path(sys.prefix) == TOOLS_VENV:
        return
    python = TOOLS_VENV / "bin" / "python"
    if not python.exists():
        print(f"making {TOOLS_VENV.name} ({', '.join(TOOLS)})", flush=True)
        venv.create(TOOLS_VENV, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *TOOLS], check=True)
    os.execv(python, [str(python), *sys.argv])  # noqa: S606 - our own script, no shell


def write_torch_stubs(folder: Path) -> dict[str, str]:
    """Write wheels of nothing but metadata for uv; return each one's real hash."""
    torch = tomllib.loads((HERE / "torch-cpu.toml").read_text())
    version = torch["version"]
    hashes = {}
    for tag, sha256 in torch["wheels"].items():
        name = f"torch-{version}-{tag}.whl"
        hashes[name] = sha256
        info = f"torch-{version}.dist-info"
        lines = ["Metadata-Version: 2.1", "Name: torch", f"Version: {version}"]
        lines += [f"Requires-Dist: {requirement}" for requirement in torch["requires"]]
        with zipfile.ZipFile(folder / name, "w") as wheel:
            wheel.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
            wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}\n")
            wheel.writestr(f"{info}/RECORD", "")
    return hashes


def run_uv(name: str, scratch: Path, *more: str) -> None:
    """Resolve NAME.in the way every lock here is resolved."""
    command = [
        str(TOOLS_VENV / "bin" / "uv"), "pip", "compile", f"{name}.in",
        "--universal", "--python-version", PYTHONS[0], "--no-header", "--no-annotate", "--quiet",
        "--overrides", "overrides", "--find-links", str(scratch), *more,
    ]  # fmt: skip
    if (HERE / f"{name}.excludes").exists():
        command += ["--excludes", f"{name}.excludes"]
    for earlier in LOCKS[name]:
        command += ["--constraints", f"{earlier}.txt"]
    subprocess.run(command, cwd=HERE, check=True)


def resolve(name: str, scratch: Path, upgrade: bool) -> list[dict[str, Any]]:
    """Return the packages of NAME.in, each with its version, marker and files."""
    pins = scratch / f"{name}.txt"
    lock = HERE / f"{name}.txt"
    if lock.exists() and not upgrade:
        pins.write_text(lock.read_text())  # uv keeps the versions that it finds here
    run_uv(name, scratch, "--output-file", str(pins))
    files = scratch / f"pylock.{name}.toml"
    run_uv(name, scratch, "--constraints", str(pins), "--generate-hashes",
           "--format", "pylock.toml", "--output-file", str(files))  # fmt: skip
    packages: list[dict[str, Any]] = tomllib.loads(files.read_text())["packages"]
    return packages


def pythons_of(marker: str | None) -> tuple[str, ...]:
    """Return those of PYTHONS on which a requirement with this marker is installed."""
    from packaging.markers import Marker

    server = {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "sys_platform": "linux",
    }
    return tuple(
        python
        for python in PYTHONS
        if marker is None
        or Marker(marker).evaluate(
            {**server, "python_version": python, "python_full_version": f"{python}.0"}
        )
    )


def marker_for(pythons: tuple[str, ...]) -> str:
    """Return the shortest marker that is true on exactly these Pythons."""
    if pythons == PYTHONS:
        return ""
    if len(pythons) == 1 and pythons[0] not in (PYTHONS[0], PYTHONS[-1]):
        return f' ; python_version == "{pythons[0]}"'
    if pythons == PYTHONS[: len(pythons)]:
        return f' ; python_version <= "{pythons[-1]}"'
    if pythons == PYTHONS[-len(pythons) :]:
        return f' ; python_version >= "{pythons[0]}"'
    return " ; " + " or ".join(f'python_version == "{python}"' for python in pythons)


def hashes_of(package: dict[str, Any], pythons: tuple[str, ...], known: dict[str, str]) -> set[str]:
    """Return the hashes of the files that a server can install, wheels if it can be."""
    from packaging.tags import compatible_tags, cpython_tags
    from packaging.utils import parse_wheel_filename

    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(GLIBC_MINOR, 4, -1)]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
    platforms += ["linux_x86_64"]
    hashes = set()
    without = []
    for python in pythons:
        version = tuple(int(part) for part in python.split("."))
        abi = "cp" + python.replace(".", "")
        tags = {
            *cpython_tags(version, [abi], platforms),
            *compatible_tags(version, abi, platforms),
        }
        found = set()
        for wheel in package.get("wheels", []):
            name = wheel.get("name") or re.split(r"[/\\]", wheel.get("url") or wheel["path"])[-1]
            name = name.replace("%2B", "+")
            if parse_wheel_filename(name)[3] & tags:
                found.add(known.get(name, wheel["hashes"]["sha256"]))
        hashes |= found
        if not found:
            without.append(python)
    if without:
        if "sdist" not in package:
            sys.exit(f"{package['name']} {package['version']}: no file for Python {without}")
        print(f"  {package['name']} has no wheel for {', '.join(without)}: built from source")
        hashes.add(package["sdist"]["hashes"]["sha256"])
    return hashes


def write_lock(name: str, scratch: Path, known: dict[str, str], upgrade: bool) -> None:
    """Resolve NAME.in and write NAME.txt."""
    print(f"{name}.txt", flush=True)
    lines = [f"# Written by requirements/compile.py from {name}.in: do not edit."]
    packages = resolve(name, scratch, upgrade)
    for package in sorted(packages, key=lambda found: (found["name"], found["version"])):
        pythons = pythons_of(package.get("marker"))
        if not pythons:
            continue
        pin = f"{package['name']}=={package['version']}{marker_for(pythons)}"
        hashes = sorted(hashes_of(package, pythons, known))
        lines.append(" \\\n    ".join([pin, *(f"--hash=sha256:{digest}" for digest in hashes)]))
    (HERE / f"{name}.txt").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Compile the locks that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(LOCKS)}")
    parser.add_argument("--upgrade", action="store_true", help="take the newest of everything")
    options = parser.parse_args()
    if unknown := set(options.names) - set(LOCKS):
        parser.error(f"no such lock: {', '.join(sorted(unknown))}")
    enter_tools_venv()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        known = write_torch_stubs(scratch)
        for name in LOCKS:
            if not options.names or name in options.names:
                write_lock(name, scratch, known, options.upgrade)


if __name__ == "__main__":
    main()
