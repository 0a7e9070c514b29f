"""Keeps the last results in a folder: `latest.json`, `latest.html`, and the reports before."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from streamcheck.page import render_page

KEPT = 48
"""Two days at one an hour."""


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all. Raises OSError."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def keep(folder: Path, report: dict[str, Any]) -> None:
    """Add `report` to the folder and remove what is older than the last KEPT. Raises OSError."""
    told = json.dumps(report)
    name = report["started"].replace(":", "").replace("+0000", "Z")
    write_whole(folder / f"report-{name}.json", told)
    write_whole(folder / "latest.json", told)
    write_whole(folder / "latest.html", render_page(report))
    for old in sorted(folder.glob("report-*.json"))[:-KEPT]:
        old.unlink()
