"""What is done to a server's driver packages, from what is planned and what is there."""

from __future__ import annotations

from typing import Any

import pytest
from planner import apt_sources, driver, driver_steps
from planner.driver import DriverWish
from planner.machine import from_facts

DEBIAN = {"distribution": "Debian", "version": "12"}
UBUNTU = {"distribution": "Ubuntu", "version": "24.04"}
CARD = {"pci_address": "0000:01:00.0", "vendor": "10de", "device": "2b85"}


def wanted(system: dict[str, str] = DEBIAN, **wish: Any) -> dict[str, Any]:
    seen = from_facts({"gpus": [CARD], "system": system})
    return driver.decide(seen, DriverWish(**wish))


def there(*packages: str, kernels: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    """Return facts of packages: `name=version`, or a name alone for the planned branch."""
    pairs = [name.partition("=") for name in packages]
    return {
        "packages": {name: version or "580.95.05-1" for name, _, version in pairs},
        "kernels": dict.fromkeys(kernels, "6.1.0-1"),
        "unfinished": [],
        "holds": [],
        **more,
    }


PLANNED = ("nvidia-kernel-open-dkms", "nvidia-driver-cuda", "nvidia-persistenced")
PINNED = "nvidia-driver-pinning-580=580-1"
METAS = ("linux-image-amd64", "linux-headers-amd64")


def test_a_fresh_server_gets_all_of_the_branch() -> None:
    found = driver_steps.steps(wanted(), there(kernels=("linux-image-6.1.0-56-amd64",)))
    assert found["install"] == [
        "linux-headers-amd64", "nvidia-kernel-open-dkms=580.*", "nvidia-driver-cuda=580.*",
        "nvidia-persistenced=580.*",
    ]  # fmt: skip
    assert found["pin"] == ["nvidia-driver-pinning-580"]
    assert found["headers"] == ["linux-headers-6.1.0-56-amd64"]
    assert (found["remove"], found["unpin"], found["repair"]) == ([], [], [])
    assert any("install" in line for line in found["changes"])


def test_what_is_there_changes_nothing() -> None:
    found = driver_steps.steps(wanted(), there(*PLANNED, PINNED, kernels=METAS))
    assert not any(found.values())


def test_an_epoch_is_no_branch() -> None:
    seen = there(*(f"{name}=1:580.95.05-1" for name in PLANNED), PINNED, kernels=METAS)
    assert driver_steps.steps(wanted(), seen)["install"] == []
    assert len(driver_steps.steps(wanted(branch=595), seen)["install"]) == 3


def test_another_branch_is_installed_over_it_and_pinned_anew() -> None:
    found = driver_steps.steps(wanted(branch=595), there(*PLANNED, PINNED, kernels=METAS))
    assert found["install"] == [f"{name}=595.*" for name in PLANNED]
    assert (found["unpin"], found["pin"]) == (
        ["nvidia-driver-pinning-580"], ["nvidia-driver-pinning-595"],
    )  # fmt: skip


def test_the_other_flavours_module_goes() -> None:
    seen = there("nvidia-kernel-dkms", "nvidia-driver-cuda", "nvidia-persistenced", PINNED)
    found = driver_steps.steps(wanted(), seen)
    assert found["remove"] == ["nvidia-kernel-dkms"]
    assert "nvidia-kernel-open-dkms=580.*" in found["install"]


def test_from_nvidia_to_the_distribution_and_what_is_left_over() -> None:
    plan = wanted(source="distribution")
    seen = there(*PLANNED, "libcuda1", PINNED, kernels=METAS)
    found = driver_steps.steps(plan, seen)
    assert found["unpin"] == ["nvidia-driver-pinning-580"]
    assert found["pin"] == []
    assert "libcuda1=535.*" in found["install"]
    assert "nvidia-persistenced" not in " ".join(found["install"]), "its versions are its own"
    after = there(
        "nvidia-kernel-open-dkms=535.309.01-1", "libcuda1=535.309.01-1", "nvidia-driver-cuda",
        "nvidia-container-toolkit=1.17.8-1", "nvidia-kernel-common=20220217+3",
        "nvidia-fabricmanager=570.1-1", "libnvidia-container1=1.17.8-1",
    )  # fmt: skip
    assert driver_steps.leftovers(plan, after) == ["nvidia-driver-cuda"]


def test_on_ubuntu_modules_of_every_kernel_may_stay() -> None:
    plan = wanted(UBUNTU)
    names = plan["packages"]
    seen = there(
        *names, "linux-modules-nvidia-580-server-open-6.8.0-90-generic=6.8.0-90",
        "linux-modules-nvidia-580-server-6.8.0-90-generic=6.8.0-90",
        "linux-modules-nvidia-570-server-open-6.8.0-90-generic=6.8.0-90",
    )  # fmt: skip
    found = driver_steps.steps(plan, seen)
    assert found["install"] == []
    assert found["remove"] == [
        "linux-modules-nvidia-580-server-6.8.0-90-generic",
        "linux-modules-nvidia-570-server-open-6.8.0-90-generic",
    ]
    assert found["headers"] == [], "nothing is compiled"


def test_half_done_packages_of_the_driver_are_repaired_and_others_left() -> None:
    seen = there(unfinished=["nvidia-kernel-open-dkms", "postfix"])
    found = driver_steps.steps(wanted(), seen)
    assert found["repair"] == ["nvidia-kernel-open-dkms"]
    assert "half done" in found["changes"][0]


def test_driver_and_kernel_are_held_together() -> None:
    seen = there(
        *PLANNED, "libnvidia-ml1", "nvidia-container-toolkit=1.17.8-1", "cuda-keyring=1.1-1",
        "linux-modules-nvidia-580-server-open-generic=6.8.0-90.93", kernels=METAS,
        holds=["libnvidia-ml1"],
    )  # fmt: skip
    assert driver_steps.holds(seen) == sorted(
        [*PLANNED, *METAS, "linux-modules-nvidia-580-server-open-generic"]
    )
    assert driver_steps.held(seen) == ["libnvidia-ml1"]


def state(
    loaded: str = "580.95.05",
    library: str = "580.95.05",
    modules: tuple[str, ...] = (),
    **more: Any,
) -> dict[str, Any]:
    gpus = [{**CARD, "uuid": "GPU-1"}, {"vendor": "1002", "pci_address": "0000:09:00.0"}]
    return {
        "driver": {
            "module_version": loaded, "module_flavour": "open" if loaded else "",
            "library_version": library, "problem": "",
        },
        "modules": list(modules), "gpus": gpus,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (state(), ""),
        (state(loaded=""), ""),
        (state(loaded="", modules=("nouveau",)), "nouveau holds the cards"),
        (state(loaded="535.309.01"), "535.309.01 is loaded, and the driver on disk is 580.95.05"),
    ],
)
def test_a_reboot_only_where_nothing_else_helps(seen: dict[str, Any], reason: str) -> None:
    told = driver_steps.reboot_reason(wanted(), seen)
    assert reason in told if reason else told == ""


