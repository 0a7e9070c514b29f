"""One server: its root, its keys, its processes; up, down, and everything a crash leaves."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from . import image, machine, network, packages
from .host import (
    SandboxError,
    cgroup_kill,
    cgroup_remove,
    copy_tree,
    locked,
    read_json,
    record_pid,
    recorded_pid,
    remove_tree,
    room_for_tree,
    run,
    send,
    wait_gone,
    write,
    write_json,
)
from .supervisor import SYSTEMD_HERE, cgroups, unit

NSPAWN_RUN = Path("/run/systemd/nspawn")


def home_of(spec: dict[str, Any]) -> Path:
    """Return the folder that holds all there is of one server."""
    return Path(spec["state_dir"]) / str(spec["name"])


def needs_image(spec: dict[str, Any]) -> bool:
    """Tell whether `up` will copy the image: not for a server that has its root already."""
    home = home_of(spec)
    suite = read_json(home / "server.json").get("suite")
    return bool(spec["rebuild"] or suite != spec["suite"] or not (home / "root").is_dir())


def up(spec: dict[str, Any]) -> dict[str, Any]:
    """Make one server answer over ssh; change nothing when it does already."""
    home, did, notes = home_of(spec), [], []
    with locked(home):
        home.chmod(0o700)  # a pip.conf may hold a mirror's password
        record = read_json(home / "server.json")
        fresh = needs_image(spec)
        if network.ensure(spec["name"], spec["network"], spec["index"]):
            did.append("made its network")
        if fresh:
            stop(home, spec)
            harvest(home, spec)
            create(home, spec)
            did.append(f"made a fresh root from {image.folder(spec).name}")
        elif record.get("owner") != spec["owner"]:
            notes.append(f"taken over, as it stands, from {record.get('owner')}")
        if know(home, spec):
            did.append("wrote its host keys and pip settings")
        launch = launch_plan(home, spec)
        if not running(home, spec) or read_json(home / "launch.json") != launch:
            stop(home, spec)
            start(home, spec, launch)
            did.append("booted it")
        write_json(
            home / "server.json",
            {"suite": spec["suite"], "index": spec["index"], "owner": spec["owner"]},
        )
        state, failed = wait_ready(home, spec)
        if fresh and state != "running":
            raise SandboxError(f"a fresh {spec['name']} is {state}; failed units: {failed}")
        notes += [f"{unit} has failed in it" for unit in failed]
    return {"changed": bool(did), "did": did, "state": state, "notes": notes}


def down(spec: dict[str, Any]) -> dict[str, Any]:
    """Take one server away with all it left on this machine; package files are kept."""
    home = home_of(spec)
    space = network.NAMESPACES / network.namespace(spec["name"])
    if not (home.exists() or space.exists() or any(g.exists() for g in cgroups(spec["name"]))):
        return {"changed": False}
    with locked(home):
        record = read_json(home / "server.json")
        stop(home, spec)
        harvest(home, spec)
        network.remove(spec["name"], record.get("index", spec["index"]))
        remove_tree(home)
    with contextlib.suppress(OSError):
        home.parent.rmdir()
    return {"changed": True}


def harvest(home: Path, spec: dict[str, Any]) -> int:
    """Keep the package files that a server fetched."""
    if not (home / "root").is_dir():
        return 0
    suite = read_json(home / "server.json").get("suite", spec["suite"])
    return packages.harvest_archives(home / "root", archive_cache({**spec, "suite": suite}))


def archive_cache(spec: dict[str, Any]) -> Path:
    """Return where a suite's package files are kept."""
    return Path(spec["cache_dir"]) / "apt" / str(spec["suite"])


