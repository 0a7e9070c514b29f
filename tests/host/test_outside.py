"""The servers as somebody else's host sees them, with the tools that people use for that.

The tools run on a host of their own in the sandbox (outside.py). What they may say although it is
no fault stands in outside_waivers.yml, each with its reason.
"""

from __future__ import annotations

import http.client
import json
import re
import shlex
import socket
import ssl
import time
from contextlib import nullcontext

import pytest
from outside import Outside, expected_ports
from probes import (
    CANARY,
    H2_WRONG,
    PATHS,
    REFUSED,
    SMUGGLING,
    h1,
    h2_exchange,
    opened,
    rapid_resets,
    told,
)  # fmt: skip
from servers import Server, figure

pytestmark = pytest.mark.timing

ATTACK_SECONDS = 60
CONNECTIONS = 1000
# A stream whose events are 50 ms apart, beside thousands of connections on two cores.
LONGEST_GAP_SECONDS = 3.0
FORGED = {"X-Forwarded-For": "203.0.113.7", "CF-Connecting-IP": "203.0.113.8",
          "True-Client-IP": "203.0.113.9", "X-Real-IP": "203.0.113.10",
          "Forwarded": "for=203.0.113.11"}  # fmt: skip


@pytest.mark.parametrize("version", ["IPv4", "IPv6"])
def test_only_the_list_is_open(outside: Outside, server: Server, one: Server, version: str) -> None:
    """All 65,535 ports: a port that is let through is found even when nobody listens on it."""
    if version == "IPv6" and server is not one:
        pytest.skip("minutes of asking; the ruleset is one for both families, and compared whole")
    wanted = expected_ports(server)
    with nullcontext(server.address) if version == "IPv4" else outside.beside(server) as address:
        answering = {protocol: outside.answers(address, protocol) for protocol in wanted}
    assert answering["tcp"] == dict.fromkeys(wanted["tcp"], "open")
    # What speaks QUIC alone says nothing to nmap.
    assert set(answering["udp"]) <= wanted["udp"], answering["udp"]


def test_tls_has_no_hole(outside: Outside, server: Server) -> None:
    assert outside.tls_findings(server.address) == {}


def test_ssh_is_modern(outside: Outside, server: Server) -> None:
    assert outside.ssh_findings(server.address) == {}


def test_slow_clients_harm_nobody(outside: Outside, one: Server) -> None:
    """Slow headers, bodies and readers, a thousand connections each, all at once for a minute."""
    page = http.client.HTTPSConnection(one.address, context=ssl._create_unverified_context())
    page.request("GET", "/")
    script = re.search(rb'src="(/assets/[^"]+)"', page.getresponse().read())
    large = script[1].decode() if script else "/"
    url = f"https://{one.address}"
    slow = f"slowhttptest -c {CONNECTIONS} -r 250 -l {ATTACK_SECONDS} -v 1"
    with outside.attack(
        f"{slow} -H -i 10 -x 24 -u {url}/",
        f"{slow} -B -i 10 -s 8192 -x 10 -t POST -u {url}/v1/chat/completions",
        f"{slow} -X -w 512 -y 1024 -n 5 -z 32 -k 3 -u {url}{large}",
    ) as said:
        time.sleep(5)
        visits = [
            outside.visit(one, ATTACK_SECONDS - 10, 4),
            outside.visit(one, ATTACK_SECONDS - 10, 4, here=True),
        ]
        held = 0
        for _ in range(5):
            held = max(held, outside.connections(one))
            time.sleep(3)
        seen = [visit.result() for visit in visits]
    # Else it was no attack.
    assert held > CONNECTIONS, said
    neighbour, stranger = seen
    assert stranger["wrong"] == []
    assert stranger["whole"] >= 4 * (ATTACK_SECONDS - 10) // 8
    # Whoever shares the attacker's address is told to wait while it holds all that an address may.
    assert set(neighbour["wrong"]) <= {"AssertionError('status 429')"}
    for told_by in seen:
        assert told_by["gap_seconds"] < LONGEST_GAP_SECONDS
        assert told_by["first_seconds"] < LONGEST_GAP_SECONDS
    whole, refused = sum(told_by["whole"] for told_by in seen), len(neighbour["wrong"])
    gap, first = (
        1000 * max(told_by[name] for told_by in seen) for name in ("gap_seconds", "first_seconds")
    )
    figure(
        f"beside {held} slow connections: {whole} streams, all whole ({refused} from "
        f"the attacker's own address told to wait); longest gap {gap:.0f} ms, first event after "
        f"{first:.0f} ms at most"
    )


