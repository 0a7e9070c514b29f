"""The role cloudflare, run by Ansible itself against the stand-in."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cf_server import Standin
from unit_kit import ROOT

TOKEN = "s3cret" * 7
PLAYBOOK = str(ROOT / "playbooks/cloudflare.yml")


@pytest.fixture
def api() -> Iterator[Standin]:
    with Standin() as standin:
        standin.world.zone("example.com", "free")
        standin.world.token(TOKEN)
        yield standin


@pytest.fixture
def run(playbook: Callable[..., Any], api: Standin, tmp_path: Path) -> Callable[..., Any]:
    """Return a function that runs playbooks/cloudflare.yml; the token comes as from a vault."""
    inventory = tmp_path / "hosts.yml"
    variables = {
        "millrace_edge": "cloudflare", "millrace_secrets_dir": str(tmp_path / "secrets"),
        "cloudflare_zone": "example.com", "cloudflare_names": ["chat.example.com"],
        "cloudflare_addresses": ["203.0.113.7"], "cloudflare_api_url": api.url,
        "cloudflare_api_token": TOKEN, "cloudflare_patience_seconds": 5,
    }  # fmt: skip
    inventory.write_text(json.dumps({"millrace": {"hosts": {"server-1": {}}, "vars": variables}}))

    def start(*more: str, check: bool = True) -> Any:
        return playbook("-i", str(inventory), PLAYBOOK, *more, check=check)

    return start


def test_a_run_sets_the_zone_says_what_the_plan_has_not_and_hides_the_token(
    api: Standin, run: Callable[..., Any]
) -> None:
    told = run("--check", "--diff")
    assert "+  - ref: millrace_stream_cache_bypass" in told.stdout
    assert api.world.attempts() == []

    first = run("-vvv")
    assert "changed=1" in first.stdout
    assert "refused: setting proxy_read_timeout" in first.stdout
    assert "can only use" in first.stdout or "different from 10" in first.stdout
    (zone,) = api.world.zones.values()
    assert len(zone.records) == 1
    assert TOKEN not in first.stdout + first.stderr

    api.world.calls.clear()
    assert "changed=0" in run().stdout
    assert api.world.writes() == []

    assert "changed=1" in run("-e", "cloudflare_state=absent").stdout
    assert (zone.records, zone.rulesets) == ({}, {})
    assert zone.settings == {"http3": "off", "min_tls_version": "1.0", "tls_1_3": "off"}


def test_what_is_missing_is_asked_for_before_the_api(api: Standin, run: Callable[..., Any]) -> None:
    done = run("-e", "cloudflare_origin_certificate=self_signed", check=False)
    assert done.returncode != 0
    assert "refuses a self-signed certificate" in " ".join(done.stdout.split())
    assert "Cloudflare is not set by this run" in run("-e", "cloudflare_api_token=").stdout
    assert api.world.calls == []


def test_two_servers_of_one_zone_need_a_mark_each(
    playbook: Callable[..., Any], api: Standin, run: Callable[..., Any], tmp_path: Path
) -> None:
    both = json.loads((tmp_path / "hosts.yml").read_text())
    both["millrace"]["hosts"]["server-2"] = {"cloudflare_names": ["two.example.com"]}
    (tmp_path / "both.yml").write_text(json.dumps(both))
    done = playbook("-i", str(tmp_path / "both.yml"), PLAYBOOK, check=False)
    assert done.returncode != 0
    assert "give each a cloudflare_mark of its own" in " ".join(done.stdout.split())
    assert api.world.calls == []


def test_a_missing_permission_is_one_clear_line(api: Standin, run: Callable[..., Any]) -> None:
    api.world.tokens[TOKEN].discard("Zone > Cache Rules > Edit")
    done = run(check=False)
    assert done.returncode != 0
    assert "the API token lacks 'Zone > Cache Rules > Edit'" in done.stdout
    assert api.world.attempts() == []
