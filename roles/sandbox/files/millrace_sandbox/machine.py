"""Hardware is data: the PCI devices of a machine as the kernel would show them in /sys."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from .host import SandboxError, remove_tree

SPEEDS = {1: "2.5", 2: "5.0", 3: "8.0", 4: "16.0", 5: "32.0", 6: "64.0"}
MIB = 1 << 20


def name_of(machine: dict[str, Any]) -> str:
    """Name a machine by its content: swap a card and it is another machine."""
    text = json.dumps(machine, sort_keys=True) + Path(__file__).read_text()
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def build(machine: dict[str, Any], folder: Path) -> None:
    """Write one folder per device, to be bound over /sys/bus/pci/devices."""
    remove_tree(folder)
    folder.mkdir(parents=True)
    for device in machine["pci"]:
        try:
            files = device_files(device)
        except (KeyError, ValueError, TypeError) as error:
            raise SandboxError(f"machine, PCI device {device.get('slot')}: {error!r}") from error
        home = folder / device["slot"]
        home.mkdir()
        for name, content in files.items():
            (home / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def device_files(device: dict[str, Any]) -> dict[str, str | bytes]:
    """Return the files of one device, as sysfs spells them."""
    vendor, product = int(device["vendor"], 16), int(device["device"], 16)
    sub_vendor, sub_device = (int(part, 16) for part in device["subsystem"].split(":"))
    kind, revision = int(device["class"], 16), int(device.get("revision", "00"), 16)
    bars = placed(device.get("bars", []))
    link = device.get("link")
    files: dict[str, str | bytes] = {
        "vendor": f"0x{vendor:04x}\n",
        "device": f"0x{product:04x}\n",
        "subsystem_vendor": f"0x{sub_vendor:04x}\n",
        "subsystem_device": f"0x{sub_device:04x}\n",
        "class": f"0x{kind:06x}\n",
        "revision": f"0x{revision:02x}\n",
        "irq": "0\n",
        "enable": "1\n",
        "numa_node": f"{device.get('numa_node', -1)}\n",
        "modalias": (
            f"pci:v{vendor:08X}d{product:08X}sv{sub_vendor:08X}sd{sub_device:08X}"
            f"bc{kind >> 16:02X}sc{kind >> 8 & 0xFF:02X}i{kind & 0xFF:02X}\n"
        ),
        "uevent": (
            f"PCI_CLASS={kind:X}\nPCI_ID={vendor:04X}:{product:04X}\n"
            f"PCI_SUBSYS_ID={sub_vendor:04X}:{sub_device:04X}\nPCI_SLOT_NAME={device['slot']}\n"
        ),
        "resource": "".join(
            " ".join(f"0x{value:016x}" for value in bars.get(number, (0, 0, 0))) + "\n"
            for number in range(13)  # six of its own, a ROM, six behind a bridge
        ),
        "config": config_space(
            (vendor, product, kind, revision, sub_vendor, sub_device), bars, link
        ),
    }
    if link:
        speed, width = f"{SPEEDS[link['generation']]} GT/s PCIe\n", f"{link['width']}\n"
        files |= {f"{which}_link_speed": speed for which in ("current", "max")}
        files |= {f"{which}_link_width": width for which in ("current", "max")}
    return files


def placed(bars: list[dict[str, Any]]) -> dict[int, tuple[int, int, int]]:
    """Give every memory region an address, aligned to its size: start, end and kernel flags."""
    low, high = 0xE000_0000, 0x40_0000_0000
    found = {}
    for bar in bars:
        size = int(float(bar["size_mib"]) * MIB)
        wide, prefetchable = bool(bar.get("bits") == 64), bool(bar.get("prefetchable"))
        start = (high if wide else low) + size - 1 & -size
        if wide:
            high = start + size
        else:
            low = start + size
        low_bits = (4 if wide else 0) | (8 if prefetchable else 0)
        flags = 0x40200 | (0x100000 if wide else 0) | (0x2000 if prefetchable else 0) | low_bits
        found[int(bar["bar"])] = (start, start + size - 1, flags)
    return found


def config_space(
    ids: tuple[int, int, int, int, int, int],
    bars: dict[int, tuple[int, int, int]],
    link: dict[str, int] | None,
) -> bytes:
    """Return the first 256 bytes of a device's configuration space (type 0 header)."""
    vendor, product, kind, revision, sub_vendor, sub_device = ids
    space = bytearray(256)

    def put(offset: int, value: int, size: int) -> None:
        space[offset : offset + size] = value.to_bytes(size, "little")

    put(0x00, vendor, 2)
    put(0x02, product, 2)
    put(0x04, 0x0006, 2)  # answers memory accesses, may master the bus
    put(0x08, revision, 1)
    put(0x09, kind, 3)
    for number, (start, _, flags) in bars.items():
        if number < 6:
            wide = bool(flags & 0x100000)
            value = (start | flags & 0xF) & (1 << (64 if wide else 32)) - 1
            put(0x10 + 4 * number, value, 8 if wide else 4)
    put(0x2C, sub_vendor, 2)
    put(0x2E, sub_device, 2)
    if link:  # one PCI Express capability: an endpoint and its link
        put(0x06, 0x0010, 2)
        put(0x34, 0x40, 1)
        put(0x40, 0x0010, 2)
        put(0x42, 0x0002, 2)
        put(0x4C, link["width"] << 4 | link["generation"], 4)
        put(0x52, link["width"] << 4 | link["generation"], 2)
    return bytes(space)
