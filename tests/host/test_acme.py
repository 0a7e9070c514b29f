"""A certificate from an authority: asked for, renewed under a running stream, and refused.

The authority is Pebble, Debian's package of Let's Encrypt's own for tests, and the names' DNS is
Knot; both run on the server beside what asks them. First the proof is a file (HTTP-01), then a
record that certbot writes into the DNS by RFC 2136 (DNS-01).
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import secrets
import socket
import ssl
import subprocess
from collections.abc import Iterator

import pytest
from servers import Server, playbook, servers

pytestmark = [pytest.mark.breaks, pytest.mark.timeout(900)]

NAMES = ["chat.example.org", "api.example.org"]
BY_DNS = [NAMES[0], "*.example.org"]
"""A wildcard can be proved by DNS alone."""
AUTHORITY = {
    "tls_source": "acme",
    "tls_acme_directory": "https://localhost:14000/dir",
    "tls_acme_ca_file": "/srv/pebble/cert.pem",
}
SETTINGS = {**AUTHORITY, "tls_domains": NAMES}
EVENTS, PACE_MS = 60, 200
"""A stream of twelve seconds: a renewal takes two to ten."""

PEBBLE = """
set -eu
mkdir -p /srv/pebble/db
cd /srv/pebble
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=pebble \\
  -addext subjectAltName=DNS:localhost -keyout key.pem -out cert.pem 2>/dev/null
cat > config.json <<'END'
{"pebble": {"listenAddress": "127.0.0.1:14000", "managementListenAddress": "127.0.0.1:15000",
  "certificate": "/srv/pebble/cert.pem", "privateKey": "/srv/pebble/key.pem", "httpPort": 80,
  "tlsPort": 443, "certificateValidityPeriod": 864000,
  "profiles": {"default": {"description": "ten days", "validityPeriod": 864000}}}}
END
cat > knot.conf <<END
server:
  listen: 127.0.0.1@8053
  rundir: /srv/pebble
database:
  storage: /srv/pebble/db
key:
  - id: certbot
    algorithm: hmac-sha256
    secret: "SECRET"
acl:
  - id: certbot
    key: certbot
    action: update
zone:
  - domain: example.org
    storage: /srv/pebble
    file: example.org.zone
    acl: certbot
END
cat > example.org.zone <<'END'
$TTL 1
@ SOA ns.example.org. admin.example.org. 1 1h 1h 1h 1
@ NS ns.example.org.
ns A 127.0.0.1
chat A 127.0.0.1
api A 127.0.0.1
END
systemctl stop knot 2>/dev/null || true
systemd-run -q --collect --unit=pebble-dns knotd -c /srv/pebble/knot.conf
systemd-run -q --collect --unit=pebble -E PEBBLE_VA_NOSLEEP=1 -E PEBBLE_WFE_NONCEREJECT=0 \\
  -E PEBBLE_AUTHZREUSE=0 \\
  pebble -config /srv/pebble/config.json -dnsserver 127.0.0.1:8053
for second in 1 2 3 4 5 6 7 8 9 10; do
  [ "$(ss -Hltn 'sport = :14000 or sport = :8053' | wc -l)" = 2 ] && exit 0
  sleep 1
