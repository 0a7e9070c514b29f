"""Load what every task needs once, before workers are forked off for the tasks.

Ansible forks a process for each task, and each loads its plugins anew: with the first filter it
uses every filter there is, ours with the planner among them. What the parent has loaded, its
children inherit. docs/speed.md says what that is worth.
"""

from __future__ import annotations

from typing import Any

from ansible.plugins import loader
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
    name: preload
    type: aggregate
    short_description: loads plugins before workers are forked
    description:
      - Loads filters, tests, lookups, actions and connections before workers are forked.
      - Changes nothing of what a run does or prints.
"""

ACTIONS = (
    "assert",
    "command",
    "copy",
    "debug",
    "fail",
    "gather_facts",
    "normal",
    "set_fact",
    "template",
    "validate_argument_spec",
)
LOOKUPS = ("config", "file", "password", "template", "vars")
CONNECTIONS = ("local", "ssh")


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """Loads when a playbook starts; a callback is the only plugin that Ansible asks by then."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "preload"

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Load them. Asking for any filter or test by name loads all of its kind."""
        loader.filter_loader.get("ansible.builtin.bool")
        loader.test_loader.get("ansible.builtin.defined")
        for kind, names in (
            (loader.action_loader, ACTIONS),
            (loader.lookup_loader, LOOKUPS),
            (loader.connection_loader, CONNECTIONS),
            (loader.shell_loader, ("sh",)),
        ):
            for name in names:
                kind.get(f"ansible.builtin.{name}", class_only=True)
