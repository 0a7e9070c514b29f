"""What a server gets from Cloudflare and gives back: a certificate, origin pulls, rules, a tunnel.

Cloudflare's API is a stand-in on this machine (tests/cloudflare). So is cloudflared, which would
look for Cloudflare: its package comes from a signed repository on the server, laid out like theirs.
"""

from __future__ import annotations

import json
import secrets
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from leaks import everywhere, holding, needles_of, told_in, watched
from servers import ROOT, Server, playbook, servers
from test_acme import shown
from test_again import changes
from test_edge import ask, send
from test_secrets import MAY_READ, PLACES

sys.path.insert(0, str(ROOT / "tests/cloudflare"))
from cf_server import Standin
from cf_state import Zone

pytestmark = [pytest.mark.breaks, pytest.mark.timeout(900)]

NAME, ZONE = "chat.example.com", "example.com"
BOOK = ("playbooks/edge.yml", "--tags", "tls,origin_pulls,nginx,cloudflared,cloudflare")
PULL_CA = "/etc/millrace/tls/cloudflare-pull-ca.crt"
ORIGIN_KEY = "/etc/millrace/tls/cloudflare_origin/server.key"
CREDENTIALS = "cloudflare_tunnel.json"
TUNNEL = "millrace-cloudflared.service"
VISITOR = "198.51.100.77"
REPOSITORY = "/srv/cloudflared"
PACKED = ("fixtures/apt_repository.py", "cloudflare/cf_packages.py", "cloudflare/cf_daemon.py")


@dataclass
class Run:
    """One run of the playbook: what it printed, how much it changed here and at Cloudflare.

    `seen`: where the token stood in a process's arguments or environment meanwhile, there or here.
    """

    output: str
    changed: int
    writes: int
    seen: list[list[str]] = field(default_factory=list)


@dataclass
class Cloud:
    """A server, Cloudflare's stand-in, and the settings that both ways in share."""

    server: Server
    api: Standin
    zone: Zone
    token: str
    settings: Path

    @property
    def pulls(self) -> Path:
        """Where the controller keeps the zone's authority and client certificate."""
        return self.server.secrets.parent / f"cloudflare-{ZONE}"

    def run(self, edge: str, *more: str, book: tuple[str, ...] = BOOK, **settings: object) -> Run:
        """Have visitors come by `edge`. Fails with what the run said."""
        before = len(self.api.world.writes())
        done = playbook(
            *book, *more, "--limit", self.server.name, "-e", f"@{self.settings}", "-e",
            json.dumps({"millrace_edge": edge, **settings}), timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-4000:]
        return Run(
            done.stdout + done.stderr,
            changes(done.stdout)[self.server.name],
            len(self.api.world.writes()) - before,
        )

    def secrets(self) -> dict[str, list[str]]:
        """All that nobody may be told: of the server, of the zone, and the token."""
        key = self.server.run(f"cat {ORIGIN_KEY} 2>/dev/null", check=False).splitlines()[1:2]
        kept = needles_of(self.pulls) if self.pulls.exists() else {}
        return {**needles_of(self.server.secrets), **kept, "token": [self.token], "key": key}

    def answers(self, *pair: Path) -> int:
        """The status that a visitor of the server itself gets of nginx alone; 0 for none."""
        return send(self.server, ask(self.server, "/nothing", NAME), sni=NAME, pair=pair)[0]

    def extra(self, what: str) -> list[dict[str, Any]]:
        """What the zone holds of certificates or tunnels."""
        found: dict[str, dict[str, Any]] = self.zone.extra.get(what, {})
        return list(found.values())

    def leads_to(self) -> list[str]:
        """What the name's records say."""
        return [
            f"{r['type']} {r['content']}" for r in self.zone.records.values() if r["name"] == NAME
        ]

    def rules(self) -> int:
        """How many rules the zone has."""
        return sum(len(ruleset["rules"]) for ruleset in self.zone.rulesets.values())


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """A bare server, and an API to ask; what was kept here of both is removed afterwards."""
    found = servers("edge")
    if not found:
        pytest.skip("the inventory has no server of the edge alone")
    (server,) = found.values()
    bare = (
        "playbooks/host.yml",
        "playbooks/edge.yml",
        "--tags",
        "base,cloudflare_ranges,tls,nginx",
    )
    done = playbook(*bare, "--limit", server.name, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:]
    settings = tmp_path_factory.mktemp("cloudflare") / "settings.json"
    token = secrets.token_hex(20)
    with Standin() as api:
        api.world.token(token)
        zone = api.world.zone(ZONE)
        zone.extra["deploys_after"] = 1
        given = {
            "vault_cloudflare_api_token": token, "cloudflare_zone": ZONE, "tls_domains": [NAME],
            "cloudflare_addresses": ["1.2.3.4"],
            "cloudflare_api_url": api.url, "origin_pulls_settle_seconds": 1,
            "cloudflared_repository_url": f"file://{REPOSITORY}",
        }  # fmt: skip
        settings.write_text(json.dumps(given))
        settings.chmod(0o600)
        made = Cloud(server, api, zone, token, settings)
        try:
            yield made
        finally:
            server.run(f"rm -rf {REPOSITORY}", check=False)
            shutil.rmtree(made.pulls, ignore_errors=True)
            for name in ("cloudflare_before.json", CREDENTIALS):
                (server.secrets / name).unlink(missing_ok=True)


