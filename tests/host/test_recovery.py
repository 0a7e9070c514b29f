"""Kill each part, and the server itself: a stream works again without help."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

import pytest
from conftest import UNITS, unit_of
from servers import RECITAL, Server, figure
from test_api import ask, chat, status, streams
from trials import LOAD, RULESET, put_on_trial

pytestmark = [pytest.mark.breaks, pytest.mark.timeout(900)]


@pytest.mark.parametrize("part", ["edge", "backend", "gateway", "engine"])
def test_killed(engine: Server, until_ready: Callable[[], float], part: str) -> None:
    unit = unit_of(engine, part)
    before = engine.show(unit, "MainPID", "NRestarts")
    engine.run(f"kill -9 {before['MainPID']}")
    began = time.monotonic()
    for _ in range(240):
        if streams(engine):
            break
        time.sleep(1)
    else:
        pytest.fail(f"no stream after the {part} was killed")
    took = time.monotonic() - began
    after = engine.show(unit, "MainPID", "NRestarts", "ActiveState")
    assert after["MainPID"] != before["MainPID"]
    assert int(after["NRestarts"]) == int(before["NRestarts"]) + 1
    until_ready()
    figure(f"{part} killed: a whole stream after {took:.0f} s")


@pytest.mark.timing
def test_a_restart_of_the_engine_is_waited_out(
    engine: Server, until_ready: Callable[[], float]
) -> None:
    """Who asks while the engine is away hears heartbeats, and then gets the whole answer.

    Two minutes is as long as anybody is made to wait, and on a busy machine an engine takes longer.
    """
    engine.run(f"systemctl stop '{UNITS['engine']}'")
    engine.run(f"systemctl start --no-block '{UNITS['engine']}'")
    began = time.monotonic()
    seen = ask(engine, chat())
    assert seen.status == 200
    assert seen.text == RECITAL
    assert seen.ended
    assert b": heartbeat" in seen.body
    figure(f"engine restarted: who asked meanwhile had all after {time.monotonic() - began:.0f} s")
    assert status(engine, "/healthz") == 200
    until_ready()


def test_reboot(engine: Server, until_ready: Callable[[], float]) -> None:
    """Streams come back; the firewall does as it was confirmed, though another was on trial."""
    rules = engine.run(f"cat {RULESET}")
    put_on_trial(engine, "firewall", RULESET, f"{rules}# on trial\n", LOAD, 3600)
    born = engine.run("cat /proc/sys/kernel/random/boot_id; stat -c %Y /proc/1").strip()
    engine.run("systemctl reboot", check=False)
    began = time.monotonic()
    for _ in range(120):
        time.sleep(1)
        try:
            now = engine.run("cat /proc/sys/kernel/random/boot_id; stat -c %Y /proc/1", timeout=10)
        except (AssertionError, OSError, subprocess.TimeoutExpired):
            continue
        if now.strip() != born:
            break
    else:
        pytest.fail("the server did not come back")
    until_ready()
    assert streams(engine)
    assert engine.run("systemctl is-system-running", check=False).strip() == "running"
    assert engine.run(f"cat {RULESET}") == rules
    engine.run("python3 /usr/local/lib/millrace/firewall.py agrees")
    figure(f"rebooted: streams after {time.monotonic() - began:.0f} s")
