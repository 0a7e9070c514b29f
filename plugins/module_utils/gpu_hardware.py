"""What a machine's hardware and driver show, read from the kernel's files and the driver's tool.

Read-only, and of the standard library alone: Ansible carries it to a server with the module
`gpu_hardware_facts`, and a copy lies there for the guard that looks at each boot.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

NVIDIA = "10de"
DISPLAY_CLASSES = ("0x0300", "0x0302", "0x0380")
MIB = 1 << 20
MEMORY_FLAG = 0x200  # IORESOURCE_MEM, include/linux/ioport.h of the kernel
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "sse4_2")
GPU_MODULES = re.compile(r"nouveau|nova_core|nvidia\w*|amdgpu|i915|xe")
DRIVER_PACKAGES = (
    "*nvidia*",
    "cuda-drivers*",
    "cuda-keyring",
    "libcuda1",
    "firmware-nvidia-gsp*",
    "libnvcuvid1",
    "linux-image-*",
    "linux-headers-*",
    "linux-generic*",
    "linux-virtual*",
)
KERNEL = re.compile(r"linux-(image|headers|generic|virtual)")
SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
# nvidia-smi's names of what is asked, and ours.
QUERY = {
    "pci.bus_id": "pci_address",
    "uuid": "uuid",
    "name": "name",
    "memory.total": "memory_mib",
    "compute_cap": "compute_capability",
    "ecc.mode.current": "ecc",
    "mig.mode.current": "mig",
    "power.limit": "power_limit_watts",
}
TOOL_SECONDS = 30
TERMINAL = re.compile(r"\x1b\[[0-9;]*m")
"""What nvidia-smi underlines with, also where no terminal is."""


def read(path: Path, default: str = "") -> str:
    """Return a file's text; `default` where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return default


def number(text: str) -> int | None:
    """Return the first whole number in a text."""
    found = re.search(r"-?\d+", text)
    return int(found[0]) if found else None


