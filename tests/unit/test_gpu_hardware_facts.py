"""What the hardware module reads of a machine, whatever is in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gpu_hardware as module
import pytest

BARS = """\
0x00000000f6000000 0x00000000f6ffffff 0x0000000000040200
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000006000000000 0x00000067ffffffff 0x000000000014220c
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x000000000000e000 0x000000000000e07f 0x0000000000040101
"""
OPEN = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (x@y)\n"
    "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"
)
CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.309.01  Tue Sep  2 UTC 2025\n"

SMI = """\
#!/bin/sh
case "$1" in
    --query-gpu=*) cat <<'END'
00000000:01:00.0, GPU-aaaa, NVIDIA GeForce RTX 5090, 32607, 12.0, [N/A], [N/A], 575.00
00000000:41:00.0, GPU-bbbb, NVIDIA A100-SXM4-80GB, 81920, 8.0, Enabled, Disabled, 400.00
END
    ;;
    topo) printf '\\t\\033[4mGPU0\\tGPU1\\033[0m\\n' ;;
esac
"""
MISMATCH = """\
#!/bin/sh
echo "Failed to initialize NVML: Driver/library version mismatch"
echo "NVML library version: 580.95"
exit 18
"""


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def plug_in(root: Path, address: str, vendor: str, device: str, kind: str = "0x030000") -> None:
    write(
        root / "sys/bus/pci/devices" / address,
        {
            "vendor": f"0x{vendor}\n", "device": f"0x{device}\n", "class": f"{kind}\n",
            "subsystem_vendor": "0x1043\n", "subsystem_device": "0x8A12\n", "resource": BARS,
            "current_link_width": "16\n", "max_link_width": "16\n", "numa_node": "-1\n",
            "current_link_speed": "2.5 GT/s PCIe\n", "max_link_speed": "32.0 GT/s PCIe\n",
        },
    )  # fmt: skip


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a program of the driver's in the way."""

    def make(name: str, text: str) -> None:
        folder = tmp_path / "bin"
        write(folder, {name: text})
        (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    return make


def test_a_card_without_a_driver(tmp_path: Path) -> None:
    plug_in(tmp_path, "0000:01:00.0", "10de", "2b85")
    plug_in(tmp_path, "0000:01:00.1", "10de", "22e8", "0x040300")
    (gpu,) = module.observe(tmp_path, [])["gpus"]
    assert gpu == {
        "pci_address": "0000:01:00.0", "vendor": "10de", "device": "2b85",
        "subsystem": "1043:8a12", "class": "0x030000", "bars_mib": [16.0, 32768.0],
        "link": {
            "width": 16, "most_width": 16, "speed": "2.5 GT/s PCIe", "most_speed": "32.0 GT/s PCIe",
        },
        "numa_node": -1, "kernel_driver": "",
    }  # fmt: skip


def test_foreign_cards_and_none(tmp_path: Path) -> None:
    assert module.observe(tmp_path, [])["gpus"] == []
    plug_in(tmp_path, "0000:03:00.0", "1002", "744c")
    plug_in(tmp_path, "0001:03:00.0", "10de", "ffff", "0x030200")
    found = module.observe(tmp_path, [])["gpus"]
    assert [(gpu["vendor"], gpu["device"]) for gpu in found] == [("1002", "744c"), ("10de", "ffff")]


def test_a_card_that_tells_nothing(tmp_path: Path) -> None:
    """A device folder may hold less, and a card that fell off the bus reads as ones."""
    write(tmp_path / "sys/bus/pci/devices/0000:01:00.0", {"class": "0x030000", "vendor": "0xffff"})
    (gpu,) = module.observe(tmp_path, [])["gpus"]
    assert (gpu["vendor"], gpu["device"], gpu["bars_mib"], gpu["numa_node"]) == (
        "ffff",
        "",
        [],
        None,
    )


def test_what_a_running_driver_adds(tmp_path: Path, tool: Any) -> None:
    plug_in(tmp_path, "0000:01:00.0", "10de", "2b85")
    plug_in(tmp_path, "0000:41:00.0", "10de", "20b2", "0x030200")
    write(
        tmp_path, {"proc/driver/nvidia/version": OPEN, "sys/module/nvidia/version": "580.95.05\n"}
    )
    write(tmp_path, {"usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.95.05": ""})
    tool("nvidia-smi", SMI)
    seen = module.observe(tmp_path, [])
    first, second = seen["gpus"]
    assert (first["uuid"], first["memory_mib"], first["ecc"], first["mig"]) == (
        "GPU-aaaa", 32607, None, False,
    )  # fmt: skip
    assert (second["name"], second["ecc"], second["power_limit_watts"]) == (
        "NVIDIA A100-SXM4-80GB", True, 400,
    )  # fmt: skip
    driver = seen["driver"]
    assert (driver["module_version"], driver["module_flavour"]) == ("580.95.05", "open")
    assert driver["library_version"] == "580.95.05"
    assert driver["topology"].split() == ["GPU0", "GPU1"], "as text, whatever it underlines"
    assert not driver["problem"]


def test_a_library_under_a_loaded_module(tmp_path: Path, tool: Any) -> None:
    plug_in(tmp_path, "0000:01:00.0", "10de", "2204")
    write(tmp_path, {"proc/driver/nvidia/version": CLOSED})
    write(tmp_path, {"usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.95.05": ""})
    tool("nvidia-smi", MISMATCH)
    seen = module.observe(tmp_path, [])
    assert (seen["driver"]["module_version"], seen["driver"]["module_flavour"]) == (
        "535.309.01", "proprietary",
    )  # fmt: skip
    assert seen["driver"]["library_version"] == "580.95.05"
    assert "Driver/library version mismatch" in seen["driver"]["problem"]
    assert "uuid" not in seen["gpus"][0]


def test_packages_their_state_and_holds(tmp_path: Path, tool: Any) -> None:
    tool(
        "dpkg-query",
        "#!/bin/sh\nprintf 'nvidia-smi\\t535.1\\tii \\nlinux-image-6.1\\t6.1.1\\thi \\n"
        "nvidia-kernel-dkms\\t535.1\\tiF \\nlibnvidia-ml1\\t535.1\\thi \\nnvidia-old\\t\\tun \\n"
        "nvidia-gone\\t1\\trc \\n'\nexit 1\n",
    )
    assert module.packages() == {
        "packages": {"nvidia-smi": "535.1", "libnvidia-ml1": "535.1"},
        "kernels": {"linux-image-6.1": "6.1.1"},
        "unfinished": ["nvidia-kernel-dkms"],
        "holds": ["libnvidia-ml1", "linux-image-6.1"],
    }


@pytest.mark.parametrize(("value", "is_on"), [(b"\6\0\0\0\1", True), (b"\6\0\0\0\0", False)])
def test_secure_boot(tmp_path: Path, value: bytes, is_on: bool) -> None:
    assert module.secure_boot(tmp_path) is None
    path = tmp_path / module.SECURE_BOOT
    path.parent.mkdir(parents=True)
    path.write_bytes(value)
    assert module.secure_boot(tmp_path) is is_on


def test_modules_that_matter(tmp_path: Path) -> None:
    write(
        tmp_path, {"proc/modules": "nouveau 1 0 - Live\next4 1 0 - Live\nnvidia_uvm 1 0 - Live\n"}
    )
    assert module.observe(tmp_path, [])["modules"] == ["nouveau", "nvidia_uvm"]


def test_disks_and_network(tmp_path: Path) -> None:
    for name, rotational in (("nvme0n1", "0"), ("sda", "1"), ("sdb", "0"), ("vda", "1")):
        write(tmp_path / "sys/block" / name, {"size": "2097152", "queue/rotational": rotational})
    write(tmp_path / "sys/block/loop0", {"size": "100"})
    write(tmp_path / "sys/class/net/eth0", {"device/vendor": "x", "speed": "1000"})
    write(tmp_path / "sys/class/net/eth1", {"device/vendor": "x", "speed": "-1"})
    write(tmp_path / "sys/class/net/lo", {"speed": "10"})
    seen = module.observe(tmp_path, [])
    assert [disk["kind"] for disk in seen["disks"]] == ["nvme", "hdd", "ssd", "virtual"]
    assert seen["disks"][0]["gib"] == 1.0
    assert seen["network"] == [{"name": "eth0", "mbit_s": 1000}, {"name": "eth1", "mbit_s": None}]


def test_this_machine() -> None:
    """The real one, whatever it has."""
    seen = module.observe(Path("/"), ["/", "/nowhere/at/all"])
    assert seen["cpu"]["cores"] >= 1
    assert seen["memory_mib"] > 512
    assert seen["space_mib"]["/"] == pytest.approx(seen["space_mib"]["/nowhere/at/all"], rel=0.1)
    assert seen["kernel"]


def test_a_tool_that_hangs(tool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tool("nvidia-smi", "#!/bin/sh\nexec sleep 20\n")
    monkeypatch.setattr(module, "TOOL_SECONDS", 0.2)
    assert "gave no answer" in module.described_by_driver()[1]
