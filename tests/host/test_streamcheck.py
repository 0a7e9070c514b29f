"""The stream check on the live chain: no false alarm, and every fault named."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults import FAULTS, Fault
from servers import INVENTORY, Server, figure, playbook
from test_again import changes, check_mode

sys.path.insert(0, str(Path(__file__).parents[1] / "fixtures"))
from confusion import Checked, Confusion, check
from faulty_proxy import FaultyProxy

pytestmark = pytest.mark.timing

HEALTHY_RUNS = int(os.environ.get("MILLRACE_HEALTHY_RUNS", "3"))
"""How often in a row the healthy chain must pass, idle and busy each; 50 by hand."""
TOKENS = "--tokens=32"


def walk(server: Server, *arguments: str) -> Checked:
    """Check the server of the inventory, hop by hop."""
    return check(server.name, f"--inventory={INVENTORY}", TOKENS, *arguments)


@pytest.fixture(scope="module")
def table() -> Iterator[Confusion]:
    table = Confusion("stream check on the live chain")
    yield table
    table.keep()


def _burn() -> None:
    while True:
        pass


@pytest.fixture
def busy_core() -> Iterator[None]:
    """One process that takes all it can get of a core."""
    process = multiprocessing.get_context("fork").Process(target=_burn, daemon=True)
    process.start()
    yield
    process.kill()
    process.join()


def test_the_healthy_chain_passes(engine: Server) -> None:
    for run in range(HEALTHY_RUNS):
        seen = walk(engine, "--silence=0")
        assert seen.said == ("streams", None, None), f"run {run}: {seen.report['summary']}"
        assert [hop["name"] for hop in seen.report["hops"]] == [
            "vllm", "litellm", "backend", "nginx", "public",
        ]  # fmt: skip
    figure(f"the healthy chain passed the stream check {HEALTHY_RUNS} times in a row")


@pytest.mark.usefixtures("busy_core")
def test_the_healthy_chain_passes_beside_a_busy_core(engine: Server) -> None:
    for run in range(HEALTHY_RUNS):
        seen = walk(engine, "--silence=0")
        assert seen.said == ("streams", None, None), f"run {run}: {seen.report['summary']}"
    figure(f"and {HEALTHY_RUNS} times with one of two cores busy")


def test_every_way_is_asked(engine: Server) -> None:
    ways = {}
    for hop in walk(engine, "--silence=0").report["hops"]:
        ways[hop["name"]] = {
            (p["source"], p["method"], p["protocol"], p["encoding"] != "identity")
            for p in hop["probes"]
        }
    assert len(ways["vllm"]) == len(ways["litellm"]) == 2
    for source in ("generation", "emitter"):
        for compressed in (False, True):
            assert (source, "POST", "http/1.1", compressed) in ways["backend"]
            for protocol in ("http/1.1", "h2"):
                assert (source, "POST", protocol, compressed) in ways["nginx"] & ways["public"]
    assert {("emitter", "GET", p, True) for p in ("http/1.1", "h2")} <= ways["public"]


@pytest.mark.breaks
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_fault_is_named(
    engine: Server, table: Confusion, fault: Fault, until_ready: Callable[[], float]
) -> None:
    ca = str(engine.secrets / "server.crt")
    address = f"https://{engine.address}"
    try:
        if fault.do:
            engine.run(fault.do, timeout=200)
            until_ready()
        if fault.proxy == "none":
            seen = walk(engine, *fault.arguments)
        else:
            with FaultyProxy(address, fault.proxy, ca=ca, **fault.options) as proxy:
                seen = walk(engine, f"--address={proxy.url}", *fault.arguments)
    finally:
        if fault.undo:
            engine.run(fault.undo, timeout=300)
            until_ready()
    table.judge(fault.name, seen, fault.culprit, fault.kind)


@pytest.mark.breaks
def test_the_rest_of_the_promise(engine: Server) -> None:
    """130 s of silence among it, so this takes three minutes."""
    seen = walk(engine, "--silence=0", "--deep")
    assert seen.said == ("streams", None, None), seen.report["summary"]
    for (name, hop), result in seen.deep.items():
        needs_emitter = name in ("silence", "slow_reader") and hop in ("vllm", "litellm")
        assert result == ("skipped" if needs_emitter else "passed"), f"{name} at {hop}"
    assert len(seen.deep) == 25


@pytest.mark.breaks
def test_a_run_fails_with_the_verdict_and_so_does_the_unit(engine: Server) -> None:
    fault = next(fault for fault in FAULTS if fault.name == "nginx: proxy_buffering on")
    unit = "millrace-streamcheck.service"
    engine.run(fault.do)
    try:
        done = playbook("playbooks/verify.yml", "--limit", engine.name)
        engine.run(f"systemctl start {unit}", check=False, timeout=200)
        failed = engine.run("systemctl --failed --plain --no-legend")
        journal = engine.run(f"journalctl -u {unit} -n 20 -o cat --no-pager")
    finally:
        engine.run(fault.undo)
    assert done.returncode != 0
    for said in (done.stdout, journal):
        assert "nginx on the server breaks the stream" in said
        assert "proxy_buffering off" in said
    assert unit in failed
    done = playbook("playbooks/verify.yml", "--limit", engine.name)
    assert done.returncode == 0, done.stdout[-4000:]
    assert changes(done.stdout) == {engine.name: 0}
    engine.run(f"systemctl start {unit}", timeout=200)
    assert unit not in engine.run("systemctl --failed --plain --no-legend")


def test_a_run_asks_from_outside_alone_until_something_changes(engine: Server) -> None:
    def proof() -> str:
        done = playbook("playbooks/verify.yml", "--limit", engine.name)
        assert done.returncode == 0, done.stdout[-4000:]
        return " ".join(done.stdout.split())

    kept = "the other 4 were proved"
    proof()
    assert kept in proof()
    # No file tells of it: what nginx was told may have been written back since.
    engine.run("nginx -s reload && sleep 1")
    assert kept not in proof()


def test_a_run_in_check_mode_proves_it_and_tells_no_secret(engine: Server) -> None:
    check_mode("playbooks/verify.yml", "--limit", engine.name)


@pytest.mark.breaks
def test_what_stands_still_is_named(engine: Server, until_ready: Callable[[], float]) -> None:
    """Without an engine nothing can be judged: exit code 2, the hop, and one clear line."""
    engine.run("systemctl stop millrace-vllm@main", timeout=120)
    try:
        seen = walk(engine, "--silence=0")
    finally:
        engine.run("systemctl start millrace-vllm@main", timeout=300)
        until_ready()
    assert seen.code == 2
    assert seen.said == ("unreachable", "vllm", None)
    assert "cannot be reached" in seen.report["error"]


def test_the_timer_keeps_the_last_results(engine: Server) -> None:
    assert engine.show("millrace-streamcheck.timer", "ActiveState")["ActiveState"] == "active"
    engine.run("systemctl start millrace-streamcheck.service", timeout=200)
    told = json.loads(engine.run("cat /var/lib/millrace-streamcheck/latest.json"))
    assert told["verdict"] == "streams"
    assert [hop["name"] for hop in told["hops"]] == ["vllm", "litellm", "backend", "nginx"]
    assert "<svg" in engine.run("cat /var/lib/millrace-streamcheck/latest.html")
    keys = [engine.key, engine.secret("client_streamcheck"), engine.secret("gateway_key")]
    everything = engine.run("cat /var/lib/millrace-streamcheck/*")
    assert not [key for key in keys if key in everything]
