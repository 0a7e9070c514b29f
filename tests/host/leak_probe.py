"""Look for secrets where none may lie, on the machine that this runs on.

Standard library alone: the tests send this text to a server and run it there as root. Secrets come
in by standard input, a line of JSON (name to texts), and go out by name only.

    python3 leak_probe.py everywhere    what lies where now: files and who may read them, processes,
                                        the journal, what systemd tells of its units
    python3 leak_probe.py watch         processes, over and over, until standard input is closed;
                                        says that it has begun
"""

from __future__ import annotations

import json
import os
import pwd
import re
import select
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

Needles = dict[str, list[str]]

# Whatever a service, a run or a person may have written to. Of /usr only what is not a package's.
PLACES = ("/etc", "/home", "/mnt", "/opt", "/root", "/run", "/srv", "/tmp", "/var", "/usr/local",
          "/dev/shm")  # fmt: skip
# Wheels and packages come from outside, where nobody knows our secrets; journals are read below.
SKIPPED = ("--exclude-dir=venv", "--exclude-dir=journal", "--exclude=*.safetensors",
           "--exclude=*.deb", "--exclude=*.whl")  # fmt: skip
PEM = re.compile(r"-----BEGIN ([A-Z ]*)PRIVATE KEY-----\s(.+?)-----END", re.S)


def lines_of_key(kind: str, body: str) -> list[str]:
    """Return the line of a private key that stands in no certificate and no public key.

    A long key begins with its public part, a short one on a curve ends with it.
    """
    lines = [line for line in body.split() if len(line) >= 40]
    if not lines:
        return []
    if "OPENSSH" in kind:
        return [lines[len(lines) // 2]]
    return [lines[0] if len(lines) <= 4 else lines[-1]]


def private_keys(places: Iterable[str]) -> Needles:
    """Return the private keys that lie on this machine, named by their file."""
    found: Needles = {}
    for path in files_with(["PRIVATE KEY-----"], places):
        try:
            text = Path(path).read_text(errors="replace")
        except OSError:
            continue
        lines = [line for kind, body in PEM.findall(text) for line in lines_of_key(kind, body)]
        if lines:
            found[path] = lines
    return found


def files_with(texts: list[str], places: Iterable[str]) -> list[str]:
    """Return the files under `places` that hold one of `texts`."""
    there = [place for place in places if Path(place).exists()]
    done = subprocess.run(
        ["grep", "-rlaF", "-Z", "-D", "skip", "-f", "-", *SKIPPED, *there],
        input="\n".join(texts), capture_output=True, text=True, check=False,
    )  # fmt: skip
    return [path for path in done.stdout.split("\0") if path]


def named(needles: Needles, text: bytes) -> list[str]:
    """Return the names of the secrets that stand in `text`."""
    return sorted(
        name for name, texts in needles.items() if any(one.encode() in text for one in texts)
    )


def readers(path: str, users: list[tuple[str, int, int]]) -> list[str]:
    """Return the users who can open a file for reading, by trying as each of them."""
    can = []
    for name, uid, gid in users:
        child = os.fork()
        if child == 0:
            try:
                os.setgroups(os.getgrouplist(name, gid))
                os.setresgid(gid, gid, gid)
                os.setresuid(uid, uid, uid)
                Path(path).open("rb").close()
                os._exit(0)
            except OSError:
                os._exit(1)
        if os.waitpid(child, 0)[1] == 0:
            can.append(name)
    return can


def in_files(needles: Needles, places: Iterable[str] = PLACES) -> list[dict[str, object]]:
    """Return every file that holds a secret: which, its mode and owner, and which users read it."""
    users = [(user.pw_name, user.pw_uid, user.pw_gid) for user in pwd.getpwall() if user.pw_uid]
    found: list[dict[str, object]] = []
    for path in files_with([text for texts in needles.values() for text in texts], places):
        try:
            seen, data = Path(path).stat(), Path(path).read_bytes()
        except OSError:
            continue  # A process and its files may end meanwhile.
        can = readers(path, users) if os.geteuid() == 0 else []
        found.append({"path": path, "secrets": named(needles, data), "readers": can,
                      "mode": f"{seen.st_mode & 0o7777:o}", "uid": seen.st_uid})  # fmt: skip
    return found


def in_processes(needles: Needles) -> Iterator[tuple[str, str]]:
    """Yield each secret in a process's arguments or environment, and where."""
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        for part in ("cmdline", "environ"):
            try:
                text = Path(entry.path, part).read_bytes()
                names = named(needles, text)
                who = Path(entry.path, "comm").read_text().strip() if names else ""
            except OSError:
                continue
            yield from ((name, f"{part} of {who}") for name in names)


def in_output(needles: Needles, *command: str) -> list[str]:
    """Return the secrets in what a command prints, read as it comes."""
    texts = [(name, text.encode()) for name, given in needles.items() for text in given]
    any_of = re.compile(b"|".join(re.escape(text) for _, text in texts))
    found: set[str] = set()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if any_of.search(line):
                found |= {name for name, text in texts if text in line}
    return sorted(found)


def everywhere(needles: Needles) -> dict[str, object]:
    """Look once at everything."""
    keys = private_keys(PLACES)
    all_of_them = {**needles, **keys}
    show = ("systemctl", "show", "--no-pager", "--all", "*")
    return {
        "keys": sorted(keys),
        "files": in_files(all_of_them),
        "processes": sorted(set(in_processes(all_of_them))),
        "journal": in_output(all_of_them, "journalctl", "--no-pager", "--all", "-o", "export"),
        "units": in_output(all_of_them, *show),
        "manager": in_output(all_of_them, "systemctl", "show-environment"),
        "kernel": in_output(all_of_them, "dmesg"),
    }


def watch(needles: Needles) -> dict[str, object]:
    """Look at processes until standard input is closed."""
    found: set[tuple[str, str]] = set()
    looks = 0
    print("watching", flush=True)
    while True:
        found |= set(in_processes(needles))
        looks += 1
        if select.select([sys.stdin], [], [], 0.02)[0]:
            return {"processes": sorted(found), "looks": looks}


if __name__ == "__main__":
    given: Needles = json.loads(sys.stdin.readline())
    print(json.dumps({"everywhere": everywhere, "watch": watch}[sys.argv[1]](given)))
