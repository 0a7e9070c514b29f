"""The programs that are measured: found on this machine, or installed once into the cache.

Environments come from the hashed locks of requirements/, each in a folder named after its lock.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from bench.hops import UnavailableError

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache/bench"
GIVEN = {"litellm": "MILLRACE_LITELLM"}
"""Environments that may be named instead."""


def environment(name: str, *, install: bool) -> Path:
    """Return the venv made from requirements/NAME.txt; raise UnavailableError where there is none.

    With `install` it is made, which takes a minute or a few, once.
    """
    given = os.environ.get(GIVEN.get(name, ""), "")
    if given:
        return Path(given)
    lock = ROOT / f"requirements/{name}.txt"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    place = CACHE / f"{name}-{digest}"
    if (place / ".complete").exists():
        return place
    if not install:
        raise UnavailableError(f"{name} is not installed: ./millrace bench --install, once")
    print(f"Installing {name} into {place.relative_to(ROOT)}, once ...", file=sys.stderr)
    shutil.rmtree(place, ignore_errors=True)
    venv.create(place, with_pip=True)
    for file in (ROOT / "requirements/pip.txt", lock):
        done = subprocess.run(
            [place / "bin/python", "-m", "pip", "install", "--disable-pip-version-check",
             "--no-input", "--quiet", "--require-hashes", "--no-deps", "-r", file],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise UnavailableError(f"pip could not install {file.name}:\n{done.stderr[-1500:]}")
    (place / ".complete").touch()
    return place


def version_in(place: Path, package: str) -> str:
    """Return the version of a package in a venv, or an empty text."""
    form = package.replace("-", "_")
    for found in place.glob(f"lib/python3*/site-packages/{form}-*.dist-info"):
        return found.name.removesuffix(".dist-info").rpartition("-")[2]
    return ""


@functools.cache
def find_nginx() -> str | None:
    """Return the nginx to run: this machine's own, or Debian's package unpacked in artefacts/.

    Unpacked and not installed: an installed one would start a service on the machine of whoever
    measures or tests. None where neither can be had.
    """
    if nginx := shutil.which("nginx"):
        return nginx
    place = ROOT / "artefacts/nginx"
    unpacked = place / "usr/sbin/nginx"
    if not unpacked.exists() and shutil.which("apt-get") and shutil.which("dpkg"):
        place.mkdir(parents=True, exist_ok=True)
        download = ["apt-get", "download", "-qq", "nginx"]
        with contextlib.suppress(subprocess.CalledProcessError, subprocess.TimeoutExpired):
            subprocess.run(download, cwd=place, check=True, capture_output=True, timeout=60)
        for package in place.glob("nginx_*.deb"):
            # Whole or not at all: another run may look for it meanwhile.
            with tempfile.TemporaryDirectory(dir=place) as scratch:
                subprocess.run(["dpkg", "-x", package, scratch], check=True)
                (place / "usr").exists() or Path(scratch, "usr").rename(place / "usr")
    runs = unpacked.exists() and subprocess.run([unpacked, "-v"], capture_output=True, check=False)
    return str(unpacked) if runs and runs.returncode == 0 else None


def nginx_version() -> tuple[int, ...]:
    """Return the version of the nginx that can be run here, or () without one."""
    nginx = find_nginx()
    if nginx is None:
        return ()
    said = subprocess.run([nginx, "-v"], capture_output=True, text=True, check=True).stderr
    return tuple(int(n) for n in re.findall(r"\d+", said)[:3])


def need_nginx() -> str:
    """Return the nginx to run; raise UnavailableError without one."""
    nginx = find_nginx()
    if nginx is None:
        raise UnavailableError("there is no nginx here: apt-get install nginx, or put one on PATH")
    return nginx
