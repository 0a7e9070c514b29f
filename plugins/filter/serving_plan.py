"""Decide: settings and facts in, one serving plan out.

The planner itself is app/planner, which `./millrace plan` asks as well. A filter cannot import
module_utils, and Ansible loads it by its path, so the way to the package is put up here.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "app"))

from planner import change, measured, models, page, serving, source
from planner.problem import PlanError

PAGE_COLUMNS = 94
"""The callback puts six in front of a line."""


def serving_plan(settings: Mapping[str, Any], hardware: Mapping[str, Any]) -> dict[str, Any]:
    """Return the serving plan: see planner.serving. Raises AnsibleFilterError."""
    try:
        return serving.serving_plan(settings, hardware)
    except PlanError as error:
        raise AnsibleFilterError(str(error)) from None


def model_source(model: str, revision: str = "") -> dict[str, str]:
    """Say where a model comes from: see planner.source. Raises AnsibleFilterError."""
    try:
        return source.model_source(model, revision)
    except PlanError as error:
        raise AnsibleFilterError(str(error)) from None


def plan_page(plan: Mapping[str, Any]) -> list[str]:
    """Return what the cards decided as a page, its lines; a line of it on a CPU."""
    if plan["decided"] is None:
        model = plan["engines"][0]["model"]["id"]
        return [f"vllm_device is cpu: no driver and no cards are planned for; it serves {model}"]
    return page.text(plan["decided"], PAGE_COLUMNS).splitlines()


def needs_own_config(model: str) -> bool:
    """Say whether the model's own config.json has to be read: the catalogue does not know it."""
    return bool(model) and model != source.RECITAL and not models.is_known(model)


class FilterModule:
    """Ansible's way to find the filters."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "serving_plan": serving_plan,
            "model_source": model_source,
            "needs_own_config": needs_own_config,
            "plan_page": plan_page,
            "plan_change": change.told,
            "plan_measured": measured.compare,
        }
