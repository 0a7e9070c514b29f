"""Which driver: where it comes from, branch, flavour of its modules; and what cannot work.

Sources: NVIDIA's Driver Installation Guide (repositories, package names, pinning), the CUDA
release notes (the driver each CUDA needs), NVIDIA's data-centre driver life cycle (branches).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from planner.machine import Machine

WHEEL_CUDA = "13.0"
WHEEL_DRIVER = (580, 65)
"""CUDA 13.0 needs 580.65.06; our vLLM wheel is built for it."""
WHEEL_CAPABILITY = (7, 5)
"""The oldest cards that the wheel has kernels for."""

BRANCHES: Mapping[int, str] = {
    535: "has ended",
    550: "has ended",
    570: "has ended",
    580: "long-term support to the middle of 2028",
    590: "has ended",
    595: "production",
}
DEFAULT_BRANCH = 580
"""The long-term one knows every card from Maxwell to Blackwell."""
FIRST_BRANCH = {"blackwell": 570, "ada": 525, "hopper": 525}
LAST_BRANCH = {"maxwell": 580, "pascal": 580, "volta": 580}
OPEN_ONLY = {"blackwell"}
PROPRIETARY_ONLY = {"maxwell", "pascal", "volta"}

ARCHIVE_BRANCH = {("Debian", "12"): 535, ("Debian", "13"): 550}
"""What Debian's non-free has. Ubuntu's archive has every live branch."""
REPOSITORIES = {
    ("Ubuntu", "22.04"): "ubuntu2204",
    ("Ubuntu", "24.04"): "ubuntu2404",
    ("Debian", "12"): "debian12",
    ("Debian", "13"): "debian13",
}
UBUNTU_TOOLS = ("libnvidia-compute", "nvidia-utils", "nvidia-compute-utils")
UNBRANCHED_NAMES = 590
"""From here on NVIDIA's package names carry no branch and need the pinning package."""


@dataclass(frozen=True)
class DriverWish:
    """What the owner set; empty: the planner's choice."""

    source: str = ""
    branch: int = 0
    flavour: str = ""


def decide(machine: Machine, wish: DriverWish | None = None) -> dict[str, Any]:
    """Return `{source, branch, flavour, repository, packages, ..., reasons, refusals}`."""
    wish = wish or DriverWish()
    needless = not machine.gpus and not machine.has_unknown
    if needless or wish.source == "none":
        told = ["none: no card needs one" if needless else "none: as plan_driver_source says"]
        return {"source": "none", "branch": None, "flavour": None, "reasons": told, "refusals": []}
    reasons: list[str] = []
    refusals: list[str] = []
    families = {gpu.card.architecture: gpu.card.name for gpu in machine.gpus}
    flavour = _flavour(families, wish, reasons, refusals)
    source = _source(machine, wish, reasons)
    branch = _branch(machine, families, source, wish, reasons, refusals)
    _secure_boot(machine, source, reasons, refusals)
    system = _system(machine)
    if system not in REPOSITORIES:
        known = ", ".join(" ".join(known) for known in REPOSITORIES)
        here = " ".join(system)
        refusals.append(f"no driver is packaged for {here}: reinstall with one of {known}")
    return {
        "source": source,
        "branch": str(branch),
        "branch_status": BRANCHES.get(branch, "unknown to this version of Millrace"),
        "flavour": flavour,
        "repository": REPOSITORIES.get(system, "") if source == "nvidia" else "",
        "keyring_package": "cuda-keyring" if source == "nvidia" else "",
        "pinning_package": f"nvidia-driver-pinning-{branch}" if source == "nvidia" else "",
        "packages": packages(system, source, branch, flavour, machine.kernel_line),
        "cuda_minimum": WHEEL_CUDA,
        "driver_minimum": ".".join(map(str, WHEEL_DRIVER)),
        "reasons": reasons,
        "refusals": refusals,
    }


def running_problem(machine: Machine) -> str:
    """Say what is wrong with an owner's own driver, which the kit leaves alone; else nothing."""
    least = ".".join(map(str, WHEEL_DRIVER))
    loaded, library = machine.driver_version, machine.library_version
    if not loaded:
        return (
            "no NVIDIA driver runs, and plan_driver_source is none: install one of branch "
            f"{DEFAULT_BRANCH}, or leave plan_driver_source empty and the kit does"
        )
    if library and library != loaded:
        return (
            f"the loaded NVIDIA module is {loaded} and the library on disk {library}: an upgrade "
            "went in under a running module; reboot"
        )
    if tuple(int(part) for part in re.findall(r"\d+", loaded)[:2]) < WHEEL_DRIVER:
        return (
            f"NVIDIA driver {loaded} runs, and vLLM's wheel needs {least} or newer: install branch "
            f"{DEFAULT_BRANCH} and reboot"
        )
    return ""


