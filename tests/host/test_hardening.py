"""The server under the services: what it offers, what it keeps, and that it can be taken back."""

from __future__ import annotations

import subprocess

import pytest
import yaml
from servers import ROOT, Server, playbook

FILE = "/etc/sysctl.d/99-zz-millrace.conf"
# A container's kernel is its host's, except for the network.
NETWORK = {
    "net.ipv4.conf.all.accept_redirects": "0",
    "net.ipv4.conf.default.accept_redirects": "0",
    "net.ipv4.conf.all.secure_redirects": "0",
    "net.ipv4.conf.all.send_redirects": "0",
    "net.ipv4.conf.all.accept_source_route": "0",
    "net.ipv4.conf.default.accept_source_route": "0",
    "net.ipv6.conf.all.accept_redirects": "0",
    "net.ipv6.conf.default.accept_redirects": "0",
    "net.ipv4.tcp_syncookies": "1",
}


def own(server: Server) -> str:
    """The interface that the server is reached by."""
    return server.run("ip -o route get 192.0.2.1 | sed 's/.* dev \\([^ ]*\\).*/\\1/'").strip()


def test_the_kernel_was_told_and_holds_what_is_this_servers(server: Server) -> None:
    device = own(server)
    wanted = NETWORK | {
        f"net.ipv4.conf.{device}.accept_redirects": "0",
        f"net.ipv4.conf.{device}.send_redirects": "0",
        f"net.ipv6.conf.{device}.accept_redirects": "0",
        f"net.ipv4.conf.{device}.rp_filter": "2",
    }
    told = server.run(f"sysctl -n {' '.join(wanted)}").split()
    assert dict(zip(wanted, told, strict=True)) == wanted


def test_systemd_reads_every_line_of_it(server: Server) -> None:
    """What it cannot set here it says without a word of reproach; what it cannot read is one."""
    said = server.run(f"SYSTEMD_LOG_LEVEL=info /usr/lib/systemd/systemd-sysctl {FILE} 2>&1")
    assert [line for line in said.splitlines() if "not an assignment" in line] == []
    assert server.show("systemd-sysctl.service", "Result")["Result"] == "success"


@pytest.mark.parametrize("module", ["dccp", "sctp", "rds", "tipc", "firewire-core", "udf"])
def test_what_nobody_needs_is_never_loaded(server: Server, module: str) -> None:
    said = server.run(f"modprobe --dry-run --verbose {module} 2>&1", check=False)
    assert said.strip() == "install /bin/false"


def test_cards_and_the_boot_partition_are_not_among_it(server: Server) -> None:
    told = server.run("modprobe --showconfig")
    for module in ("nvidia", "nvidia_uvm", "vfat", "overlay", "nf_tables", "usb_storage"):
        assert f"install {module} /bin/false" not in told


def test_systemd_and_sessions_leave_no_memory_behind(server: Server) -> None:
    told = server.run("systemd-analyze cat-config systemd/system.conf")
    assert "\nDefaultLimitCORE=0" in told
    assert "\nStorage=none" in server.run("cat /etc/systemd/coredump.conf.d/millrace.conf")
    # A connection that is open already has the limits of when it began.
    fresh = ["ssh", "-o", "ControlPath=none", *server.ssh("ulimit -Hc")[1:]]
    done = subprocess.run(fresh, capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "0"


def test_one_clock_is_kept(server: Server) -> None:
    kept = "systemctl is-enabled systemd-timesyncd chrony ntpsec 2>/dev/null"
    assert server.run(kept, check=False).split().count("enabled") == 1


@pytest.mark.breaks
@pytest.mark.timeout(900)
def test_it_is_taken_back_and_put_again(server: Server) -> None:
    if server.suite != "bookworm":
        pytest.skip("three runs of a playbook: what they do is the same on every release")
    constants = yaml.safe_load((ROOT / "roles/hardening/vars/main.yml").read_text())
    names = ("sysctl", "modprobe", "needrestart", "audit")
    files = [constants[f"__hardening_{name}"] for name in names] + constants["__hardening_limits"]
    listed = f"ls {' '.join(files)} 2>/dev/null"
    before = server.run(listed, check=False).split()
    assert FILE in before
    role = ("playbooks/host.yml", "--tags", "hardening", "--limit", server.name)
    done = playbook(*role, "-e", "hardening_state=absent")
    assert done.returncode == 0, done.stdout
    assert server.run(listed, check=False).split() == []
    again = playbook(*role)
    assert again.returncode == 0, again.stdout
    assert server.run(listed, check=False).split() == before
    third = playbook(*role, "--check")
    assert "changed=0" in third.stdout, third.stdout
