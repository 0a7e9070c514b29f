#!/usr/bin/python
"""Observe the hardware that a plan depends on. Read-only."""

from __future__ import annotations

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.gpu_hardware import observe

DOCUMENTATION = r"""
---
module: gpu_hardware_facts
short_description: Observe cards, driver, processor, memory, disks and network
description:
  - Reads PCI for what is plugged in, and the driver's own tool for what only a running driver
    knows. Works with no driver, with no card, and with cards of anybody.
  - Read-only. Deciding what to do with it is the C(serving_plan) filter's work.
options:
  root:
    description: Where the system's files are. Another folder is for tests.
    type: path
    default: /
  space_paths:
    description: Folders whose free space matters; they need not exist.
    type: list
    elements: path
    default: [/]
author: Millrace
"""

RETURN = r"""
gpus:
  description: >-
    Display and 3D controllers, by PCI address. Each has C(pci_address), C(vendor), C(device),
    C(subsystem), C(class), C(bars_mib), C(link), C(numa_node), C(kernel_driver); where a driver
    runs also C(name), C(uuid), C(memory_mib), C(compute_capability), C(ecc), C(mig),
    C(power_limit_watts).
  returned: always
  type: list
driver:
  description: >-
    C(module_version) and C(module_flavour) of the loaded module, C(library_version) of the library
    on disk, C(problem) in the tool's words, C(packages) and C(kernels) with their versions,
    C(unfinished) ones, C(holds), and C(topology) of several cards.
  returned: always
  type: dict
cpu:
  description: C(model), C(cores) that may be used, C(flags) that matter.
  returned: always
  type: dict
memory_mib:
  description: Memory of the machine.
  returned: always
  type: int
"""


def main() -> None:
    """Run as a module."""
    ansible = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/"},
            "space_paths": {"type": "list", "elements": "path", "default": ["/"]},
        },
        supports_check_mode=True,
    )
    ansible.exit_json(
        changed=False, **observe(Path(ansible.params["root"]), ansible.params["space_paths"])
    )


if __name__ == "__main__":
    main()
