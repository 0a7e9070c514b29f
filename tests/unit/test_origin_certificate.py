"""A certificate of the Origin CA: when it is asked for, which is kept, what is revoked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import cf_certificates
import cloudflare_origin_certificate as module
import pytest
from cf_server import Standin
from cf_state import Fault, Zone
from cloudflare_origin_certificate import CloudflareApiError, connect, ensure
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

TOKEN = "t" * 40
NAMES = ["chat.example.com", "example.com"]


class Server:
    """A server: it holds a key, and the certificate that was put in place."""

    def __init__(self, api: Standin, zone: Zone) -> None:
        self.api, self.zone = api, zone
        self.certificate = ""
        self.new_key()

    def new_key(self) -> None:
        """Make a key and a request for it."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
        request = builder.sign(key, hashes.SHA256())
        self.request = request.public_bytes(Encoding.PEM).decode()

    def run(self, *, check: bool = False, days: float = 0, **more: Any) -> dict[str, Any]:
        """Run the module `days` from now, as the role does."""
        params = {
            "zone": "example.com", "request": self.request, "certificate": self.certificate,
            "domains": NAMES, "validity_days": 90, "renew_days": 30, "superseded": [],
            "state": "present", **more,
        }  # fmt: skip
        client = connect(TOKEN, url=self.api.url, patience_seconds=2)
        return ensure(client, params, check, datetime.now(UTC) + timedelta(days=days))

    def whole_run(self, **more: Any) -> dict[str, Any]:
        """Ask, put in place, then take away what was before it."""
        told = self.run(**more)
        self.certificate = told["certificate"]
        if told["superseded"]:
            self.run(state="only", **{**more, "superseded": told["superseded"]})
        return told

    def listed(self) -> set[str]:
        """Return the ids that Cloudflare has not revoked."""
        return set(cf_certificates.kept(self.zone))

    def writes(self) -> int:
        """Return how many calls changed something."""
        return len(self.api.world.writes())


@pytest.fixture
def server() -> Iterator[Server]:
    with Standin() as standin:
        standin.world.token(TOKEN)
        yield Server(standin, standin.world.zone("example.com"))


@pytest.fixture
def foreign(server: Server) -> str:
    """A certificate that somebody made in the dashboard, for the same names; its id."""
    other = Server(server.api, server.zone)
    other.run()
    (found,) = server.listed()
    server.api.world.calls.clear()
    return found


def test_it_is_asked_for_once(server: Server) -> None:
    first = server.whole_run()
    assert first["changed"]
    assert first["why"] == "the server has none"
    made = x509.load_pem_x509_certificate(first["certificate"].encode())
    assert module.pki.names(made) == set(NAMES)
    assert server.writes() == 1
    again = server.whole_run()
    assert not again["changed"]
    assert again["certificate"] == first["certificate"]
    assert server.writes() == 1


def test_check_mode_asks_for_nothing_and_says_why(server: Server) -> None:
    told = server.run(check=True)
    assert told["changed"]
    assert told["why"] == "the server has none"
    assert told["certificate"] == ""
    assert not server.api.world.attempts()


def test_names_are_asked_for_in_one_form(server: Server) -> None:
    server.whole_run(domains=["Example.com.", "chat.example.com", "example.com"])
    assert not server.whole_run()["changed"]


def test_a_month_before_its_end_another_is_asked_for_and_the_old_one_revoked_last(
    server: Server,
) -> None:
    server.whole_run()
    (old,) = server.listed()
    told = server.run(days=61)
    assert told["why"] == "it ends in 29 days"
    assert told["superseded"] == [old]
    # The server still shows the old one: it has to be good until the new one is in place.
    assert old in server.listed()
    with pytest.raises(CloudflareApiError, match="does not hold the new one yet"):
        server.run(state="only", days=61)
    assert old in server.listed()
    server.certificate = told["certificate"]
    assert server.run(state="only", check=True)["revoked"] == [old]
    assert old in server.listed()
    assert server.run(state="only")["revoked"] == [old]
    assert len(server.listed()) == 1
    assert old not in server.listed()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda server: server.new_key(), "it does not belong to the server's key"),
        (lambda server: cf_certificates.kept(server.zone).clear(), "Cloudflare revoked it"),
        (
            lambda server: setattr(server, "certificate", "garbage"),
            "asked for before, not put in place",
        ),
    ],
)
def test_what_else_asks_for_another(
    server: Server, change: Callable[[Server], None], why: str
) -> None:
    server.whole_run()
    change(server)
    told = server.whole_run()
    assert told["why"] == why
    assert not server.whole_run()["changed"]
    assert len(server.listed()) == 1


