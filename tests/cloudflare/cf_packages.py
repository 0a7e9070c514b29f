"""Stands in for Cloudflare's package repository: one suite for every release, with `main` alone.

    python3 cf_packages.py ROOT PROGRAM     makes it of a program, and prints the key that signs it

Runs on the server under test, beside apt_repository.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from apt_repository import gpg, make_key, package, publish


def main() -> None:
    """Build the repository."""
    root, program = map(Path, sys.argv[1:])
    home = root / "gnupg"
    (root / "pool").mkdir()
    package(
        root / "pool", "cloudflared", "2026.1.0", {"usr/bin/cloudflared": program.read_text()},
        Depends="python3, python3-yaml",
    )  # fmt: skip
    asked = ["dpkg", "--print-architecture"]
    here = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
    make_key(home, "cloudflared stand-in")
    release = {"Suite": "any", "Codename": "any", "Components": "main", "Architectures": here}
    packages = f"main/binary-{here}/Packages"
    publish(root, home, release, pool="pool", suite="dists/any", packages=packages)
    print(gpg(home, "--armor", "--export").decode())


if __name__ == "__main__":
    main()
