"""A server behind Cloudflare: the edge's stand-in in front of it, on the outside host's address.

For as long as these tests run, that address is the only one of Cloudflare's that counts besides the
real ones; afterwards the server is as `direct` as before.
"""

from __future__ import annotations

import itertools
import json
import re
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from nginx_config import holding_back
from outside import Outside, found_outside
from servers import ROOT, Server, figure, playbook
from test_edge import ask, send

sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "tests/fixtures"))
from confusion import check
from edge_proxy.certificates import Authority, Pair
from edge_proxy.running import RunningEdge

pytestmark = [pytest.mark.timing, pytest.mark.breaks]

TAGS = "firewall,cloudflare_ranges,nginx"
REAL_IP = "/etc/millrace/cloudflare/nginx-real-ip.conf"
PULL_CA = "/etc/millrace/tls/test-pull-ca.crt"
FORGED = {"CF-Connecting-IP": "203.0.113.7", "X-Forwarded-For": "203.0.113.8"}


@dataclass(frozen=True)
class Front:
    """The server, the edge in front of it, and the certificate that the edge shows."""

    server: Server
    edge: RunningEdge
    pull: Pair

    def visitor(self, http2: bool = True) -> httpx.Client:
        """A visitor at the edge, on this machine."""
        context = ssl.create_default_context(cafile=str(self.edge.ca))
        return httpx.Client(base_url=self.edge.url, http2=http2, verify=context, timeout=30)

    def lines(self, mark: str) -> list[str]:
        """What nginx's log says of requests with a mark in their path."""
        time.sleep(1)
        log = self.server.run("journalctl -q -t nginx --since -2min")
        return [line for line in log.splitlines() if mark in line]


def arrange(server: Server, **settings: object) -> None:
    """Run the roles that know how visitors come."""
    done = playbook(
        "playbooks/host.yml", "playbooks/edge.yml", "--limit", server.name, "--tags", TAGS,
        "-e", json.dumps(settings),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]


def admit(server: Server, address: str) -> None:
    """Let an address through the firewall as one of Cloudflare's."""
    server.run(f"nft add element inet millrace cloudflare4 '{{ {address} }}'")


@pytest.fixture(scope="module")
def elsewhere() -> Outside:
    """The outside host; none of its tools is needed."""
    found = found_outside()
    if found is None:
        pytest.skip("the inventory has no outside host, whose address the edge could have")
    return found


@pytest.fixture(scope="module")
def front(
    one: Server, elsewhere: Outside, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Front]:
    """The first server, behind the edge."""
    authority = Authority(tmp_path_factory.mktemp("pull"), "pull-authority")
    pull = authority.sign("pull")
    edge_address = elsewhere.host.address
    one.put(authority.certificate, PULL_CA)
    # Visitors ask for the edge's address here, so that is a name of the service.
    behind = {"millrace_edge": "cloudflare", "nginx_client_ca": PULL_CA,
              "nginx_domains": [edge_address]}  # fmt: skip
    edge = RunningEdge(
        f"{one.address}:443", address=edge_address, network=elsewhere.network, pull=pull,
        origin_ca=one.secrets / "server.crt",
    )  # fmt: skip
    try:
        arrange(one, **behind)
        admit(one, edge_address)
        ours = f"echo 'set_real_ip_from {edge_address};' >> {REAL_IP}"
        one.run(f"cp {REAL_IP} /root/kept.real-ip; {ours}; nginx -t -q && nginx -s reload; sleep 1")
        with edge:
            yield Front(one, edge, pull)
    finally:
        one.run(f"mv /root/kept.real-ip {REAL_IP}", check=False)
        arrange(one)
        one.run(f"rm {PULL_CA}; nginx -t -q && nginx -s reload")


