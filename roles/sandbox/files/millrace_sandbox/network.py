"""The way from a server to this machine and out: a namespace, a veth pair, one NAT table.

Whatever is changed on this machine is written down before it is changed, in RECORD, which
outlives a crash; the last server to go puts everything back.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from .host import SandboxError, boot_id, locked, read_json, remove_tree, run, write_json

RECORD = Path("/run/millrace-sandbox")
NAMESPACES = Path("/run/netns")
PREFIX = "mrs-"
TABLE = "millrace_sandbox"
INSIDE = "eth0"


def namespace(name: str) -> str:
    """Name the network namespace of a server."""
    return PREFIX + name


def outside(index: int) -> str:
    """Name this machine's end of the veth pair."""
    return f"mrs{index}"


def addresses(network: str, index: int) -> tuple[str, str]:
    """Return the addresses of this machine's end and of the server."""
    return f"{network}.{index}.1", f"{network}.{index}.2"


def addresses6(index: int) -> tuple[str, str]:
    """Return the same of IPv6: addresses that are unique on this machine and lead nowhere else."""
    return f"fd91:{index}::1", f"fd91:{index}::2"


def ipv6() -> bool:
    """Tell whether this machine has IPv6."""
    switch = Path("/proc/sys/net/ipv6/conf/all/disable_ipv6")
    return switch.exists() and switch.read_text().strip() == "0"


def ensure(name: str, network: str, index: int) -> bool:
    """Make the network of one server whole; tell whether anything was missing."""
    with locked(RECORD):
        gateway, address = addresses(network, index)
        refuse_taken_index(name, address)
        changed = ensure_way_out(network)
        space = namespace(name)
        if (NAMESPACES / space).exists() and not usable(space):
            run(["ip", "netns", "del", space], check=False)
        if not (NAMESPACES / space).exists():
            run(["ip", "netns", "add", space])
            changed = True
        link = outside(index)
        if not (linked(space) and linked(None, link)):
            run(["ip", "link", "del", link], check=False)
            run(["ip", "-n", space, "link", "del", INSIDE], check=False)
            mtu = ["mtu", str(uplink_mtu())]
            peer = ["peer", "name", INSIDE, *mtu, "netns", space]
            run(["ip", "link", "add", link, *mtu, "type", "veth", *peer])
            changed = True
        run(["ip", "addr", "replace", f"{gateway}/30", "dev", link])
        run(["ip", "link", "set", link, "up"])
        forwarding(link).write_text("1")
        inside = ["ip", "-n", space]
        run([*inside, "link", "set", "lo", "up"])
        run([*inside, "addr", "replace", f"{address}/30", "dev", INSIDE])
        run([*inside, "link", "set", INSIDE, "up"])
        if ipv6():
            # no way out and so no default route; nodad, for nobody else can hold the address
            near, far = (f"{address6}/64" for address6 in addresses6(index))
            run(["ip", "addr", "replace", near, "dev", link, "nodad"])
            run([*inside, "addr", "replace", far, "dev", INSIDE, "nodad"])
        run([*inside, "route", "replace", "default", "via", gateway])
        return changed


def remove(name: str, index: int) -> bool:
    """Take the network of one server away, and with the last one all that they shared."""
    with locked(RECORD):
        space = namespace(name)
        found = (NAMESPACES / space).exists()
        if found:
            # the namespace goes in the background; its link is gone when this returns
            run(["ip", "-n", space, "link", "del", INSIDE], check=False)
            run(["ip", "netns", "del", space], check=False)
        elif index and linked(None, outside(index)) and not index_holder(index):
            run(["ip", "link", "del", outside(index)], check=False)
        if not spaces():
            restore()
            remove_tree(RECORD)
        return found


def spaces() -> list[str]:
    """Return the namespaces of all our servers, whichever clone made them."""
    if not NAMESPACES.is_dir():
        return []
    return sorted(entry.name for entry in NAMESPACES.iterdir() if entry.name.startswith(PREFIX))


def usable(space: str) -> bool:
    """Tell a namespace from the empty file that a crash may leave in its place."""
    return run(["ip", "-n", space, "link", "show", "lo"], check=False).returncode == 0