def packages(
    system: tuple[str, str], source: str, branch: int, flavour: str, kernel_line: str = ""
) -> list[str]:
    """Return the packages to install, headless, for a source, branch and flavour.

    `kernel_line`: what the system calls its kernels, generic-hwe-24.04 for one; empty takes its
    usual ones.
    """
    line = kernel_line or ("amd64" if system[0] == "Debian" else "generic")
    headers = f"linux-headers-{line}"
    suffix = "-open" if flavour == "open" else ""
    if system[0] == "Debian":
        module = "nvidia-kernel-open-dkms" if flavour == "open" else "nvidia-kernel-dkms"
        tools = ["nvidia-driver-cuda"] if source == "nvidia" else ["libcuda1", "nvidia-smi"]
        return [headers, module, *tools, "nvidia-persistenced"]
    if source == "distribution":
        return [
            f"linux-modules-nvidia-{branch}-server{suffix}-{line}",
            f"nvidia-headless-no-dkms-{branch}-server{suffix}",
            f"nvidia-utils-{branch}-server",
        ]
    of_branch = f"-{branch}" if branch < UNBRANCHED_NAMES else ""
    tools = [f"{name}{of_branch}" for name in UBUNTU_TOOLS]
    return [headers, f"nvidia-dkms{of_branch}{suffix}", *tools]


def _system(machine: Machine) -> tuple[str, str]:
    version = machine.version
    if machine.distribution == "Debian":
        version = version.partition(".")[0]
    return machine.distribution, version


def _flavour(
    families: Mapping[str, str], wish: DriverWish, reasons: list[str], refusals: list[str]
) -> str:
    opened = [name for family, name in families.items() if family in OPEN_ONLY]
    closed = [name for family, name in families.items() if family in PROPRIETARY_ONLY]
    if opened and closed:
        refusals.append(
            f"{opened[0]} runs with the open kernel modules alone and {closed[0]} with the "
            "proprietary ones alone, and a kernel loads one set: take one of the cards out"
        )
    flavour = "proprietary" if closed and not opened else "open"
    if opened:
        reasons.append(f"open modules: {opened[0]} knows no others")
    elif closed:
        reasons.append(
            f"proprietary modules: the open ones begin with Turing, {closed[0]} is older"
        )
    else:
        reasons.append("open modules: NVIDIA's recommendation from Turing on")
    if wish.flavour and wish.flavour != flavour:
        if opened and wish.flavour == "proprietary":
            refusals.append(
                f"plan_driver_flavour is proprietary, and with those modules {opened[0]} is not "
                'found ("No devices were found"): set it to open'
            )
        elif closed and wish.flavour == "open":
            refusals.append(
                f"plan_driver_flavour is open, and the open modules do not know {closed[0]}: set "
                "it to proprietary"
            )
        else:
            reasons.append(f"{wish.flavour} modules: as plan_driver_flavour says")
        return wish.flavour
    return flavour


def _source(machine: Machine, wish: DriverWish, reasons: list[str]) -> str:
    if wish.source:
        reasons.append(f"from {wish.source}: as plan_driver_source says")
        return wish.source
    if machine.distribution == "Ubuntu":
        reasons.append(
            "from Ubuntu's archive: its modules are built and signed, nothing is compiled"
        )
        return "distribution"
    reasons.append(
        f"from NVIDIA's repository: what {machine.distribution} has itself is too old for CUDA "
        f"{WHEEL_CUDA}"
    )
    return "nvidia"


def _branch(
    machine: Machine, families: Mapping[str, str], source: str, wish: DriverWish,
    reasons: list[str], refusals: list[str],
) -> int:  # fmt: skip
    archive = ARCHIVE_BRANCH.get(_system(machine))
    if source == "distribution" and archive:
        branch = archive
        if wish.branch and wish.branch != archive:
            refusals.append(
                f"{machine.distribution} {machine.version} has only branch {archive}: set "
                "plan_driver_source to nvidia for another"
            )
    else:
        branch = wish.branch or DEFAULT_BRANCH
    for family, name in families.items():
        first, last = FIRST_BRANCH.get(family, 0), LAST_BRANCH.get(family, branch)
        if branch < first:
            refusals.append(
                f"branch {branch} does not know {name}, which needs {first} or newer: take "
                f"{DEFAULT_BRANCH}"
            )
        if branch > last:
            refusals.append(
                f"branch {branch} does not know {name} any more; {last} is its last: take that"
            )
    if branch < WHEEL_DRIVER[0]:
        refusals.append(
            f"the vLLM wheel is built for CUDA {WHEEL_CUDA} and needs driver "
            f"{'.'.join(map(str, WHEEL_DRIVER))} or newer, branch {branch} is older: take "
            f"{DEFAULT_BRANCH} from NVIDIA's repository"
        )
    reasons.append(f"branch {branch}: {BRANCHES.get(branch, 'as plan_driver_branch says')}")
    return branch


def _secure_boot(machine: Machine, source: str, reasons: list[str], refusals: list[str]) -> None:
    if not machine.has_secure_boot:
        return
    if machine.distribution == "Ubuntu" and source == "distribution":
        reasons.append("Secure Boot is on: Canonical's signed modules load with it")
    elif machine.has_enrolled_key:
        reasons.append("Secure Boot is on: DKMS signs the modules with the key that is enrolled")
    else:
        remedy = "turn it off in the firmware, or enrol DKMS's key (mokutil --import) and reboot"
        if machine.distribution == "Ubuntu":
            remedy = (
                "set plan_driver_source to distribution, whose modules are signed, or " + remedy
            )
        refusals.append(
            "Secure Boot is on and the kernel will not load modules that are compiled here, since "
            f"nothing it trusts has signed them: {remedy}"
        )
