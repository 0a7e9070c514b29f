"""What a zone was like before us, in a file on the controller: `absent` puts it back."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from ansible.module_utils.cloudflare_merge import RECORD_FIELDS, Change


class Memory:
    """What was there before us, kept in a file on the controller.

    Written before anything is changed, so that a run that breaks off forgets nothing.
    """

    def __init__(self, path: Path, zone_id: str) -> None:
        self.path = path
        self.zone_id = zone_id
        self.kept: dict[str, Any] = {"zone": zone_id, "settings": {}, "dns": []}
        with contextlib.suppress(FileNotFoundError):
            found = json.loads(path.read_text())
            if found.get("zone") == zone_id:
                self.kept = found

    def write(self) -> None:
        """Replace the file whole; without anything to remember there is none."""
        if not self.kept["settings"] and not self.kept["dns"]:
            self.path.unlink(missing_ok=True)
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_name(self.path.name + ".new")
        with os.fdopen(os.open(fresh, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
            json.dump(self.kept, file, indent=2)
            file.write("\n")
        fresh.replace(self.path)

    def forget(self, change: Change) -> None:
        """Take back what was noted for a setting that was refused."""
        if change.area == "setting":
            kept = self.kept["settings"].get(change.where)
            if kept and kept["before"] == change.before:
                del self.kept["settings"][change.where]
                self.write()

    def drop_setting(self, name: str) -> None:
        """A setting is as it was before us."""
        del self.kept["settings"][name]
        self.write()

    def drop_record(self, record: dict[str, Any]) -> None:
        """A record is back."""
        self.kept["dns"].remove(record)
        self.write()

    def note(self, change: Change) -> None:
        """Keep what a change is about to replace, unless it is our own."""
        if change.area == "setting":
            before = self.kept["settings"].get(change.where, {}).get("before", change.before)
            self.kept["settings"][change.where] = {"before": before, "set": change.variants[0]}
        elif change.area == "dns" and change.action == "delete" and not change.ours:
            record = {key: change.before.get(key) for key in RECORD_FIELDS}
            if record not in self.kept["dns"]:
                self.kept["dns"].append(record)
        self.write()