done
journalctl -u pebble -u pebble-dns -n 20 --no-pager >&2
exit 1
"""


KNOT = "knotc -c /srv/pebble/knot.conf"


def edge(
    settings: dict[str, object], server: Server, *more: str
) -> subprocess.CompletedProcess[str]:
    """Set the server's certificate up."""
    return playbook(
        "playbooks/edge.yml", "--tags", "tls,nginx", "--limit", server.name, "-e",
        json.dumps(settings), *more, timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def dns_key() -> str:
    """What lets into the DNS, made for this run."""
    return base64.b64encode(secrets.token_bytes(32)).decode()


@pytest.fixture(scope="module")
def authority(dns_key: str) -> Iterator[Server]:
    """One server, with an authority that it can ask; put back afterwards."""
    server = servers()[max(servers())]
    install = "DEBIAN_FRONTEND=noninteractive apt-get install -qqy --no-install-recommends"
    told = server.run(f"{install} pebble knot >/dev/null 2>&1 || echo none", timeout=300)
    if "none" in told:
        pytest.skip(f"Debian's pebble and knot cannot be had on {server.name}")
    try:
        server.run(PEBBLE.replace("SECRET", dns_key))
        done = edge(SETTINGS, server)
        assert done.returncode == 0, done.stdout[-4000:]
        yield server
    finally:
        server.run("systemctl stop pebble pebble-dns", check=False)
        put_back = edge({}, server)
        server.run(
            "apt-get purge -qqy certbot python3-certbot-dns-rfc2136 pebble knot >/dev/null 2>&1; "
            "rm -rf /srv/pebble "
            "/etc/letsencrypt /etc/millrace/tls/acme /var/lib/millrace/acme",
            check=False, timeout=300,
        )  # fmt: skip
        assert put_back.returncode == 0, put_back.stdout[-4000:]


def shown(server: Server, name: str = NAMES[0]) -> bytes:
    """The certificate that nginx shows from outside to who asks for a name."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection((server.address, 443), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname=name) as wire,
    ):
        told = wire.getpeercert(binary_form=True)
    assert told is not None
    return told


def in_place(server: Server) -> str:
    """The certificate that nginx shall read, as a digest."""
    return server.run("openssl x509 -in /etc/millrace/tls/server.crt -outform DER | sha256sum")[:64]


def zone(verb: str, record: str) -> str:
    """Return the command that changes a record of the DNS."""
    inside = f"{KNOT} zone-{verb} example.org {record}"
    return f"{KNOT} zone-begin example.org && {inside} && {KNOT} zone-commit example.org"


def test_the_authoritys_certificate_is_shown_and_covers_the_names(authority: Server) -> None:
    assert hashlib.sha256(shown(authority)).hexdigest() == in_place(authority)
    said = authority.run(
        "openssl x509 -noout -issuer -ext subjectAltName -in /etc/millrace/tls/server.crt"
    )
    assert "Pebble Intermediate" in said
    assert {f"DNS:{name}" for name in NAMES} == set(re.findall(r"DNS:[\w.]+", said))
    assert authority.run("systemctl is-enabled certbot.timer").strip() == "enabled"
    modes = authority.run("stat -Lc %a /etc/millrace/tls/server.key /etc/millrace/tls/acme/*.ini")
    assert modes.split() == ["600", "600"]


def test_asking_again_changes_nothing(authority: Server) -> None:
    before = in_place(authority)
    done = edge(SETTINGS, authority)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "changed=0" in done.stdout, done.stdout
    assert in_place(authority) == before


def test_a_renewal_cuts_no_stream(authority: Server) -> None:
    """Pebble's certificates are good for ten days, so that certbot's own unit renews at once."""
    before = in_place(authority)
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    asked = f"/v1/streamcheck?events={EVENTS}&pace_ms={PACE_MS}"
    key = {"Authorization": f"Bearer {authority.key}"}
    wire = http.client.HTTPSConnection(authority.address, timeout=60, context=context)
    wire.request("GET", asked, headers=key)
    answer = wire.getresponse()
    assert answer.status == 200, answer.read()
    first = answer.readline()
    authority.run("systemctl start certbot.service")
    assert in_place(authority) != before
    assert hashlib.sha256(shown(authority)).hexdigest() == in_place(authority)
    assert not answer.isclosed()
    rest = first + answer.read()
    assert b"[DONE]" in rest
    assert rest.count(b"data: ") >= EVENTS


def test_a_refusal_leaves_the_certificate_and_fails_the_unit(authority: Server) -> None:
    before = in_place(authority)
    authority.run(zone("unset", f"{NAMES[0]}. A"))
    try:
        code = authority.run("systemctl start certbot.service 2>/dev/null; echo $?").strip()
    finally:
        authority.run(zone("set", f"{NAMES[0]}. 1 A 127.0.0.1"))
    assert code != "0"
    assert in_place(authority) == before
    assert hashlib.sha256(shown(authority)).hexdigest() == before


def test_the_renewal_is_confined(authority: Server) -> None:
    told = authority.run("systemd-analyze security --no-pager certbot.service | tail -1")
    assert float(re.findall(r"[\d.]+", told.split(":")[1])[0]) <= 2.0, told


def by_dns(key: str, names: list[str]) -> dict[str, object]:
    """The settings for a proof by DNS."""
    lines = {"server": "127.0.0.1", "port": 8053, "name": "certbot", "secret": key,
             "algorithm": "HMAC-SHA256"}  # fmt: skip
    text = "".join(f"dns_rfc2136_{name} = {value}\n" for name, value in lines.items())
    return {
        **AUTHORITY, "tls_domains": names, "tls_acme_challenge": "dns-01",
        "tls_acme_dns_plugin": "rfc2136", "tls_acme_dns_wait_seconds": 1,
        "vault_tls_acme_dns_credentials": text,
    }  # fmt: skip


@pytest.fixture(scope="module")
def proved_by_dns(authority: Server, dns_key: str) -> str:
    """Have the names proved by DNS; what the most talkative run said."""
    done = edge(by_dns(dns_key, BY_DNS), authority, "-vvv", "--diff")
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout + done.stderr


def test_certbot_proves_a_wildcard_by_the_dns(
    authority: Server, dns_key: str, proved_by_dns: str
) -> None:
    assert hashlib.sha256(shown(authority)).hexdigest() == in_place(authority)
    said = authority.run(
        "openssl x509 -noout -issuer -ext subjectAltName -in /etc/millrace/tls/server.crt"
    )
    assert "Pebble Intermediate" in said
    assert {f"DNS:{name}" for name in BY_DNS} == set(re.findall(r"DNS:[*\w.]+", said))
    assert authority.run("stat -c '%a %U' /etc/millrace/tls/acme/dns.ini").split() == [
        "600",
        "root",
    ]
    assert "millrace-certificate" in proved_by_dns, "the run said less than it was asked for"
    assert dns_key not in proved_by_dns
    assert " TXT " not in authority.run(f"{KNOT} zone-read example.org"), "certbot left its proof"


def test_the_renewal_comes_into_the_dns_as_well(authority: Server, proved_by_dns: str) -> None:
    before = in_place(authority)
    authority.run("systemctl start certbot.service")
    assert in_place(authority) != before
    assert hashlib.sha256(shown(authority)).hexdigest() == in_place(authority)


def test_a_key_that_the_dns_refuses_changes_nothing(authority: Server, proved_by_dns: str) -> None:
    before = in_place(authority)
    file = "/etc/millrace/tls/acme/dns.ini"
    authority.run(f"sed -i.kept 's/secret = ..../secret = AAAA/' {file}")
    try:
        told = authority.run(
            "systemctl start certbot.service 2>/dev/null || journalctl -q -u certbot -n 30 -o cat"
        )
    finally:
        authority.run(f"mv {file}.kept {file}")
    assert "The peer didn't like the signature" in told, told
    assert in_place(authority) == before
    assert hashlib.sha256(shown(authority)).hexdigest() == before