@pytest.mark.parametrize("http2", [False, True], ids=["http/1.1", "h2"])
def test_streams_pass_event_by_event(front: Front, http2: bool) -> None:
    headers = {"Authorization": f"Bearer {front.server.key}", "Accept-Encoding": "gzip, br"}
    path = "/v1/streamcheck?events=60&pace_ms=30&heartbeats=0"
    with (
        front.visitor(http2) as client,
        client.stream("GET", path, headers=headers) as answer,
    ):
        assert answer.status_code == 200
        arrived = [(time.monotonic(), piece) for piece in answer.iter_bytes()]
        assert answer.headers["server"] == "cloudflare"
        assert "content-encoding" not in answer.headers
    text = b"".join(piece for _, piece in arrived)
    assert text.count(b"\ndata: {") >= 60
    assert text.endswith(b"data: [DONE]\n\n")
    times = [at for at, piece in arrived if b"data: {" in piece]
    gaps = sorted(after - before for before, after in itertools.pairwise(times))
    median = gaps[len(gaps) // 2]
    assert median == pytest.approx(0.03, rel=0.5)
    figure(f"through the edge by {answer.http_version}: median gap {1000 * median:.1f} of 30 ms")


def test_nothing_is_held_back_as_nginx_has_it(front: Front) -> None:
    """As it is written: over HTTP/2, which the edge speaks, a buffered stream looks alike."""
    places, wrong = holding_back(front.server)
    assert "/v1/" in places
    assert wrong == set()


def test_the_stream_check_finds_nothing_to_mend(engine: Server, front: Front) -> None:
    if engine.name != front.server.name:
        pytest.skip("the edge is in front of another server")
    seen = check(front.edge.url, "--silence=0", "--ca", str(front.edge.ca), key=engine.key)
    assert seen.said == ("streams", None, None), seen.report["summary"]


def test_the_page_comes_through_and_its_files_are_kept(front: Front) -> None:
    with front.visitor() as client:
        page = client.get("/")
        assert page.status_code == 200
        assert page.headers["cf-cache-status"] == "DYNAMIC"
        script = re.search(r'src="(/assets/[^"]+)"', page.text)
        assert script
        first, second = client.get(script[1]), client.get(script[1])
        assert [a.headers["cf-cache-status"] for a in (first, second)] == ["MISS", "HIT"]
        assert first.text == second.text
        models = client.get("/v1/models", headers={"Authorization": f"Bearer {front.server.key}"})
        assert models.headers["cf-cache-status"] == "DYNAMIC"


def test_nobody_else_reaches_the_server(front: Front) -> None:
    """Not with the right certificate either: packets from elsewhere are dropped."""
    for port in (80, 443):
        with pytest.raises(TimeoutError):
            socket.create_connection((front.server.address, port), timeout=3).close()


def answer_of(front: Front, mark: str, pull: bool) -> tuple[int, str]:
    """What the server says to a request past the edge, with or without its certificate."""
    lies = [f"{name}: {text}" for name, text in FORGED.items()]
    pair = (front.pull.certificate, front.pull.key) if pull else ()
    request = ask(front.server, f"/v1/{mark}", "", "GET", *lies)
    return send(front.server, request, pair=pair)


@pytest.fixture
def admitted(front: Front) -> Iterator[Path]:
    """This machine is let through the firewall, and is still no address of Cloudflare's."""
    here = front.server.address.rpartition(".")[0] + ".1"
    admit(front.server, here)
    yield Path(here)
    front.server.run(f"nft delete element inet millrace cloudflare4 '{{ {here} }}'")


def test_without_the_edges_certificate_nothing_is_said(front: Front, admitted: Path) -> None:
    """Whoever got past the firewall, another customer of Cloudflare's, is told nothing."""
    assert answer_of(front, "bare", pull=False) == (0, "")
    assert answer_of(front, "shown", pull=True)[0] in (401, 404)


def test_only_cloudflares_addresses_may_say_whom_they_speak_for(
    front: Front, admitted: Path
) -> None:
    mark = f"lied-{time.monotonic_ns()}"
    assert answer_of(front, mark, pull=True)[0]
    (line,) = front.lines(mark)
    assert str(admitted) in line
    assert "203.0.113" not in line


def test_the_log_knows_the_visitor_and_not_the_edge(front: Front) -> None:
    mark = f"visit-{time.monotonic_ns()}"
    with front.visitor() as client:
        client.get(f"/v1/{mark}", headers=FORGED)
    (line,) = front.lines(mark)
    assert front.edge.address.rpartition(".")[0] + ".1" in line
    assert f" {front.edge.address} " not in line
    assert "203.0.113" not in line


def test_limits_are_each_visitors_own(front: Front, elsewhere: Outside) -> None:
    """One who logs in without end is told to wait; another, through the same edge, is not."""
    with front.visitor() as client:
        told = [client.post("/v1/session", json={}).text for _ in range(70)]
    assert any("your address" in text for text in told)
    script = (
        "import http.client,ssl,sys\n"
        "link=http.client.HTTPSConnection(sys.argv[1],context=ssl._create_unverified_context())\n"
        "link.request('POST','/v1/session','{}',{'Content-Type':'application/json'})\n"
        "print(link.getresponse().read().decode())"
    )
    other = elsewhere.host.run(f'python3 -c "{script}" {front.edge.address}')
    assert "your address" not in other
