#!/usr/bin/python
"""Make a Cloudflare zone stream: DNS records, settings and rules, ours alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.cloudflare_api import (
    OPTIONS,
    CloudflareApiError,
    connect,
    find_zone,
)
from ansible.module_utils.cloudflare_calls import Zone, one_line
from ansible.module_utils.cloudflare_memory import Memory
from ansible.module_utils.cloudflare_merge import (
    Change,
    dns_changes,
    in_the_way,
    label_of,
    picture,
    problems_of,
    rule_changes,
    setting_changes,
    with_change,
)

DOCUMENTATION = r"""
---
module: cloudflare_zone
short_description: Make a Cloudflare zone stream, and leave what others made in it
description:
  - Reads the zone, and writes only what differs. Rules of ours are known by their C(ref), which
    begins with C(mark), DNS records by their comment; others keep their content and their place.
  - What the zone's plan refuses is told in C(refused), and the rest is done. A run that broke off
    is finished by the next one.
  - Runs on the controller, whose environment has the C(cloudflare) library.
options:
  mark:
    description:
      - What the references of our rules begin with, C(_) follows. Letters, digits and dashes.
    type: str
    default: millrace
  state:
    description: C(absent) removes all that was made, and puts settings back that were changed.
    type: str
    choices: [present, absent]
    default: present
  dns:
    description: Records that should be there (name, type, content, proxied).
    type: list
    elements: dict
    default: []
  settings:
    description: Zone settings; a list holds values that will do, of which the first is written.
    type: dict
    default: {}
  rules:
    description:
      - Rules by phase. C(or_else) of a rule lists what is replaced in it where the plan refuses it.
    type: dict
    default: {}
  replace_dns:
    description: Take over names that somebody else's records hold. They are put back by C(absent).
    type: bool
    default: false
  memory:
    description:
      - File on the controller that keeps what settings and records were before they were changed.
    type: path
    required: true
  timeout_seconds:
    description: How long one request may take.
    type: int
    default: 30
  patience_seconds:
    description: How long one request is tried again while Cloudflare is busy or broken.
    type: int
    default: 180
extends_documentation_fragment: [cloudflare_api]
author: Millrace
"""

RETURN = r"""
refused:
  description: What the plan refused, with the API's reason.
  returned: always
  type: list
  elements: dict
done:
  description: What was changed, a line each.
  returned: always
  type: list
  elements: str
notes:
  description: What the run left alone, and why.
  returned: always
  type: list
  elements: str
plan:
  description: Plan of the zone (free, pro, business, enterprise).
  returned: success
  type: str
zone_id:
  description: Identifier of the zone.
  returned: success
  type: str