PROXIED = {"tls_source": "cloudflare_origin"}


def test_looking_first_writes_nothing(cloud: Cloud) -> None:
    files = "find /etc/millrace /etc/nginx -type f 2>/dev/null | xargs -r sha256sum"
    before = cloud.server.run(files)
    looked = cloud.run("cloudflare", "--check", "--diff", **PROXIED)
    assert looked.writes == 0
    assert looked.changed > 3, looked.output
    assert not cloud.pulls.exists()
    assert not (cloud.server.secrets / "cloudflare_before.json").exists()
    assert cloud.server.run(files) == before


@pytest.fixture(scope="module")
def proxied(cloud: Cloud) -> Run:
    """The server behind Cloudflare's proxy, by the most talkative run."""
    sought = {"token": [cloud.token]}
    with watched(cloud.server, sought) as there, watched(None, sought) as here:
        done = cloud.run("cloudflare", "-vvv", "--diff", **PROXIED)
    assert min(there.looks, here.looks) > 20
    return replace(done, seen=[*there.processes, *here.processes])


def test_behind_the_proxy_only_cloudflare_is_answered(cloud: Cloud, proxied: Run) -> None:
    certificate = x509.load_der_x509_certificate(shown(cloud.server, NAME))
    assert "CloudFlare" in certificate.issuer.rfc4514_string()
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert NAME in names.get_values_for_type(x509.DNSName)
    assert cloud.zone.extra["pulls_enabled"] is True
    assert cloud.answers() == 0
    assert cloud.answers(cloud.pulls / "origin_pull_client.pem") == 404
    assert [record.split()[0] for record in cloud.leads_to()] == ["A"]
    assert cloud.rules() >= 4


def test_neither_token_nor_key_is_told(cloud: Cloud, proxied: Run) -> None:
    needles = cloud.secrets()
    assert {"token", "key", "origin_pull_client.pem", "origin_pull_authority.pem"} <= set(needles)
    assert told_in(proxied.output, needles) == []
    assert proxied.seen == []
    # The server's key is nowhere here, and what is the zone's nowhere there.
    here = [file for folder in (cloud.server.secrets, cloud.pulls) for file in folder.rglob("*")]
    assert not [f for f in here if f.is_file() and told_in(f.read_text(), {"key": needles["key"]})]
    sought = {name: needles[name] for name in ("token", "key", *needles_of(cloud.pulls))}
    there = everywhere(cloud.server, sought)
    held = [f for f in there["files"] if set(sought) & set(f["secrets"])]
    assert held, "nothing was found, the key neither"
    assert not [f for f in held if set(sought) & set(f["secrets"]) != {"key"} or f["readers"]]
    assert not [told for told in there["processes"] if told[0] in sought]


def test_the_second_run_changes_nothing(cloud: Cloud, proxied: Run) -> None:
    again = cloud.run("cloudflare", **PROXIED)
    assert (again.changed, again.writes) == (0, 0), again.output


