"""Rulesets: a zone's entry points by phase, and their rules."""

from __future__ import annotations

import re
from typing import Any

from cf_plans import LONGEST_MITIGATION, LONGEST_PERIOD, PERIODS, RATE_LIMIT_FIELDS, RULES
from cf_routes import RefusedError, Reply, Request, route
from cf_state import Zone, new_id, now

PERMISSIONS = {
    "http_request_cache_settings": "Zone > Cache Rules",
    "http_config_settings": "Zone > Config Rules",
    "http_response_compression": "Zone > Response Compression",
    "http_request_firewall_custom": "Zone > Zone WAF",
    "http_ratelimit": "Zone > Zone WAF",
}
ACTIONS = {
    "http_request_cache_settings": {"set_cache_settings"},
    "http_config_settings": {"set_config"},
    "http_response_compression": {"compress_response"},
    "http_request_firewall_custom": {"block", "challenge", "managed_challenge", "skip", "log"},
    "http_ratelimit": {"block", "challenge", "managed_challenge", "log"},
}


def check_phase(request: Request, phase: str, level: str) -> None:
    """Refuse an unknown phase, and a token that may not."""
    if phase not in RULES:
        raise RefusedError(400, 20019, f'unknown phase "{phase}"')
    request.need(f"{PERMISSIONS[phase]} > {level}")


def fields_of(expression: str) -> set[str]:
    """Return the fields that an expression looks at."""
    bare = re.sub(r'"[^"]*"', "", expression)
    return set(re.findall(r"\b(?:http|cf|ip)\.[\w.]+", bare))


def check_rate(zone: Zone, rule: dict[str, Any]) -> None:
    """Refuse what the plan's rate limiting has not."""
    limit = rule.get("ratelimit")
    if not isinstance(limit, dict):
        raise RefusedError(400, 20155, "ratelimit field is missing")
    if "cf.colo.id" not in limit.get("characteristics", []):
        raise RefusedError(
            400,
            20155,
            "characteristics field is missing 'cf.colo.id', this is required as ratelimiting "
            "counting is processed at colocation level only",
        )
    allowed = [p for p in PERIODS if p <= LONGEST_PERIOD[zone.plan]]
    if limit.get("period") not in allowed:
        raise RefusedError(
            400,
            20155,
            f"not entitled to use the period {limit.get('period')}, can only use a period among "
            f"[{' '.join(map(str, allowed))}]",
        )
    longest = LONGEST_MITIGATION[zone.plan]
    if limit.get("mitigation_timeout", 0) > longest or (
        zone.plan == "free" and limit.get("mitigation_timeout") != longest
    ):
        raise RefusedError(
            400, 20155, f"not entitled to use a mitigation timeout different from {longest}"
        )
    more = fields_of(rule["expression"]) - RATE_LIMIT_FIELDS.get(
        zone.plan, fields_of(rule["expression"])
    )
    if more:
        raise RefusedError(400, 20155, f"not entitled to use the field {sorted(more)[0]}")


def check_rule(zone: Zone, phase: str, rule: dict[str, Any]) -> None:
    """Refuse a rule that the API or the plan refuses."""
    if not rule.get("expression"):
        raise RefusedError(400, 20120, "rule expression is required", "/rules/0/expression")
    if rule.get("action") not in ACTIONS[phase]:
        raise RefusedError(
            400, 20016, f"action '{rule.get('action')}' is not valid in phase {phase}", "/action"
        )
    if phase == "http_ratelimit":
        check_rate(zone, rule)
    elif phase == "http_config_settings":
        for name in rule.get("action_parameters", {}):
            if name in zone.withheld:
                raise RefusedError(400, 20120, f"not entitled to use the {name} setting")


def check_all(zone: Zone, phase: str, rules: list[dict[str, Any]]) -> None:
    """Refuse more rules than the plan has, and two with one reference."""
    most = RULES[phase][zone.plan]
    if len(rules) > most:
        raise RefusedError(
            400,
            50001,
            f"exceeded the maximum number of rules in the phase {phase}: "
            f"{len(rules)} out of {most}",
        )
    refs = [r["ref"] for r in rules]
    if len(refs) != len(set(refs)):
        raise RefusedError(400, 20217, "rule references must be unique within a ruleset")


