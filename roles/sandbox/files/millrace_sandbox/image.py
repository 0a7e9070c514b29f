"""The base image: Debian as a hoster hands it over, built once per suite and kept."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import packages
from .host import (
    SandboxError,
    locked,
    read_json,
    remove_tree,
    room_for_tree,
    run,
    write,
    write_json,
)

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# nspawn can do this itself, but then hides most of /sys, and the hardware profile with it
SYSCTL_UNIT = """\
[Unit]
Description=Let this server set its own net.* sysctls; the others are the host's
DefaultDependencies=no
Before=systemd-sysctl.service sysinit.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=mount --bind /proc/sys/net /proc/sys/net
ExecStart=mount -o remount,bind,rw /proc/sys/net

[Install]
WantedBy=sysinit.target
"""
KEPT = 2  # another clone may still use another recipe


def recipe(spec: dict[str, Any]) -> dict[str, Any]:
    """Return all that decides what is in the image."""
    return {
        "suite": spec["suite"],
        "packages": sorted(spec["packages"]),
        "sources": packages.debian_sources(spec["suite"], spec["mirror"]),
        "apt": packages.apt_options(),
        "certificates": packages.controller_certificates(),
        "code": Path(__file__).read_text(),
    }


@contextlib.contextmanager
def held(spec: dict[str, Any]) -> Iterator[None]:
    """Keep others from building or dropping this suite's images."""
    with locked(Path(spec["cache_dir"], "images", spec["suite"])):
        yield


def folder(spec: dict[str, Any]) -> Path:
    """Return where the image of this recipe is, or will be."""
    text = json.dumps(recipe(spec), sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:12]
    return Path(spec["cache_dir"], "images", spec["suite"], name)


def ensure(spec: dict[str, Any]) -> bool:
    """Build the image if this recipe has none yet, or an old one; tell whether it was built."""
    with held(spec):
        home = folder(spec)
        made = read_json(home / "image.json").get("made", 0)
        if time.time() - made < spec["image_max_age_days"] * 86400:
            return False
        for left_over in home.parent.glob("building-*"):
            remove_tree(left_over)
        new = room_for_tree(home.parent, "building")
        try:
            build(spec, new)
        except SandboxError:
            if made:  # old, but whole: better than no server
                return False
            raise
        write_json(new / "image.json", {"made": int(time.time()), "suite": spec["suite"]})
        remove_tree(home)
        new.rename(home)
        images = [path for path in home.parent.iterdir() if (path / "image.json").exists()]
        images.sort(key=lambda path: int(read_json(path / "image.json").get("made", 0)))
        for outdated in images[:-KEPT]:
            remove_tree(outdated)
        return True


def build(spec: dict[str, Any], new: Path) -> None:
    """Run mmdebstrap and finish what it made.

    Its own mount namespace keeps its mounts off this machine, whatever becomes of it.
    """
    if not KEYRING.exists():
        raise SandboxError(f"{KEYRING} is missing: install debian-archive-keyring")
    new.mkdir()
    root = new / "root"
    run(
        [
            *("unshare", "--mount", "mmdebstrap", "--mode=root", "--variant=minbase", "--quiet"),
            f"--include={','.join(sorted(spec['packages']))}",
            f"--keyring={KEYRING}",
            *(f"--aptopt={option.rstrip(';')}" for option in packages.apt_options()),
            # throwaway servers need not survive a power cut: do not wait for the disk
            "--dpkgopt=force-unsafe-io",
            # a server that has package lists updates them in a second instead of ten
            "--skip=cleanup/apt/lists",
            spec["suite"],
            str(root),
            *packages.debian_sources(spec["suite"], spec["mirror"]),
        ],
        timeout=1800,
        env={**os.environ, "LC_ALL": "C.UTF-8", "TMPDIR": str(new)},
    )
    packages.trust(root)
    # what makes one server different from another is made when the server is
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    for name in ("etc/machine-id", "etc/hostname", "etc/resolv.conf", "var/lib/dbus/machine-id"):
        (root / name).unlink(missing_ok=True)
    for name in ("etc/default/locale", "etc/locale.conf"):  # Debian 12 reads one, 13 the other
        write(root / name, "LANG=C.UTF-8\n")
    write(root / "usr/local/lib/systemd/system/sandbox-sysctl.service", SYSCTL_UNIT)
    run(["systemctl", f"--root={root}", "enable", "--quiet", "sandbox-sysctl.service"])
    shutil.rmtree(root / "var/log/journal", ignore_errors=True)
    (root / "var/log/journal").mkdir()
