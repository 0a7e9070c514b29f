"""The catalogue of cards: what a card is, by its name or by its PCI id."""

from __future__ import annotations

import difflib
import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.problem import PlanError

CATALOGUE = Path(__file__).parent / "data/cards.json"

CONTEXT_MIB = 470
"""What CUDA sees less than nvidia-smi's total, where no log says it: 380 to 640 MiB on most cards
that both were published of, 770 on an A100 80 GB."""
SAME_GIB = 0.1
"""Drivers differ by less in what they show of one card; with ECC switched it is another size."""
USABLE_SHARE = 0.97
"""Of the nominal size, where neither figure is known: drivers keep 1.5 to 3 %."""
ECC_SHARE = 0.9375
"""GDDR with ECC on keeps a sixteenth for its codes."""


@dataclass(frozen=True)
class Card:
    """One kind of card. Memory in GiB, bandwidth in GB/s."""

    name: str
    architecture: str
    compute_capability: tuple[int, int]
    memory_gib: float
    # What CUDA can give out, on a machine where nothing else uses the card.
    cuda_memory_gib: float
    bandwidth_gb_s: float
    # What nvidia-smi shows as the total; 0 where nobody has written it down.
    smi_memory_gib: float = 0.0

    @property
    def capability(self) -> str:
        """The compute capability as NVIDIA writes it."""
        return ".".join(map(str, self.compute_capability))


def by_name(name: str) -> Card:
    """Return the card of that name, as it is sold or as nvidia-smi prints it.

    Raises PlanError that names the nearest ones.
    """
    known = _names()
    plain = _plain(name)
    if entry := known.get(plain):
        return _card(entry)
    near = difflib.get_close_matches(plain, known, 4, 0.6)
    near += [text for text in known if plain and plain in text and text not in near]
    titles = list(dict.fromkeys(known[text]["name"] for text in near))[:4]
    hint = f": did you mean {', or '.join(titles)}?" if titles else ""
    raise PlanError(f"the catalogue has no card {name!r}{hint or '; --list-gpus shows all'}")


def by_pci(device: str, subsystem: str = "", name: str = "") -> Card | None:
    """Return the card with that PCI device id of NVIDIA's (four hex digits), if it is known.

    `subsystem` (`vendor:device`) and the driver's `name` tell apart what shares an id.
    """
    found = [
        entry
        for entry in _entries()
        if {device.lower(), f"{device}:{subsystem}".lower()} & set(entry["pci_ids"])
    ]
    exact = [entry for entry in found if f"{device}:{subsystem}".lower() in entry["pci_ids"]]
    named = [
        entry
        for entry in found
        if name and _plain(name) in (_plain(entry["name"]), _plain(entry.get("printed_as", "")))
    ]
    best = named or exact or found
    return _card(best[0]) if best else None


def capability_of(text: str) -> tuple[int, int]:
    """Return a compute capability as numbers; (0, 0) for what is none."""
    major, _, minor = text.partition(".")
    return (int(major), int(minor or 0)) if major.isdigit() else (0, 0)


def from_driver(name: str, memory_mib: int, capability: str, known: Card | None) -> Card:
    """Return the card as its own driver describes it: its memory is measured, not looked up."""
    number = capability_of(capability)
    usable = (memory_mib - CONTEXT_MIB) / 1024
    if known and abs(known.smi_memory_gib - memory_mib / 1024) < SAME_GIB:
        usable = known.cuda_memory_gib
    return Card(
        name=name or (known.name if known else "unknown card"),
        architecture=known.architecture if known else architecture_of(number),
        compute_capability=number if any(number) else known.compute_capability if known else number,
        memory_gib=known.memory_gib if known else round(memory_mib / 1024),
        cuda_memory_gib=usable,
        bandwidth_gb_s=known.bandwidth_gb_s if known else 0.0,
        smi_memory_gib=memory_mib / 1024,
    )


def architecture_of(capability: tuple[int, int]) -> str:
    """Return the architecture's name; newer than all of ours is `newer`, older is `older`."""
    names = {
        5: "maxwell", 6: "pascal", 7: "volta" if capability[1] < 5 else "turing",
        8: "ada" if capability[1] == 9 else "ampere", 9: "hopper",
        10: "blackwell", 11: "blackwell", 12: "blackwell",
    }  # fmt: skip
    return names.get(capability[0], "newer" if capability[0] > 12 else "older")


def names() -> list[str]:
    """Return every card's name."""
    return [entry["name"] for entry in _entries()]


def _plain(name: str) -> str:
    text = re.sub(
        r"\b(nvidia|geforce|tesla|quadro|generation|edition|gpu)\b|\(r\)|\(tm\)", " ", name.lower()
    )
    return re.sub(r"[^a-z0-9]", "", text)


@functools.cache
def _entries() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(CATALOGUE.read_text(encoding="utf-8"))["cards"]
    return found


@functools.cache
def _names() -> dict[str, dict[str, Any]]:
    known: dict[str, dict[str, Any]] = {}
    for entry in _entries():
        for name in [entry["name"], *entry["aliases"]]:
            known.setdefault(_plain(name), entry)
    return known


def _card(entry: dict[str, Any]) -> Card:
    if entry.get("cuda_memory_gib"):
        usable = entry["cuda_memory_gib"]
    elif entry.get("smi_memory_mib"):
        usable = (entry["smi_memory_mib"] - CONTEXT_MIB) / 1024
    else:
        usable = entry["memory_gib"] * USABLE_SHARE * (ECC_SHARE if entry.get("ecc_default") else 1)
    return Card(
        name=entry["name"],
        architecture=entry["architecture"],
        compute_capability=capability_of(entry["compute_capability"]),
        memory_gib=entry["memory_gib"],
        cuda_memory_gib=usable,
        bandwidth_gb_s=entry["bandwidth_gb_s"],
        smi_memory_gib=(entry.get("smi_memory_mib") or 0) / 1024,
    )
