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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from leaks import everywhere, holding, needles_of, told_in
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
# As pkg.cloudflare.com has it: one suite for every release, and a signed InRelease.
PACKAGE = f"""
set -eu
export DEBIAN_FRONTEND=noninteractive GNUPGHOME={REPOSITORY}/gpg
apt-get install -qqy --no-install-recommends gpg gpg-agent python3-yaml >/dev/null 2>&1
cd {REPOSITORY}
architecture=$(dpkg --print-architecture)
packages=main/binary-$architecture/Packages
mkdir -p deb/DEBIAN pool dists/any/${{packages%/*}}
mkdir -m 700 gpg
install -D -m 755 program deb/usr/bin/cloudflared
printf '%s\\n' 'Package: cloudflared' 'Version: 2026.1.0' 'Architecture: all' \\
  'Maintainer: nobody <nobody@example.com>' 'Depends: python3, python3-yaml' \\
  'Description: stand-in' > deb/DEBIAN/control
dpkg-deb --build -Znone deb pool/cloudflared.deb >/dev/null
sum() {{ sha256sum "$1" | cut -d' ' -f1; }}
{{ cat deb/DEBIAN/control
  echo 'Filename: pool/cloudflared.deb'
  echo "Size: $(stat -c %s pool/cloudflared.deb)"
  echo "SHA256: $(sum pool/cloudflared.deb)"; }} > dists/any/$packages
{{ printf '%s\\n' 'Suite: any' 'Codename: any' 'Components: main' "Architectures: $architecture" \\
    "Date: $(date -Ru)" 'SHA256:'
  echo " $(sum dists/any/$packages) $(stat -c %s dists/any/$packages) $packages"; }} > Release
gpg -q --batch --passphrase '' --quick-generate-key tests rsa3072 sign 1d 2>/dev/null
gpg -q --batch --clearsign -o dists/any/InRelease Release
gpg --armor --export
gpgconf --kill all
"""


@dataclass
class Run:
    """One run of the playbook: what it printed, how much it changed here and at Cloudflare."""

    output: str
    changed: int
    writes: int


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
    return cloud.run("cloudflare", "-vvv", "--diff", **PROXIED)


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
    there = everywhere(cloud.server)
    of_the_zone = {"token", *needles_of(cloud.pulls)}
    assert not [f for f in there["files"] if set(f["secrets"]) & of_the_zone]


def test_the_second_run_changes_nothing(cloud: Cloud, proxied: Run) -> None:
    again = cloud.run("cloudflare", **PROXIED)
    assert (again.changed, again.writes) == (0, 0), again.output


@pytest.fixture(scope="module")
def tunnelled(cloud: Cloud, proxied: Run) -> Run:
    """The same server at the end of a tunnel: what the proxy needed is taken back."""
    server = cloud.server
    server.run(f"rm -rf {REPOSITORY}; mkdir -p {REPOSITORY}")
    server.put(ROOT / "tests/cloudflare/cf_daemon.py", f"{REPOSITORY}/program")
    key = server.run(PACKAGE, timeout=300)
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
