#!/usr/bin/python
"""Put a file that could lock everybody out in force on trial, or confirm it."""

from __future__ import annotations

from pathlib import Path

from ansible.module_utils import trial
from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
---
module: timed_trial
short_description: Put a file in force until a timer takes it back, unless it is confirmed
description:
  - Without C(confirm), the file is written and put in force, and a timer on the server is armed
    that puts back what was there. Nothing happens where the file is so already and in force.
  - With C(confirm), the timer is disarmed. Fails when it has run already.
options:
  name:
    description: What is on trial; names the timer C(millrace-trial-NAME).
    type: str
    required: true
  path:
    description: The file.
    type: path
  text:
    description: What it is to hold.
    type: str
  mode:
    description: Its mode, in octal.
    type: str
    default: "0644"
  check:
    description: Command that judges a candidate, whose path stands for C(%s).
    type: list
    elements: str
  apply:
    description: Command that puts the file in force, also one that is gone.
    type: list
    elements: str
  agrees:
    description: Command that ends with 0 when what is in force is what the file says.
    type: list
    elements: str
    default: []
  seconds:
    description: Seconds until it is taken back.
    type: int
    required: true
  confirm:
    description: The trial to confirm, as C(trial) was returned.
    type: str
author: Millrace
"""


def main() -> None:
    """Run the module."""
    lines = {"type": "list", "elements": "str"}
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "path": {"type": "path"},
            "text": {"type": "str"},
            "mode": {"type": "str", "default": "0644"},
            "check": lines,
            "apply": lines,
            "agrees": {**lines, "default": []},
            "seconds": {"type": "int", "required": True},
            "confirm": {"type": "str"},
        },
        required_one_of=[("confirm", "path")],
        required_together=[("path", "text", "check", "apply")],
        mutually_exclusive=[("confirm", "path")],
        supports_check_mode=True,
    )
    given = module.params
    try:
        if given["confirm"] is not None:
            if not module.check_mode:
                trial.confirm(given["name"], given["confirm"], given["seconds"])
            module.exit_json(changed=False)
        told = trial.begin(
            given["name"],
            Path(given["path"]),
            given["text"],
            mode=int(given["mode"], 8),
            check=given["check"],
            apply=given["apply"],
            agrees=given["agrees"],
            seconds=given["seconds"],
            dry=module.check_mode,
        )
    except trial.TrialError as error:
        module.fail_json(msg=str(error))
    for note in told["notes"]:
        module.warn(note)
    header = {"before_header": given["path"], "after_header": given["path"]}
    diff = {**header, "before": told.pop("before"), "after": told.pop("after")}
    module.exit_json(diff=diff, **told)


if __name__ == "__main__":
    main()
