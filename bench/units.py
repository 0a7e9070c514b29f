"""What a systemd unit runs, read from the unit as a role renders it."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """The command, as it is to be scheduled, and the environment of a service."""

    command: tuple[str, ...]
    environment: dict[str, str]
    credentials: tuple[str, ...]
    """The names of what systemd hands over as files."""


def read_unit(text: str, instance: str = "", credentials: str = "") -> Unit:
    """Return what the unit runs; `credentials` is the folder where its secrets lie.

    Raises ValueError where there is no ExecStart.
    """
    known = {"%i": instance, "%b": "0" * 32, "${CREDENTIALS_DIRECTORY}": credentials}
    for name, value in known.items():
        text = text.replace(name, value)
    command = re.search(r"^ExecStart=(.+)$", text, re.M)
    if command is None:
        raise ValueError("the unit has no ExecStart")
    environment = {}
    for line in re.findall(r"^Environment=(.+)$", text, re.M):
        for setting in line.split():
            name, _, value = setting.partition("=")
            environment[name] = value
    if credentials:
        environment["CREDENTIALS_DIRECTORY"] = credentials
    # The only policy that a unit of ours names.
    batch = re.search(r"^CPUSchedulingPolicy=batch$", text, re.M)
    scheduling = ("chrt", "--batch", "0") if batch else ()
    names = re.findall(r"^LoadCredential=([^:\n]+):", text, re.M)
    return Unit((*scheduling, *command[1].split()), environment, tuple(names))
