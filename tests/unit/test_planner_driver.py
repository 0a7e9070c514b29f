"""Which driver a machine gets, and what is refused with a reason and a way out."""

from __future__ import annotations

from typing import Any

import pytest
from planner import driver
from planner.cards import Card
from planner.driver import DriverWish
from planner.machine import Gpu, Machine, from_facts

CAPABILITIES = {
    "pascal": (6, 1), "volta": (7, 0), "turing": (7, 5), "ampere": (8, 6), "ada": (8, 9),
    "hopper": (9, 0), "blackwell": (12, 0),
}  # fmt: skip


def card(family: str) -> Card:
    return Card(f"a {family} card", family, CAPABILITIES[family], 24, 23.5, 900)


def machine(*families: str, **more: Any) -> Machine:
    return Machine(tuple(Gpu(card(family), pci_address=family) for family in families), **more)


def refused(found: dict[str, Any]) -> str:
    return " | ".join(found["refusals"])


@pytest.mark.parametrize("family", ["turing", "ampere", "ada", "hopper", "blackwell"])
@pytest.mark.parametrize(
    ("system", "source", "repository"),
    [
        (("Debian", "12.11"), "nvidia", "debian12"),
        (("Debian", "13"), "nvidia", "debian13"),
        (("Ubuntu", "22.04"), "distribution", ""),
        (("Ubuntu", "24.04"), "distribution", ""),
    ],
)
def test_modern_cards_get_the_long_term_branch_and_open_modules(
    family: str, system: tuple[str, str], source: str, repository: str
) -> None:
    found = driver.decide(machine(family, distribution=system[0], version=system[1]))
    assert not found["refusals"]
    assert (found["source"], found["branch"], found["flavour"]) == (source, "580", "open")
    assert found["repository"] == repository
    assert found["pinning_package"] == ("nvidia-driver-pinning-580" if repository else "")


def test_old_cards_get_proprietary_modules() -> None:
    found = driver.decide(machine("pascal", "volta"))
    assert (found["branch"], found["flavour"]) == ("580", "proprietary")
    assert "nvidia-kernel-dkms" in found["packages"]


DEBIAN_12 = {"distribution": "Debian", "version": "12"}
UBUNTU = {"distribution": "Ubuntu", "version": "24.04"}
SIGNED = {"has_secure_boot": True}


@pytest.mark.parametrize(
    ("given", "wish", "why", "remedy"),
    [
        (machine("blackwell"), {"branch": 550}, "550 does not know a blackwell", "570 or newer"),
        (machine("pascal"), {"branch": 595}, "does not know a pascal card any", "580 is its last"),
        (machine("ampere"), {"branch": 570}, "CUDA 13.0 and needs driver 580.65", "take 580"),
        (machine("blackwell"), {"flavour": "proprietary"}, "No devices were", "set it to open"),
        (machine("volta"), {"flavour": "open"}, "do not know a volta", "set it to proprietary"),
        (machine("pascal", "blackwell"), {}, "loads one set", "take one of the cards out"),
        (machine("ada", **SIGNED), {}, "Secure Boot is on", "mokutil --import"),
        (machine("ada", **UBUNTU, **SIGNED), {"source": "nvidia"}, "Secure Boot", "distribution"),
        (machine("ada", **DEBIAN_12), {"source": "distribution"}, "535 is older", "NVIDIA's"),
        (
            machine("ada", **DEBIAN_12),
            {"source": "distribution", "branch": 580},
            "has only branch 535",
            "plan_driver_source to nvidia",
        ),
        (machine("ada", distribution="Fedora", version="42"), {}, "no driver is", "Debian 13"),
    ],
)
def test_what_cannot_work_is_refused(
    given: Machine, wish: dict[str, Any], why: str, remedy: str
) -> None:
    told = refused(driver.decide(given, DriverWish(**wish)))
    assert why in told
    assert remedy in told


def test_secure_boot_with_modules_that_it_trusts() -> None:
    signed = machine("ada", distribution="Ubuntu", version="24.04", has_secure_boot=True)
    enrolled = machine("ada", has_secure_boot=True, has_enrolled_key=True)
    assert not driver.decide(signed)["refusals"]
    assert not driver.decide(enrolled)["refusals"]


def test_an_owners_own_driver_is_left_alone() -> None:
    found = driver.decide(machine("ada"), DriverWish(source="none"))
    assert (found["source"], found["branch"], found["refusals"]) == ("none", None, [])


@pytest.mark.parametrize("source", ["nvidia", "distribution"])
@pytest.mark.parametrize("flavour", ["open", "proprietary"])
@pytest.mark.parametrize("branch", [580, 595])
@pytest.mark.parametrize("system", [("Debian", "12"), ("Ubuntu", "24.04")])
def test_packages_hold_one_flavour(
    system: tuple[str, str], source: str, branch: int, flavour: str
) -> None:
    names = driver.packages(system, source, branch, flavour)
    modules = [n for n in names if "dkms" in n.replace("no-dkms", "") or "linux-modules" in n]
    assert len(modules) == 1
    assert ("open" in modules[0]) == (flavour == "open")
    if branch >= driver.UNBRANCHED_NAMES and source == "nvidia":
        assert not any("595" in name for name in names)


@pytest.mark.parametrize(
    ("kernels", "running", "line"),
    [
        ({}, "6.1.0-56-amd64", ""),
        ({"linux-image-amd64": "6.1.140-1", "linux-image-6.1.0-56-amd64": "6.1"}, "", "amd64"),
        ({"linux-image-cloud-amd64": "6.1.140-1"}, "6.1.0-56-cloud-amd64", "cloud-amd64"),
        (
            {"linux-image-generic": "6.8.0-90.91",
             "linux-image-generic-hwe-24.04": "6.14.0-32.32~24.04.1"},
            "6.14.0-32-generic", "generic-hwe-24.04",
        ),
        ({"linux-image-generic": "6.8.0-90.91"}, "6.8.0-88-generic", "generic"),
    ],
)  # fmt: skip
def test_modules_and_headers_are_those_of_the_running_line_of_kernels(
    kernels: dict[str, str], running: str, line: str
) -> None:
    system = UBUNTU if "generic" in line else DEBIAN_12
    seen = from_facts(
        {
            "gpus": [{"pci_address": "0000:01:00.0", "vendor": "10de", "device": "2204"}],
            "system": system, "driver": {"kernels": kernels}, "kernel": running,
        }
    )  # fmt: skip
    assert seen.kernel_line == line
    packages = driver.decide(seen)["packages"]
    wanted = f"linux-modules-nvidia-580-server-open-{line}" if "generic" in line else (
        f"linux-headers-{line or 'amd64'}"
    )  # fmt: skip
    assert packages[0] == wanted
