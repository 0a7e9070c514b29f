"""What has to change in a zone: from what is there and what is wanted, without asking anybody.

A zone's state is a document: `dns` (records as the API shows them), `settings` (name to value and
editable) and `rulesets` (phase to the entry point ruleset, or None). What is wanted is one of
`dns`, `settings` and `rules`; templates/cloudflare renders it.

Ours are the rules whose `ref` begins with the mark, and the DNS records that carry our comment.
Nothing else is ever changed or moved.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

PHASES = (
    "http_request_cache_settings",
    "http_config_settings",
    "http_response_compression",
    "http_request_firewall_custom",
    "http_ratelimit",
)
"""Phases that we have rules in."""

RULE_FIELDS = ("action", "action_parameters", "description", "enabled", "expression", "ratelimit")
RECORD_FIELDS = ("name", "type", "content", "proxied", "ttl", "comment")
VISITOR_TYPES = ("A", "AAAA", "CNAME")
"""Records that decide where visitors of a name go."""

UNREACHABLE = [
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
        "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7", "fe80::/10",
    )
]  # fmt: skip
"""Networks that Cloudflare cannot reach a server in."""


@dataclass(frozen=True)
class Change:
    """One step: `variants` are what to write, the best first; the rest is for weaker plans."""

    area: str
    """dns, setting, rule or ruleset."""
    action: str
    """create, edit or delete."""
    where: str
    """The rule's phase, the record's or the setting's name."""
    label: str
    id: str = ""
    variants: tuple[Any, ...] = ()
    before: Any = None
    ours: bool = True
    """False for what somebody else made and we replace."""
    reduced: int = 0
    """Which variant is in force already; 0 for none or the best."""


def comment_of(mark: str) -> str:
    """Return the comment that our DNS records carry; 100 characters at most."""
    return f"{mark}: the server's address, kept by its playbook"


def description_of(mark: str) -> str:
    """Return the description of entry points that we made."""
    return f"Made by {mark}'s playbook"


def is_ours(rule: dict[str, Any], mark: str) -> bool:
    """Tell whether a rule is one of ours."""
    return str(rule.get("ref", "")).startswith(f"{mark}_")


def overlay(rule: dict[str, Any], weaker: dict[str, Any]) -> dict[str, Any]:
    """Return a rule with some values replaced; None takes one out."""
    made = deepcopy(rule)
    for key, value in weaker.items():
        if value is None:
            made.pop(key, None)
        elif isinstance(value, dict) and isinstance(made.get(key), dict):
            made[key] = overlay(made[key], value)
        else:
            made[key] = deepcopy(value)
    return made


