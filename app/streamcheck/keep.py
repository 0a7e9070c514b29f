"""Keeps the last results in a folder: `latest.json`, `latest.html`, and the reports before.

`summary.json` is for the backend's /v1/status, and for that anybody may read it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from streamcheck.page import render_page
from streamcheck.summary import summary

KEPT = 48
"""Two days at one an hour."""


def write_whole(path: Path, text: str, mode: int | None = None) -> None:
    """Write a file whole or not at all, with `mode` whatever the umask. Raises OSError."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_text(text, encoding="utf-8")
        if mode is not None:
            fresh.chmod(mode)
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
    write_whole(folder / "summary.json", json.dumps(summary(report)), 0o644)
    for old in sorted(folder.glob("report-*.json"))[:-KEPT]:
        old.unlink()
