"""What roles want opened, as nftables matches; and what is wrong with that. Pure functions.

An opening is `{name, protocol: tcp|udp, port, from}`; `from` is `anywhere`, `cloudflare` (the sets
that role cloudflare_ranges fills) or a list of networks. An empty list opens nothing. Ways out are
the same with `to`, which knows no `cloudflare`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

ANYWHERE = "anywhere"
CLOUDFLARE = "cloudflare"
PROTOCOLS = ("tcp", "udp")
NAME = re.compile(r"[a-z0-9][a-z0-9 _.-]{0,62}")

Opening = Mapping[str, Any]


def matches(peers: str | Sequence[str], side: str) -> list[str]:
    """Return the beginnings of the rules that let `peers` through, one a family.

    `side`: `saddr` or `daddr`. Networks that touch or overlap are joined, which nft insists on.
    """
    if peers == ANYWHERE:
        return [""]
    if peers == CLOUDFLARE:
        return [f"ip {side} @cloudflare4 ", f"ip6 {side} @cloudflare6 "]
    networks = [ipaddress.ip_network(str(peer)) for peer in peers]
    lines = []
    for word, kind in (("ip", ipaddress.IPv4Network), ("ip6", ipaddress.IPv6Network)):
        family = [network for network in networks if isinstance(network, kind)]
        if family:
            joined = ", ".join(str(n) for n in ipaddress.collapse_addresses(family))  # type: ignore[type-var]
            lines.append(f"{word} {side} {{ {joined} }} ")
    return lines


def rules(services: Iterable[Opening], direction: str = "from") -> list[str]:
    """Return the rules, in nftables' words, that let services through."""
    side = {"from": "saddr", "to": "daddr"}[direction]
    return [
        f"{match}{service['protocol']} dport {int(service['port'])} counter accept "
        f'comment "{service["name"]}"'
        for service in services
        for match in matches(service[direction], side)
    ]


def peer_problems(setting: str, peers: Any) -> list[str]:
    """Return which of some networks are none."""
    if not isinstance(peers, (list, tuple)):
        return [f"{setting}: {peers} is no list of networks such as 192.0.2.0/24."]
    problems = []
    for peer in peers:
        try:
            ipaddress.ip_network(str(peer))
        except ValueError:
            try:
                meant = f"; {ipaddress.ip_network(str(peer), strict=False)} is meant, perhaps"
            except ValueError:
                meant = " such as 192.0.2.0/24 or 2001:db8::/32"
            problems.append(f"{setting}: {peer} is no network{meant}.")
    return problems


def service_problems(setting: str, service: Opening, direction: str) -> list[str]:
    """Return what is wrong with one opening."""
    wanted = {"name", "protocol", "port", direction}
    if not isinstance(service, Mapping) or set(service) != wanted:
        return [f"{setting}: {service} has to have {', '.join(sorted(wanted))}, and no more."]
    at = f"{setting}, {service['name']}"
    problems = []
    if not NAME.fullmatch(str(service["name"])):
        problems.append(f"{at}: a name of small letters, digits and - is needed.")
    if service["protocol"] not in PROTOCOLS:
        problems.append(f"{at}: protocol {service['protocol']} is neither tcp nor udp.")
    port = str(service["port"])
    if not port.isdecimal() or not 0 < int(port) < 65536:
        problems.append(f"{at}: {port} is no port.")
    words = (ANYWHERE, CLOUDFLARE) if direction == "from" else (ANYWHERE,)
    if service[direction] not in words:
        problems += peer_problems(at, service[direction])
    return problems


def port_conflicts(setting: str, services: Sequence[Opening]) -> list[str]:
    """Return which ports two services claim."""
    owner: dict[tuple[str, int], str] = {}
    problems = []
    for service in services:
        key = (service["protocol"], int(service["port"]))
        first = owner.setdefault(key, service["name"])
        if first != service["name"]:
            problems.append(
                f"{setting}: {first} and {service['name']} both want {key[0]} port {key[1]}; "
                "give one of them another."
            )
    return problems


def admits(peers: str | Sequence[str], address: str) -> bool:
    """Tell whether an opening lets an address in, whatever Cloudflare's ranges are today."""
    if peers in (ANYWHERE, CLOUDFLARE):
        return peers == ANYWHERE
    one = ipaddress.ip_address(address)
    return any(one in ipaddress.ip_network(str(peer)) for peer in peers)


def login_problems(services: Sequence[Opening], session: Mapping[str, Any]) -> list[str]:
    """Return what would shut out who is changing this. `session`: as ssh_facts returns it."""
    if not session:
        return []
    address, port = str(session["address"]), int(session["port"])
    there = [s for s in services if s["protocol"] == "tcp" and int(s["port"]) == port]
    if not there:
        return [f"this run came in by port {port}, which nothing would open: set ssh_port: {port}."]
    if not any(admits(service["from"], address) for service in there):
        return [
            f"this run came in from {address}, and ssh would be closed to it: add it to ssh_from "
            "(or come from an address that is in it)."
        ]
    return []


def firewall_problems(
    services: Sequence[Opening],
    outbound: Sequence[Opening],
    networks: Any,
    session: Mapping[str, Any],
) -> list[str]:
    """Return what stands against a firewall, a line each; empty when all is well."""
    problems = peer_problems("firewall_private_networks", networks)
    for setting, direction, wanted in (
        ("firewall_services", "from", services),
        ("firewall_outbound_services", "to", outbound),
    ):
        for service in wanted:
            problems += service_problems(setting, service, direction)
    if problems:
        return problems
    return port_conflicts("firewall_services", services) + login_problems(services, session)


def private_services(ports: Iterable[int], networks: Sequence[str]) -> list[dict[str, Any]]:
    """Return the openings of inner ports, towards the private networks only."""
    return [
        {"name": f"private {port}", "protocol": "tcp", "port": int(port), "from": list(networks)}
        for port in ports
    ]


class FilterModule:
    """Ansible's way to find the filters."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "firewall_rules": rules,
            "firewall_problems": firewall_problems,
            "firewall_private": private_services,
        }