"""


class Run:
    """One run of the module: what it did, what was refused, what went wrong."""

    def __init__(self, zone: Zone, memory: Memory, state: dict[str, Any], check: bool) -> None:
        self.zone = zone
        self.memory = memory
        self.state = state
        self.check = check
        self.done: list[str] = []
        self.refused: list[dict[str, str]] = []
        self.notes: list[str] = []
        self.problems: list[CloudflareApiError] = []

    def make(self, change: Change) -> bool:
        """Carry out a change, or the weaker form of it that the plan lets pass.

        Raises CloudflareApiError where going on makes no sense: no answer, or no good token.
        """
        if self.check and change.reduced:
            self.refused.append({"what": change.label, "why": "the plan refused it before"})
            return False
        for number, body in enumerate(change.variants or (None,)):
            try:
                if not self.check:
                    self.zone.write(change, body)
            except CloudflareApiError as problem:
                if problem.kind == "plan":
                    self.refused.append(
                        {"what": change.label + form(change, number), "why": problem.line}
                    )
                    continue
                if problem.kind in ("broken", "token"):
                    raise
                self.problems.append(problem)
                return False
            self.state = with_change(self.state, change, body, self.zone.mark)
            self.done.append(f"{change.action} {change.label}")
            return True
        return False

    def present(self, wanted: dict[str, Any]) -> None:
        """Make the zone as wanted. Names go to the server last, when the rest is in place."""
        mark = self.zone.mark
        settings = list(setting_changes(self.state["settings"], wanted["settings"]))
        rules = list(rule_changes(self.state["rulesets"], wanted["rules"], mark))
        for change in [*settings, *rules, *dns_changes(self.state["dns"], wanted["dns"], mark)]:
            if change.area == "setting" and not self.state["settings"][change.where]["editable"]:
                why = f"it stays {change.before!r}: this zone's plan does not let it be changed"
                self.refused.append({"what": change.label, "why": why})
                continue
            if not self.check:
                self.memory.note(change)
            if not self.make(change):
                self.memory.forget(change)

    def absent(self) -> None:
        """Remove all that is ours, and put back what was there before us."""
        mark = self.zone.mark
        for change in dns_changes(self.state["dns"], [], mark):
            self.make(change)
        for record in list(self.memory.kept["dns"]):
            change = Change("dns", "create", record["name"], label_of(record), variants=(record,))
            if self.make(change) and not self.check:
                self.memory.drop_record(record)
        for change in rule_changes(self.state["rulesets"], {}, mark):
            self.make(change)
        for name, kept in list(self.memory.kept["settings"].items()):
            have = self.state["settings"][name]["value"]
            if str(have) == str(kept["before"]):
                restored = True
            elif str(have) != str(kept["set"]):
                self.notes.append(
                    f"setting {name} stays {have!r}: somebody changed it after us "
                    f"(it was {kept['before']!r} before)"
                )
                restored = True
            else:
                body = kept["before"]
                restored = self.make(
                    Change("setting", "edit", name, f"setting {name}", "", (body,), have)
                )
            if restored and not self.check:
                self.memory.drop_setting(name)


def form(change: Change, number: int) -> str:
    """Return which form of a rule was refused, for people."""
    forms = max(len(change.variants), change.reduced + 1)
    return "" if forms == 1 else f" (form {number + 1} of {forms})"


def text_of(state: dict[str, Any], names: list[str], mark: str) -> str:
    """Return a state as the diff shows it."""
    shown = picture(state, names, mark)
    return str(yaml.safe_dump(shown, sort_keys=False, width=100, allow_unicode=True))


def main() -> None:
    """Run as a module."""
    module = AnsibleModule(
        argument_spec={
            **OPTIONS,
            "mark": {"type": "str", "default": "millrace"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "dns": {"type": "list", "elements": "dict", "default": []},
            "settings": {"type": "dict", "default": {}},
            "rules": {"type": "dict", "default": {}},
            "replace_dns": {"type": "bool", "default": False},
            "memory": {"type": "path", "required": True},
            "timeout_seconds": {"type": "int", "default": 30},
            "patience_seconds": {"type": "int", "default": 180},
        },
        supports_check_mode=True,
    )
    given = module.params
    present = given["state"] == "present"
    wanted = {key: given[key] for key in ("dns", "settings", "rules")}
    if present and (problems := problems_of(given["zone"], given["mark"], wanted)):
        module.fail_json(msg="; ".join(problems))
    run = None
    before = None
    names = [record["name"] for record in wanted["dns"]]
    told: dict[str, Any] = {}
    try:
        client = connect(
            given["api_token"], url=given["api_url"],
            timeout_seconds=given["timeout_seconds"], patience_seconds=given["patience_seconds"],
        )  # fmt: skip
        found = find_zone(client, given["zone"])
        told = {"zone_id": found.id, "plan": found.plan.legacy_id if found.plan else ""}
        memory = Memory(Path(given["memory"]), found.id)
        zone = Zone(client, found.id, given["mark"])
        before = zone.read(list(wanted["settings"] if present else memory.kept["settings"]))
        strangers = in_the_way(before["dns"], wanted["dns"], given["mark"])
        if present and strangers and not given["replace_dns"]:
            module.fail_json(
                msg="These records of the zone were not made by this playbook and send visitors "
                f"elsewhere: {', '.join(label_of(r) for r in strangers)}. Remove them, or set "
                "cloudflare_replace_dns: true to have them replaced (a removal puts them back)"
            )
        run = Run(zone, memory, before, module.check_mode)
        if present:
            run.present(wanted)
        else:
            run.absent()
    except CloudflareApiError as problem:
        result(module, run, before, names, told, [*(run.problems if run else []), problem])
    result(module, run, before, names, told, run.problems if run else [])


def result(
    module: AnsibleModule,
    run: Run | None,
    before: dict[str, Any] | None,
    names: list[str],
    told: dict[str, Any],
    problems: list[CloudflareApiError],
) -> None:
    """End the module with what was done, and with what went wrong."""
    told = {
        **told,
        "changed": bool(run and run.done),
        "done": run.done if run else [],
        "refused": run.refused if run else [],
        "notes": run.notes if run else [],
    }
    if run and before:
        mark = module.params["mark"]
        told["diff"] = {
            "before_header": f"zone {module.params['zone']}",
            "after_header": f"zone {module.params['zone']}",
            "before": text_of(before, names, mark),
            "after": text_of(run.state, names, mark),
        }
    if problems:
        module.fail_json(msg=one_line(problems), **told)
    module.exit_json(**told)


if __name__ == "__main__":
    main()
