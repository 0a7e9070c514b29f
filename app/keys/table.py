"""The list of keys, as a table for a terminal."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

_HEAD = ("NAME", "FROM", "MADE", "EXPIRES", "MODELS", "LIMITS")
_SHORT = {
    "requests_per_minute": "requests/min",
    "tokens_per_minute": "tokens/min",
    "concurrent_streams": "streams",
}


def lines(answers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the keys of each server; its name stands above them where there are several."""
    told = []
    for server in sorted(answers):
        if len(answers) > 1:
            told += [f"{server}:"]
        told += _columns([_HEAD, *(_row(key) for key in answers[server]["keys"])])
    return told


def terms(key: Mapping[str, Any]) -> str:
    """Say in a line what a key may do and until when."""
    parts = [f"until {_date(key['expires'])}"] if key["expires"] else []
    parts += [f"only {', '.join(key['models'])}"] if key["models"] else []
    parts += [_limits(key)] if _limits(key) else []
    return "; ".join(parts) or "no end, every model, no limits"


def _row(key: Mapping[str, Any]) -> tuple[str, ...]:
    expires = _date(key["expires"]) if key["expires"] else ""
    if key["expired"]:
        expires += " (over)"
    if key["previous_expires"]:
        expires += f" (the old text: {_date(key['previous_expires'])})"
    return (
        str(key["name"]),
        "./millrace key" if key["origin"] == "issued" else "inventory",
        _date(key["created"])[:10] if key["created"] else "",
        expires.strip(),
        ", ".join(key["models"] or []),
        _limits(key),
    )


def _limits(key: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key['limits'][name]} {short}" for name, short in _SHORT.items() if key["limits"][name]
    )


def _date(seconds: int) -> str:
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M} UTC"


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return [line.rstrip() for line in padded]