def test_other_modules_of_the_same_version_need_one_as_well() -> None:
    seen = state()
    seen["driver"]["module_flavour"] = "proprietary"
    told = driver_steps.reboot_reason(wanted(), seen)
    assert told == "the proprietary modules are loaded, and the open ones are installed"


def without_uuid(seen: dict[str, Any]) -> dict[str, Any]:
    seen["gpus"][0].pop("uuid")
    return seen


def changed(seen: dict[str, Any], **values: str) -> dict[str, Any]:
    seen["driver"].update(values)
    return seen


@pytest.mark.parametrize(
    ("seen", "problem"),
    [
        (state(), ""),
        (state(loaded=""), "not loaded"),
        (state(library="580.105.08"), "library on disk 580.105.08"),
        (state("575.1.1", "575.1.1"), "580.65 is needed"),
        (changed(state(), module_flavour="proprietary"), "the proprietary one"),
        (changed(state(), problem="No devices were found"), "No devices were found"),
        (without_uuid(state()), "shows 0 of 1 cards"),
    ],
)
def test_the_proof(seen: dict[str, Any], problem: str) -> None:
    told = driver_steps.proof_problems(wanted(), seen)
    assert (problem in told[0]) if problem else not told


OWN = "/etc/apt/sources.list.d/millrace-driver.sources"
LINES = [
    "http://deb/debian/|bookworm|main|$(SIGNED_BY)|Debian|/etc/apt/sources.list:1",
    "http://deb/debian/|bookworm-updates|main|/usr/share/k.gpg|Debian|/etc/apt/sources.list:2",
    "http://deb/debian/|bookworm-updates|contrib|/usr/share/k.gpg|Debian|/etc/apt/sources.list:2",
    "http://nvidia/||$(COMPONENT)|/usr/share/n.gpg|NVIDIA|/etc/apt/sources.list.d/cuda.list:1",
    f"http://deb/debian/|bookworm|contrib|$(SIGNED_BY)|Debian|{OWN}:3",
]


def test_components_that_a_distribution_lacks() -> None:
    assert apt_sources.missing(LINES, ["contrib"], OWN) == [
        {"uri": "http://deb/debian/", "suite": "bookworm", "components": ["contrib"],
         "signed_by": ""},
    ]  # fmt: skip
    found = apt_sources.missing(LINES, ["contrib", "non-free"], OWN)
    assert [(f["suite"], f["components"], f["signed_by"]) for f in found] == [
        ("bookworm", ["contrib", "non-free"], ""),
        ("bookworm-updates", ["non-free"], "/usr/share/k.gpg"),
    ]
    assert apt_sources.missing(LINES, [], OWN) == []
