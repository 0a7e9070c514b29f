"""docs/cloudflare.md, the templates, nginx and the stand-in say the same."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import cf_plans
import cf_state
import pytest
import yaml
from cloudflare_api import PERMISSIONS, permission_for
from cloudflare_merge import PHASES
from jinja2 import Environment
from unit_kit import ROOT

PAGE = (ROOT / "docs/cloudflare.md").read_text()
ROWS = re.findall(r"^\| (?!setting|---)(.+?) \| .+ \| (.+?) \| (.+?) \|$", PAGE, re.M)
TOLD = {word: row for row in ROWS for word in re.findall(r"`(\w+)`", row[0])}
DEFAULTS = yaml.safe_load((ROOT / "roles/cloudflare/defaults/main.yml").read_text())
VARS = yaml.safe_load((ROOT / "roles/cloudflare/vars/main.yml").read_text())


def rendered(name: str, **more: Any) -> Any:
    """Return a template's document."""
    environment = Environment(trim_blocks=True)
    environment.filters |= {
        "to_json": json.dumps,
        "to_nice_yaml": yaml.safe_dump,
        "bool": bool,
    }
    text = (ROOT / f"templates/cloudflare/{name}.yml.j2").read_text()
    given = {**DEFAULTS, **VARS, "cloudflare_names": ["chat.example.com"], **more}
    return yaml.safe_load(environment.from_string(text).render(**given))


RULES = rendered("rules")


def rules() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every rule with its phase."""
    for phase, found in RULES.items():
        for rule in found:
            yield phase, rule


def test_every_parameter_of_a_rule_stands_in_the_table() -> None:
    found = {name for _, rule in rules() for name in rule.get("action_parameters", {})}
    found |= {"ratelimit"}
    assert found
    assert found - set(TOLD) == set()


def test_every_zone_setting_stands_in_the_table() -> None:
    settings = rendered("settings")
    assert settings == DEFAULTS["cloudflare_settings"]
    assert set(settings) - set(TOLD) == set()


def test_the_table_tells_of_nothing_that_is_not_set() -> None:
    known = {name for _, rule in rules() for name in rule.get("action_parameters", {})}
    known |= {*DEFAULTS["cloudflare_settings"], "ratelimit", "proxied"}
    assert set(TOLD) - known == set()


@pytest.mark.parametrize("phase", PHASES)
def test_the_permission_of_each_phase_is_the_one_that_is_named(phase: str) -> None:
    permission = permission_for(f"/zones/x/rulesets/phases/{phase}/entrypoint")
    for rule in RULES[phase]:
        for name in [*rule.get("action_parameters", {}), *({"ratelimit"} & set(rule))]:
            assert TOLD[name][2] == permission, name
    assert f"- {permission}" in PAGE


def test_every_permission_that_a_refusal_may_name_is_in_the_list() -> None:
    for _, permission in PERMISSIONS:
        assert f"\n- {permission}" in PAGE
    assert {permission for _, permission in PERMISSIONS} == cf_state.EVERYTHING


def test_the_number_of_rules_is_the_stand_ins() -> None:
    """The permission tells which rows are a phase's."""
    for phase in PHASES:
        told = ", ".join(str(cf_plans.RULES[phase][plan]) for plan in cf_plans.ORDER)
        permission = permission_for(f"/zones/x/rulesets/phases/{phase}/entrypoint")
        assert any(f"; {told} rules" in row[1] for row in ROWS if row[2] == permission), phase


def test_every_rule_is_for_our_names_alone_and_marked() -> None:
    for phase, rule in rules():
        assert phase in PHASES
        assert rule["ref"].startswith("millrace_")
        assert rule["expression"].startswith('http.host in {"chat.example.com"}')


def test_no_rule_is_wider_than_the_plan_of_one_rule_forces() -> None:
    wider = [rule["ref"] for _, rule in rules()
             if any("http.host" not in weaker.get("expression", "http.host")
                    for weaker in rule.get("or_else", []))]  # fmt: skip
    assert wider == ["millrace_rate_limit"]


def test_the_paths_are_those_that_nginx_serves() -> None:
    files = sorted((ROOT / "templates/nginx").rglob("*.j2"))
    text = "\n".join(file.read_text() for file in files)
    served = set()
    for kind, path in re.findall(r"^\s*location (=|~|\^~)? ?(\S+) \{", text, re.M):
        if path.startswith("@") or (path == "/" and kind != "="):
            continue
        served.add(("exact" if kind == "=" else "prefix", re.sub(r"\^|\[.*", "", path)))
    allowed = {next(iter(entry.items())) for entry in VARS["__cloudflare_paths"]}
    prefixes = tuple(path for kind, path in allowed if kind == "prefix")
    outer = {(kind, path) for kind, path in served if not path.startswith(prefixes)}
    assert len(served) >= 6
    assert outer - allowed == set()
    assert allowed - served == {("prefix", "/cdn-cgi/")}, "Cloudflare's own, which it answers"


def test_streams_are_never_cached() -> None:
    bypass = RULES["http_request_cache_settings"][0]
    assert bypass["action_parameters"] == {"cache": False}
    assert 'starts_with(http.request.uri.path, "/v1/")' in bypass["expression"]


def test_a_tunnel_has_no_address_record_and_a_server_one_each() -> None:
    given = {"__cloudflare_addresses": ["203.0.113.7", "2001:db8::7"]}
    assert rendered("dns", **given, cloudflare_dns=False) is None
    assert [(r["type"], r["proxied"]) for r in rendered("dns", **given)] == [
        ("A", True), ("AAAA", True)]  # fmt: skip


def test_the_read_timeout_is_the_plans_longest_stream() -> None:
    from planner.budget import LONGEST_STREAM_SECONDS

    assert DEFAULTS["cloudflare_settings"]["proxy_read_timeout"] == LONGEST_STREAM_SECONDS


def test_no_rate_limit_when_none_is_asked_for() -> None:
    assert "http_ratelimit" not in rendered("rules", cloudflare_rate_requests=0)
