"""Puts the rendered ruleset in force, and says whether what is in force is it.

    python3 firewall.py load      the file's table, whole, in place of ours; without a file, none
    python3 firewall.py agrees    ends with 1 when the kernel's table is not what the file says

Standard library only: it runs under the system's Python, at boot and for the role `firewall`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RULESET = Path("/etc/millrace/firewall/millrace.nft")
RANGES = Path("/etc/millrace/firewall/cloudflare.nft")
TABLE = ("inet", "millrace")
FILLED_BY_OTHERS = ("cloudflare4", "cloudflare6")
# systemd's journal reads a line's priority from its beginning, sd-daemon(3).
WARNING = "<4>"


def call(argv: Sequence[str], given: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command and keep what it printed."""
    return subprocess.run(list(argv), input=given, capture_output=True, text=True, check=False)


def load() -> int:
    """Put the file in force; one that is gone means no table of ours."""
    if not RULESET.exists():
        remove = f"table {' '.join(TABLE)}\ndelete table {' '.join(TABLE)}\n"
        return told(call(["nft", "-f", "-"], remove))
    rules = RULESET.read_text()
    ranges = RANGES.read_text() if RANGES.exists() else ""
    done = call(["nft", "-f", "-"], rules + ranges)
    if done.returncode and ranges:
        # Closed to Cloudflare until its ranges are renewed, and to nobody else.
        print(f"{WARNING}{RANGES} is left out: {done.stderr.strip()}", file=sys.stderr)
        done = call(["nft", "-f", "-"], rules)
    return told(done)


def told(done: subprocess.CompletedProcess[str]) -> int:
    """Pass on what a command said of its failure."""
    if done.returncode:
        print(done.stderr.strip(), file=sys.stderr)
    return done.returncode


def plain(listing: str) -> Any:
    """Reduce nft's JSON to what was asked for: no handles, no counts, no order within sets."""

    def reduce(value: Any) -> Any:
        if isinstance(value, dict):
            kept = {k: reduce(v) for k, v in value.items() if k != "handle"}
            if kept.get("name") in FILLED_BY_OTHERS:
                kept.pop("elem", None)
            if isinstance(kept.get("set"), list):
                kept["set"] = sorted(kept["set"], key=json.dumps)
            return kept
        return [reduce(item) for item in value] if isinstance(value, list) else value

    entries = json.loads(listing)["nftables"]
    return [reduce(entry) for entry in entries if "metainfo" not in entry]


def agrees() -> int:
    """Compare the table in force, whole, with what the file makes in an empty network."""
    listing = ["nft", "--stateless", "--json", "list", "table", *TABLE]
    here = call(listing)
    if not RULESET.exists():
        return 0 if here.returncode else 1
    if here.returncode:
        return 1
    both = f"nft -f {RULESET} && {' '.join(listing)}"
    wanted = call(["unshare", "--net", "sh", "-c", both])
    if wanted.returncode:  # no right to make a network: that it is there must do
        print(f"{WARNING}it cannot be compared: {wanted.stderr.strip()}", file=sys.stderr)
        return 0
    return 0 if plain(here.stdout) == plain(wanted.stdout) else 1


def main(arguments: Sequence[str]) -> int:
    """Run one command."""
    commands = {"load": load, "agrees": agrees}
    if len(arguments) != 1 or arguments[0] not in commands:
        print("usage: firewall.py load | agrees", file=sys.stderr)
        return 2
    return commands[arguments[0]]()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
