"""Compares the hardware with what was planned, before the engine starts.

    python3 hardware_guard.py --plan /etc/millrace/plan.json --engine main --report FILE

Ends with 1, and keeps the engine down by that (its unit requires ours), when a card that it needs
is missing, the driver does not see it, or library and module are of two versions. A card that
the plan does not know disturbs nothing: it is said. The backend shows the report in /readyz.

Standard library only: it runs under the system's Python, beside gpu_hardware.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import gpu_hardware

AGAIN_SECONDS = 5.0
# systemd's journal reads a line's priority from its beginning, sd-daemon(3).
ERROR, WARNING = "<3>", "<4>"


def compare(
    plan: Mapping[str, Any], engine: str, seen: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """Return what keeps the engine from starting, and what is only to be known; a line each.

    `plan`: the serving plan; `engine`: the name of one in it; `seen`: what gpu_hardware.observe()
    returned.
    """
    cards = plan["hardware"]["cards"]
    needed = [card for card in cards if card["engine"] == engine]
    left = [gpu for gpu in seen["gpus"] if gpu["vendor"] == gpu_hardware.NVIDIA]
    problems: list[str] = []
    notes: list[str] = []
    found: list[Mapping[str, Any]] = []
    # By its own name first: a card keeps it wherever it is plugged in.
    for same in (_same_uuid, _same_place, _same_kind):
        for card in [c for c in cards if c not in found]:
            gpu = next((gpu for gpu in left if same(card, gpu)), None)
            if gpu is None:
                continue
            left.remove(gpu)
            found.append(card)
            if card in needed and seen["driver"]["module_version"] and not gpu.get("uuid"):
                problems.append(
                    f"{_name(card)} is plugged in and the driver does not see it: it may have "
                    "fallen off the bus (journalctl -k -g Xid says 79), and then only switching "
                    "the power off and on brings it back"
                )
    for card in cards:
        if card in found:
            continue
        if card in needed:
            problems.append(
                f"{_name(card)} is missing, and the plan needs it: put it back, or plan anew for "
                "what is there with ./millrace site"
            )
        else:
            what = f"engine {card['engine']}" if card["engine"] else "nothing"
            notes.append(f"{_name(card)} is gone; {what} was planned for it")
    notes += [
        f"{gpu.get('name') or 'an NVIDIA card ' + gpu['device']} at {gpu['pci_address']} is new: "
        "nothing uses it until ./millrace site plans with it"
        for gpu in left
    ]
    if not needed:
        return [], notes + _unused(plan, cards, found)
    return [*_driver(seen["driver"]), *problems], notes + _unused(plan, cards, found)


def _driver(driver: Mapping[str, Any]) -> list[str]:
    loaded, library = driver["module_version"], driver["library_version"]
    if not loaded:
        return [
            "no NVIDIA module is loaded: see `dkms status` and `journalctl -k -g NVRM`; a new "
            "kernel without its headers looks like this. ./millrace site mends it"
        ]
    if library and library != loaded:
        return [
            f"the loaded NVIDIA module is {loaded} and the library on disk {library}: an upgrade "
            "went in under a running module; reboot"
        ]
    if driver["problem"]:
        return [f"nvidia-smi says: {driver['problem']}"]
    return []


def _unused(
    plan: Mapping[str, Any], cards: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Say which cards were there when it was planned and do nothing."""
    idle = [card for card in cards if not card["engine"] and card in found]
    if not idle:
        return []
    names = ", ".join(_name(card) for card in idle)
    if all(engine["device"] == "cpu" for engine in plan["engines"]):
        return [f"vllm_device is cpu, and {names} does nothing"]
    return [f"the plan leaves {names} idle (/etc/millrace/plan.json, decided.reasons, says why)"]


def _same_uuid(card: Mapping[str, Any], gpu: Mapping[str, Any]) -> bool:
    return bool(card["uuid"]) and card["uuid"] == gpu.get("uuid")


def _same_place(card: Mapping[str, Any], gpu: Mapping[str, Any]) -> bool:
    return card["pci_address"] == gpu["pci_address"] and _same_kind(card, gpu)


def _same_kind(card: Mapping[str, Any], gpu: Mapping[str, Any]) -> bool:
    """Whether it may be the same: one that is known to be another is not."""
    both_known = bool(card["uuid"]) and bool(gpu.get("uuid"))
    return card["device"] == gpu["device"] and not both_known


def _name(card: Mapping[str, Any]) -> str:
    return f"{card['name']} at {card['pci_address']}"


def look(plan_file: Path, engine: str, root: Path) -> dict[str, Any]:
    """Return the report: `checked_at`, `problems` and `notes`."""
    try:
        plan = json.loads(plan_file.read_bytes())
        problems, notes = compare(plan, engine, gpu_hardware.observe(root, []))
    except (OSError, ValueError, KeyError, TypeError) as error:
        # A plan of another version, or none: no reason to keep an engine down that may well run.
        problems, notes = [], [f"{plan_file} cannot be read: {error!r}; run ./millrace site"]
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")  # noqa: UP017  # Python 3.10
    return {"checked_at": now, "problems": problems, "notes": notes}


def write(report: dict[str, Any], file: Path) -> None:
    """Write the report for whoever reads it, whole or not at all."""
    file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    fresh.chmod(0o644)
    fresh.replace(file)


def main() -> int:
    """Compare, report, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--plan", type=Path, required=True, help="the serving plan, as JSON")
    parser.add_argument("--engine", required=True, help="the engine that is to start")
    parser.add_argument("--report", type=Path, required=True, help="where to write what was found")
    parser.add_argument(
        "--wait", type=float, default=0, metavar="SECONDS",
        help="look again for so long before a problem is taken for one",
    )  # fmt: skip
    parser.add_argument("--root", type=Path, default=Path("/"), help="another root is for tests")
    asked = parser.parse_args()
    until = time.monotonic() + asked.wait
    said: list[str] = []
    while True:
        report = look(asked.plan, asked.engine, asked.root)
        write(report, asked.report)
        for priority, lines in ((ERROR, report["problems"]), (WARNING, report["notes"])):
            for line in lines:
                if line not in said:
                    print(f"{priority}{line}.", file=sys.stderr, flush=True)
                    said.append(line)
        if not report["problems"] or time.monotonic() >= until:
            break
        time.sleep(AGAIN_SECONDS)
    if not report["problems"]:
        print("All that was planned for is there.")
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
