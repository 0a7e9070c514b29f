"""A file of sysctl.d held against the kernel."""

from __future__ import annotations

import re

from sysctl_differences import sysctl_differences, sysctl_pattern

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


def test_the_pattern_is_for_the_keys_of_the_file_and_for_no_others() -> None:
    pattern = re.compile(sysctl_pattern("# a.b = 1\nnet.ipv4.conf.*.rp_filter = 1\n-fs.x = 2\n"))
    for key in ("net.ipv4.conf.eth0.rp_filter", "net.ipv4.conf.a.b.rp_filter", "fs.x"):
        assert pattern.search(key)
    for key in ("a.b", "net.ipv4.conf.eth0.rp_filter_x", "xfs.x", "fsyx", "fs.x.y"):
        assert not pattern.search(key)
