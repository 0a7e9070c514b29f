"""The units: running, enabled, sandboxed, restarted when they fall."""

from __future__ import annotations

import json
import re

import pytest
from conftest import UNITS, unit_of
from servers import Server

# What `systemd-analyze security` may find at most (0 is best).
EXPOSURE = {"gateway": 2.0, "backend": 2.0, "engine": 2.0, "edge": 3.0}


@pytest.fixture(scope="module", params=sorted(UNITS))
def unit(request: pytest.FixtureRequest, server: Server) -> str:
    """A part of the chain, as this server has it."""
    if request.param == "engine":
        request.getfixturevalue("engine")
    return str(request.param)


def test_runs_now_and_after_a_boot(server: Server, unit: str) -> None:
    told = server.show(unit_of(server, unit), "ActiveState", "UnitFileState", "Restart")
    assert told == {"ActiveState": "active", "UnitFileState": "enabled", "Restart": "always"}


def test_never_gives_up(server: Server, unit: str) -> None:
    assert (
        server.show(unit_of(server, unit), "StartLimitIntervalUSec")["StartLimitIntervalUSec"]
        == "0"
    )


def test_sandbox(server: Server, unit: str) -> None:
    told = server.show(
        unit_of(server, unit), "NoNewPrivileges", "ProtectSystem", "ProtectHome", "PrivateTmp",
        "PrivateDevices", "RestrictNamespaces", "ProtectKernelTunables",
    )  # fmt: skip
    assert told.pop("ProtectSystem") == "strict"
    assert set(told.values()) == {"yes"}, told


def test_no_unit_leaves_its_memory_behind(server: Server, unit: str) -> None:
    """A dump would hold prompts: of the process itself, and of each it starts."""
    name = unit_of(server, unit)
    group = server.show(name, "ControlGroup")["ControlGroup"]
    told = server.run(
        f"for p in $(cat '/sys/fs/cgroup{group}/cgroup.procs'); do cat /proc/$p/limits; done"
    )
    limits = [line.split()[4:6] for line in told.splitlines() if line.startswith("Max core")]
    assert limits
    assert all(limit == ["0", "0"] for limit in limits)


def test_what_a_unit_has_written_it_cannot_run(server: Server, unit: str) -> None:
    if unit == "engine":
        pytest.skip("it compiles at run time, and runs what came of it")
    pid = server.show(unit_of(server, unit), "MainPID")["MainPID"]
    told = server.run(
        f"nsenter --mount --target {pid} sh -c "
        "'cp /usr/bin/true /tmp/tried; /usr/bin/true && echo good; /tmp/tried; rm /tmp/tried' 2>&1",
        check=False,
    )
    assert "good" in told
    assert "/tmp/tried: Permission denied" in told


def exposure(server: Server, unit: str) -> float:
    """What `systemd-analyze security` finds of a unit; 0 is best."""
    told = server.run(f"systemd-analyze security --no-pager '{unit}' | tail -1")
    found = re.search(r"([\d.]+) \w+", told.split(":", 1)[1])
    assert found is not None, told
    return float(found[1])


def test_exposure(server: Server, unit: str) -> None:
    assert exposure(server, unit_of(server, unit)) <= EXPOSURE[unit]


def test_the_guard_is_confined_as_well_and_content(engine: Server) -> None:
    """It runs before each start of the engine, as root, since it asks the cards."""
    name = "millrace-guard@main.service"
    assert exposure(engine, name) <= 2.0
    said = engine.run(f"systemd-analyze verify {name} 2>&1", check=False)
    assert [line for line in said.splitlines() if "millrace" in line] == []
    assert engine.show(name, "Result", "ActiveState") == {
        "Result": "success", "ActiveState": "inactive",
    }  # fmt: skip
    report = json.loads(engine.run("cat /run/millrace/hardware/main.json"))
    assert report["problems"] == []
    # What it found is anybody's to read: the backend shows it.
    engine.run("runuser -u millrace-backend -- cat /run/millrace/hardware/main.json")


def test_the_check_is_confined_as_well(server: Server) -> None:
    """It runs by the clock and not all the time, so it is no unit of the chain."""
    name = "millrace-streamcheck.service"
    assert exposure(server, name) <= 2.0
    assert server.show(name, "User")["User"] == "millrace-streamcheck"
    said = server.run(f"systemd-analyze verify {name} millrace-streamcheck.timer 2>&1", check=False)
    assert [line for line in said.splitlines() if "millrace" in line] == []


def test_not_root(server: Server, unit: str) -> None:
    if unit == "edge":
        pytest.skip("nginx's master binds ports 80 and 443 as root; its workers are www-data")
    user = server.show(unit_of(server, unit), "User")["User"]
    assert user.startswith("millrace-")
    main = server.show(unit_of(server, unit), "MainPID")["MainPID"]
    assert server.run(f"stat -c %U /proc/{main}").strip() == user


def test_systemd_analyze_has_nothing_to_say(server: Server, unit: str) -> None:
    """It exits with 0 on an unknown key, so silence is what counts."""
    # What it says of the distribution's own units (a man page is missing) is not ours to mend.
    command = f"systemd-analyze verify '{unit_of(server, unit)}' millrace-backend.socket 2>&1"
    said = server.run(command, check=False)
    ours = [line for line in said.splitlines() if "millrace" in line]
    assert ours == []


def test_only_the_edge_listens_outside(server: Server) -> None:
    outside = set()
    for line in server.run("ss -Hltn").splitlines():
        address = line.split()[3]
        where, port = address.rsplit(":", 1)
        if not where.startswith("127.") and where != "[::1]":
            outside.add(int(port))
    assert outside == {22, 80, 443}


def test_releases_are_side_by_side(server: Server) -> None:
    for component in ("litellm", "backend", "streamcheck", "web"):
        current = server.run(f"readlink -f /opt/millrace/{component}/current").strip()
        assert current.startswith(f"/opt/millrace/{component}/releases/")
        server.run(f"test -e {current}/.complete")
