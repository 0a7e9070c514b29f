"""Plays cards, NVIDIA's repository and the kernel's side of its driver on a sandbox server."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import Any

from servers import ROOT, Server, playbook

FIXTURES = ROOT / "tests/fixtures/nvidia"
FOLDER = "/srv/nvidia"
URL = "http://127.0.0.1:9200"


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
            book, "--limit", self.server.name, "--skip-tags", skip, "-e", json.dumps(given), *extra,
            timeout=limit_s,
        )  # fmt: skip

    def plug_in(self, machine: str) -> None:
        """Switch the server off, change its cards, and boot it."""
        plug_in(self.server, machine)

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


def plug_in(server: Server, machine: str) -> None:
    """Boot a server with the cards of a profile."""
    done = playbook(
        "playbooks/sandbox.yml", "--limit", server.name, "-e", f"sandbox_machine={machine}"
    )
    assert done.returncode == 0, done.stdout[-3000:]


def install(server: Server) -> Played:
    """Put everything in place that plays a card."""
    server.run("apt-get install -y -q gpg gpg-agent >/dev/null", timeout=300)
    packed = subprocess.run(["tar", "-C", FIXTURES, "-c", "."], check=True, capture_output=True)
    command = ["ssh", *server.ssh_arguments, f"root@{server.address}"]
    unpack = f"mkdir -p {FOLDER} && tar -C {FOLDER} -x && chmod -R a+rX {FOLDER}"
    subprocess.run([*command, unpack], input=packed.stdout, check=True)
    key = server.run(
        f"python3 {FOLDER}/repository.py --root {FOLDER}/www --folder debian12/x86_64 --url {URL}",
        timeout=300,
    ).strip()
    place(server)
    return Played(server, key)


def place(server: Server) -> None:
    """Play the kernel's side, the repository's server and the engine on a card."""
    server.run(
        f"install -m755 {FOLDER}/standin.sh /usr/local/sbin/standin"
        f" && standin install {FOLDER}/www",
        timeout=60,
    )


def remove(server: Server) -> None:
    """Take all of it away, with what the role installed from there."""
    ours = "dpkg-query -W -f='${Package}\\n' '*nvidia*' libcuda1 cuda-keyring 2>/dev/null"
    server.run(f"apt-mark unhold $({ours}) >/dev/null 2>&1", check=False)
    server.run(f"apt-get purge -y -q $({ours}) >/dev/null 2>&1", check=False, timeout=300)
    server.run(f"standin remove; rm -rf {FOLDER} /usr/local/sbin/standin", timeout=60)
