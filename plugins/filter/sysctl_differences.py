"""Hold a file of sysctl.d against what the kernel says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any


def sysctl_differences(wanted: str, told: str) -> list[str]:
    """Return a line for each setting that is not as it should be, in the kernel's order.

    `wanted`: the text of a sysctl.d file, whose keys may hold `*`; `told`: what `sysctl --all`
    printed. What the kernel does not have is no difference: a file serves many kernels.
    """
    rules = dict(_pairs(wanted))
    found = []
    for key, value in _pairs(told):
        for pattern, should in rules.items():
            if fnmatchcase(key, pattern) and value != should:
                found.append(f"{key} is {value}, not {should}")
    return found


def sysctl_pattern(wanted: str) -> str:
    """Return what `sysctl --pattern` takes: the keys of a sysctl.d file, and no others."""
    keys = (re.escape(key).replace(r"\*", ".*") for key, _ in _pairs(wanted))
    return f"^({'|'.join(keys)})$"


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    """Yield keys and values; several numbers in a value come apart by one space."""
    for line in text.splitlines():
        if "=" in line and not line.lstrip().startswith(("#", ";")):
            key, value = line.split("=", 1)
            yield key.strip().lstrip("-"), " ".join(value.split())


class FilterModule:
    """Ansible's way to find the filters."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"sysctl_differences": sysctl_differences, "sysctl_pattern": sysctl_pattern}
