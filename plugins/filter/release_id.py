"""Name a release after what goes into it, so that the same inputs are never installed twice."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

ID_LENGTH = 12


def release_id(paths: list[str], *marks: str) -> str:
    """Return a short digest of the files in `paths` (files or folders) and the given marks.

    Marks are what else makes a release different: the interpreter's version, a source of wheels.
    Bytecode is left out. Raises FileNotFoundError when a path is missing.
    """
    digest = hashlib.sha256()
    for name in paths:
        root = Path(name)
        if not root.exists():
            raise FileNotFoundError(f"a release cannot be made: {root} is missing")
        files = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
        for file in files:
            if "__pycache__" in file.parts:
                continue
            relative = file.relative_to(root) if root.is_dir() else Path(file.name)
            digest.update(f"{relative}\0{file.stat().st_size}\0".encode())
            digest.update(file.read_bytes())
    for mark in marks:
        digest.update(f"\0{mark}".encode())
    return digest.hexdigest()[:ID_LENGTH]


class FilterModule:
    """Ansible's way to find the filter."""

    def filters(self) -> dict[str, Any]:
        """Return the filter by name."""
        return {"release_id": release_id}