def test_other_names_ask_for_another(server: Server) -> None:
    server.whole_run()
    told = server.whole_run(domains=["www.example.com"])
    assert told["why"] == "the names have changed"
    assert len(server.listed()) == 1


def test_a_certificate_that_was_never_put_in_place_is_used_by_the_next_run(
    server: Server,
) -> None:
    lost = server.run()["certificate"]
    told = server.whole_run()
    assert told["certificate"] == lost
    assert server.writes() == 1


def test_one_whose_answer_was_lost_is_revoked(server: Server) -> None:
    """The call was carried out and its answer lost: the next attempt makes a second one."""
    server.api.world.faults.append(Fault(502, "POST", "/certificates", done=True))
    server.whole_run()
    assert len(server.listed()) == 2
    server.whole_run()
    assert len(server.listed()) == 1
    assert not server.whole_run()["changed"]


@pytest.mark.parametrize(
    ("said", "why"),
    [("2026-11-01T00:00:00Z", "Cloudflare revoked it"), ("0001-01-01T00:00:00Z", "")],
)
def test_one_that_is_still_listed_when_it_was_revoked_is_no_longer_good(
    server: Server, said: str, why: str
) -> None:
    """The API writes a time that never was for one that was not."""
    server.whole_run()
    for listed in cf_certificates.kept(server.zone).values():
        listed["revoked_at"] = said
    assert server.run()["why"] == why


def test_a_certificate_of_another_key_is_not_taken(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = x509.load_pem_x509_csr(Server(server.api, server.zone).request.encode())
    sign = cf_certificates.sign
    monkeypatch.setattr(cf_certificates, "sign", lambda _, *rest: sign(theirs, *rest))
    with pytest.raises(CloudflareApiError, match="none for the server's key"):
        server.run()


def test_certificates_of_others_are_left_alone(server: Server, foreign: str) -> None:
    server.whole_run()
    server.whole_run(domains=["www.example.com"])
    assert foreign in server.listed()
    assert len(server.listed()) == 2
    told = server.run(state="absent", domains=["www.example.com"])
    assert len(told["revoked"]) == 1
    assert server.listed() == {foreign}


def test_an_id_that_is_named_but_not_known_is_no_harm(server: Server, foreign: str) -> None:
    server.whole_run()
    assert server.run(state="only", superseded=["123"])["revoked"] == []


def test_many_pages_are_read(server: Server, foreign: str) -> None:
    there = cf_certificates.kept(server.zone)
    for number in range(120):
        there[f"{number}"] = {**there[foreign], "id": f"{number}"}
    server.whole_run()
    assert not server.whole_run()["changed"]
    assert server.writes() == 1


def test_a_missing_permission_is_one_line_that_names_it(server: Server) -> None:
    server.api.world.token(TOKEN, {"Zone > Zone > Read"})
    with pytest.raises(CloudflareApiError) as told:
        server.run()
    assert told.value.kind == "permission"
    assert "'Zone > SSL and Certificates > Edit'" in told.value.line
    assert "\n" not in told.value.line


def test_a_name_of_another_zone_is_refused_with_its_name(server: Server) -> None:
    with pytest.raises(CloudflareApiError, match=r"chat\.elsewhere\.org"):
        server.run(domains=["chat.elsewhere.org"])


def test_no_names_say_which_setting_is_missing(server: Server) -> None:
    with pytest.raises(CloudflareApiError, match="tls_domains"):
        server.run(domains=[])
    assert not server.api.world.attempts()
