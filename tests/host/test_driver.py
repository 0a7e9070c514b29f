"""The driver's packages: pinned, held, upgraded, switched, repaired; and Debian's own, for real.

NVIDIA's repository is played (tests/fixtures/nvidia); apt, dpkg and systemd are the real ones, and
so are Debian's packages, whose modules are compiled for Debian's kernel. No engine is needed for
that, so the server is a bare one. Each test goes on where the one before it stopped.
"""

from __future__ import annotations

import json

import cards
import pytest
from cards import FOLDER, Played
from servers import Server, figure
from test_again import changes

pytestmark = [pytest.mark.breaks, pytest.mark.timeout(1500)]

NVIDIAS = "EB693B3035CD5710E231E123A4B469963BF863CC"
MODULE = "nvidia-kernel-open-dkms"
PARTS = (MODULE, "nvidia-kernel-support", "nvidia-driver-cuda", "libcuda1", "libnvidia-ml1",
         "nvidia-persistenced")  # fmt: skip
REBOOT = "nvidia_driver_reboot=always"
BRANCH, FLAVOUR = "plan_driver_branch=595", "plan_driver_flavour=proprietary"
BOOK = "playbooks/host.yml"
DEBIANS = {
    "source": "distribution", "branch": "535", "flavour": "proprietary", "repository": "",
    "keyring_package": "", "pinning_package": "", "driver_minimum": "535.0",
    "packages": ["linux-headers-amd64", "nvidia-kernel-dkms", "libcuda1", "nvidia-smi",
                 "nvidia-persistenced"],
}  # fmt: skip


@pytest.fixture(scope="module")
def played() -> Played:
    """A server with an RTX 3050 and no driver yet, that must not be rebooted without asking."""
    found = cards.install("driver")
    # The sign of a server that served once.
    found.server.run("mkdir -p /opt/millrace/vllm/current")
    found.plug_in("rtx-3050")
    return found


def good(played: Played, *settings: str) -> None:
    """Run the playbook; it succeeds."""
    done = played.run(BOOK, *settings)
    assert done.returncode == 0, done.stdout[-4000:]


def settles(played: Played, *settings: str, check: bool = False) -> None:
    """A second run, or one in check mode, changes nothing."""
    again = played.run(BOOK, *settings, check=check)
    assert again.returncode == 0, again.stdout[-4000:]
    assert set(changes(again.stdout).values()) == {0}, again.stdout


def held(server: Server) -> set[str]:
    """What apt-mark says is held."""
    return set(server.run("apt-mark showhold").split())


def loaded(server: Server) -> str:
    """What the kernel says of its module."""
    return server.run("cat /proc/driver/nvidia/version")


def test_a_key_that_is_not_nvidias_is_refused(played: Played) -> None:
    done = played.run(BOOK, json.dumps({"nvidia_driver_key_ids": {"debian12": NVIDIAS}}))
    assert done.returncode != 0
    told = " ".join(done.stdout.split())
    assert f"is {played.key}, and should end with {NVIDIAS}" in told
    assert played.version("cuda-keyring") == ""
    assert played.version("nvidia-driver-cuda") == ""


def test_an_older_one_of_the_branch_is_kept_and_held(played: Played) -> None:
    server = played.server
    good(played)
    settles(played)
    settles(played, check=True)
    server.run(f"apt-mark unhold {' '.join(PARTS)}")
    older = " ".join(f"{name}=580.95.05-1" for name in PARTS)
    server.run(f"apt-get install -y -q --allow-downgrades {older}", timeout=300)
    server.run("standin unload; modprobe nvidia")
    good(played)
    assert played.version("nvidia-driver-cuda") == "580.95.05-1"
    assert set(PARTS) <= held(server)
    # 580.105.08 is in the repository, and 595 as well.
    assert "580.105.08-1" in server.run("apt-cache policy nvidia-driver-cuda | grep Candidate")
    for way in ("upgrade", "dist-upgrade"):
        said = server.run(f"apt-get -s {way}")
        assert "nvidia" not in said.split("kept back", 1)[0]
        assert "Inst nvidia" not in said
    said = server.run("unattended-upgrade --dry-run --debug 2>&1", timeout=300)
    assert "nvidia" not in said.split("Packages that will be upgraded:")[-1].split("\n", 1)[0]


