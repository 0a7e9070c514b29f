"""The firewall: what is in force is what was rendered, and the way back is always open."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import INVENTORY, ROOT, Server, figure, playbook, servers
from test_again import changes
from trials import LOAD, PENDING, RULESET, answer, comes_in, comes_in_again, put_on_trial

pytestmark = pytest.mark.timeout(400)

TABLE = "table inet millrace"
LISTING = f"nft --stateless --json list {TABLE}"
OPEN = {("tcp", 22), ("tcp", 80), ("tcp", 443)}
CLOSED = (4100, 8001, 9999)
SHUT = f"""{TABLE}
delete {TABLE}
{TABLE} {{
  chain input {{
    type filter hook input priority filter; policy drop;
    ct state established,related accept
  }}
}}
"""
BOOK = ("playbooks/host.yml", "--tags", "firewall")


def plain(value: Any) -> Any:
    """nft's JSON without what counts, numbers or orders by chance."""
    if isinstance(value, dict):
        kept = {
            name: plain(inner) for name, inner in value.items() if name not in ("handle", "elem")
        }
        if isinstance(kept.get("set"), list):
            kept["set"] = sorted(kept["set"], key=json.dumps)
        return kept
    return [plain(inner) for inner in value] if isinstance(value, list) else value


def listed(server: Server, command: str = LISTING) -> list[dict[str, Any]]:
    """The whole table, entry by entry."""
    return [plain(entry) for entry in json.loads(server.run(command))["nftables"]]


def test_the_whole_table_is_what_was_rendered(server: Server) -> None:
    wanted = listed(server, f"unshare --net sh -c 'nft -f {RULESET} && {LISTING}'")
    assert listed(server) == wanted
    chains = {e["chain"]["hook"]: e["chain"]["policy"] for e in wanted if "chain" in e}
    assert chains == {"input": "drop", "forward": "drop", "output": "accept"}
    assert {e["set"]["name"] for e in wanted if "set" in e} == {"cloudflare4", "cloudflare6"}


def test_nothing_more_is_opened_than_the_edge_and_ssh(server: Server) -> None:
    opened = set()
    for rule in (entry["rule"] for entry in listed(server) if "rule" in entry):
        if rule["chain"] != "input" or rule.get("comment") == "dhcp":
            continue
        for match in (part["match"] for part in rule["expr"] if "match" in part):
            payload = match["left"].get("payload", {}) if isinstance(match["left"], dict) else {}
            if payload.get("field") == "dport":
                opened.add((payload["protocol"], match["right"]))
    assert {o for o in opened if o[0] == "tcp"} == OPEN
    assert opened - OPEN <= {("udp", 443)}


@pytest.fixture
def listening(server: Server) -> Iterator[list[str]]:
    """The server's addresses, where something listens on ports that are nobody's business."""
    addresses = server.run("ip -o addr show eth0 scope global | awk '{print $4}'").split()
    addresses = [address.split("/")[0] for address in addresses]
    script = (
        "import socket, sys, time\n"
        "held = []\n"
        "for address in sys.argv[1].split():\n"
        f"    for port in {CLOSED}:\n"
        "        family = socket.AF_INET6 if ':' in address else socket.AF_INET\n"
        "        held.append(socket.create_server((address, port), family=family))\n"
        "print('listening', flush=True)\n"
        "time.sleep(120)\n"
    )
    unit = "try-listening"
    server.run(f"cat > /run/{unit}.py <<'END'\n{script}END\n")
    # Type=exec is over once it runs; what it holds is asked for below, from inside.
    start = f"systemd-run -q --collect --unit={unit} python3 /run/{unit}.py"
    server.run(f"{start} '{' '.join(addresses)}'")
    ask = " && ".join(f"exec 3<>/dev/tcp/{addresses[0]}/{port}" for port in CLOSED)
    server.run(
        f"for i in $(seq 50); do bash -c '{ask}' 2>/dev/null && exit; sleep .2; done; exit 1"
    )
    yield addresses
    server.run(f"systemctl stop {unit}; rm /run/{unit}.py", check=False)