def test_a_flood_of_requests_harms_no_stream(outside: Outside, one: Server) -> None:
    """h2load from one address: served or told to wait, never an error, and others unhurt."""
    with outside.attack(f"h2load -n 6000 -c 20 -m 64 https://{one.address}/healthz") as said:
        time.sleep(1)
        seen = outside.visit(one, 5, 4, here=True).result()
    assert seen["wrong"] == []
    assert seen["gap_seconds"] < LONGEST_GAP_SECONDS
    counts = re.search(
        r"requests: (\d+) total.* (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored", said[0]
    )
    codes = re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", said[0])
    assert counts, said[0]
    assert codes, said[0]
    assert int(counts[2]) == 6000
    assert int(counts[5]) == int(codes[4]) == 0, said[0]
    speed = re.search(r"([\d.]+) req/s", said[0])
    figure(f"h2load: {codes[1]} answered, {codes[3]} told to wait, {speed and speed[1]} a second")


def test_streams_reset_in_haste_harm_no_stream(outside: Outside, one: Server) -> None:
    """Rapid reset (CVE-2023-44487): 20,000 streams opened and reset in four connections."""
    visits = outside.visit(one, 6, 4)
    sent = [rapid_resets(one.address, 5000) for _ in range(4)]
    seen = visits.result()
    assert seen["wrong"] == []
    assert seen["gap_seconds"] < LONGEST_GAP_SECONDS
    figure(f"rapid resets until nginx closed: {sent}")


@pytest.mark.parametrize("probe", SMUGGLING)
def test_nothing_is_smuggled(server: Server, probe: str) -> None:
    said = h1(server.address, SMUGGLING[probe])
    assert said.refused, said.text
    assert said.closed, said.text
    assert CANARY not in said.text


def test_what_was_smuggled_reached_nobody(server: Server) -> None:
    told(opened(server.address), b"GET /healthz HTTP/1.0\r\n\r\n")
    journal = server.run("sleep 1; journalctl -q --since -10min")
    assert "nginx[" in journal
    assert CANARY not in journal


@pytest.mark.parametrize("wrong", H2_WRONG)
def test_nothing_is_smuggled_by_http2(server: Server, wrong: str) -> None:
    """The stream or the connection is refused; when it stays, what follows is answered as ever."""
    first, second = h2_exchange(server.address, server.key, H2_WRONG[wrong])
    assert len(first) <= 1
    assert set(first) <= REFUSED
    assert second in (0, 200)


@pytest.mark.parametrize("path", PATHS)
def test_no_way_round_to_what_is_inside(server: Server, path: str) -> None:
    request = f"GET {path} HTTP/1.1\r\nHost: {{host}}\r\nAuthorization: Bearer {server.key}\r\n"
    said = h1(server.address, f"{request}Connection: close\r\n\r\n", seconds=5)
    assert said.refused, said.text
    assert "# HELP" not in said.text


@pytest.mark.parametrize("port", [80, 443])
@pytest.mark.parametrize("name", ["evil.example", "127.0.0.1", "localhost", "", "a b"])
def test_another_name_is_told_nothing(server: Server, name: str, port: int) -> None:
    request = f"GET /healthz HTTP/1.1\r\nHost: {name}\r\n\r\n".encode()
    wire = opened(server.address) if port == 443 else socket.create_connection(
        (server.address, port), timeout=10
    )  # fmt: skip
    with wire:
        said = told(wire, request)
    assert said.closed
    assert set(said.statuses) <= {400, 421}, said.text


def test_who_lies_about_their_address_is_known_all_the_same(
    outside: Outside, server: Server
) -> None:
    """The access log names who connected; what visitors claim is nowhere."""
    mark = f"/v1/forged-{time.monotonic_ns()}"
    script = (
        "import http.client,json,ssl,sys\n"
        "link=http.client.HTTPSConnection(sys.argv[1],context=ssl._create_unverified_context())\n"
        "link.request('GET',sys.argv[2],headers=json.loads(sys.argv[3]))\n"
        "print(link.getresponse().status)"
    )
    asks = shlex.join(["python3", "-c", script, server.address, mark, json.dumps(FORGED)])
    assert int(outside.host.run(asks)) in REFUSED | {401}
    time.sleep(1)
    lines = server.run(f"journalctl -q -t nginx --since -1min | grep {mark}").splitlines()
    assert len(lines) == 1
    assert outside.host.address in lines[0]
    assert "203.0.113" not in server.run("journalctl -q --since -1min")
