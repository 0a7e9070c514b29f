"""The outside host: a bare Debian beside the servers, with tools that judge them from there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from servers import Server, servers, variable

TOOLS = ("nmap", "testssl.sh", "slowhttptest", "nghttp2-client", "ssh-audit")
WAIVERS = yaml.safe_load((Path(__file__).parent / "outside_waivers.yml").read_text())
STREAMS = Path(__file__).parent / "good_streams.py"
LINK, LINK_ADDRESSES = "beside", ("fd91:ffff::1", "fd91:ffff::2")
BAD = {"HIGH", "CRITICAL", "FATAL"}


def expected_ports(server: Server) -> dict[str, set[int]]:
    """Which ports the settings open to everybody, by protocol."""
    opened: dict[str, set[int]] = {"tcp": set(), "udp": set()}
    for service in variable(server.name, "firewall_services"):
        if service["from"] == "anywhere":
            opened[service["protocol"]].add(int(service["port"]))
    return opened


@dataclass(frozen=True)
class Outside:
    """The host, and its tools."""

    host: Server

    @property
    def network(self) -> str:
        """Its network namespace on this machine."""
        return f"mrs-{self.host.name}"

    def install(self) -> str:
        """Install the tools that are missing; returns why not, or nothing."""
        missing = f"dpkg -s {' '.join(TOOLS)} >/dev/null 2>&1"
        quiet = "DEBIAN_FRONTEND=noninteractive apt-get -qq"
        get = f"{quiet} update && {quiet} install -y --no-install-recommends {' '.join(TOOLS)}"
        said = self.host.run(f"{missing} || {{ {get}; }} 2>&1 || echo NOT INSTALLED", timeout=300)
        return said[-500:] if "NOT INSTALLED" in said else ""

    def answers(self, address: str, protocol: str) -> dict[int, str]:
        """Ports of all 65,535 that say anything at all, and what nmap calls it.

        A firewall that drops lets nothing be said; a port that it lets through and that nobody
        listens on says so (`closed`), and counts.
        """
        how = "-sU --max-retries 1" if protocol == "udp" else "-sS --max-retries 2"
        six = "-6" if ":" in address else ""
        out = self.host.run(
            f"nmap -Pn -n {six} {how} -p- --min-rate 5000 -oX - {address}", timeout=240
        )
        found = {}
        for port in ET.fromstring(out).iter("port"):
            state = port.find("state")
            assert state is not None
            if state.get("state") in ("open", "closed"):
                found[int(port.get("portid", 0))] = str(state.get("state"))
        many = {str(more.get("state")) for more in ET.fromstring(out).iter("extraports")}
        if many & {"open", "closed"}:
            found[0] = f"all others are {many}: nothing drops them"
        return found

    @contextmanager
    def beside(self, server: Server) -> Iterator[str]:
        """Put the host on one link with a server, and yield the server's IPv6 address there.

        This machine routes no IPv6 from one server to another, and is not made to for a test.
        """
        theirs, ours = (["ip", "-n", f"mrs-{one.name}"] for one in (server, self.host))
        peer = ["peer", "name", LINK, "netns", self.network]
        subprocess.run([*theirs, "link", "add", LINK, "type", "veth", *peer], check=True)
        try:
            for end, address in ((theirs, LINK_ADDRESSES[0]), (ours, LINK_ADDRESSES[1])):
                addr = ["addr", "add", f"{address}/64", "dev", LINK, "nodad"]
                subprocess.run([*end, *addr], check=True)
                subprocess.run([*end, "link", "set", LINK, "up"], check=True)
            yield LINK_ADDRESSES[0]
        finally:
            subprocess.run([*theirs, "link", "del", LINK], check=True)

    def tls_findings(self, address: str) -> dict[str, str]:
        """What testssl.sh calls HIGH or worse and nobody has waived, and its protocols."""
        # Its pauses are for far-away servers.
        paces = "USLEEP_REC=0.05 USLEEP_SND=0.02 CCS_MAX_WAITSOCK=2 HEARTBLEED_MAX_WAITSOCK=2"
        quiet = "--quiet --warnings batch --color 0 --nodns=none"
        self.host.run(
            f"rm -f /tmp/tls.json; {paces} testssl {quiet} -p -s -P -S -U "
            f"--jsonfile /tmp/tls.json {address}:443 >/tmp/tls.txt",
            check=False, timeout=300,
        )  # fmt: skip
        told = json.loads(self.host.run("cat /tmp/tls.json"))
        assert len(told) > 60, self.host.run("tail -20 /tmp/tls.txt")
        offered = {
            item["id"]: item["finding"] for item in told
            if re.fullmatch("SSLv[23]|TLS1(_[0-9])?", item["id"])
        }  # fmt: skip
        bad = {
            item["id"]: item["finding"] for item in told
            if item["severity"] in BAD and item["id"] not in WAIVERS["testssl"]
        }  # fmt: skip
        allowed = ("TLS1_2", "TLS1_3")
        bad |= {
            name: text for name, text in offered.items()
            if name not in allowed and not text.startswith("not offered")
        }  # fmt: skip
        return bad

    def ssh_findings(self, address: str) -> dict[str, str]:
        """What ssh-audit warns of or fails, and nobody has waived, by algorithm."""
        out = self.host.run(f"ssh-audit -n -b -l warn {address}", check=False)
        bad, name = {}, ""
        for line in out.splitlines():
            if start := re.match(r"\((?:kex|key|enc|mac|cve|sec|aut)\) (\S+)", line):
                name = start[1]
            for word, text in re.findall(r"\[(warn|fail)\] (.*)", line):
                if name not in WAIVERS["ssh_audit"]:
                    bad[f"{name}: {text}"] = word
        assert "rec" in out or "kex" in out or not out.strip(), out
        return bad

    def visit(self, server: Server, seconds: float, visitors: int, here: bool = False) -> Visits:
        """Begin well-behaved visits, from the outside host or from this machine."""
        arguments = [server.address, str(seconds), str(visitors)]
        if here:
            command = [sys.executable, str(STREAMS), *arguments]
        else:
            self.host.put(STREAMS, "/tmp/good_streams.py")
            command = self.host.ssh(f"python3 /tmp/good_streams.py {' '.join(arguments)}")
        run = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        return Visits(run, server.key)

    def connections(self, server: Server) -> int:
        """How many connections a server's edge holds for this host."""
        which = f"state established sport = :443 dst {self.host.address}"
        return int(server.run(f"ss -Htn {which} | wc -l"))

    @contextmanager
    def attack(self, *commands: str) -> Iterator[list[str]]:
        """Run commands side by side on the host; what each printed is there afterwards."""
        runs = [
            subprocess.Popen(
                self.host.ssh(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            for command in commands
        ]
        said: list[str] = []
        try:
            yield said
        finally:
            said += [run.communicate(timeout=120)[0] for run in runs]


@dataclass
class Visits:
    """Visits that are under way."""

    run: subprocess.Popen[str]
    key: str

    def __post_init__(self) -> None:
        """Hand the key over: never on a command line."""
        assert self.run.stdin
        self.run.stdin.write(f"{self.key}\n")
        self.run.stdin.flush()

    def result(self) -> dict[str, Any]:
        """Wait for the end, and return what was seen."""
        out, err = self.run.communicate(timeout=180)
        assert self.run.returncode == 0, err
        told: dict[str, Any] = json.loads(out)
        return told


def found_outside() -> Outside | None:
    """The outside host of the inventory, if it has one."""
    known = servers("outside")
    return Outside(next(iter(known.values()))) if known else None
