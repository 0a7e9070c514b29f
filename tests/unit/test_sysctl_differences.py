"""A file of sysctl.d held against the kernel."""

from __future__ import annotations

from sysctl_differences import sysctl_differences

WANTED = """
# A comment = with a sign
; another = one
net.ipv4.conf.*.accept_redirects = 0
kernel.core_pattern = |/bin/false
-kernel.missing = 1
net.ipv4.ping_group_range = 1 0
"""
GOOD = """net.ipv4.conf.all.accept_redirects = 0
net.ipv4.conf.eth0.accept_redirects = 0
kernel.core_pattern = |/bin/false
net.ipv4.ping_group_range = 1\t0
net.ipv4.conf.eth0.send_redirects = 1
"""


def test_what_holds_is_no_difference() -> None:
    assert sysctl_differences(WANTED, GOOD) == []


def test_each_interface_is_held_against_a_pattern() -> None:
    told = GOOD.replace("eth0.accept_redirects = 0", "eth0.accept_redirects = 1")
    assert sysctl_differences(WANTED, told) == ["net.ipv4.conf.eth0.accept_redirects is 1, not 0"]


def test_a_value_is_the_whole_of_it() -> None:
    told = GOOD.replace("|/bin/false", "|/usr/lib/systemd/systemd-coredump %P %u")
    (line,) = sysctl_differences(WANTED, told)
    assert (
        line == "kernel.core_pattern is |/usr/lib/systemd/systemd-coredump %P %u, not |/bin/false"
    )


def test_what_the_kernel_does_not_have_is_none() -> None:
    assert sysctl_differences(WANTED, "") == []
