"""A named tunnel: made once, known again, its names, and how it goes."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cf_server import Standin
from cf_state import Fault, Zone, new_id
from cloudflare_tunnel import CloudflareApiError, Tunnel, connect, secret_of

TOKEN = "t" * 40
NAMES = ["example.com", "chat.example.com"]


class Controller:
    """A controller with a file for the credentials."""

    def __init__(self, api: Standin, zone: Zone, file: Path) -> None:
        self.api, self.zone, self.file = api, zone, file

    def run(self, *, check: bool = False, **more: Any) -> Tunnel:
        """Run the module."""
        params = {
            "zone": "example.com", "name": "millrace-one", "hostnames": NAMES,
            "file": str(self.file), "mark": "millrace", "state": "present", **more,
        }  # fmt: skip
        client = connect(TOKEN, url=self.api.url, patience_seconds=2)
        tunnel = Tunnel(client, params, check)
        tunnel.absent() if params["state"] == "absent" else tunnel.present()
        return tunnel

    def tunnels(self) -> list[dict[str, Any]]:
        """Return the account's tunnels that were not removed."""
        return [t for t in self.zone.extra.get("tunnels", {}).values() if not t["deleted_at"]]

    def leads(self) -> dict[str, str]:
        """Return where names lead."""
        return {r["name"]: f"{r['type']} {r['content']}" for r in self.zone.records.values()}

    def record(self, name: str, kind: str, content: str, comment: str = "") -> None:
        """Put a DNS record there."""
        made = {
            "id": new_id(), "name": name, "type": kind, "content": content, "proxied": True,
            "ttl": 1, "comment": comment or None, "created_on": "2026-01-01T00:00:00Z",
        }  # fmt: skip
        self.zone.records[made["id"]] = made

    def credentials(self) -> dict[str, str]:
        """Return what is kept."""
        kept: dict[str, str] = json.loads(self.file.read_text())
        return kept


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Controller]:
    with Standin() as standin:
        standin.world.token(TOKEN)
        yield Controller(standin, standin.world.zone("example.com"), tmp_path / "secrets/tunnel")


def test_it_is_made_with_its_names_and_its_credentials(controller: Controller) -> None:
    controller.run()
    (made,) = controller.tunnels()
    assert made["config_src"] == "local"
    assert controller.leads() == dict.fromkeys(NAMES, f"CNAME {made['id']}.cfargotunnel.com")
    assert all(r["proxied"] for r in controller.zone.records.values())
    # What cloudflared reads: its own names, and a secret of 32 bytes.
    assert controller.credentials() == {
        "AccountTag": controller.zone.account,
        "TunnelSecret": made["secret"],
        "TunnelID": made["id"],
    }
    assert len(base64.b64decode(made["secret"])) == 32
    assert controller.file.stat().st_mode & 0o777 == 0o600


def test_the_second_run_writes_nothing(controller: Controller) -> None:
    controller.run()
    controller.api.world.calls.clear()
    assert controller.run().done == []
    assert not controller.api.world.attempts()


def test_check_mode_makes_nothing(controller: Controller) -> None:
    told = controller.run(check=True).done
    assert told == [
        "make tunnel millrace-one",
        "have example.com lead to the tunnel",
        "have chat.example.com lead to the tunnel",
    ]
    assert not controller.api.world.attempts()
    assert not controller.file.exists()


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("path", ["cfd_tunnel$", "dns_records$"])
def test_a_run_that_broke_off_is_finished_by_the_next(
    controller: Controller, path: str, done: bool
) -> None:
    fault = Fault(500, "POST", path, times=9, done=done)
    controller.api.world.faults.append(fault)
    # Where only answers are lost, trying again may find what was made.
    with contextlib.suppress(CloudflareApiError) if done else pytest.raises(CloudflareApiError):
        controller.run()
    assert fault.times < 9
    controller.api.world.faults.clear()
    controller.run()
    assert len(controller.tunnels()) == 1
    assert len(controller.leads()) == 2
    assert controller.credentials()["TunnelID"] == controller.tunnels()[0]["id"]
    assert controller.run().done == []


def test_a_tunnel_whose_answer_was_lost_is_known_by_its_secret(controller: Controller) -> None:
    controller.api.world.faults.append(Fault(502, "POST", "cfd_tunnel", done=True))
    controller.run()
    assert controller.credentials()["TunnelSecret"] == controller.tunnels()[0]["secret"]


def test_a_tunnel_of_a_run_that_died_behind_making_it_is_known_by_the_next(
    controller: Controller,
) -> None:
    controller.api.world.faults += [
        Fault(502, "POST", "cfd_tunnel$", done=True),
        Fault(502, "GET", "cfd_tunnel$", times=9, after=1),
    ]
    with pytest.raises(CloudflareApiError):
        controller.run()
    controller.api.world.faults.clear()
    controller.run()
    assert len(controller.tunnels()) == 1


