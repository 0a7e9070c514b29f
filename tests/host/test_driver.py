"""The driver's packages: pinned, held, upgraded, switched, repaired; and Debian's own, for real.

NVIDIA's repository is played (tests/fixtures/nvidia); apt, dpkg and systemd are the real ones, and
so are Debian's packages, whose modules are compiled for Debian's kernel.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import cards
import pytest
from cards import FOLDER, Played
from servers import Server, figure, playbook
from test_again import changes

pytestmark = [pytest.mark.breaks, pytest.mark.timeout(1500)]

NVIDIAS = "EB693B3035CD5710E231E123A4B469963BF863CC"
MODULE = "nvidia-kernel-open-dkms"
PARTS = (MODULE, "nvidia-kernel-support", "nvidia-driver-cuda", "libcuda1", "libnvidia-ml1",
         "nvidia-persistenced")  # fmt: skip
REBOOT = "nvidia_driver_reboot=always"
BOOK = "playbooks/host.yml"
DEBIANS = {
    "source": "distribution", "branch": "535", "flavour": "proprietary", "repository": "",
    "keyring_package": "", "pinning_package": "", "driver_minimum": "535.0",
    "packages": ["linux-headers-amd64", "nvidia-kernel-dkms", "libcuda1", "nvidia-smi",
                 "nvidia-persistenced"],
}  # fmt: skip


@pytest.fixture(scope="module")
def played(engine: Server) -> Iterator[Played]:
    """A server with an RTX 3050 and no driver yet; afterwards as it was."""
    if engine.suite != "bookworm":
        pytest.skip("the repository is played for Debian 12")
    try:
        found = cards.install(engine)
        cards.plug_in(engine, "rtx-3050")
        yield found
    finally:
        cards.plug_in(engine, "no-gpu")
        cards.remove(engine)
        kernels = "linux-image-amd64 linux-headers-amd64 'linux-image-6*' 'linux-headers-6*'"
        engine.run(f"apt-mark unhold {kernels} >/dev/null 2>&1", check=False)
        engine.run(f"apt-get purge -y -q {kernels} dkms >/dev/null 2>&1", check=False, timeout=300)
        done = playbook("site.yml", "--limit", engine.name)
        assert done.returncode == 0, done.stdout[-3000:]


def good(played: Played, *settings: str) -> None:
    """Run the playbook; it succeeds."""
    done = played.run(BOOK, *settings)
    assert done.returncode == 0, done.stdout[-4000:]


def good_for_good(played: Played, *settings: str) -> None:
    """The same, and a second run changes nothing, nor would one in check mode."""
    good(played, *settings)
    again = played.run(BOOK, *settings)
    assert set(changes(again.stdout).values()) == {0}, again.stdout
    looked = played.run(BOOK, *settings, check=True)
    assert looked.returncode == 0, looked.stdout[-4000:]
    assert set(changes(looked.stdout).values()) == {0}, looked.stdout


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
    good_for_good(played)
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
    # Until then no engine is started on it.
    server.run("systemctl stop millrace-vllm@main; systemctl start --no-block millrace-vllm@main")
    server.run("sleep 4")
    assert "an upgrade went in under a running module; reboot" in server.run(
        "cat /run/millrace/hardware/main.json"
    )
    good(played, REBOOT)
    assert " 580.105.08 " in loaded(server)


def test_another_branch(played: Played) -> None:
    good_for_good(played, "plan_driver_branch=595", REBOOT)
    assert " 595.71.05 " in loaded(played.server)
    assert played.version("nvidia-driver-pinning-595")
    assert played.version("nvidia-driver-pinning-580") == ""
    # And back: apt goes down as well.
    good(played, REBOOT)
    assert " 580.105.08 " in loaded(played.server)


def test_another_flavour(played: Played) -> None:
    good_for_good(played, "plan_driver_flavour=proprietary", REBOOT)
    assert "Open Kernel Module" not in loaded(played.server)
    assert played.version("nvidia-kernel-open-dkms") == ""
    good(played, REBOOT)
    assert "Open Kernel Module" in loaded(played.server)
    assert played.version("nvidia-kernel-dkms") == ""


def test_what_was_left_half_installed_is_mended(played: Played) -> None:
    server = played.server
    folder = f"{FOLDER}/www/debian12/x86_64"
    server.run(f"dpkg --force-all --unpack {folder}/nvidia-kernel-dkms_595.71.05-1_all.deb 2>&1")
    assert " iU " in server.run("dpkg-query -W -f=' ${db:Status-Abbrev} ' nvidia-kernel-dkms")
    good(played, REBOOT)
    assert played.version("nvidia-kernel-dkms") == ""
    assert played.version("nvidia-kernel-open-dkms").startswith("580.105.08")
    assert server.run("dpkg --audit") == ""


def test_debians_own_with_modules_that_are_compiled_here(played: Played) -> None:
    """From NVIDIA's packages to Debian's, whose modules build without a card and load with none."""
    server = played.server
    server.run("standin forget", timeout=60)
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
    good_for_good(played, REBOOT)
    assert " 580.105.08 " in loaded(played.server)
    assert played.version("nvidia-smi") == ""
    assert played.version("nvidia-driver-pinning-580")
