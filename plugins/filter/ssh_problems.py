"""Judge whether who comes in today still could when sshd takes keys only. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def ssh_problems(
    seen: Mapping[str, Any], root_login: str, *, password: bool, key_works: bool
) -> list[str]:
    """Return what stands against keys only, a line each; empty when nothing does.

    `seen`: what `ssh_facts` returned. `root_login`: ssh_root_login. `password`: whether the
    inventory logs in with one. `key_works`: whether a new connection by key alone came in.
    """
    user = seen["user"]
    mend = f"run ssh-copy-id {user}@SERVER, and try again"
    if password:
        return [f"this run logs in with a password, and only keys would do: {mend}."]
    problems = []
    if not seen["authorized_keys"] and not seen["authorized_otherwise"]:
        problems.append(f"no key is authorized for {user}, and only keys would do: {mend}.")
    elif not key_works:
        problems.append(
            f"{user} cannot come in by key alone from this machine, and only keys would do: {mend}."
        )
    if user == "root" and root_login == "no":
        problems.append(
            "ssh_root_login is no, and this run comes in as root: set ansible_user to a user who "
            "has sudo, with ansible_become: true."
        )
    return problems


class FilterModule:
    """Ansible's way to find the filter."""

    def filters(self) -> dict[str, Any]:
        """Return the filter by name."""
        return {"ssh_problems": ssh_problems}
