"""Decide what is done to the driver's packages: thin, for app/planner/driver_steps.py."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "app"))

from planner import apt_sources, driver_steps

Facts = Mapping[str, Any]


class FilterModule:
    """Ansible's way to find the filters. `seen` is what gpu_hardware_facts returned."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "driver_steps": lambda plan, seen: driver_steps.steps(plan, seen["driver"]),
            "driver_leftovers": lambda plan, seen: driver_steps.leftovers(plan, seen["driver"]),
            "driver_parts": lambda seen: driver_steps.parts(seen["driver"]),
            "driver_held": lambda seen: driver_steps.held(seen["driver"]),
            "driver_holds": lambda seen: driver_steps.holds(seen["driver"]),
            "driver_reboot_reason": driver_steps.reboot_reason,
            "driver_problems": driver_steps.proof_problems,
            "apt_components": _apt_components,
        }


def _apt_components(lines: Sequence[str], wanted: Sequence[str], own: str) -> list[dict[str, Any]]:
    return apt_sources.missing(lines, wanted, own)
