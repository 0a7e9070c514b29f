"""Clients' keys: what the server is given of them, and the text of one; see app/keys."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "app"))

from keys.inventory import key_text, keys_file


class FilterModule:
    """Ansible's way to find the filters."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"client_keys_file": keys_file, "client_key_text": key_text}