@pytest.fixture(scope="module")
def tunnelled(cloud: Cloud, proxied: Run) -> Run:
    """The same server at the end of a tunnel: what the proxy needed is taken back."""
    server = cloud.server
    server.run(f"rm -rf {REPOSITORY}; mkdir -p {REPOSITORY}")
    for file in PACKED:
        server.put(ROOT / "tests" / file, f"{REPOSITORY}/{Path(file).name}")
    install = "DEBIAN_FRONTEND=noninteractive apt-get install -qqy --no-install-recommends"
    server.run(f"{install} gpg gpg-agent python3-yaml >/dev/null 2>&1", timeout=300)
    make = f"python3 {REPOSITORY}/cf_packages.py {REPOSITORY} {REPOSITORY}/cf_daemon.py"
    key = server.run(make, timeout=300)
    given = json.loads(cloud.settings.read_text())
    cloud.settings.write_text(json.dumps({**given, "cloudflared_repository_signed_by": key}))
    looked = cloud.run("tunnel", "--check", "--diff")
    assert looked.writes == 0
    assert not (server.secrets / CREDENTIALS).exists()
    return cloud.run("tunnel", "-vvv", "--diff")


def test_a_tunnel_takes_the_proxys_place(cloud: Cloud, tunnelled: Run) -> None:
    server = cloud.server
    assert server.show(TUNNEL, "ActiveState", "UnitFileState") == {
        "ActiveState": "active", "UnitFileState": "enabled"}  # fmt: skip
    (tunnel,) = cloud.extra("tunnels")
    assert cloud.leads_to() == [f"CNAME {tunnel['id']}.cfargotunnel.com"]
    assert "cloudflared" in server.run("apt-mark showhold")
    mark = secrets.token_hex(8)
    visitor = {"Host": NAME, "CF-Connecting-IP": VISITOR}
    assert server.get(f"http://127.0.0.1:20241/{mark}", **visitor)[0] == 404
    assert VISITOR in server.run(f"sleep 1; journalctl -q -t nginx -n 50 | grep {mark}")
    with pytest.raises(OSError, match="refused"):
        cloud.answers()


def test_what_the_proxy_had_is_taken_back(cloud: Cloud, tunnelled: Run) -> None:
    assert cloud.zone.extra["pulls_enabled"] is False
    assert (cloud.extra("pulls"), cloud.extra("certificates")) == ([], [])
    assert cloud.server.run(f"ls {ORIGIN_KEY} {PULL_CA} 2>/dev/null", check=False) == ""


def test_the_tunnels_credentials_are_its_own(cloud: Cloud, tunnelled: Run) -> None:
    assert told_in(tunnelled.output, cloud.secrets()) == []
    there = everywhere(cloud.server)
    files = [file for file in there["files"] if CREDENTIALS in file["secrets"]]
    assert {str(file["path"]) for file in files} == set(holding({"files": files}, PLACES))
    assert {reader for file in files for reader in file["readers"]} <= MAY_READ[CREDENTIALS]
    assert len(files) == 2, files
    assert not [f for f in there["processes"] if CREDENTIALS in f]


def test_the_tunnels_second_run_changes_nothing(cloud: Cloud, tunnelled: Run) -> None:
    again = cloud.run("tunnel")
    assert (again.changed, again.writes) == (0, 0), again.output


def test_nothing_is_left_here_or_there(cloud: Cloud, tunnelled: Run) -> None:
    cloud.run("direct", tls_domains=[])
    server = cloud.server
    assert server.show(TUNNEL, "LoadState")["LoadState"] == "not-found"
    left = "dpkg-query -W cloudflared 2>/dev/null; ls /etc/millrace/cloudflared 2>/dev/null"
    assert server.run(f"{left}; ls /etc/apt/sources.list.d | grep cloudflared", check=False) == ""
    assert not (server.secrets / CREDENTIALS).exists()
    assert all(one["deleted_at"] for one in cloud.extra("tunnels"))
    cloud.run("direct", book=("playbooks/cloudflare.yml",), cloudflare_state="absent")
    assert (cloud.leads_to(), cloud.rules()) == ([], 0)