def test_a_tunnel_of_somebody_else_is_left_alone(controller: Controller) -> None:
    client = connect(TOKEN, url=controller.api.url)
    client.zero_trust.tunnels.cloudflared.create(
        account_id=controller.zone.account, name="millrace-one"
    )
    controller.api.world.calls.clear()
    with pytest.raises(CloudflareApiError, match="cloudflared_tunnel_name") as told:
        controller.run()
    assert controller.tunnels()[0]["secret"] not in told.value.line
    assert not controller.api.world.attempts()


def test_one_that_was_removed_in_the_dashboard_is_made_anew(controller: Controller) -> None:
    controller.run()
    (old,) = controller.tunnels()
    old["deleted_at"] = "2026-11-26T00:00:00Z"
    controller.run()
    (new,) = controller.tunnels()
    assert new["secret"] != old["secret"]
    assert set(controller.leads().values()) == {f"CNAME {new['id']}.cfargotunnel.com"}


def test_a_name_that_is_no_longer_proxied_is_again(controller: Controller) -> None:
    """Without Cloudflare's proxy nobody answers at a tunnel's address."""
    controller.run()
    for record in controller.zone.records.values():
        record["proxied"] = False
    assert len(controller.run().done) == 2
    assert all(record["proxied"] for record in controller.zone.records.values())


def test_a_name_that_leads_elsewhere_is_told_and_left(controller: Controller) -> None:
    controller.record("example.com", "A", "203.0.113.7")
    with pytest.raises(CloudflareApiError, match=r"A 203\.0\.113\.7"):
        controller.run()
    assert controller.leads()["example.com"] == "A 203.0.113.7"


def test_records_that_were_made_here_are_led_to_the_tunnel(controller: Controller) -> None:
    """From millrace_edge: cloudflare to tunnel."""
    controller.record("example.com", "A", "203.0.113.7", "millrace: one")
    controller.record("example.com", "AAAA", "2001:db8::7", "millrace: one")
    controller.record("example.com", "TXT", "v=spf1 -all")
    controller.run()
    target = f"CNAME {controller.tunnels()[0]['id']}.cfargotunnel.com"
    told = sorted(f"{r['name']} {r['type']}" for r in controller.zone.records.values())
    assert told == ["chat.example.com CNAME", "example.com CNAME", "example.com TXT"]
    assert target in controller.leads().values()


def test_a_name_that_is_no_longer_wanted_leads_nowhere(controller: Controller) -> None:
    controller.run()
    target = f"{controller.tunnels()[0]['id']}.cfargotunnel.com"
    controller.record("theirs.example.com", "CNAME", target, "by hand")
    controller.run(hostnames=["example.com"])
    assert set(controller.leads()) == {"example.com", "theirs.example.com"}


def test_removal_takes_away_all_that_was_made(controller: Controller) -> None:
    controller.record("www.example.com", "A", "203.0.113.7")
    controller.run()
    controller.zone.extra["connections"] = {controller.tunnels()[0]["id"]}
    assert len(controller.run(state="absent", check=True).done) == 4
    assert len(controller.tunnels()) == 1
    controller.run(state="absent")
    assert controller.tunnels() == []
    assert set(controller.leads()) == {"www.example.com"}
    assert not controller.file.exists()
    controller.api.world.calls.clear()
    assert controller.run(state="absent").done == []
    assert not controller.api.world.attempts()


def test_a_removal_that_broke_off_is_finished_by_the_next(controller: Controller) -> None:
    controller.run()
    controller.api.world.faults.append(Fault(500, "DELETE", "cfd_tunnel/[^/]+$", times=9))
    with pytest.raises(CloudflareApiError):
        controller.run(state="absent")
    controller.api.world.faults.clear()
    controller.run(state="absent")
    assert controller.tunnels() == []
    assert not controller.file.exists()


@pytest.mark.parametrize(
    ("held", "missing"),
    [
        ({"Zone > Zone > Read", "Zone > DNS > Edit"}, "Account > Cloudflare Tunnel > Edit"),
        ({"Zone > Zone > Read", "Account > Cloudflare Tunnel > Edit"}, "Zone > DNS > Edit"),
    ],
)
def test_a_missing_permission_is_one_line_that_names_it(
    controller: Controller, held: set[str], missing: str
) -> None:
    controller.api.world.token(TOKEN, held)
    with pytest.raises(CloudflareApiError, match=f"'{missing}'") as told:
        controller.run()
    assert "\n" not in told.value.line


def test_a_broken_file_is_not_written_over(controller: Controller) -> None:
    controller.run()
    controller.file.write_text("[torn")
    with pytest.raises(CloudflareApiError, match="Bring it back from a copy"):
        controller.run()
    assert controller.file.read_text() == "[torn"


@pytest.mark.parametrize("token", ["", "x", "eyJhIjoxfQ==", "WzFd"])
def test_a_token_of_another_form_holds_no_secret(token: str) -> None:
    assert secret_of(token) == ""
