"""sshd takes keys only and modern algorithms, and nothing broken ever reaches it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from servers import Server, playbook, servers
from trials import DROP_IN, RELOAD_SSH, comes_in, comes_in_again, put_on_trial

pytestmark = pytest.mark.timeout(300)


def test_ssh_audit_finds_nothing(server: Server) -> None:
    """Its rate test is about Diffie-Hellman key exchanges, of which none is offered."""
    beside = Path(sys.executable).parent
    audit = shutil.which("ssh-audit", path=f"{beside}:{os.environ['PATH']}")
    assert audit, "ssh-audit is in requirements/dev.txt"
    done = subprocess.run(
        [audit, "--skip-rate-test", "-n", "-l", "warn", server.address],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "[fail]" not in done.stdout
    assert "[warn]" not in done.stdout
    document = subprocess.run(
        [audit, "--skip-rate-test", "-j", server.address],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    offered = json.loads(document.stdout)
    # What OpenSSH announces about itself stands among them.
    marks = {"kex-strict-s-v00@openssh.com", "ext-info-s"}
    names = {entry["algorithm"] for entry in offered["kex"]} - marks
    assert names
    assert all(name.startswith(("sntrup761x25519-", "mlkem768x25519-")) for name in names)


def test_nobody_comes_in_without_a_key(server: Server) -> None:
    done = subprocess.run(
        ["ssh", "-o", "ControlPath=none", "-o", "PubkeyAuthentication=no", "-o", "BatchMode=yes",
         *server.ssh_arguments[1:], f"root@{server.address}", "true"],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert done.returncode == 255
    assert "Permission denied (publickey)" in done.stderr
    said = server.run("sshd -T").splitlines()
    assert "permitrootlogin without-password" in said
    assert "allowtcpforwarding local" in said
    assert "x11forwarding no" in said


def test_a_broken_line_never_reaches_sshd() -> None:
    server = servers()[min(servers())]
    before = server.run(f"cat {DROP_IN}; systemctl show ssh -p ExecMainPID -p ActiveEnterTimestamp")
    done = playbook(
        "playbooks/host.yml", "--tags", "ssh", "--limit", server.name,
        "-e", '{"ssh_more_key_exchanges": ["rot13"]}',
    )  # fmt: skip
    assert done.returncode != 0
    assert "Bad SSH2 KexAlgorithms" in " ".join(done.stdout.split()), done.stdout
    told = server.run(f"cat {DROP_IN}; systemctl show ssh -p ExecMainPID -p ActiveEnterTimestamp")
    assert told == before
    assert comes_in(server)


@pytest.mark.breaks
def test_what_shuts_us_out_is_taken_back_and_sessions_live_on(server: Server) -> None:
    before = server.run(f"cat {DROP_IN}")
    put_on_trial(server, "ssh", DROP_IN, f"DenyUsers root\n{before}", RELOAD_SSH, 8)
    assert not comes_in(server), "the check would see nothing"
    # The connection that was open before still is.
    assert server.run(f"cat {DROP_IN}").startswith("DenyUsers root")
    comes_in_again(server, within=30)
    assert server.run(f"cat {DROP_IN}") == before
