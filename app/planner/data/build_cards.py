"""Writes cards.json, the catalogue of cards, from what NVIDIA and others publish.

Three inputs: NVIDIA's own list of PCI ids and names (README.md of
https://github.com/NVIDIA/open-gpu-kernel-modules, or a driver's supported-gpus.json), pci.ids
(https://github.com/pciutils/pciids), which knows the older cards and every card's chip, and
cards_extra.json beside this script: memory, bandwidth and the like, which no list for machines
has, each with its source. Nothing is looked up here; what the inputs do not agree on is an error.

Exit codes: 0 written, or with --check as it should be; 1 --check found it otherwise; 2 the inputs
contradict each other.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
VENDOR = "10de"

DRIVER, PCI_IDS, CAPABILITIES = "open-gpu-kernel-modules", "pci.ids", "cuda-gpus"
SOURCES = {
    DRIVER: {
        "url": "https://github.com/NVIDIA/open-gpu-kernel-modules/blob/main/README.md",
        "note": "Names as nvidia-smi prints them, with their PCI ids. Turing and newer.",
    },
    PCI_IDS: {
        "url": "https://github.com/pciutils/pciids/blob/master/pci.ids",
        "note": "The chip of every card, and the names of what NVIDIA's list has not.",
    },
    CAPABILITIES: {
        "url": "https://developer.nvidia.com/cuda-gpus",
        "version": "with https://developer.nvidia.com/cuda-legacy-gpus, read in November 2026",
        "note": "A card has the compute capability of its chip; so it counts for cards that these"
        " pages leave out.",
    },
}

CHIPS = {
    "GM2": ("maxwell", "5.2"),
    "GP10": ("pascal", "6.1"),
    "GP100": ("pascal", "6.0"),
    "GV100": ("volta", "7.0"),
    "TU1": ("turing", "7.5"),
    "GA10": ("ampere", "8.6"),
    "GA100": ("ampere", "8.0"),
    "AD10": ("ada", "8.9"),
    "GH100": ("hopper", "9.0"),
    "GB10": ("blackwell", "10.0"),
    "GB10B": ("blackwell", "11.0"),
    "GB11": ("blackwell", "10.3"),
    "GB20": ("blackwell", "12.0"),
    "GB20B": ("blackwell", "12.1"),
}
"""By the beginning of a chip's name, the longest that fits: architecture, compute capability."""

LISTED = ("aliases", "pci_ids", "shared_pci_ids")
PLAIN = ("name", "printed_as", "kind", "laptop")
VALUES = (
    "memory_gib",
    "cuda_memory_gib",
    "smi_memory_mib",
    "bandwidth_gb_s",
    "nvlink",
    "mig",
    "ecc_default",
    "tdp_watts",
)
"""What cards_extra.json gives as [value, source]; null where a source was asked in vain."""
REQUIRED = {"name", "aliases", "pci_ids", "kind"} | set(VALUES) - {
    "cuda_memory_gib",
    "smi_memory_mib",
    "tdp_watts",
}


class CatalogueError(Exception):
    """The inputs contradict each other; the text has a line for each contradiction."""


@dataclass(frozen=True)
class Lists:
    """What the two lists for machines say. Ids as in cards.json: `2b85` or `25b6:10de:14a9`."""

    driver_version: str
    # By id: the name that the driver prints.
    driver_names: dict[str, str]
    pci_version: str
    # By device id, without the subsystem.
    chips: dict[str, str]
    pci_names: dict[str, str]

    def names(self, pci_id: str) -> list[str]:
        """Return what a card with that id may be called: NVIDIA's word if it has one."""
        if known := self._of_driver(pci_id):
            return sorted(known)
        # Of pci.ids only whole device ids count: with a subsystem it means one vendor's board.
        return [self.pci_names[pci_id]] if pci_id in self.pci_names else []

    def has_driver_name(self, pci_id: str) -> bool:
        """Whether NVIDIA's list has the id."""
        return bool(self._of_driver(pci_id))

    def _of_driver(self, pci_id: str) -> set[str]:
        # An id without a subsystem stands for all cards with that device id but those named apart.
        if ":" in pci_id or pci_id in self.driver_names:
            return {self.driver_names[pci_id]} if pci_id in self.driver_names else set()
        start = f"{pci_id}:"
        return {name for key, name in self.driver_names.items() if key.startswith(start)}


