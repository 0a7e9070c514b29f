"""Find mistyped and malformed settings before a run changes anything.

Ansible ignores a variable that no role knows: `vllm_modle: …` would silently serve the default.
Every setting of ours is declared in some role's `meta/argument_specs.yml`, so a name with one of
our prefixes that no role declares is a mistake.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator


def plain(value: Any) -> Any:
    """Return a value with ordinary lists and dictionaries for Ansible's, which template themselves.

    The validator copies deeply what it is given, and each of Ansible's drags all variables along.
    """
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return value


def settings_problems(
    settings: Mapping[str, Any],
    specs: Mapping[str, Mapping[str, Any]],
    wiring: Iterable[str] = (),
) -> list[str]:
    """Return one line per problem, empty when all is well.

    `settings`: the variables that were set, by name. `specs`: role name to the `options` of its
    argument specification. `wiring`: known names that no role declares. The value of an option
    marked `no_log` never appears in what is returned.
    """
    specs = plain(specs)
    owner = {option: role for role, options in specs.items() for option in options}
    known = set(owner) | set(wiring)
    problems = []
    for name in sorted(settings):
        if name in known or name.startswith("__"):
            continue
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        problems.append(f"{name}: no role knows this setting.{hint}")
    for role in sorted(specs):
        for name, option in specs[role].items():
            if name not in settings:
                continue
            # Defaults are the role's business; here only what was given is judged.
            bare = {k: v for k, v in option.items() if k not in ("default", "description")}
            result = ArgumentSpecValidator({name: bare}).validate({name: plain(settings[name])})
            if result.error_messages and option.get("no_log"):
                problems.append(f"{name}: malformed (its value is secret and not shown)")
            else:
                problems.extend(f"{role}: {message}" for message in result.error_messages)
    return problems


class FilterModule:
    """Ansible's way to find the filter."""

    def filters(self) -> dict[str, Any]:
        """Return the filter by name."""
        return {"settings_problems": settings_problems}
