"""Which of a distribution's components apt does not ask for yet. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

DISTRIBUTIONS = ("Debian", "Ubuntu")


def missing(lines: Sequence[str], wanted: Sequence[str], own: str) -> list[dict[str, Any]]:
    """Return `{uri, suite, components, signed_by}` of each of the distribution's sources that lacks
    one of `wanted`.

    `lines`: of apt-get indextargets, `uri|suite|component|signed by|origin|file:number`; a field
    that apt does not know stays as it was written, `$(SIGNED_BY)`. What the file `own` asks for
    counts as missing: it is ours to write.
    """
    asked: dict[tuple[str, str], set[str]] = {}
    signed: dict[tuple[str, str], str] = {}
    for line in lines:
        uri, suite, component, key, origin, entry = line.split("|")
        if origin not in DISTRIBUTIONS or entry.rpartition(":")[0] == own:
            continue
        asked.setdefault((uri, suite), set()).add(component)
        signed[uri, suite] = "" if key.startswith("$") else key
    return [
        {"uri": uri, "suite": suite, "components": lacking, "signed_by": signed[uri, suite]}
        for (uri, suite), components in asked.items()
        if "main" in components and (lacking := [c for c in wanted if c not in components])
    ]