def linked(space: str | None, link: str = INSIDE) -> bool:
    """Tell whether a link exists, here or in a namespace."""
    argv = ["ip", *(["-n", space] if space else []), "link", "show", link]
    return run(argv, check=False).returncode == 0


def address_of(space: str) -> str:
    """Return the address that a server of ours holds; empty when it has none."""
    shown = run(["ip", "-n", space, "-4", "-json", "addr", "show", INSIDE], check=False).stdout
    for link in json.loads(shown or "[]"):
        for info in link.get("addr_info", []):
            return str(info["local"])
    return ""


def index_holder(index: int) -> str:
    """Return the namespace that uses an index; empty when it is free."""
    for space in spaces():
        if address_of(space).split(".")[2:3] == [str(index)]:
            return space
    return ""


def refuse_taken_index(name: str, address: str) -> None:
    """Stop before two servers share an address."""
    for space in spaces():
        if space != namespace(name) and address_of(space) == address:
            raise SandboxError(
                f"{address} belongs to the server {space}, which is up: "
                f"give {name} another sandbox_index, or take that one down"
            )


def uplinks() -> list[dict[str, Any]]:
    """Return this machine's devices that lead out of it."""
    routes = json.loads(run(["ip", "-4", "-json", "route", "show", "default"]).stdout or "[]")
    names = sorted({str(route["dev"]) for route in routes if "dev" in route})
    shown = [run(["ip", "-json", "link", "show", name]).stdout for name in names]
    return [json.loads(text)[0] for text in shown]


def uplink_mtu() -> int:
    """Return the packet size that fits every way out: a bigger one inside would stall."""
    return min([int(link["mtu"]) for link in uplinks()], default=1500)


def forwarding(device: str) -> Path:
    """Return one device's switch: net.ipv4.ip_forward would turn on every device's."""
    return Path("/proc/sys/net/ipv4/conf") / device / "forwarding"


def ensure_way_out(network: str) -> bool:
    """Forward between the servers and the way out, behind this machine's address."""
    record = read_json(RECORD / "before.json")
    if record.get("boot_id") != boot_id():
        record = {
            "boot_id": boot_id(),
            "forwarding": {},
            "forwarding_all": forwarding("all").read_text()[0],
            "namespaces_folder": NAMESPACES.is_dir(),
            "namespaces_mounted": os.path.ismount(NAMESPACES),
        }
    changed = False
    devices = [str(link["ifname"]) for link in uplinks()]
    closed = [device for device in devices if forwarding(device).read_text()[0] == "0"]
    record["forwarding"] |= dict.fromkeys(closed, "0")
    write_json(RECORD / "before.json", record)
    for device in closed:
        forwarding(device).write_text("1")
        changed = True
    if run(["nft", "list", "table", "ip", TABLE], check=False).returncode != 0:
        changed = True
    servers = f"{network}.0.0/16"
    run(
        ["nft", "-f", "-"],
        stdin=f"""
        table ip {TABLE} {{}}
        flush table ip {TABLE}
        table ip {TABLE} {{
            chain postrouting {{
                type nat hook postrouting priority srcnat
                ip saddr {servers} ip daddr != {servers} masquerade
            }}
        }}
        """,
    )
    return changed


def restore() -> None:
    """Put back what ensure_way_out and `ip netns` changed on this machine."""
    if run(["nft", "list", "table", "ip", TABLE], check=False).returncode == 0:
        run(["nft", "delete", "table", "ip", TABLE])
    record = read_json(RECORD / "before.json")
    if record.get("boot_id") != boot_id():
        return
    # Should somebody else have turned on forwarding for all devices since, it is theirs now
    if forwarding("all").read_text()[0] == record["forwarding_all"]:
        for device, value in record["forwarding"].items():
            if forwarding(device).exists():
                forwarding(device).write_text(value)
    # `ip netns` mounts its folder over itself, once, and leaves that behind
    if NAMESPACES.is_dir() and not any(NAMESPACES.iterdir()):
        if not record["namespaces_mounted"] and os.path.ismount(NAMESPACES):
            run(["umount", str(NAMESPACES)], check=False)
        if not record["namespaces_folder"]:
            with contextlib.suppress(OSError):
                NAMESPACES.rmdir()