def complete(rule: dict[str, Any], old: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a rule with what the API adds."""
    rule_id = old["id"] if old else new_id()
    made = {
        "description": "",
        "enabled": True,
        **{k: v for k, v in rule.items() if k != "position"},
        "id": rule_id,
        "version": str(int(old["version"]) + 1 if old else 1),
        "last_updated": now(),
    }
    made["ref"] = rule.get("ref") or rule_id
    if "ratelimit" in made:
        made["ratelimit"] = {"requests_to_origin": False, **made["ratelimit"]}
    return made


def touched(ruleset: dict[str, Any]) -> dict[str, Any]:
    """Count a new version."""
    ruleset["version"] = str(int(ruleset["version"]) + 1)
    ruleset["last_updated"] = now()
    return ruleset


def by_id(request: Request, level: str) -> dict[str, Any]:
    """Return the ruleset of the path."""
    for phase, ruleset in request.zone.rulesets.items():
        if ruleset["id"] == request.params["ruleset_id"]:
            check_phase(request, phase, level)
            return ruleset
    raise RefusedError(404, 10003, f"could not find ruleset {request.params['ruleset_id']}")


@route("GET", "/zones/{zone_id}/rulesets/phases/{phase}/entrypoint")
def get_entrypoint(request: Request) -> Reply:
    phase = request.params["phase"]
    check_phase(request, phase, "Read")
    if phase not in request.zone.rulesets:
        raise RefusedError(404, 10003, f"could not find entrypoint ruleset in the {phase} phase")
    return Reply(request.zone.rulesets[phase])


@route("PUT", "/zones/{zone_id}/rulesets/phases/{phase}/entrypoint")
def put_entrypoint(request: Request) -> Reply:
    phase = request.params["phase"]
    check_phase(request, phase, "Edit")
    ruleset = request.zone.rulesets.get(phase) or {
        "id": new_id(),
        "name": "default",
        "description": "",
        "kind": "zone",
        "phase": phase,
        "version": "0",
        "rules": [],
    }
    old = {r["ref"]: r for r in ruleset["rules"]}
    for rule in request.body.get("rules", []):
        check_rule(request.zone, phase, rule)
    rules = [complete(r, old.get(r.get("ref", ""))) for r in request.body.get("rules", [])]
    check_all(request.zone, phase, rules)
    for name in ("name", "description"):
        ruleset[name] = request.body.get(name, ruleset[name])
    ruleset["rules"] = rules
    request.zone.rulesets[phase] = ruleset
    return Reply(touched(ruleset))


@route("POST", "/zones/{zone_id}/rulesets")
def create_ruleset(request: Request) -> Reply:
    phase = request.body.get("phase", "")
    check_phase(request, phase, "Edit")
    if phase in request.zone.rulesets:
        raise RefusedError(
            400,
            20217,
            "'zone' is not a valid value for kind because exceeded maximum number of zone rulesets "
            f"for phase {phase}",
            "/kind",
        )
    for rule in request.body.get("rules", []):
        check_rule(request.zone, phase, rule)
    rules = [complete(rule) for rule in request.body.get("rules", [])]
    check_all(request.zone, phase, rules)
    request.zone.rulesets[phase] = {
        "id": new_id(),
        "name": request.body["name"],
        "description": request.body.get("description", ""),
        "kind": request.body["kind"],
        "phase": phase,
        "version": "1",
        "last_updated": now(),
        "rules": rules,
    }
    return Reply(request.zone.rulesets[phase])


@route("DELETE", "/zones/{zone_id}/rulesets/{ruleset_id}")
def delete_ruleset(request: Request) -> Reply:
    ruleset = by_id(request, "Edit")
    del request.zone.rulesets[ruleset["phase"]]
    return Reply(None, status=204)


@route("POST", "/zones/{zone_id}/rulesets/{ruleset_id}/rules")
def create_rule(request: Request) -> Reply:
    ruleset = by_id(request, "Edit")
    check_rule(request.zone, ruleset["phase"], request.body)
    rules = list(ruleset["rules"])
    place = (request.body.get("position") or {}).get("index", len(rules) + 1)
    rules.insert(place - 1, complete(request.body))
    check_all(request.zone, ruleset["phase"], rules)
    ruleset["rules"] = rules
    return Reply(touched(ruleset))


def place_of(ruleset: dict[str, Any], rule_id: str) -> int:
    """Return where a rule stands."""
    for place, rule in enumerate(ruleset["rules"]):
        if rule["id"] == rule_id:
            return place
    raise RefusedError(404, 10004, f"could not find rule {rule_id}")


@route("PATCH", "/zones/{zone_id}/rulesets/{ruleset_id}/rules/{rule_id}")
def edit_rule(request: Request) -> Reply:
    ruleset = by_id(request, "Edit")
    place = place_of(ruleset, request.params["rule_id"])
    check_rule(request.zone, ruleset["phase"], request.body)
    ruleset["rules"][place] = complete(request.body, ruleset["rules"][place])
    return Reply(touched(ruleset))


@route("DELETE", "/zones/{zone_id}/rulesets/{ruleset_id}/rules/{rule_id}")
def delete_rule(request: Request) -> Reply:
    ruleset = by_id(request, "Edit")
    del ruleset["rules"][place_of(ruleset, request.params["rule_id"])]
    return Reply(touched(ruleset))
