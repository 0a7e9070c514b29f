"""Plays cards, NVIDIA's repository and the kernel's side of its driver on a sandbox server."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import Any

import pytest
from servers import ROOT, Server, playbook, servers

FIXTURES = ROOT / "tests/fixtures"
FOLDER = "/srv/nvidia"
URL = "http://127.0.0.1:9200"
ASIDE = "hardening,ssh,firewall,cloudflare_ranges"
"""What knows nothing of cards, and would take a third of each of many runs."""


@dataclass
class Played:
    """A server that believes in its cards. `key`: the fingerprint of its repository's key."""

    server: Server
    key: str

    def run(
        self, book: str, *settings: str, skip: str = "none", check: bool = False,
        limit_s: float = 900,
    ) -> Any:  # fmt: skip
        """Run a playbook with cards. `settings`: name=value, which win; `skip`: a tag."""
        given: dict[str, Any] = {
            "vllm_device": "cuda", "vllm_build": "cpu", "vllm_model": "recital",
            "nvidia_driver_repository_url": URL, "nvidia_driver_key_ids": {"debian12": self.key},
            "verify_silence_seconds": 0, "guard_wait_seconds": 10,
        }  # fmt: skip
        extra = [part for setting in settings for part in ("-e", setting)]
        extra += ["--check"] if check else []
        return playbook(
            book, "--limit", self.server.name, "--skip-tags", f"{skip},{ASIDE}",
            "-e", json.dumps(given), *extra, timeout=limit_s,
        )  # fmt: skip

    def plug_in(self, machine: str) -> None:
        """Switch the server off, change its cards, and boot it."""
        done = playbook(
            "playbooks/sandbox.yml", "--limit", self.server.name,
            "-e", f"sandbox_machine={machine}",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:]

    def report(self) -> dict[str, Any]:
        """What the guard found last."""
        return dict(json.loads(self.server.run("cat /run/millrace/hardware/main.json")))

    def plan(self) -> dict[str, Any]:
        """The plan on the server."""
        return dict(json.loads(self.server.run("cat /etc/millrace/plan.json")))

    def version(self, package: str) -> str:
        """A package's installed version; empty without."""
        asked = "dpkg-query -W -f='${db:Status-Abbrev}${Version}'"
        told = self.server.run(f"{asked} {package} 2>/dev/null", check=False)
        return told.split(" ", 1)[1] if told[1:2] == "i" else ""


def install(group: str) -> Played:
    """Put everything in place that plays a card, on the server that these tests have of their own.

    Nothing is put back afterwards: the server goes, and whoever wants to run the tests again makes
    a fresh one.
    """
    own = list(servers(group).values())
    if not own:
        pytest.skip(f"the inventory has no server in the group {group}, whose hardware may change")
    server = own[0]
    server.run("apt-get install -y -q gpg gpg-agent >/dev/null", timeout=300)
    files = ["-C", FIXTURES, "apt_repository.py", "-C", FIXTURES / "nvidia", "."]
    packed = subprocess.run(["tar", "-c", *files], check=True, capture_output=True)
    command = ["ssh", *server.ssh_arguments, f"root@{server.address}"]
    unpack = f"mkdir -p {FOLDER} && tar -C {FOLDER} -x && chmod -R a+rX {FOLDER}"
    subprocess.run([*command, unpack], input=packed.stdout, check=True)
    make = f"repository.py --root {FOLDER}/www --folder debian12/x86_64 --url {URL}"
    server.run(f"[ -e {FOLDER}/key ] || python3 {FOLDER}/{make} >{FOLDER}/key", timeout=300)
    place(server)
    return Played(server, server.run(f"cat {FOLDER}/key").strip())


def place(server: Server) -> None:
    """Play the kernel's side, the repository's server and the engine on a card."""
    server.run(
        f"install -m755 {FOLDER}/standin.sh /usr/local/sbin/standin"
        f" && standin install {FOLDER}/www",
        timeout=60,
    )
