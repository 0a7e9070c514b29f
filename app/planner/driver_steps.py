"""What is to be done to a server's driver packages: from what is planned and what is there.

The role `nvidia_driver` carries it out and decides nothing. Pure functions; the facts are those of
`gpu_hardware_facts`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from planner.machine import NVIDIA

PARTS = re.compile(
    r"(nvidia-(?!container|cuda-(toolkit|dev|doc|gdb)|fabricmanager|imex|driver-pinning).*"
    r"|libnvidia-(?!container|nscq).*|libcuda1|libnvcuvid1|cuda-drivers.*"
    r"|xserver-xorg-video-nvidia.*|firmware-nvidia-gsp.*|linux-modules-nvidia-.*)"
)
"""Packages that are the driver, or a part of it; what has its own versions beside it is none."""
PINNING = re.compile(r"nvidia-driver-pinning-(\d+)")
DRIVER_VERSION = re.compile(r"(?:\d+:)?(\d{3})\.\d+")
"""580.95.05-1: the branch, and more; a helper's 1.17 or 20220217 is no such version."""
MODULE_PACKAGES = re.compile(
    r"nvidia-kernel(-open)?-dkms|nvidia-dkms(-\d+)?(-server)?(-open)?|linux-modules-nvidia-.*"
)
KERNEL_IMAGE = re.compile(r"linux-image-(?:unsigned-)?(\d.*)")


def steps(driver: Mapping[str, Any], seen: Mapping[str, Any]) -> dict[str, Any]:
    """Return what to do, each empty where nothing is: `repair` (packages that dpkg left half
    done), `unpin`, `pin` and `remove` (names), `headers` and `install` (as apt takes them: a name,
    or name=580.*), and `changes`: the same in words, for people.

    `driver`: the plan's, with a source; `seen`: `packages` and `kernels` (name to version) and
    `unfinished`.
    """
    installed = seen["packages"]
    branch = driver["branch"]
    repair = [name for name in seen["unfinished"] if PARTS.fullmatch(name)]
    wanted = driver["packages"]
    install = [
        spec
        for name in wanted
        if not _is_there(spec := _spec(name, driver), installed, seen["kernels"])
    ]
    remove = [
        name
        for name in installed
        if MODULE_PACKAGES.fullmatch(name) and name not in wanted and not _is_kin(name, driver)
    ]
    unpin = [
        name
        for name in installed
        if (found := PINNING.fullmatch(name))
        and (found[1] != branch or driver["source"] != "nvidia")
    ]
    pin = [name for name in [driver["pinning_package"]] if name and name not in installed]
    headers = [
        name
        for image in seen["kernels"]
        if (found := KERNEL_IMAGE.fullmatch(image))
        and (name := f"linux-headers-{found[1]}") not in seen["kernels"]
        and any(package.startswith("linux-headers") for package in wanted)
    ]
    changes = [f"finish what was left half done: {', '.join(repair)}"] if repair else []
    changes += [f"pin branch {branch}"] if pin else []
    changes += [f"remove {', '.join(remove)}"] if remove else []
    changes += [f"install {', '.join(install)}"] if install else []
    return {
        "repair": repair,
        "unpin": unpin,
        "pin": pin,
        "remove": remove,
        "headers": headers,
        "install": install,
        "changes": changes,
    }


def leftovers(driver: Mapping[str, Any], seen: Mapping[str, Any]) -> list[str]:
    """Return the driver's packages of another branch than the planned one, once that is there: they
    belong to a driver that is gone.
    """
    return sorted(
        name
        for name, version in seen["packages"].items()
        if PARTS.fullmatch(name)
        and (found := DRIVER_VERSION.match(version))
        and found[1] != driver["branch"]
    )


