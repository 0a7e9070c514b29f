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
VALUES = re.findall(r"`(\w+)` (on|off|none|strict|[\d.]+)\b", "\n".join(row[0] for row in ROWS))
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


def as_told(value: Any) -> str:
    """Return a value in the table's words; of several that will do, the one that is written."""
    first = value[0] if isinstance(value, list) else value
    if isinstance(first, dict):
        first = first["name"]
    return ("off", "on")[first] if isinstance(first, bool) else str(first)


def test_the_table_tells_what_each_is_set_to() -> None:
    have = dict(DEFAULTS["cloudflare_settings"])
    for _, rule in rules():
        have |= rule.get("action_parameters", {})
    assert len(VALUES) == 14
    assert {name: as_told(have[name]) for name, _ in VALUES} == dict(VALUES)


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


def holds(ref: str, path: str, *, name: str = "chat.example.com", media: str = "") -> bool:
    """Tell whether a rule holds for a request or its answer; what ours say is nearly Python."""
    (text,) = [rule["expression"] for _, rule in rules() if rule["ref"] == f"millrace_{ref}"]
    text = re.sub(r"\{(.*?)\}", lambda found: str(found[1].replace('"', "").split()), text)
    for theirs, ours in (
        ("http.host", "name"), ("http.request.uri.path", "path"), (" eq ", " == "),
        ("http.response.content_type.media_type", "media"), ("starts_with", "str.startswith"),
    ):  # fmt: skip
        text = text.replace(theirs, ours)
    return bool(eval(text, {"name": name, "path": path, "media": media}))


SERVED = ["/", "/v1/models", "/assets/a.js", "/healthz", "/readyz", "/cdn-cgi/trace",
          "/.well-known/acme-challenge/token"]  # fmt: skip
NOT_SERVED = ["/admin", "/metrics", "/index.html", "/v1", "/healthz/x"]


@pytest.mark.parametrize(
    ("ref", "paths"),
    [
        ("stream_cache_bypass", ["/v1/models", "/healthz", "/readyz"]),
        ("assets_cache", ["/assets/a.js"]),
        ("stream_config", [*SERVED, *NOT_SERVED]),
        ("paths", NOT_SERVED),
        ("rate_limit", ["/v1/models"]),
    ],
)
def test_a_rule_holds_for_its_paths_and_our_names_alone(ref: str, paths: list[str]) -> None:
    everything = [*SERVED, *NOT_SERVED]
    assert [path for path in everything if holds(ref, path)] == [
        path for path in everything if path in paths
    ]
    assert not any(holds(ref, path, name="www.example.com") for path in everything)


def test_event_streams_alone_are_not_compressed() -> None:
    rule = "stream_compression_off"
    assert holds(rule, "/v1/chat/completions", media="text/event-stream")
    assert not holds(rule, "/", media="text/html")
    assert not holds(rule, "/", media="text/event-stream", name="www.example.com")


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
    bypass, assets = (rule["action_parameters"] for rule in RULES["http_request_cache_settings"])
    assert bypass == {"cache": False}
    assert holds("stream_cache_bypass", "/v1/chat/completions")
    as_the_server_says = {"mode": "respect_origin"}
    assert assets == {"cache": True, "edge_ttl": as_the_server_says,
                      "browser_ttl": as_the_server_says}  # fmt: skip


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