def run(*words: str) -> tuple[int, str]:
    """Run a tool; 127 and nothing if it is not there."""
    tool = shutil.which(words[0])
    if not tool:
        return 127, ""
    try:
        done = subprocess.run(
            [tool, *words[1:]], capture_output=True, text=True, timeout=TOOL_SECONDS, check=False,
            env={**os.environ, "LC_ALL": "C"}, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 124, f"{words[0]} gave no answer within {TOOL_SECONDS} s"
    return done.returncode, (done.stdout + done.stderr).strip()


# Cards -----------------------------------------------------------------------------------------


def pci_gpus(root: Path) -> list[dict[str, Any]]:
    """Return the display controllers that PCI shows, by address."""
    found = []
    for device in sorted((root / "sys/bus/pci/devices").glob("*")):
        if not read(device / "class").startswith(DISPLAY_CLASSES):
            continue
        hexadecimal = {
            name: read(device / name).removeprefix("0x").lower()
            for name in ("vendor", "device", "subsystem_vendor", "subsystem_device")
        }
        found.append(
            {
                "pci_address": device.name,
                "vendor": hexadecimal["vendor"],
                "device": hexadecimal["device"],
                "subsystem": f"{hexadecimal['subsystem_vendor']}:{hexadecimal['subsystem_device']}",
                "class": read(device / "class"),
                "bars_mib": bars(read(device / "resource")),
                "link": link(device),
                "numa_node": number(read(device / "numa_node")),
                "kernel_driver": kernel_driver(device),
            }
        )  # fmt: skip
    return found


def kernel_driver(device: Path) -> str:
    """Return the name of the driver that has taken the card; empty without."""
    taken = device / "driver"
    return taken.resolve().name if taken.exists() else ""


def bars(resource: str) -> list[float]:
    """Return the sizes of the memory windows, MiB: first, last address and flags, a line each."""
    sizes = []
    for line in resource.splitlines()[:6]:
        words = line.split()
        try:
            first, last, flags = (int(word, 16) for word in words)
        except ValueError:
            continue
        if flags & MEMORY_FLAG and last > first:
            sizes.append((last - first + 1) / MIB)
    return sizes


def link(device: Path) -> dict[str, Any]:
    """Return the PCI link, as it is and as it could be."""
    return {
        "width": number(read(device / "current_link_width")),
        "most_width": number(read(device / "max_link_width")),
        "speed": read(device / "current_link_speed"),
        "most_speed": read(device / "max_link_speed"),
    }


def described_by_driver() -> tuple[dict[str, dict[str, Any]], str, str]:
    """Return what the driver's tool says of each card, its complaint, and the topology."""
    code, said = run(
        "nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"
    )
    if code == 127:
        return {}, "", ""
    if code:
        return {}, " ".join(said.split())[:300] or f"nvidia-smi ended with {code}", ""
    seen = {}
    for row in csv.reader(said.splitlines(), skipinitialspace=True):
        if len(row) != len(QUERY):
            continue
        told = dict(zip(QUERY.values(), row, strict=True))
        # It writes the domain with eight digits, the kernel with four.
        address = re.sub(r"^0000(?=[0-9a-f]{4}:)", "", told.pop("pci_address").lower())
        seen[address] = {
            "name": told["name"],
            "uuid": told["uuid"],
            "memory_mib": number(told["memory_mib"]),
            "compute_capability": told["compute_capability"],
            "ecc": switch(told["ecc"]),
            "mig": bool(switch(told["mig"])),
            "power_limit_watts": number(told["power_limit_watts"]),
        }
    topology = run("nvidia-smi", "topo", "-m")[1] if len(seen) > 1 else ""
    return seen, "", TERMINAL.sub("", topology)


def switch(text: str) -> bool | None:
    """Return a setting that is Enabled or Disabled; None where the card has none."""
    return {"enabled": True, "disabled": False}.get(text.lower())


# Driver ----------------------------------------------------------------------------------------


def module(root: Path) -> tuple[str, str]:
    """Return the loaded module's version and flavour; empty without one."""
    told = read(root / "proc/driver/nvidia/version")
    found = re.search(r"^NVRM version:.*?(\d+\.\d+(?:\.\d+)?)", told, re.MULTILINE)
    if not found:
        return read(root / "sys/module/nvidia/version"), ""
    return found[1], "open" if "Open Kernel Module" in told else "proprietary"


def library(root: Path) -> str:
    """Return the version of the driver's library on disk, by its file's name."""
    for path in sorted((root / "usr/lib").glob("*/libnvidia-ml.so.*.*"), reverse=True):
        return path.name.removeprefix("libnvidia-ml.so.")
    return ""


def packages() -> dict[str, Any]:
    """Return the driver's and kernel's packages: versions, unfinished ones, holds."""
    code, said = run(
        "dpkg-query", "-W", "-f=${Package}\t${Version}\t${db:Status-Abbrev}\n", *DRIVER_PACKAGES
    )
    versions: dict[str, str] = {}
    unfinished, holds = [], []
    # It ends with 1 where a pattern matches nothing, and lists the rest all the same.
    for line in said.splitlines() if code in (0, 1) else []:
        name, _, rest = line.partition("\t")
        version, _, status = rest.partition("\t")
        if len(status) < 2:
            continue
        if status[1] == "i":
            versions[name] = version
        elif status[1] not in "nc":
            unfinished.append(name)
        if status[0] == "h":
            holds.append(name)
    kernels = {name: version for name, version in versions.items() if KERNEL.match(name)}
    return {
        "packages": {n: v for n, v in versions.items() if n not in kernels},
        "kernels": kernels,
        "unfinished": sorted(unfinished),
        "holds": sorted(holds),
    }


def secure_boot(root: Path) -> bool | None:
    """Return whether the firmware checks signatures; None where it cannot. Four bytes of attributes
    stand before the value.
    """
    try:
        return (root / SECURE_BOOT).read_bytes()[4:5] == b"\1"
    except OSError:
        return None


def enrolled_key(root: Path) -> bool:
    """Return whether the firmware trusts the key that DKMS signs with."""
    key = root / "var/lib/dkms/mok.pub"
    # It says by its words: the exit status differs between versions.
    return key.exists() and "already enrolled" in run("mokutil", "--test-key", str(key))[1]


# The rest --------------------------------------------------------------------------------------


def cpu(root: Path) -> dict[str, Any]:
    """Return the processor."""
    told = read(root / "proc/cpuinfo")
    found = re.search(r"^flags\s*:(.*)$", told, re.MULTILINE)
    flags = set(found[1].split()) if found else set()
    model = re.search(r"^model name\s*:\s*(.*)$", told, re.MULTILINE)
    return {
        "model": model[1] if model else "",
        "cores": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in CPU_FLAGS if flag in flags],
        "numa_nodes": len(list((root / "sys/devices/system/node").glob("node[0-9]*"))) or 1,
    }


