"""What the tests of firewall and sshd share: fresh connections, and trials that nobody confirms."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import time

from servers import Server

PENDING = "/var/lib/millrace/trials"
RULESET = "/etc/millrace/firewall/millrace.nft"
DROP_IN = "/etc/ssh/sshd_config.d/00-millrace.conf"
LOAD = ["/usr/bin/python3", "/usr/local/lib/millrace/firewall.py", "load"]
RELOAD_SSH = ["sh", "-c", "/usr/sbin/sshd -t && systemctl try-reload-or-restart ssh.service"]


def comes_in(server: Server, *options: str, seconds: int = 3) -> bool:
    """Whether a new connection comes in; the one that is open proves nothing."""
    command = ["ssh", "-o", "ControlPath=none", "-o", f"ConnectTimeout={seconds}", *options]
    done = subprocess.run(
        [*command, *server.ssh_arguments, f"root@{server.address}", "true"],
        capture_output=True, check=False, timeout=seconds + 20,
    )  # fmt: skip
    return done.returncode == 0


def comes_in_again(server: Server, within: float) -> float:
    """Wait until new connections come in; returns the seconds it took."""
    began = time.monotonic()
    while time.monotonic() - began < within:
        if comes_in(server, seconds=1):
            return time.monotonic() - began
        time.sleep(0.2)
    raise AssertionError(f"still shut out after {within} s")


def put_on_trial(
    server: Server, name: str, path: str, text: str, apply: list[str], seconds: int
) -> None:
    """Begin a trial that nobody will confirm, with the server's own program."""
    given = {"mode": 0o644, "check": ["true"], "agrees": [], "apply": apply, "seconds": seconds}
    script = (
        "import sys, json, pathlib; sys.path.insert(0, '/usr/local/lib/millrace'); import trial\n"
        f"trial.begin({name!r}, pathlib.Path({path!r}), sys.argv[1], **json.loads(sys.argv[2]))"
    )
    server.run(shlex.join(["python3", "-B", "-c", script, text, json.dumps(given)]))


def answer(address: str, port: int, seconds: float = 2) -> str:
    """What a TCP port says to a caller from outside: open, refused, or nothing at all."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as caller:
        caller.settimeout(seconds)
        try:
            caller.connect((address, port))
        except ConnectionRefusedError:
            return "refused"
        except TimeoutError:
            return "nothing"
    return "open"
