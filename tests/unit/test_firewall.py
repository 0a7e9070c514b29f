"""The firewall: what is refused, what is rendered, and that nft takes it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import firewall
import jinja2
import pytest
import yaml
from unit_kit import ROOT

TEMPLATE = ROOT / "roles/firewall/templates/etc/millrace/firewall/millrace.nft.j2"
DEFAULTS = yaml.safe_load((ROOT / "roles/firewall/defaults/main.yml").read_text())
SSH = {"name": "ssh", "protocol": "tcp", "port": 22, "from": "anywhere"}
CAME = {"address": "192.0.2.7", "port": 22, "user": "root"}
TWO_FAMILIES = ["192.0.2.0/25", "192.0.2.128/25", "2001:db8::/32"]


def service(name: str, port: Any, peers: Any, protocol: str = "tcp") -> dict[str, Any]:
    """An opening."""
    return {"name": name, "protocol": protocol, "port": port, "from": peers}


def services(visitors: Any, ssh_from: Any = "anywhere") -> list[dict[str, Any]]:
    """What the wiring makes of an edge."""
    return [
        service("ssh", "22", ssh_from),
        service("http", 80, visitors),
        service("https", 443, visitors),
        service("http3", 443, visitors, "udp"),
    ]


def rendered(**settings: Any) -> str:
    """The ruleset, from the role's defaults and some settings."""
    values = {**DEFAULTS, "ansible_managed": "Ansible managed", **settings}
    inner = firewall.private_services(
        values["firewall_private_ports"], values["firewall_private_networks"]
    )
    environment = jinja2.Environment(
        trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(firewall.FilterModule().filters())
    return environment.from_string(TEMPLATE.read_text()).render(
        **values, __firewall_openings=[*values["firewall_services"], *inner]
    )


def may_make_a_network() -> str:
    """Why nft cannot be asked here; empty when it can."""
    if not shutil.which("nft", path=f"{os.environ['PATH']}:/usr/sbin"):
        return "nft is not installed"
    tried = subprocess.run(
        ["unshare", "--net", "nft", "list", "ruleset"], capture_output=True, text=True, check=False
    )
    return tried.stderr.strip()


COMBINATIONS = {
    "anywhere": {"firewall_services": services("anywhere")},
    "from listed addresses": {"firewall_services": services("anywhere", TWO_FAMILIES)},
    "only IPv4 is listed": {"firewall_services": services("anywhere", ["192.0.2.0/24"])},
    "cloudflare": {"firewall_services": services("cloudflare")},
    "tunnel": {"firewall_services": services([])},
    "private network": {
        "firewall_services": services("anywhere"),
        "firewall_private_ports": [4100, 8001],
        "firewall_private_networks": ["10.1.0.0/16", "fd00:1::/64"],
    },
    "restricted": {
        "firewall_services": services("cloudflare"),
        "firewall_outbound": "restricted",
        "firewall_forward": "others",
        "firewall_logged_per_minute": 0,
    },
}


@pytest.mark.skipif(bool(may_make_a_network()), reason=may_make_a_network())
@pytest.mark.parametrize("settings", COMBINATIONS.values(), ids=COMBINATIONS)
def test_nft_takes_the_ruleset_twice_and_leaves_other_tables(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "millrace.nft"
    file.write_text(rendered(**settings))
    both = (
        f"nft add table ip other && nft -c -f {file} && nft -f {file} && nft -f {file}"
        " && nft -j list tables"
    )
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", both], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    tables = [entry["table"] for entry in json.loads(done.stdout)["nftables"] if "table" in entry]
    assert sorted((t["family"], t["name"]) for t in tables) == [
        ("inet", "millrace"), ("ip", "other"),
    ]  # fmt: skip


def opened(text: str) -> list[str]:
    """The rules that open something, without what every ruleset has."""
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if " dport " in f" {line}" and '"dhcp"' not in line]


def test_what_each_edge_opens() -> None:
    assert opened(rendered(**COMBINATIONS["tunnel"])) == [
        'tcp dport 22 counter accept comment "ssh"'
    ]
    assert opened(rendered(**COMBINATIONS["cloudflare"]))[1:3] == [
        'ip saddr @cloudflare4 tcp dport 80 counter accept comment "http"',
        'ip6 saddr @cloudflare6 tcp dport 80 counter accept comment "http"',
    ]
    assert opened(rendered(**COMBINATIONS["from listed addresses"]))[:2] == [
        'ip saddr { 192.0.2.0/24 } tcp dport 22 counter accept comment "ssh"',
        'ip6 saddr { 2001:db8::/32 } tcp dport 22 counter accept comment "ssh"',
    ]
    private = opened(rendered(**COMBINATIONS["private network"]))
    assert (
        'ip saddr { 10.1.0.0/16 } tcp dport 8001 counter accept comment "private 8001"' in private
    )
    assert not [line for line in opened(rendered(**COMBINATIONS["anywhere"])) if "8001" in line]


def test_every_chain_drops_what_nothing_lets_in() -> None:
    text = rendered(**COMBINATIONS["anywhere"])
    assert text.count("policy drop;") == 2
    assert rendered(**COMBINATIONS["restricted"]).count("policy drop;") == 2
    assert "flush" not in text


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ([service("ssh", 22, ["10.0.0.0/8"])], "came in from 192.0.2.7, and ssh would be closed"),
        ([service("ssh", 2222, "anywhere")], "came in by port 22, which nothing would open"),
        ([service("ssh", 22, [])], "ssh would be closed to it"),
        ([SSH, service("https", 22, "anywhere")], "ssh and https both want tcp port 22"),
        ([service("ssh", 22, ["192.0.2.7/24"])], "192.0.2.0/24 is meant, perhaps"),
        ([service("ssh", 22, ["home"])], "home is no network such as"),
        ([service("ssh", 22, "cloudfront")], "cloudfront is no list of networks"),
        ([SSH, service("x", 70000, "anywhere")], "x: 70000 is no port"),
        ([SSH, service("x", "{{ y }}", "anywhere")], "is no port"),
        ([SSH, service("x", 1, "anywhere", "sctp")], "protocol sctp is neither"),
        ([SSH, {"name": "x", "port": 1}], "has to have from, name, port, protocol"),
        ([SSH, service('x" drop', 1, "anywhere")], "a name of small letters"),
    ],
)  # fmt: skip
def test_refuses(wanted: list[dict[str, Any]], told: str) -> None:
    problems = firewall.firewall_problems(wanted, [], [], CAME)
    assert len(problems) == 1
    assert told in problems[0]


def test_has_nothing_against_what_is_good() -> None:
    outbound = DEFAULTS["firewall_outbound_services"]
    for settings in COMBINATIONS.values():
        wanted = settings["firewall_services"]
        assert firewall.firewall_problems(wanted, outbound, ["10.0.0.0/8"], CAME) == []
    far = {**CAME, "address": "2001:db8::9"}
    assert firewall.firewall_problems(services("anywhere", TWO_FAMILIES), outbound, [], far) == []
    assert firewall.firewall_problems([service("ssh", 22, [])], [], [], {}) == []


def test_a_wrong_private_network_is_refused() -> None:
    (problem,) = firewall.firewall_problems([SSH], [], ["10.0.0.0/99"], CAME)
    assert problem.startswith("firewall_private_networks: 10.0.0.0/99 is no network")