def variants_of(wanted: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """Return a wanted rule and what it becomes where the plan refuses it (`or_else`)."""
    rule = {k: v for k, v in wanted.items() if k != "or_else"}
    rule.setdefault("enabled", True)
    return (rule, *(overlay(rule, weaker) for weaker in wanted.get("or_else", [])))


def same_rule(there: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Tell whether a rule says what is wanted; what the API adds by itself is no difference."""
    for key in RULE_FIELDS:
        have, want = there.get(key), wanted.get(key)
        if key == "ratelimit" and isinstance(have, dict) and isinstance(want, dict):
            have = {k: v for k, v in have.items() if k in want or v}
        if (have or None) != (want or None) and have != want:
            return False
    return True


def rule_changes(
    rulesets: dict[str, Any], wanted: dict[str, list[dict[str, Any]]], mark: str
) -> Iterator[Change]:
    """Yield what makes our rules as wanted, the others untouched."""
    for phase in PHASES:
        there = rulesets.get(phase)
        rules = there["rules"] if there else []
        ours: dict[str, dict[str, Any]] = {}
        for rule in rules:
            if is_ours(rule, mark) and ours.setdefault(rule["ref"], rule) is not rule:
                yield Change("rule", "delete", phase, f"rule {rule['ref']}", rule["id"], (), rule)
        asked = wanted.get(phase, [])
        if asked and there is None:
            yield Change("ruleset", "create", phase, f"ruleset {phase}")
        for rule in asked:
            variants = variants_of(rule)
            label = f"rule {rule['ref']}"
            old = ours.pop(rule["ref"], None)
            if old is None:
                yield Change("rule", "create", phase, label, variants=variants)
                continue
            same = [n for n, variant in enumerate(variants) if same_rule(old, variant)]
            reduced = same[0] if same else 0
            if reduced or not same:
                better = variants[:reduced] if same else variants
                yield Change("rule", "edit", phase, label, old["id"], better, old, reduced=reduced)
        for ref, old in ours.items():
            yield Change("rule", "delete", phase, f"rule {ref}", old["id"], before=old)
        left = [r for r in rules if not is_ours(r, mark)]
        if there and not asked and not left and there.get("description") == description_of(mark):
            yield Change("ruleset", "delete", phase, f"ruleset {phase}", there["id"])


def acceptable(wanted: Any) -> list[Any]:
    """Return the values of a setting that will do; the first is written if none is there."""
    return list(wanted) if isinstance(wanted, list) else [wanted]


def setting_changes(there: dict[str, Any], wanted: dict[str, Any]) -> Iterator[Change]:
    """Yield the settings that have to be written."""
    for name, value in wanted.items():
        have = there[name]["value"]
        if str(have) not in [str(v) for v in acceptable(value)]:
            yield Change(
                "setting", "edit", name, f"setting {name}",
                variants=(acceptable(value)[0],), before=have,
            )  # fmt: skip


def same_record(there: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Tell whether a record sends visitors where they should go."""
    keys = ("type", "content", "proxied")
    return bool(
        there["name"].lower() == wanted["name"].lower()
        and all(there.get(key) == wanted.get(key) for key in keys)
    )


def in_the_way(
    there: list[dict[str, Any]], wanted: list[dict[str, Any]], mark: str
) -> list[dict[str, Any]]:
    """Return records of others that would send visitors of our names elsewhere."""
    names = {record["name"].lower() for record in wanted}
    return [
        record
        for record in there
        if record["name"].lower() in names
        and record["type"] in VISITOR_TYPES
        and record.get("comment") != comment_of(mark)
        and not any(same_record(record, want) for want in wanted)
    ]


def dns_changes(
    there: list[dict[str, Any]], wanted: list[dict[str, Any]], mark: str
) -> Iterator[Change]:
    """Yield what makes our records as wanted. Others that are in the way go first."""
    comment = comment_of(mark)
    ours = [record for record in there if record.get("comment") == comment]
    for record in in_the_way(there, wanted, mark):
        yield Change(
            "dns", "delete", record["name"], label_of(record), record["id"],
            before=record, ours=False,
        )  # fmt: skip
    kept = []
    missing = []
    for want in wanted:
        found = next((r for r in there if same_record(r, want)), None)
        if found:
            kept.append(found["id"])
        else:
            missing.append(want)
    spare = [record for record in ours if record["id"] not in kept]
    for want in missing:
        body = {**want, "ttl": 1, "comment": comment}
        old = next(
            (r for r in spare if r["name"] == want["name"] and r["type"] == want["type"]), None
        )
        if old:
            spare.remove(old)
            yield Change("dns", "edit", want["name"], label_of(want), old["id"], (body,), old)
        else:
            yield Change("dns", "create", want["name"], label_of(want), variants=(body,))
    for record in spare:
        yield Change("dns", "delete", record["name"], label_of(record), record["id"], before=record)


def label_of(record: dict[str, Any]) -> str:
    """Return a record in a few words."""
    return f"DNS record {record['type']} {record['name']} {record['content']}"


def problems_of(zone: str, mark: str, wanted: dict[str, Any]) -> list[str]:
    """Return what cannot be right about what is wanted, a line each."""
    found = []
    if not re.fullmatch(r"[A-Za-z0-9-]{1,32}", mark):
        # With a_b beside a, the rules of a_b would be a's as well.
        found.append(f"cloudflare_mark {mark}: 1 to 32 letters, digits and dashes, no underscore")
    for phase, rules in wanted.get("rules", {}).items():
        if phase not in PHASES:
            found.append(f"{phase} is no phase that this module knows: {', '.join(PHASES)}")
        found += [
            f"the reference {rule.get('ref')} does not begin with {mark}_"
            for rule in rules
            if not is_ours(rule, mark)
        ]
    for record in wanted.get("dns", []):
        name = record["name"].lower()
        if name != zone and not name.endswith(f".{zone}"):
            found.append(f"{name} is not in the zone {zone}: check cloudflare_names")
        if record["type"] in ("A", "AAAA"):
            try:
                address = ipaddress.ip_address(record["content"])
            except ValueError:
                found.append(f"{record['content']} is no IP address: check cloudflare_addresses")
                continue
            if any(address in network for network in UNREACHABLE):
                found.append(
                    f"{address} is a private address, which Cloudflare cannot reach: put the "
                    "server's public ones into cloudflare_addresses"
                )
    return found


def with_change(state: dict[str, Any], change: Change, body: Any, mark: str) -> dict[str, Any]:
    """Return the state as it is after a change, for the diff and for check mode."""
    after = deepcopy(state)
    if change.area == "setting":
        after["settings"][change.where]["value"] = body
    elif change.area == "dns":
        after["dns"] = [r for r in after["dns"] if r["id"] != change.id or not change.id]
        if change.action != "delete":
            after["dns"].append({"id": change.id, **body})
    elif change.area == "ruleset":
        made = {"id": "", "description": description_of(mark), "rules": []}
        after["rulesets"][change.where] = None if change.action == "delete" else made
    else:
        rules = after["rulesets"][change.where]["rules"]
        if change.action == "create":
            rules.append({"id": "", **body})
        else:
            place = next(n for n, r in enumerate(rules) if r["id"] == change.id)
            if change.action == "delete":
                del rules[place]
            else:
                rules[place] = {"id": change.id, **body}
    return after


def picture(state: dict[str, Any], names: list[str], mark: str) -> dict[str, Any]:
    """Return what a diff shows of a state: what is ours whole, of others that they are there."""
    shown: dict[str, Any] = {"dns": [], "settings": {}, "rules": {}}
    for record in sorted(state["dns"], key=lambda r: (r["name"], r["type"], r["content"])):
        if record["name"] in names or record.get("comment") == comment_of(mark):
            proxied = "proxied" if record.get("proxied") else "not proxied"
            shown["dns"].append(
                f"{record['name']} {record['type']} {record['content']} ({proxied})"
            )
    for name, setting in state["settings"].items():
        shown["settings"][name] = setting["value"]
    for phase, ruleset in state["rulesets"].items():
        shown["rules"][phase] = [
            {"ref": rule["ref"], **{k: rule[k] for k in RULE_FIELDS if rule.get(k) is not None}}
            if is_ours(rule, mark)
            else f"(not ours: {rule.get('description') or rule.get('ref') or rule['id']})"
            for rule in (ruleset["rules"] if ruleset else [])
        ]
    return shown