def test_upgraded_when_asked_and_rebooted_when_allowed(played: Played) -> None:
    server = played.server
    done = played.run(BOOK, "nvidia_driver_upgrade=true")
    assert done.returncode != 0
    told = " ".join(done.stdout.split())
    assert "the module of 580.95.05 is loaded, and the driver on disk is 580.105.08" in told
    assert "-e nvidia_driver_reboot=always" in told
    assert "nvidia-driver-cuda" in held(server)
    # Until then the guard says no, and by that keeps the engine down.
    server.run("! systemctl start millrace-guard@main")
    assert "an upgrade went in under a running module; reboot" in played.report()["problems"][0]
    good(played, REBOOT)
    assert " 580.105.08 " in loaded(server)


def test_another_branch(played: Played) -> None:
    good(played, BRANCH, REBOOT)
    assert " 595.71.05 " in loaded(played.server)
    assert played.version("nvidia-driver-pinning-595")
    assert played.version("nvidia-driver-pinning-580") == ""
    assert "Open Kernel Module" in loaded(played.server)


def test_another_flavour_of_it(played: Played) -> None:
    good(played, BRANCH, FLAVOUR, REBOOT)
    settles(played, BRANCH, FLAVOUR)
    assert " 595.71.05 " in loaded(played.server)
    assert "Open Kernel Module" not in loaded(played.server)
    assert played.version(MODULE) == ""


def test_back_to_the_branch_and_the_flavour_before(played: Played) -> None:
    good(played, REBOOT)  # apt goes down as well
    assert " 580.105.08 " in loaded(played.server)
    assert "Open Kernel Module" in loaded(played.server)
    assert played.version("nvidia-driver-pinning-595") == ""
    assert played.version("nvidia-kernel-dkms") == ""


def test_what_was_left_half_installed_is_mended(played: Played) -> None:
    server = played.server
    folder = f"{FOLDER}/www/debian12/x86_64"
    server.run(f"dpkg --force-all --unpack {folder}/nvidia-kernel-dkms_595.71.05-1_all.deb 2>&1")
    assert " iU " in server.run("dpkg-query -W -f=' ${db:Status-Abbrev} ' nvidia-kernel-dkms")
    good(played, REBOOT)
    assert played.version("nvidia-kernel-dkms") == ""
    assert played.version(MODULE).startswith("580.105.08")
    assert server.run("dpkg --audit") == ""


def test_debians_own_with_modules_that_are_compiled_here(played: Played) -> None:
    """From NVIDIA's packages to Debian's, whose modules build without a card and load with none."""
    server = played.server
    server.run("standin forget", timeout=60)
    # A small initial RAM disk: nothing boots from it, and each change of the driver renews it.
    folder = "/etc/initramfs-tools/conf.d"
    server.run(f"mkdir -p {folder} && echo MODULES=list >{folder}/small")
    server.run(
        "apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q"
        " --no-install-recommends linux-image-amd64",
        timeout=600,
    )
    done = played.run(
        "tests/host/driver.yml", json.dumps({"nvidia_driver_decided": DEBIANS}), limit_s=1400
    )
    assert done.returncode != 0
    told = " ".join(done.stdout.split())
    assert "The driver is installed and does not run:" in told
    assert "nvidia-smi says: NVIDIA-SMI has failed" in told
    assert played.version("nvidia-kernel-dkms").startswith("535.")
    for name in ("nvidia-kernel-open-dkms", "nvidia-driver-cuda", "nvidia-driver-pinning-580"):
        assert played.version(name) == ""
    kernel = server.run("ls /lib/modules").split()[-1]
    built = server.run(f"ls /lib/modules/{kernel}/updates/dkms").split()
    assert {"nvidia-current.ko", "nvidia-current-uvm.ko"} <= set(built)
    assert "installed" in server.run("dkms status")
    together = {"nvidia-kernel-dkms", "libcuda1", "linux-image-amd64", f"linux-headers-{kernel}"}
    assert together <= held(server)
    assert "nvidia" not in server.run("apt-get -s dist-upgrade | grep ^Inst || true")
    # NVIDIA's repository is still there and newer, and not what apt would take.
    assert "Candidate: 535." in server.run("apt-cache policy libcuda1")
    figure(f"Debian's driver: {len(built)} modules compiled for {kernel}")


def test_and_back_to_nvidias(played: Played) -> None:
    cards.place(played.server)
    good(played, REBOOT)
    settles(played)
    assert " 580.105.08 " in loaded(played.server)
    assert played.version("nvidia-smi") == ""
    assert played.version("nvidia-driver-pinning-580")
