#!/usr/bin/python
"""Observe how this run came in, who else may, and what the server's OpenSSH can do. Read-only."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
---
module: ssh_facts
short_description: Observe the ssh session, authorized keys, and OpenSSH's algorithms
description:
  - Read-only. C(session) is empty where the run did not come through ssh.
options:
  drop_in:
    description: A file whose text is told, empty where there is none.
    type: path
author: Millrace
"""

SSHD = "/usr/sbin/sshd"
QUERIES = {"kex": "KexAlgorithms", "cipher": "Ciphers", "mac": "MACs", "key": "HostKeyAlgorithms"}


def environment(pid: int) -> dict[str, str]:
    """Return a process's environment as it was started with."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(line.split("=", 1) for line in raw.split("\0") if "=" in line)


def parent(pid: int) -> int:
    """Return the parent of a process; 0 when there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError):
        return 0


def session(pid: int) -> dict[str, str | int]:
    """Return who came in from where: of a process or the nearest above it, for sudo drops it."""
    while pid > 1:
        said = environment(pid)
        cells = said.get("SSH_CONNECTION", "").split()
        if len(cells) == 4:
            address = cells[0].split("%")[0].removeprefix("::ffff:")
            return {"address": address, "port": int(cells[3]), "user": said.get("USER", "")}
        pid = parent(pid)
    return {}


def key_files(pattern: str, user: str, home: str) -> list[Path]:
    """Return the files of authorized keys that sshd's own pattern names, sshd_config(5)."""
    found = []
    for word in pattern.split():
        path = word.replace("%%", "\0").replace("%h", home).replace("%u", user).replace("\0", "%")
        found.append(Path(path) if path.startswith("/") else Path(home, path))
    return found


def count_keys(files: list[Path]) -> int:
    """Count the lines that are no comment."""
    lines: list[str] = []
    for file in files:
        try:
            lines += file.read_text(errors="replace").splitlines()
        except OSError:
            continue
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in lines)


def host_keys(module: AnsibleModule) -> dict[str, int]:
    """Return the size of each host key in bits, by kind."""
    found = {}
    for file in sorted(Path("/etc/ssh").glob("ssh_host_*_key.pub")):
        rc, out, _ = module.run_command(["ssh-keygen", "-l", "-f", str(file)])
        if rc == 0:
            kind = file.name.removeprefix("ssh_host_").removesuffix("_key.pub")
            found[kind] = int(out.split()[0])
    return found


def text(file: str | None) -> str:
    """Return what is in a file; nothing where there is none."""
    try:
        return Path(file).read_text(errors="replace") if file else ""
    except OSError:
        return ""


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec={"drop_in": {"type": "path"}}, supports_check_mode=True)
    came = session(os.getpid())
    user = str(came.get("user") or os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name)
    try:
        home = pwd.getpwnam(user).pw_dir
    except KeyError:
        home = "/nonexistent"
    who = f"user={user},host=unknown,addr={came.get('address') or '127.0.0.1'}"
    rc, out, said = module.run_command([SSHD, "-T", "-C", who])
    if rc:
        module.fail_json(msg=f"sshd does not accept its own configuration as it is: {said.strip()}")
    effective = {}
    for line in out.splitlines():
        name, _, value = line.partition(" ")
        effective.setdefault(name, value)
    files = key_files(effective.get("authorizedkeysfile", ""), user, home)
    other_ways = ("authorizedkeyscommand", "trustedusercakeys")
    module.exit_json(
        changed=False,
        session=came,
        user=user,
        authorized_keys=count_keys(files),
        authorized_otherwise=any(effective.get(way, "none") != "none" for way in other_ways),
        offers={
            name: module.run_command(["ssh", "-Q", query], check_rc=True)[1].split()
            for name, query in QUERIES.items()
        },
        host_keys=host_keys(module),
        effective=effective,
        drop_in=text(module.params["drop_in"]),
    )


if __name__ == "__main__":
    main()
