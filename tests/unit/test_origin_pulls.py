"""Authenticated Origin Pulls: uploaded, awaited, renewed without a gap, and taken away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cf_pulls
import cloudflare_origin_pulls as module
import pytest
from cf_server import Standin
from cf_state import Fault, Zone
from cloudflare_origin_pulls import CloudflareApiError, Pulls, connect, pki

TOKEN = "t" * 40


class Controller:
    """A controller with a folder for what it makes."""

    def __init__(self, api: Standin, zone: Zone, folder: Path) -> None:
        self.api, self.zone, self.folder = api, zone, folder
        self.slept: list[float] = []

    def run(self, *, check: bool = False, days: float = 0, **more: Any) -> Pulls:
        """Run the module `days` from now."""
        params = {
            "zone": "example.com", "folder": str(self.folder), "validity_days": 90,
            "renew_days": 30, "wait_seconds": 60, "settle_seconds": 30, "beside_others": False,
            "state": "present", **more,
        }  # fmt: skip
        client = connect(TOKEN, url=self.api.url, patience_seconds=2)
        now = datetime.now(UTC) + timedelta(days=days)
        pulls = Pulls(client, params, check, now, self.sleep)
        {"present": pulls.present, "absent": pulls.absent, "prepared": pulls.authority}[
            params["state"]
        ]()
        return pulls

    def sleep(self, seconds: float) -> None:
        """Note how long would have been waited, and what Cloudflare showed meanwhile."""
        self.slept.append(seconds)

    def held(self) -> dict[str, dict[str, Any]]:
        """Return the zone's client certificates."""
        return cf_pulls.kept(self.zone)

    def on(self) -> bool:
        """Tell whether origins are shown one."""
        return bool(self.zone.extra.get("pulls_enabled"))

    def trusted(self, one: dict[str, Any]) -> bool:
        """Tell whether an origin that trusts our authority takes a certificate."""
        authority = pki.split((self.folder / module.AUTHORITY_FILE).read_text())[1]
        certificate = pki.read(one["certificate"])
        return certificate is not None and pki.issued_by(certificate, authority)

    def foreign(self) -> str:
        """Let somebody else upload one; return its id."""
        now = datetime.now(UTC)
        client = pki.make_client(pki.make_authority("theirs", 90, now), "client", 90, now)
        key, certificate = pki.split(client)
        api = connect(TOKEN, url=self.api.url).origin_tls_client_auth
        made = api.zone_certificates.create(
            zone_id=self.zone.id, certificate=pki.pem(certificate), private_key=pki.key_pem(key)
        )
        self.api.world.calls.clear()
        return str(made.id)


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Controller]:
    with Standin() as standin:
        standin.world.token(TOKEN)
        yield Controller(standin, standin.world.zone("example.com"), tmp_path / "secrets/zone")


def order(controller: Controller) -> list[str]:
    """Return what changed something, in order."""
    return [
        f"{c.method} {c.path.rpartition('/')[2]}" if c.method == "PUT" else c.method
        for c in controller.api.world.writes()
    ]


def test_the_certificate_is_deployed_before_origins_are_shown_it(controller: Controller) -> None:
    controller.run()
    assert order(controller) == ["POST", "PUT settings"]
    # It was asked after until it was active; then the edge was given time.
    assert controller.slept == [5.0, 5.0, 5.0, 30]
    calls = [(c.method, c.path.rpartition("/")[2]) for c in controller.api.world.calls]
    (only,) = controller.held()
    assert calls.index(("PUT", "settings")) > max(
        i for i, c in enumerate(calls) if c == ("GET", only)
    )
    assert controller.on()
    assert all(controller.trusted(one) for one in controller.held().values())


def test_the_second_run_writes_nothing(controller: Controller) -> None:
    controller.run()
    files = {p.name: p.read_text() for p in controller.folder.iterdir()}
    controller.api.world.calls.clear()
    assert controller.run().done == []
    assert not controller.api.world.attempts()
    assert {p.name: p.read_text() for p in controller.folder.iterdir()} == files


def test_check_mode_makes_nothing_here_or_there(controller: Controller) -> None:
    told = controller.run(check=True).done
    assert told == [
        "make an authority for origin pulls",
        "make a client certificate: there is none",
        "upload the client certificate",
        "switch origin pulls on",
    ]
    assert not controller.api.world.attempts()
    assert not controller.folder.exists()


def test_keys_are_the_owners_alone(controller: Controller) -> None:
    controller.run()
    assert {p.stat().st_mode & 0o777 for p in controller.folder.iterdir()} == {0o600}


def test_the_next_certificate_is_deployed_before_the_old_one_goes(controller: Controller) -> None:
    controller.run()
    (old,) = controller.held()
    authority = (controller.folder / module.AUTHORITY_FILE).read_text()
    controller.api.world.calls.clear()
    controller.run(days=61)
    assert order(controller) == ["POST", "DELETE"]
    assert old not in controller.held()
    (new,) = controller.held().values()
    assert new["status"] == "active"
    # The authority is the same: an origin that is not told anything goes on taking it.
    assert (controller.folder / module.AUTHORITY_FILE).read_text() == authority
    assert controller.trusted(new)
    assert controller.run(days=61).done == []