def read_driver_list(path: Path) -> tuple[str, dict[str, str]]:
    """Return the version and the names by id, of README.md or supported-gpus.json."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return path.name, dict(_json_names(json.loads(text)["chips"]))
    version = re.search(r"version ([\d.]+\d)", text)
    rows = re.finditer(r"^\| *(\S.*?) *\| *([0-9A-F]{4}(?: [0-9A-F]{4}){0,2}) *\|$", text, re.M)
    names = {row[2].lower().replace(" ", ":"): row[1] for row in rows}
    return version[1] if version else "unknown", names


def read_pci_ids(path: Path) -> tuple[str, dict[str, str], dict[str, str]]:
    """Return the version, the chips and the names by device id, of NVIDIA's part of pci.ids."""
    text = path.read_text(encoding="utf-8")
    version = re.search(r"Version: *(\S+)", text)
    part = re.search(rf"^{VENDOR}  .*\n((?:[\t#].*\n|\n)*)", text, re.M)
    chips, names = {}, {}
    for device, title in re.findall(r"^\t([0-9a-f]{4})  (.+)$", part[1] if part else "", re.M):
        chips[device] = title.split()[0]
        if named := re.search(r"\[(.+)\]", title):
            names[device] = named[1]
    return version[1] if version else "unknown", chips, names


def catalogue(extra: dict[str, Any], lists: Lists) -> dict[str, Any]:
    """Return what cards.json is to hold. Raises CatalogueError."""
    known = {**SOURCES, **extra["sources"]}
    cards = sorted(extra["cards"], key=lambda card: str(card["name"]).lower())
    problems = [*_twice(cards), *(f for card in cards for f in _faults(card, lists, known))]
    if problems:
        raise CatalogueError("\n".join(problems))
    entries = [_entry(card, lists) for card in cards]
    versions = {DRIVER: lists.driver_version, PCI_IDS: lists.pci_version}
    sources = {
        name: {**about, **({"version": versions[name]} if name in versions else {})}
        for name, about in sorted(known.items())
    }
    return {"sources": sources, "cards": entries}


def render(content: dict[str, Any]) -> str:
    """Return the text of cards.json: the same content always gives the same text."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def write(path: Path, text: str) -> None:
    """Replace the file in one step, so that nobody reads half a catalogue."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def main(argv: list[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    options = _arguments(argv)
    try:
        text = render(catalogue(_read_extra(options.extra), _read_lists(options)))
    except (CatalogueError, KeyError, ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    if options.check:
        is_right = options.out.is_file() and options.out.read_text(encoding="utf-8") == text
        print(f"{options.out.name} is {'as it should be' if is_right else 'not what is written'}")
        return 0 if is_right else 1
    write(options.out, text)
    print(f"{options.out.name}: {len(json.loads(text)['cards'])} cards")
    return 0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--driver-list",
        type=Path,
        required=True,
        metavar="FILE",
        help="README.md of open-gpu-kernel-modules, or a driver's supported-gpus.json",
    )
    parser.add_argument(
        "--pci-ids", type=Path, required=True, metavar="FILE", help="pci.ids of pciutils/pciids"
    )
    parser.add_argument(
        "--extra", type=Path, default=HERE / "cards_extra.json", metavar="FILE", help="kept by hand"
    )
    parser.add_argument("--out", type=Path, default=HERE / "cards.json", metavar="FILE")
    parser.add_argument("--check", action="store_true", help="write nothing, only compare")
    return parser.parse_args(argv)


