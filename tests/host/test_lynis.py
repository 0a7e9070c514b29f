"""lynis, an auditor from outside: nothing new, and no worse than what is written down."""

from __future__ import annotations

import re

import pytest
from servers import ROOT, Server, figure

# What was measured is 67; a release of lynis or Debian may weigh a thing otherwise.
LEAST = 64
INSTALL = "apt-get -y -qq -o DPkg::Lock::Timeout=120 --no-install-recommends install lynis"
REMOVE = "apt-get -y -qq -o DPkg::Lock::Timeout=120 purge lynis"


def known() -> set[str]:
    """The findings that docs/hardening.md says, with a reason each, are to stay."""
    _, table = (ROOT / "docs/hardening.md").read_text().split("## What an audit finds")
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`([A-Z0-9-]+)`", row)}


@pytest.fixture(scope="module")
def report(server: Server) -> list[str]:
    """What lynis wrote."""
    if server.suite != "bookworm":
        pytest.skip("a minute of computing; once is enough, on the release it was measured on")
    server.run(f"DEBIAN_FRONTEND=noninteractive {INSTALL} >/dev/null", timeout=300)
    try:
        server.run("lynis audit system --quick --no-colors --quiet >/dev/null 2>&1", timeout=900)
        return server.run("cat /var/log/lynis-report.dat").splitlines()
    finally:
        server.run(f"{REMOVE} >/dev/null; rm -f /var/log/lynis*", timeout=300)


@pytest.mark.timeout(1200)
def test_the_index_is_what_was_measured(report: list[str]) -> None:
    (index,) = [line.split("=")[1] for line in report if line.startswith("hardening_index=")]
    figure(f"lynis: hardening index {index}")
    assert int(index) >= LEAST


def test_nothing_is_found_that_is_not_written_down(report: list[str]) -> None:
    found = [line for line in report if line.startswith(("warning[]=", "suggestion[]="))]
    assert found
    fresh = [line for line in found if line.split("=", 1)[1].split("|")[0] not in known()]
    assert fresh == []


def test_no_warning_but_that_updates_wait(report: list[str]) -> None:
    assert [w for w in report if w.startswith("warning[]=") and "PKGS-7392" not in w] == []