@pytest.mark.parametrize(
    ("method", "path", "done"),
    [("POST", "client_auth$", False), ("POST", "client_auth$", True),
     ("PUT", "settings", False), ("PUT", "settings", True), ("DELETE", "", False)],
)  # fmt: skip
def test_a_run_that_broke_off_is_finished_by_the_next(
    controller: Controller, method: str, path: str, done: bool
) -> None:
    if method == "DELETE":
        controller.run()
    controller.api.world.faults.append(Fault(500, method, path, times=9, done=done))
    days = 61 if method == "DELETE" else 0
    with pytest.raises(CloudflareApiError):
        controller.run(days=days)
    controller.api.world.faults.clear()
    controller.run(days=days)
    assert controller.on()
    assert [one["status"] for one in controller.held().values()] == ["active"]
    assert controller.run(days=days).done == []


def test_one_that_is_not_deployed_in_time_is_told_and_origins_are_not_shown_it(
    controller: Controller,
) -> None:
    controller.zone.extra["deploys_after"] = 10**6
    with pytest.raises(CloudflareApiError, match=r"not deployed it after 60 s.*pending"):
        controller.run()
    assert not controller.on()
    controller.zone.extra["deploys_after"] = 1
    controller.run()
    assert len(controller.held()) == 1


def test_one_that_failed_is_uploaded_again(controller: Controller) -> None:
    controller.zone.extra["deploys_as"] = "deployment_timed_out"
    with pytest.raises(CloudflareApiError, match="deployment_timed_out"):
        controller.run()
    del controller.zone.extra["deploys_as"]
    controller.run()
    assert [one["status"] for one in controller.held().values()] == ["active"]


def test_where_others_have_one_nothing_is_made(controller: Controller) -> None:
    theirs = controller.foreign()
    with pytest.raises(CloudflareApiError) as told:
        controller.run()
    for word in (theirs, "CN=theirs", "origin_pulls_beside_others"):
        assert word in told.value.line
    assert not controller.api.world.attempts()
    assert not controller.folder.exists()


@pytest.mark.parametrize("status", ["pending_deletion", "deleted"])
def test_one_that_is_going_is_in_nobodys_way(controller: Controller, status: str) -> None:
    theirs = controller.foreign()
    controller.held()[theirs]["status"] = status
    controller.run()
    assert controller.run().done == []


def test_certificates_of_others_survive_all_of_it(controller: Controller) -> None:
    theirs = controller.foreign()
    controller.run(beside_others=True)
    controller.run(beside_others=True, days=61)
    assert theirs in controller.held()
    assert len(controller.held()) == 2
    controller.run(state="absent")
    assert list(controller.held()) == [theirs]
    # With theirs there, the switch is theirs as well.
    assert controller.on()


def test_removal_takes_away_all_that_was_made(controller: Controller) -> None:
    controller.run()
    told = controller.run(state="absent", check=True).done
    assert len(told) == 4
    assert controller.on()
    controller.api.world.calls.clear()
    controller.run(state="absent")
    assert order(controller) == ["PUT settings", "DELETE"]
    assert not controller.on()
    assert not controller.held()
    assert not list(controller.folder.iterdir())
    controller.api.world.calls.clear()
    assert controller.run(state="absent").done == []
    assert not controller.api.world.attempts()


def test_removal_where_nothing_was_made_leaves_the_switch(controller: Controller) -> None:
    controller.zone.extra["pulls_enabled"] = True
    assert controller.run(state="absent").done == []
    assert controller.on()


def test_the_authority_alone_asks_cloudflare_nothing(controller: Controller) -> None:
    controller.run(state="prepared")
    assert controller.api.world.calls == []
    assert [p.name for p in controller.folder.iterdir()] == [module.AUTHORITY_FILE]


def test_a_broken_authority_is_never_replaced(controller: Controller) -> None:
    controller.run()
    (controller.folder / module.AUTHORITY_FILE).write_text("torn")
    # Nothing is known to be ours then, so that the first look says so.
    with pytest.raises(CloudflareApiError, match=r"not ours|Bring it back"):
        controller.run()
    with pytest.raises(CloudflareApiError, match="Bring it back from a copy"):
        controller.run(beside_others=True)


def test_a_missing_permission_is_one_line_that_names_it(controller: Controller) -> None:
    controller.api.world.token(TOKEN, {"Zone > Zone > Read"})
    with pytest.raises(CloudflareApiError, match="'Zone > SSL and Certificates > Edit'") as told:
        controller.run()
    assert "\n" not in told.value.line


def test_no_key_stands_in_what_a_run_prints(controller: Controller) -> None:
    """The API gives the key back with the certificate: it must not travel on."""
    told = json.dumps(controller.run().done)
    assert "PRIVATE" not in told
