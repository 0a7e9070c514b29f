"""Give a host facts as a machine of another kind would have them, so that templates can be tried.

An action and no module: it costs no process.
"""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """Return `facts` as what was gathered."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> Any:
        result = super().run(tmp, task_vars)
        return {**result, "changed": False, "ansible_facts": self._task.args["facts"]}
