"""The machine as the planner sees it: read from observed facts, a file, or a card's name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from planner import cards
from planner.cards import Card
from planner.problem import PlanError

NVIDIA = "10de"
KERNEL_LINE = re.compile(r"linux-image-((?:cloud-|rt-)?[a-z]\w*(?:-hwe-\d+\.\d+)?)")
"""linux-image-amd64 and linux-image-generic-hwe-24.04, but no linux-image-6.8.0-90-generic."""
DISPLAY_CLASSES = ("0300", "0302")
MODERN_SYSTEM = ("Debian", "13")


@dataclass(frozen=True)
class Gpu:
    """One card in the machine. `uuid` is empty while no driver runs."""

    card: Card
    uuid: str = ""
    pci_address: str = ""
    is_mig: bool = False

    @property
    def name(self) -> str:
        """How to point at it."""
        return self.uuid or self.pci_address or self.card.name


@dataclass(frozen=True)
class Machine:
    """What the plan depends on."""

    gpus: tuple[Gpu, ...] = ()
    # Cards that no plan can use, each with the reason.
    unusable: tuple[str, ...] = ()
    # One of NVIDIA's is among them that only a driver could describe.
    has_unknown: bool = False
    cores: int = 8
    memory_gib: float = 32.0
    distribution: str = MODERN_SYSTEM[0]
    version: str = MODERN_SYSTEM[1]
    has_secure_boot: bool = False
    has_enrolled_key: bool = False
    # What the system calls its line of kernels: generic, generic-hwe-24.04, amd64, cloud-amd64.
    kernel_line: str = ""
    # Of the loaded kernel module, and of the library; empty without.
    driver_version: str = ""
    library_version: str = ""


def of_cards(name: str, count: int, *, ram_gib: float, cores: int, system: str = "") -> Machine:
    """Return a machine with `count` cards of one kind. Raises PlanError."""
    card = cards.by_name(name)
    distribution, _, version = (system or " ".join(MODERN_SYSTEM)).partition(" ")
    gpus = tuple(Gpu(card, pci_address=f"card {n}") for n in range(count))
    return Machine(
        gpus, cores=cores, memory_gib=ram_gib, distribution=distribution, version=version
    )


def from_facts(facts: Mapping[str, Any]) -> Machine:
    """Return the machine that `gpu_hardware_facts` observed. Raises PlanError for others."""
    try:
        return _from_facts(facts)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PlanError(f"these are no facts of a machine: {error!r}") from None


def from_profile(profile: Mapping[str, Any], cores: int, ram_gib: float) -> Machine:
    """Return the machine of a hardware profile: PCI devices as sandbox servers show them, and what
    a profile does not tell. Raises PlanError.
    """
    try:
        gpus = [
            {**device, "pci_address": device["slot"]}
            for device in profile["pci"]
            if str(device["class"]).startswith(DISPLAY_CLASSES)
        ]
    except (KeyError, TypeError) as error:
        raise PlanError(f"this is no profile of a machine: {error!r}") from None
    return from_facts({"gpus": gpus, "cpu": {"cores": cores}, "memory_mib": 1024 * ram_gib})


def _from_facts(facts: Mapping[str, Any]) -> Machine:
    gpus: list[Gpu] = []
    unusable: list[str] = []
    has_unknown = False
    for seen in facts["gpus"]:
        address = str(seen.get("pci_address", "?"))
        if str(seen["vendor"]).lower() != NVIDIA:
            unusable.append(f"{address}: {seen['vendor']}:{seen['device']} is not from NVIDIA")
            continue
        card = card_of(seen)
        if card is None:
            has_unknown = True
            unusable.append(
                f"{address}: the catalogue does not know NVIDIA's {seen['device']} and no driver "
                "describes it; install a driver and run again, or add it to cards_extra.json"
            )
            continue
        gpus.append(Gpu(card, str(seen.get("uuid") or ""), address, bool(seen.get("mig"))))
    system, driver = facts.get("system", {}), facts.get("driver", {})
    return Machine(
        gpus=tuple(gpus),
        unusable=tuple(unusable),
        has_unknown=has_unknown,
        cores=int(facts.get("cpu", {}).get("cores") or 1),
        memory_gib=float(facts.get("memory_mib") or 0) / 1024,
        distribution=str(system.get("distribution") or MODERN_SYSTEM[0]),
        version=str(system.get("version") or MODERN_SYSTEM[1]),
        has_secure_boot=bool(facts.get("secure_boot")),
        has_enrolled_key=bool(facts.get("enrolled_key")),
        kernel_line=_kernel_line(driver.get("kernels", {}), str(facts.get("kernel") or "")),
        driver_version=str(driver.get("module_version") or ""),
        library_version=str(driver.get("library_version") or ""),
    )


def _kernel_line(kernels: Mapping[str, str], running: str) -> str:
    """Return the line of kernels that the running one is of; empty where no package tells.

    A line's package has its newest kernel's version: 6.14.0-32.32~24.04.1 of 6.14.0-32-generic.
    """
    lines = {
        found[1]: version
        for name, version in kernels.items()
        if (found := KERNEL_LINE.fullmatch(name))
    }
    abi = running.rpartition("-")[0]
    mine = [line for line, version in lines.items() if abi and version.startswith(f"{abi}.")]
    return next(iter(mine or lines), "")


def card_of(seen: Mapping[str, Any]) -> Card | None:
    """Return the card that was observed, as its driver or else the catalogue describes it."""
    name = str(seen.get("name") or "")
    known = cards.by_pci(str(seen["device"]), str(seen.get("subsystem") or ""), name)
    if seen.get("memory_mib"):
        return cards.from_driver(
            name, int(seen["memory_mib"]), str(seen.get("compute_capability") or ""), known
        )
    return known


def groups(gpus: Sequence[Gpu]) -> list[tuple[Gpu, ...]]:
    """Return the cards in groups of one kind, the group with the most memory first."""
    kinds: dict[tuple[str, float], list[Gpu]] = {}
    for gpu in gpus:
        kinds.setdefault((gpu.card.name, round(gpu.card.cuda_memory_gib, 1)), []).append(gpu)
    found = [tuple(group) for group in kinds.values()]
    return sorted(found, key=lambda g: -sum(gpu.card.cuda_memory_gib for gpu in g))
