"""The servers under test, as the inventory describes them."""

from __future__ import annotations

import functools
import json
import os
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from ansible.vars.manager import VariableManager

ROOT = Path(__file__).resolve().parents[2]
INVENTORY = os.environ.get("MILLRACE_TEST_INVENTORY", "inventory/sandbox/test.yml")
REPORTS = ROOT / "artefacts"
RECITAL = (ROOT / "roles/vllm/files/recital/text.md").read_text()


@dataclass(frozen=True)
class Server:
    """One server: how to reach it, and what the controller keeps about it."""

    name: str
    address: str
    suite: str
    ssh_arguments: tuple[str, ...]

    @property
    def secrets(self) -> Path:
        """The controller's folder of this server's secrets."""
        return (ROOT / INVENTORY).parent / "secrets" / self.name

    def secret(self, name: str) -> str:
        """One secret's value."""
        return (self.secrets / name).read_text().strip()

    @property
    def key(self) -> str:
        """A client's key."""
        return self.secret("client_owner")

    def run(self, command: str, check: bool = True, timeout: float = 120) -> str:
        """Run a shell command on the server as root and return what it printed."""
        done = subprocess.run(
            self.ssh(command), capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(f"{command!r} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def ssh(self, command: str) -> list[str]:
        """What runs a shell command on the server, as a command of this machine."""
        return ["ssh", *self.ssh_arguments, f"root@{self.address}", command]

    def put(self, file: Path, there: str) -> None:
        """Copy a file to the server."""
        command = self.ssh(f"cat > {shlex.quote(there)}")
        subprocess.run(command, input=file.read_bytes(), check=True, timeout=60)

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """What systemd says of a unit."""
        out = self.run(f"systemctl show {shlex.quote(unit)} -p {','.join(properties)}")
        return dict(line.split("=", 1) for line in out.splitlines() if "=" in line)

    def backend(self) -> str:
        """The unit of the backend's instance that serves."""
        choice = "/etc/systemd/system/millrace-backend.socket.d/serving.conf"
        return self.run(f"sed -n s/^Service=//p {choice}").strip()

    def get(self, url: str, **headers: str) -> tuple[int, str]:
        """Ask a URL from inside the server: status and body."""
        script = (
            "import json,sys,urllib.request,urllib.error\n"
            "r=urllib.request.Request(sys.argv[1],headers=json.loads(sys.argv[2]))\n"
            "try: a=urllib.request.urlopen(r,timeout=10)\n"
            "except urllib.error.HTTPError as e: a=e\n"
            "print(json.dumps([a.status,a.read().decode()]))"
        )
        told = self.run(shlex.join(["python3", "-c", script, url, json.dumps(headers)]))
        status, body = json.loads(told)
        return status, body

    def engine_metric(self, name: str) -> float:
        """One of vLLM's own gauges, summed over its labels."""
        _, body = self.get("http://127.0.0.1:8001/metrics")
        values = [line.rsplit(" ", 1)[1] for line in body.splitlines() if line.startswith(name)]
        return sum(map(float, values))


def figure(text: str) -> None:
    """Keep a measured figure for the end of the run's output."""
    print(text)
    REPORTS.mkdir(exist_ok=True)
    with (REPORTS / "figures.txt").open("a") as report:
        report.write(f"{text}\n")


OWN = ("cards", "driver", "edge", "outside")
"""Groups of servers that belong to the tests of that name alone."""


def _inventory() -> tuple[DataLoader, InventoryManager, VariableManager]:
    loader = DataLoader()
    inventory = InventoryManager(loader=loader, sources=[str(ROOT / INVENTORY)])
    return loader, inventory, VariableManager(loader=loader, inventory=inventory)


def variable(server: str, name: str) -> Any:
    """What the inventory makes of a variable for a server."""
    loader, inventory, variables = _inventory()
    raw = variables.get_vars(host=inventory.get_host(server))
    return Templar(loader=loader, variables=raw).template(raw[name])


@functools.cache
def servers(pattern: str = "sandbox" + "".join(f":!{group}" for group in OWN)) -> dict[str, Server]:
    """Servers of the test inventory by name; without a pattern, those that everybody may ask."""
    loader, inventory, variables = _inventory()
    found = {}
    for host in inventory.get_hosts(pattern):
        raw = variables.get_vars(host=host)
        templar = Templar(loader=loader, variables=raw)

        def value(name: str, templar: Any = templar, raw: Any = raw) -> str:
            return str(templar.template(raw[name]))

        found[host.name] = Server(
            name=host.name,
            address=value("ansible_host"),
            suite=value("sandbox_suite"),
            ssh_arguments=(
                "-q", "-i", value("ansible_ssh_private_key_file"),
                *shlex.split(value("ansible_ssh_common_args")),
                "-o", "ControlMaster=auto", "-o", "ControlPersist=60",
                "-o", f"ControlPath=/tmp/millrace-test-{host.name}-%C",
            ),
        )  # fmt: skip
    return found


def playbook(*arguments: str, timeout: float = 1800) -> subprocess.CompletedProcess[str]:
    """Run ansible-playbook against the test servers."""
    return subprocess.run(
        ["ansible-playbook", "-i", INVENTORY, *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