def test_from_outside_the_edge_answers_and_nothing_else(
    server: Server, listening: list[str]
) -> None:
    """Engine's and LiteLLM's ports say nothing, even while something listens on them."""
    six = [address for address in listening if ":" in address]
    assert six or not Path("/proc/net/if_inet6").exists(), (
        "this machine has IPv6, and so should they"
    )
    for address in listening:
        for port in CLOSED:
            assert answer(address, port) == "nothing", f"{address} port {port}"
        assert answer(address, 22) == "open"
        assert answer(address, 443) in ("open", "refused"), "refused is past the firewall"
    assert answer(server.address, 443) == "open"


@pytest.mark.breaks
def test_other_tables_stay_and_ours_outlives_the_distributions_unit(server: Server) -> None:
    before = listed(server)
    server.run(
        "nft 'add table ip theirs; add chain ip theirs here; add rule ip theirs here accept'"
    )
    try:
        server.run("systemctl reload millrace-firewall")
        assert "accept" in server.run("nft list table ip theirs")
        assert listed(server) == before
    finally:
        server.run("nft delete table ip theirs", check=False)
    # The distribution's unit removes every table, each time.
    for verb in ("start", "reload", "restart", "stop"):
        server.run(f"systemctl {verb} nftables.service")
        assert listed(server) == before, verb


@pytest.mark.breaks
def test_what_shuts_us_out_is_taken_back_by_the_server(server: Server) -> None:
    """The controller is gone after the change, as after a crash."""
    before, text = listed(server), server.run(f"cat {RULESET}")
    put_on_trial(server, "firewall", RULESET, SHUT, LOAD, 8)
    assert not comes_in(server), "the check would see nothing"
    seconds = comes_in_again(server, within=30)
    assert listed(server) == before
    assert server.run(f"cat {RULESET}") == text
    assert not server.run(f"ls {PENDING}/*.json 2>/dev/null", check=False)
    figure(f"{server.name}: shut out by a firewall for {seconds + 3:.0f} s at a trial of 8 s")


@pytest.mark.breaks
def test_a_run_that_shuts_itself_out_confirms_by_no_connection_of_before() -> None:
    """A change of sshd is confirmed first, by a connection that lives on and is asked for alike."""
    server = servers()[min(servers())]
    before = listed(server)
    settings = {
        "ssh_more_key_exchanges": ["curve25519-sha256"],
        "__firewall_text": SHUT, "firewall_trial_seconds": 10,
    }  # fmt: skip
    both = ("playbooks/host.yml", "--tags", "ssh,firewall", "--limit", server.name)
    try:
        done = playbook(*both, "-e", json.dumps(settings))
        assert done.returncode != 0
        # Who comes first: ssh that gives up, or the server that took it back and lets ssh in again.
        words = (
            "With the new firewall this machine cannot come in",
            "nobody could come back within",
        )
        assert any(said in " ".join(done.stdout.split()) for said in words), done.stdout
        comes_in_again(server, within=30)
        assert listed(server) == before
    finally:
        comes_in_again(server, within=30)
        again = playbook(*both)
        assert again.returncode == 0, again.stdout


@pytest.mark.breaks
def test_a_run_that_is_killed_in_the_middle_is_healed_and_told_of() -> None:
    server = servers()[min(servers())]
    before = listed(server)
    settings = json.dumps({"__firewall_text": SHUT, "firewall_trial_seconds": 10})
    run = subprocess.Popen(
        ["ansible-playbook", "-i", INVENTORY, *BOOK, "--limit", server.name, "-e", settings],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        begun = f"[ -e {PENDING}/firewall.json ]"
        server.run(f"for i in $(seq 900); do {begun} && exit; sleep .1; done; exit 1")
    finally:
        # Ansible gives its workers sessions of their own.
        children = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        for child in children.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
    time.sleep(1)
    comes_in_again(server, within=40)
    for _ in range(40):  # connections come in before the timer's program has ended
        if not server.run(f"ls {PENDING}/*.json 2>/dev/null", check=False):
            break
        time.sleep(0.2)
    assert listed(server) == before
    again = playbook(*BOOK, "--limit", server.name)
    assert again.returncode == 0, again.stdout
    assert "an unconfirmed firewall was taken back at" in again.stdout + again.stderr
    assert set(changes(again.stdout).values()) == {0}, again.stdout