def _read_extra(path: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return read


def _read_lists(options: argparse.Namespace) -> Lists:
    driver_version, driver_names = read_driver_list(options.driver_list)
    pci_version, chips, pci_names = read_pci_ids(options.pci_ids)
    if not driver_names or not chips:
        raise CatalogueError("a list holds no card: are these the files that --help names?")
    return Lists(driver_version, driver_names, pci_version, chips, pci_names)


def _json_names(chips: Iterable[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    for chip in chips:
        parts = [chip["devid"], chip.get("subvendorid"), chip.get("subdeviceid")]
        yield ":".join(part[2:].lower() for part in parts if part), chip["name"]


def _twice(cards: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Say which id, name or alias two cards claim."""
    ids, names = Counter[str](), Counter[str]()
    for card in cards:
        ids.update(card["pci_ids"])
        names.update({name.lower() for name in [card["name"], *card["aliases"]]})
    for found, what in ((ids, "PCI id"), (names, "name")):
        for key, times in found.items():
            if times > 1:
                yield f"{what} {key} belongs to {times} cards"


def _faults(card: dict[str, Any], lists: Lists, known: dict[str, Any]) -> Iterator[str]:
    """Say what is wrong with a card, and which of its ids no list names so."""
    name = card["name"]
    for field in sorted(REQUIRED - set(card)):
        yield f"{name}: no {field}"
    for field in sorted(set(card) - {*PLAIN, *LISTED, *VALUES}):
        yield f"{name}: unknown field {field}"
    for field in VALUES:
        source = card[field][1] if field in card else DRIVER
        if source not in known and not str(source).startswith("https://"):
            yield f"{name}: {field} has no known source: {source}"
    if not _ids(card):
        yield f"{name}: no PCI id"
    for pci_id in _ids(card):
        yield from _unnamed(card, pci_id, lists)
    if len({_kind_of_chip(lists.chips.get(_device(i), "")) for i in _ids(card)}) > 1:
        yield f"{name}: its PCI ids are of different architectures"


def _unnamed(card: dict[str, Any], pci_id: str, lists: Lists) -> Iterator[str]:
    """Say so if the lists do not call a card with that id as this one or its aliases."""
    if not _kind_of_chip(lists.chips.get(_device(pci_id), "")):
        yield f"{card['name']}: pci.ids has no chip that we know for {pci_id}"
    mine = [_plain(name) for name in (card.get("printed_as", card["name"]), *card["aliases"])]
    theirs = lists.names(pci_id)
    for title in theirs:
        plain = _plain(title)
        if lists.has_driver_name(pci_id):
            is_mine = plain in mine
        elif pci_id in card["pci_ids"]:
            # pci.ids adds what a driver does not print: Rev. A, Lite Hash Rate, 12GB.
            is_mine = any(plain.startswith(name) for name in mine)
        else:
            is_mine = any(name.startswith(plain) for name in mine)
        if not is_mine:
            yield f"{card['name']}: {pci_id} is called {title!r}"
    if not theirs:
        yield f"{card['name']}: no list names {pci_id}"


def _entry(card: dict[str, Any], lists: Lists) -> dict[str, Any]:
    """Return the card as it stands in cards.json, with the source of each value."""
    of_chip = _kind_of_chip(lists.chips[_device(_ids(card)[0])])
    assert of_chip  # _faults() saw to it
    is_named = all(lists.has_driver_name(pci_id) for pci_id in _ids(card))
    named_by = DRIVER if is_named else PCI_IDS
    entry = {field: card[field] for field in PLAIN[:2] if field in card}
    entry |= {field: sorted(card[field]) for field in LISTED if field in card}
    entry |= {field: card[field] for field in PLAIN[2:] if field in card}
    entry |= {"architecture": of_chip[0], "compute_capability": of_chip[1]}
    entry |= {field: card[field][0] for field in VALUES if field in card}
    entry["sources"] = {
        "name": named_by,
        "pci_ids": named_by,
        "architecture": PCI_IDS,
        "compute_capability": CAPABILITIES,
        **{field: card[field][1] for field in VALUES if field in card},
    }
    return entry


def _ids(card: dict[str, Any]) -> list[str]:
    return [*card["pci_ids"], *card.get("shared_pci_ids", [])]


def _device(pci_id: str) -> str:
    return pci_id.partition(":")[0]


def _kind_of_chip(chip: str) -> tuple[str, str] | None:
    fits = [start for start in CHIPS if chip.startswith(start)]
    return CHIPS[max(fits, key=len)] if fits else None


def _plain(name: str) -> str:
    return re.sub(r"nvidia|[^a-z0-9]", "", name.lower())


if __name__ == "__main__":
    sys.exit(main())