def create(home: Path, spec: dict[str, Any]) -> None:
    """Copy a root from the image; it gets its name only when it is whole."""
    left_over = [home / name for name in ("root", "ssh", "server.json", "launch.json")]
    for stale in (*left_over, *home.glob("new-*")):
        remove_tree(stale)
    root = room_for_tree(home, "new")
    with image.held(spec):
        source = image.folder(spec) / "root"
        if not source.is_dir():
            raise SandboxError(f"there is no image {source}: run the playbook without --tags")
        copy_tree(source, root)
    name = spec["name"]
    write(root / "etc/machine-id", f"{uuid.uuid4().hex}\n", 0o444)
    write(root / "etc/hostname", f"{name}\n")
    write(root / "etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 {name}\n::1 localhost\n")
    run(["ssh-keygen", "-A", "-f", str(root)])
    (home / "ssh").mkdir(mode=0o700)
    key = home / "ssh/id_ed25519"
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "millrace sandbox", "-f", str(key)])
    (root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
    write(root / "root/.ssh/authorized_keys", key.with_suffix(".pub").read_text(), 0o600)
    packages.seed_archives(archive_cache(spec), root)
    root.rename(home / "root")


def know(home: Path, spec: dict[str, Any]) -> bool:
    """Write what follows from this machine's settings of today; tell whether it changed."""
    names = [network.addresses(spec["network"], spec["index"])[1]]
    names += [network.addresses6(spec["index"])[1]] if network.ipv6() else []
    keys = sorted((home / "root/etc/ssh").glob("ssh_host_*_key.pub"))
    known = "".join(f"{','.join(names)} {' '.join(key.read_text().split()[:2])}\n" for key in keys)
    changed = write(home / "ssh/known_hosts", known, 0o600)
    return write(home / "root/etc/pip.conf", packages.pip_conf(spec["cache_dir"])) or changed


def launch_plan(home: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """Return how the server is started; a difference to the last time means a restart."""
    hardware = home / f"machine-{machine.name_of(spec['machine'])}"
    shared = [*packages.pip_paths(), packages.wheels(spec["cache_dir"])]
    pip_cache = Path(spec["cache_dir"]) / "pip"
    space = network.NAMESPACES / network.namespace(spec["name"])
    return {
        "name": spec["name"],
        "stop_seconds": spec["stop_seconds"],
        "hardware": str(hardware),
        "environment": {
            # Debian 13's systemd refuses the older hierarchy; and only this one enforces
            # IPAddressDeny= and DeviceAllow= in units, on both
            "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
            # /tmp is the server's own affair, as on hardware: disk on 12, memory on 13
            "SYSTEMD_NSPAWN_TMPFS_TMP": "0",
        },
        "argv": [
            "systemd-nspawn",
            "--quiet",
            "--settings=no",
            "--boot",
            f"--directory={home / 'root'}",
            f"--machine={spec['name']}",
            "--register=no",
            "--keep-unit",
            "--link-journal=no",
            "--timezone=off",
            "--resolv-conf=off",
            "--console=read-only",
            f"--network-namespace-path={space}",
            # nftables; and the socket and device filters that systemd loads for its units
            "--capability=CAP_NET_ADMIN,CAP_BPF",
            "--system-call-filter=bpf",
            # nspawn's own is a tenth of memory; hardware has half, and engines use it
            "--tmpfs=/dev/shm:mode=1777,size=50%",
            f"--bind-ro={escaped(str(hardware))}:/sys/bus/pci/devices",
            f"--bind={escaped(str(pip_cache))}:{packages.PIP_CACHE}",
            *(f"--bind-ro={escaped(path)}" for path in shared),
        ],
    }


def escaped(path: str) -> str:
    """Quote a path for nspawn's --bind, where a colon separates."""
    return path.replace("\\", "\\\\").replace(":", "\\:")


def running(home: Path, spec: dict[str, Any]) -> bool:
    """Tell whether the server runs, supervised and in the network that leads to it."""
    for _ in range(100):
        if not recorded_pid(home / "supervisor.pid"):
            return False
        init = recorded_pid(home / "init.pid")
        if init:
            space = network.NAMESPACES / network.namespace(spec["name"])
            with contextlib.suppress(OSError):
                return os.path.samestat(Path(f"/proc/{init}/ns/net").stat(), space.stat())
        time.sleep(0.1)  # between two boots
    return False


def start(home: Path, spec: dict[str, Any], launch: dict[str, Any]) -> None:
    """Start the supervisor, which starts the server and outlives this program."""
    for old in home.glob("machine-*"):
        remove_tree(old)
    machine.build(spec["machine"], Path(launch["hardware"]))
    resolv = packages.resolv_conf()
    if resolv:
        write(home / "root/etc/resolv.conf", resolv)
    for folder in ("pip", "wheels"):
        Path(spec["cache_dir"], folder).mkdir(parents=True, exist_ok=True)
    write_json(home / "launch.json", launch)
    argv = [sys.executable, "-m", "millrace_sandbox", "supervise", str(home)]
    code = str(Path(__file__).parent.parent)
    if SYSTEMD_HERE.is_dir():  # a unit of its own, or logging out would end it
        settings = ("Delegate=yes", "KillMode=mixed", "TasksMax=infinity")
        options = [f"--property={setting}" for setting in settings]
        options += ["--quiet", "--collect", f"--setenv=PYTHONPATH={code}"]
        run(["systemd-run", *options, f"--unit={unit(spec['name'])}", *argv])
    else:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
            env={**os.environ, "PYTHONPATH": code, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        record_pid(home / "supervisor.pid", child.pid)
    deadline = time.monotonic() + 20
    while not recorded_pid(home / "init.pid"):
        if time.monotonic() > deadline:
            raise SandboxError(f"{spec['name']} did not start:\n{tail(home)}")
        time.sleep(0.05)


def stop(home: Path, spec: dict[str, Any]) -> None:
    """Shut the server down in order, bounded; then end whatever of it is left."""
    seconds = spec["stop_seconds"]
    groups = cgroups(spec["name"])
    send(home / "supervisor.pid", signal.SIGTERM)
    if not wait_gone(home / "supervisor.pid", seconds + 10):
        send(home / "supervisor.pid", signal.SIGKILL)
        wait_gone(home / "supervisor.pid", 5)
    # The supervisor may have been killed before; then the server runs on without it
    if recorded_pid(home / "init.pid"):
        send(home / "init.pid", signal.SIGRTMIN + 3)
        wait_gone(home / "init.pid", seconds)
    for group in groups:
        cgroup_kill(group)
    for group in groups:
        cgroup_remove(group)
    for name in ("supervisor.pid", "nspawn.pid", "init.pid"):
        (home / name).unlink(missing_ok=True)
    forget_nspawn(home, spec["name"])


def forget_nspawn(home: Path, name: str) -> None:
    """Remove what a killed systemd-nspawn leaves under /run."""
    with contextlib.suppress(OSError):
        found = (home / "root").stat()
        (NSPAWN_RUN / "locks" / f"inode-{found.st_dev}:{found.st_ino}").unlink(missing_ok=True)
    for folder in ("propagate", "unix-export"):
        with contextlib.suppress(OSError):
            (NSPAWN_RUN / folder / name).rmdir()
    for empty in ("propagate", "unix-export", "locks", ""):
        with contextlib.suppress(OSError):
            (NSPAWN_RUN / empty).rmdir()


def wait_ready(home: Path, spec: dict[str, Any]) -> tuple[str, list[str]]:
    """Wait until the server has booted and lets us in; return its state and failed units."""
    deadline = time.monotonic() + spec["boot_seconds"]
    said = ""
    while time.monotonic() < deadline:
        if not recorded_pid(home / "supervisor.pid"):
            break
        state = ssh(home, spec, "systemctl is-system-running --wait")
        if state.stdout.strip() in {"running", "degraded"}:
            failed = ssh(home, spec, "systemctl list-units --failed --plain --no-legend")
            units = [line.split()[0] for line in failed.stdout.splitlines() if line.split()]
            return state.stdout.strip(), units
        said = (state.stdout + state.stderr).strip()
        time.sleep(0.2)
    raise SandboxError(f"{spec['name']} is not up ({said}):\n{tail(home)}")


def ssh(home: Path, spec: dict[str, Any], command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the server as Ansible will: same key, same checked host keys."""
    _, address = network.addresses(spec["network"], spec["index"])
    options = {
        "BatchMode": "yes",
        "ConnectTimeout": "2",
        "ControlPath": "none",
        "IdentitiesOnly": "yes",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": str(home / "ssh/known_hosts"),
    }
    return run(
        ["ssh", "-F", "none", "-i", str(home / "ssh/id_ed25519")]
        + [f"-o{key}={value}" for key, value in options.items()]
        + [f"root@{address}", command],
        check=False,
        timeout=spec["boot_seconds"],
    )


def tail(home: Path) -> str:
    """Return the end of a server's logs, for a message."""
    parts = []
    for name in ("supervisor.log", "console.log"):
        with contextlib.suppress(OSError):
            text = (home / name).read_text(errors="replace")
            parts.append(f"--- {home / name}\n{text[-1500:]}")
    return "\n".join(parts)
