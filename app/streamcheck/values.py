"""What a report holds, made fit to be shown: clean texts, and figures of an even length."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from typing import Any

DASH = "\u2013"

Report = Mapping[str, Any]


def cleaned(value: Any, wide: str = "") -> Any:
    """Return `value` with only printable characters in its texts: strangers wrote some of them.

    No escapes, no change of direction, no new lines; `wide` follows what takes two columns.
    """
    # Most of a report is times of events, by the ten thousand: what they are is asked first.
    if isinstance(value, (int, float)):  # a union takes twice the time
        return value
    if isinstance(value, (list, tuple)):
        return [cleaned(item, wide) for item in value]
    if isinstance(value, Mapping):
        return {cleaned(key): cleaned(item, wide) for key, item in value.items()}
    if not isinstance(value, str):
        return value
    kept = ""
    for character in " ".join(value[:4000].split()):
        category = unicodedata.category(character)
        shown = "\ufffd" if category[0] == "C" else character
        kept += "" if category == "Cf" else shown
        kept += wide if unicodedata.east_asian_width(character) in "WF" else ""
    return kept


def number(value: Any) -> float | None:
    """Return `value` when it is a number that can be drawn."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None


def figure(value: Any, decimals: int) -> str:
    """Return a number as text of six characters at the most, a dash when there is none."""
    usable = number(value)
    if usable is None:
        return DASH
    return f"{usable:.{decimals if abs(usable) < 10 ** (5 - decimals) else 0}f}"