def memory_mib(root: Path) -> int:
    """Return the machine's memory."""
    found = re.search(r"^MemTotal:\s*(\d+) kB", read(root / "proc/meminfo"), re.MULTILINE)
    return int(found[1]) // 1024 if found else 0


def disks(root: Path) -> list[dict[str, Any]]:
    """Return the disks."""
    found = []
    for device in sorted((root / "sys/block").glob("*")):
        sectors = number(read(device / "size")) or 0
        if not sectors or re.match(r"loop|ram|zram|sr|dm-|md", device.name):
            continue
        found.append(
            {"name": device.name, "kind": kind(device), "gib": round(sectors * 512 / 2**30, 1)}
        )
    return found


def kind(disk: Path) -> str:
    """Return `nvme`, `ssd`, `hdd`, or `virtual`: a guest's disk says nothing of what it is on."""
    if disk.name.startswith("nvme"):
        return "nvme"
    if disk.name.startswith(("vd", "xvd")):
        return "virtual"
    return "ssd" if read(disk / "queue/rotational") == "0" else "hdd"


def space(paths: list[str]) -> dict[str, int]:
    """Return the free MiB of each path, or of the folder that it would be made in."""
    free = {}
    for path in paths:
        place = Path(path)
        while not place.exists():
            place = place.parent
        free[path] = shutil.disk_usage(place).free // MIB
    return free


def network(root: Path) -> list[dict[str, Any]]:
    """Return the network interfaces that are hardware, and their speed where a link is up."""
    found = []
    for device in sorted((root / "sys/class/net").glob("*")):
        if (device / "device").exists():
            speed = number(read(device / "speed"))
            found.append({"name": device.name, "mbit_s": speed if speed and speed > 0 else None})
    return found


def observe(root: Path, space_paths: list[str]) -> dict[str, Any]:
    """Return all facts."""
    gpus = pci_gpus(root)
    described, problem, topology = described_by_driver()
    for gpu in gpus:
        gpu.update(described.get(gpu["pci_address"], {}))
    version, flavour = module(root)
    loaded = [line.split()[0] for line in read(root / "proc/modules").splitlines() if line.strip()]
    return {
        "gpus": gpus,
        "driver": {
            "module_version": version,
            "module_flavour": flavour,
            "library_version": library(root),
            "problem": problem,
            "topology": topology,
            **packages(),
        },
        "modules": sorted(name for name in loaded if GPU_MODULES.fullmatch(name)),
        "cpu": cpu(root),
        "memory_mib": memory_mib(root),
        "disks": disks(root),
        "space_mib": space(space_paths),
        "network": network(root),
        "kernel": os.uname().release,
        "secure_boot": secure_boot(root),
        "enrolled_key": enrolled_key(root),
    }
