#!/usr/bin/python
"""Return facts as a machine of another kind would have them, so that templates can be tried."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
---
module: fake_facts
short_description: Return the given facts
options:
  facts:
    description: What becomes C(ansible_facts).
    type: dict
    required: true
author: Millrace
"""


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"facts": {"type": "dict", "required": True}}, supports_check_mode=True
    )
    module.exit_json(changed=False, ansible_facts=module.params["facts"])


if __name__ == "__main__":
    main()