def parts(seen: Mapping[str, Any]) -> list[str]:
    """Return what must only change together, and while nobody is served: driver and kernel.

    A library that is replaced under its loaded module stops every new CUDA program, and a new
    kernel boots without a module where its headers are missing.
    """
    drivers = [
        name
        for name, version in seen["packages"].items()
        if PARTS.fullmatch(name)
        and (DRIVER_VERSION.match(version) or name.startswith("linux-modules-nvidia"))
    ]
    return sorted([*drivers, *seen["kernels"]])


def held(seen: Mapping[str, Any]) -> list[str]:
    """Return what of these is held."""
    return [name for name in parts(seen) if name in seen["holds"]]


def holds(seen: Mapping[str, Any]) -> list[str]:
    """Return what is to be held and is not yet."""
    return [name for name in parts(seen) if name not in seen["holds"]]


def reboot_reason(driver: Mapping[str, Any], seen: Mapping[str, Any]) -> str:
    """Say why the installed driver can only run after a reboot; empty where it runs, or where its
    module can be loaded now. `driver`: the plan's; `seen`: all facts.
    """
    flavour = seen["driver"]["module_flavour"]
    loaded, library = seen["driver"]["module_version"], seen["driver"]["library_version"]
    in_the_way = [name for name in seen["modules"] if name in ("nouveau", "nova_core")]
    if loaded and loaded != library:
        return f"the module of {loaded} is loaded, and the driver on disk is {library}"
    if loaded and flavour and flavour != driver["flavour"]:
        return f"the {flavour} modules are loaded, and the {driver['flavour']} ones are installed"
    if not loaded and in_the_way:
        return f"{in_the_way[0]} holds the cards"
    return ""


def proof_problems(driver: Mapping[str, Any], seen: Mapping[str, Any]) -> list[str]:
    """Say what keeps the installed driver from serving. `seen`: all facts."""
    state = seen["driver"]
    loaded, library = state["module_version"], state["library_version"]
    if state["problem"]:
        return [f"nvidia-smi says: {state['problem']}"]
    if not loaded:
        return ["the nvidia module is not loaded: see dmesg, and dkms status"]
    problems = []
    if loaded != library:
        problems.append(f"the loaded module is {loaded} and the library on disk {library}")
    if (
        state["module_flavour"]
        and driver["flavour"]
        and state["module_flavour"] != driver["flavour"]
    ):
        problems.append(
            f"the loaded module is the {state['module_flavour']} one, and {driver['flavour']} is "
            "planned"
        )
    least = [int(part) for part in driver["driver_minimum"].split(".")]
    if [int(part) for part in loaded.split(".")[:2]] < least:
        problems.append(f"{loaded} runs, and {driver['driver_minimum']} is needed")
    cards = [gpu for gpu in seen["gpus"] if gpu["vendor"] == NVIDIA]
    shown = sum(bool(gpu.get("uuid")) for gpu in cards)
    if shown < len(cards):
        problems.append(
            f"the driver shows {shown} of {len(cards)} cards: see journalctl -k -g NVRM; a card "
            "that needs the other kind of modules, or too small PCI windows (firmware: Above 4G "
            "decoding) look like this"
        )
    return problems


def _spec(name: str, driver: Mapping[str, Any]) -> str:
    """Return the package as apt takes it: of the branch, where it has the driver's version."""
    is_own = driver["source"] == "distribution" and name == "nvidia-persistenced"
    if name.startswith("linux-") or is_own:
        return name
    return f"{name}={driver['branch']}.*"


def _is_there(spec: str, installed: Mapping[str, str], kernels: Mapping[str, str]) -> bool:
    name, _, version = spec.partition("=")
    there = installed.get(name) or kernels.get(name)
    if there is None:
        return False
    # An epoch may stand before the version.
    return not version or there.rpartition(":")[2].startswith(version.rstrip("*"))


def _is_kin(name: str, driver: Mapping[str, Any]) -> bool:
    """Whether a module's package belongs to the planned branch and flavour, for another kernel."""
    if not name.startswith("linux-modules-nvidia"):
        return False
    is_open = "-open-" in name
    return f"-{driver['branch']}-" in name and is_open == (driver["flavour"] == "open")
