"""A zone at Cloudflare: read into a state document, written one change at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ansible.module_utils.cloudflare_api import CloudflareApiError, explained, lacks
from ansible.module_utils.cloudflare_merge import (
    PHASES,
    RECORD_FIELDS,
    Change,
    description_of,
    same_record,
    same_rule,
)


class Zone:
    """A zone at Cloudflare, read and written."""

    def __init__(self, client: Any, zone_id: str, mark: str) -> None:
        self.client = client
        self.id = zone_id
        self.mark = mark

    def read(self, settings: list[str]) -> dict[str, Any]:
        """Return the zone's state. Raises CloudflareApiError, naming all missing permissions."""
        state: dict[str, Any] = {"dns": [], "settings": {}, "rulesets": {}}
        refused: list[CloudflareApiError] = []

        def reading(read: Callable[[], Any]) -> Any:
            try:
                return read()
            except CloudflareApiError as problem:
                if problem.kind != "permission":
                    raise
                refused.append(problem)
                return None

        state["dns"] = reading(self.records)
        for name in settings:
            state["settings"][name] = reading(partial(self.setting, name))
        for phase in PHASES:
            state["rulesets"][phase] = reading(partial(self.ruleset, phase))
        if refused:
            raise CloudflareApiError("permission", one_line(refused))
        return state

    def records(self) -> list[dict[str, Any]]:
        """Return every DNS record of the zone, page by page."""
        with explained("reading DNS records"):
            found = list(self.client.dns.records.list(zone_id=self.id, per_page=100))
        return [{"id": r.id, **{k: getattr(r, k, None) for k in RECORD_FIELDS}} for r in found]

    def setting(self, name: str) -> dict[str, Any]:
        """Return a setting's value, and whether the plan lets it be changed."""
        with explained(f"reading setting {name}"):
            answer = self.client.zones.settings.with_raw_response.get(name, zone_id=self.id)
        found = answer.http_response.json()["result"]
        return {"value": found["value"], "editable": found.get("editable", True)}

    def ruleset(self, phase: str) -> dict[str, Any] | None:
        """Return a phase's entry point as the API shows it; None where there is none yet."""
        raw = self.client.rulesets.phases.with_raw_response
        try:
            with explained(f"reading rules of {phase}"):
                found = raw.get(phase, zone_id=self.id).http_response.json()["result"]
        except CloudflareApiError as problem:
            if problem.kind == "missing":
                return None
            raise
        return {**found, "rules": found.get("rules") or []}

    def write(self, change: Change, body: Any) -> None:
        """Carry out one change. Raises CloudflareApiError."""
        path = f"phases/{change.where}/" if change.area in ("rule", "ruleset") else ""
        try:
            with explained(f"{change.action} {change.label}", path):
                getattr(self, f"{change.action}_{change.area}")(change, body)
        except CloudflareApiError as problem:
            # An answer that was lost on its way: the next attempt finds its own work.
            if problem.kind not in ("exists", "invalid", "missing"):
                raise
            if not self.is_done(change, body):
                raise

    def is_done(self, change: Change, body: Any) -> bool:
        """Tell whether the zone is already as a change would have it."""
        if change.area == "setting":
            return False
        if change.area == "dns":
            there = self.records()
            if change.action == "delete":
                return all(r["id"] != change.id for r in there)
            return any(same_record(r, body) for r in there)
        ruleset = self.ruleset(change.where)
        if change.area == "ruleset":
            return bool((ruleset is None) == (change.action == "delete"))
        rules = ruleset["rules"] if ruleset else []
        if change.action == "delete":
            return all(r["id"] != change.id for r in rules)
        return bool(any(r["ref"] == body["ref"] and same_rule(r, body) for r in rules))

    def create_dns(self, change: Change, body: Any) -> None:
        """Create a DNS record."""
        self.client.dns.records.create(zone_id=self.id, **body)

    def edit_dns(self, change: Change, body: Any) -> None:
        """Change a DNS record of ours."""
        self.client.dns.records.edit(change.id, zone_id=self.id, **body)

    def delete_dns(self, change: Change, body: Any) -> None:
        """Delete a DNS record."""
        self.client.dns.records.delete(change.id, zone_id=self.id)

    def edit_setting(self, change: Change, body: Any) -> None:
        """Change a setting."""
        self.client.zones.settings.edit(change.where, zone_id=self.id, value=body)

    def create_ruleset(self, change: Change, body: Any) -> None:
        """Create a phase's entry point, without rules: a PUT would replace what came meanwhile."""
        self.client.rulesets.create(
            zone_id=self.id, kind="zone", name="default", phase=change.where, rules=[],
            description=description_of(self.mark),
        )  # fmt: skip

    def delete_ruleset(self, change: Change, body: Any) -> None:
        """Delete an entry point that we made and nobody uses."""
        self.client.rulesets.delete(change.id, zone_id=self.id)

    def create_rule(self, change: Change, body: Any) -> None:
        """Add a rule behind those that are there."""
        ruleset = self.ruleset(change.where)
        if ruleset is None:
            raise CloudflareApiError("missing", f"create {change.label}: no ruleset to put it in")
        self.client.rulesets.rules.create(ruleset["id"], zone_id=self.id, **body)

    def edit_rule(self, change: Change, body: Any) -> None:
        """Change a rule of ours where it stands."""
        self.client.rulesets.rules.edit(
            change.id, ruleset_id=self.ruleset_id(change), zone_id=self.id, **body
        )

    def delete_rule(self, change: Change, body: Any) -> None:
        """Delete a rule of ours."""
        self.client.rulesets.rules.delete(
            change.id, ruleset_id=self.ruleset_id(change), zone_id=self.id
        )

    def ruleset_id(self, change: Change) -> str:
        """Return the id of the ruleset that a rule stands in."""
        ruleset = self.ruleset(change.where)
        return str(ruleset["id"]) if ruleset else ""


def one_line(problems: list[CloudflareApiError]) -> str:
    """Return what several refusals say, in one line; permissions are named together."""
    missing = dict.fromkeys(p.permission for p in problems if p.kind == "permission")
    rest = dict.fromkeys(p.line for p in problems if p.kind != "permission" or not p.permission)
    lines = list(rest)
    if names := [name for name in missing if name]:
        lines.insert(0, lacks(names))
    return " / ".join(lines)
