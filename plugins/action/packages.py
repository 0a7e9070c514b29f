"""Have packages of the distribution installed: dpkg is asked first, and apt where one is missing.

apt's module reads every package that there could be, also where nothing is to be done: a second or
more. Arguments: `names`, a list. Returns what apt's module returns, or `changed=False`.
"""

from __future__ import annotations

import shlex
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

LOCK_SECONDS = 300
"""How long another apt may take, such as the one that a fresh server upgrades itself with."""


class ActionModule(ActionBase):  # type: ignore[misc]
    """Looks, and calls apt's module."""

    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Have all of them installed, in one go."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        names = self._task.args.get("names")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise AnsibleActionFail("packages needs names, a list of packages")
        if self._are_there(names):
            return {**result, "changed": False}
        wanted = {
            "name": names,
            "state": "present",
            "install_recommends": False,
            "lock_timeout": LOCK_SECONDS,
        }
        result.update(
            self._execute_module(
                module_name="ansible.builtin.apt", module_args=wanted, task_vars=task_vars
            )
        )
        return result

    def _are_there(self, names: list[str]) -> bool:
        """Return whether dpkg knows all of them as installed. Only looks, so in check mode too."""
        if not names:
            return True
        ask = ["dpkg-query", "--show", r"--showformat=${Package}=${db:Status-Status}\n", *names]
        told = self._low_level_execute_command(shlex.join(ask), executable="/bin/sh")
        return {f"{name}=installed" for name in names} <= set(told["stdout"].split())
