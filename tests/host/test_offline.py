"""The network cut off: nothing that serves calls out, and streams stay whole.

Only ssh and our own connections to 443 are let out. What a service's user sends elsewhere is
counted before it is dropped, DNS to a resolver on the server itself included, over IPv4 and IPv6.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest
from conftest import UNITS, status
from servers import RECITAL, Server, figure
from test_api import ask, chat

pytestmark = [pytest.mark.breaks, pytest.mark.timeout(600)]

USERS = (
    "millrace-vllm",
    "millrace-litellm",
    "millrace-backend",
    "millrace-streamcheck",
    "www-data",
)
# Ahead of any other table's rules. By the port: to connection tracking that begins now, ssh's own
# connection is a new one until we say something, and we wait for the answer.
CUT = r"""
table inet offline {
    counter services { }
    counter others { }
    chain out {
        type filter hook output priority -300; policy accept;
        meta skuid { USERS } meta l4proto { tcp, udp } th dport { 53, 853 } \
            counter name services drop
        oif lo accept
        tcp sport { 22, 443 } accept
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit } accept
        meta skuid { USERS } counter name services log prefix "offline: " flags skuid drop
        counter name others drop
    }
}
"""


@pytest.fixture
def cut(server: Server) -> Iterator[Server]:
    """The server without a network, except for us."""
    rules = CUT.replace("USERS", ", ".join(USERS))
    server.run(f"nft -f - <<'END'\n{rules}\nEND")
    try:
        yield server
    finally:
        server.run("nft delete table inet offline", check=False)


def tried(server: Server, counter: str = "services") -> int:
    """How many packets were counted and dropped so far."""
    told = json.loads(server.run(f"nft -j list counter inet offline {counter}"))
    (found,) = [entry["counter"] for entry in told["nftables"] if "counter" in entry]
    return int(found["packets"])


@pytest.mark.parametrize(
    "attempt",
    [
        "exec 3<>/dev/tcp/192.0.2.1/443",
        "echo x > /dev/udp/192.0.2.1/53",
        "echo x > /dev/udp/127.0.0.53/53",
        "exec 3<>/dev/tcp/2001:db8::1/443",
    ],
)
def test_an_attempt_is_counted(cut: Server, attempt: str) -> None:
    """Or the zero below would say nothing."""
    if ":db8:" in attempt and not cut.run("ip -6 route get 2001:db8::1 2>/dev/null", check=False):
        pytest.skip("this server has no way out over IPv6")
    before = tried(cut)
    cut.run(f"timeout 2 runuser -u millrace-backend -- bash -c '{attempt}' 2>&1", check=False)
    assert tried(cut) > before


def test_gateway_and_backend_start_without_calling_out(cut: Server) -> None:
    cut.run(f"systemctl restart {UNITS['gateway']}", timeout=200)
    cut.run("millrace-handover --again", timeout=200)
    assert status(cut, "/healthz") == 200
    # Whatever is done by the clock, or in the background, has begun by then.
    time.sleep(5)
    assert tried(cut) == 0


def test_an_engine_loads_and_streams_without_calling_out(
    engine: Server, cut: Server, until_ready: Callable[[], float]
) -> None:
    began = time.monotonic()
    cut.run(f"systemctl restart '{UNITS['engine']}'", timeout=600)
    until_ready()
    took = time.monotonic() - began
    seen = ask(engine, chat(), "h2")
    assert (seen.status, seen.text, seen.ended) == (200, RECITAL, True)
    assert tried(cut) == 0
    figure(f"network cut: the engine was ready again after {took:.0f} s")
