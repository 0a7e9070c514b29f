"""Cards come and go: what the guard says at boot, and what the next run makes of it.

No card can be had here, so they are played (tests/fixtures/nvidia): what PCI shows, the driver's
packages from a local signed repository, and an engine that is vLLM's build for the processor. The
planning, the packages, the units and the chain are the real ones. The server is these tests' own;
each goes on where the one before it stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import cards
import pytest
from cards import Played
from conftest import READY_SECONDS, skip_without_engine
from servers import Server, figure
from test_again import changes
from test_api import ask, chat, streams

pytestmark = [pytest.mark.breaks, pytest.mark.timeout(1500)]

LITELLM = "millrace-litellm.service"
OTHERS = (LITELLM, "nginx.service")
ENGINE = "millrace-vllm@main.service"
GUARD = "millrace-guard@main.service"


@pytest.fixture(scope="module")
def played() -> Played:
    """A server that serves without a card, and can be given some."""
    found = cards.install("cards")
    skip_without_engine(found.server)
    return found


@pytest.fixture(scope="module")
def engine(played: Played) -> Server:
    """The server that `until_ready` asks."""
    return played.server


def invocations(server: Server) -> dict[str, str]:
    """Each unit's start, by a name that is another after each."""
    names = (*OTHERS, ENGINE, server.backend())
    return {name: server.show(name, "InvocationID")["InvocationID"] for name in names}


def readiness(server: Server) -> dict[str, Any]:
    """What /readyz says."""
    script = (
        "import http.client,socket;c=http.client.HTTPConnection('x');"
        "c.sock=socket.socket(socket.AF_UNIX);c.sock.connect('/run/millrace-backend.sock');"
        "c.request('GET','/readyz');print(c.getresponse().read().decode())"
    )
    return dict(json.loads(server.run(f'python3 -c "{script}"')))


def soon(holds: Callable[[Server], bool], server: Server) -> bool:
    """Whether something holds within the time that an engine takes to start."""
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until:
        if holds(server):
            return True
        time.sleep(2)
    return False


def follow(played: Played, *, from_the_processor: bool = False) -> str:
    """Run site.yml for the cards that are there: it serves, and only the engine was started anew.

    The backend hands over, which drops nothing, exactly where another number of answers fits in.
    Beside cards it and LiteLLM are scheduled in another way than beside the processor, so that
    LiteLLM starts anew as well, while the engine does. Returns what the run printed.
    """
    server = played.server
    before, fitted = invocations(server), played.plan()["backend"]["streams"]
    backend = server.backend()
    done = played.run("site.yml", skip="verify")
    assert done.returncode == 0, done.stdout[-4000:]
    assert soon(streams, server)
    after = invocations(server)
    assert after.pop(ENGINE) != before.pop(ENGINE)
    handed_over = after.pop(server.backend()) != before.pop(backend)
    other_number = played.plan()["backend"]["streams"] != fitted
    assert handed_over == (other_number or from_the_processor)
    assert (after.pop(LITELLM) != before.pop(LITELLM)) == from_the_processor
    assert after == before
    assert played.report()["problems"] == []
    return str(done.stdout)


def settles(played: Played, *settings: str) -> None:
    """A second run changes nothing, and starts nothing anew."""
    before = invocations(played.server)
    again = played.run("site.yml", *settings, skip="verify")
    assert again.returncode == 0, again.stdout[-4000:]
    assert set(changes(again.stdout).values()) == {0}, again.stdout
    assert invocations(played.server) == before


def stays_down(played: Played, reason: str) -> None:
    """The guard keeps the engine down, and says why, wherever one looks."""
    server = played.server

    def gave_up(server: Server) -> bool:
        return server.show(GUARD, "ActiveState")["ActiveState"] == "failed"

    assert soon(gave_up, server)
    assert server.show(ENGINE, "ActiveState")["ActiveState"] == "inactive"
    assert server.show(GUARD, "Result")["Result"] == "exit-code"
    assert reason in server.run(f"systemctl status --no-pager {GUARD}", check=False)
    # A token that came a moment ago counts for a while.
    assert soon(lambda server: not readiness(server)["ready"], server)
    assert reason in " ".join(readiness(server)["hardware"])


def test_without_a_card_none_is_planned_for(played: Played) -> None:
    before = invocations(played.server)
    done = played.run("site.yml")
    assert done.returncode != 0
    told = " ".join(done.stdout.split())
    assert "there is no NVIDIA card here" in told
    assert "set vllm_device to cpu" in told
    assert set(changes(done.stdout).values()) == {0}
    assert invocations(played.server) == before
    assert streams(played.server)


def test_a_first_card(played: Played, until_ready: Callable[[], float]) -> None:
    played.plug_in("rtx-3050")
    until_ready()
    # Nobody is disturbed, and it is said.
    assert streams(played.server)
    assert "is new: nothing uses it" in readiness(played.server)["hardware"][0]
    told = follow(played, from_the_processor=True)
    settles(played)
    assert "1 × NVIDIA GeForce RTX 3050" in told
    plan = played.plan()
    assert [card["engine"] for card in plan["hardware"]["cards"]] == ["main"]
    assert plan["hardware"]["cards"][0]["uuid"].startswith("GPU-"), "planned anew by the driver"
    driver = plan["decided"]["driver"]
    assert (driver["source"], driver["branch"], driver["flavour"]) == ("nvidia", "580", "open")
    assert played.version("nvidia-kernel-open-dkms").startswith("580.105.08")
    previous = json.loads(played.server.run("cat /etc/millrace/plan.previous.json"))
    assert previous["engines"][0]["device"] == "cpu"
    figure("a first card: driver, plan and engine follow, and a second run changes nothing")


def test_two_larger_cards_in_its_place(played: Played) -> None:
    played.plug_in("two-rtx-5090")
    stays_down(played, "GeForce RTX 3050")
    told = follow(played)
    rows = [line.split() for line in told.splitlines() if "→" in line]
    assert any("5090" in row and row[0] == "cards" for row in rows), told
    plan = played.plan()
    assert "5090" in plan["hardware"]["cards"][0]["name"]
    engine = plan["engines"][0]
    named = engine["environment"]["CUDA_VISIBLE_DEVICES"].split(",")
    assert len(named) == len(set(named)) == 2
    both = engine["arguments"].get("data-parallel-size", 1)
    assert both * engine["arguments"].get("tensor-parallel-size", 1) == 2


def test_a_card_falls_off_the_bus(played: Played, until_ready: Callable[[], float]) -> None:
    server = played.server
    server.run("echo 0000:06:00.0 >/run/standin-lost")
    server.run(f"kill -9 $(systemctl show -P MainPID {ENGINE}); sleep 5")
    stays_down(played, "0000:06:00.0 is plugged in and the driver does not see it")
    server.run(f"rm /run/standin-lost; systemctl start --no-block {ENGINE}")
    until_ready()
    assert streams(server)
    assert "hardware" not in readiness(server)


def test_a_missing_card(played: Played) -> None:
    played.plug_in("rtx-5090")
    stays_down(played, "0000:06:00.0 is missing, and the plan needs it")
    follow(played)
    arguments = played.plan()["engines"][0]["arguments"]
    assert not {"data-parallel-size", "tensor-parallel-size"} & set(arguments)


def test_the_way_back_is_the_plan_before(played: Played) -> None:
    present = played.plan()
    before = json.loads(played.server.run("cat /etc/millrace/plan.previous.json"))
    done = played.run("playbooks/host.yml", "plan_restore=true")
    # It is the plan for two cards, of which one is gone: taken as it was, and the guard says so.
    assert played.plan() == before
    assert "0000:06:00.0 is missing" in done.stdout
    forward = played.run("playbooks/host.yml", "plan_restore=true")
    assert forward.returncode == 0, forward.stdout[-3000:]
    assert played.plan() == present


def both_serve(server: Server) -> bool:
    """Whether two engines have started."""
    told = server.run(f"systemctl is-active {ENGINE} millrace-vllm@engine2", check=False)
    return told.split() == ["active", "active"] and streams(server)


def failed(server: Server) -> set[str]:
    """The units that systemd calls failed."""
    told = server.run("systemctl list-units --failed --plain --no-legend")
    return {line.split()[0] for line in told.splitlines()}


def served(server: Server, port: int) -> float:
    """How many requests an engine has ended."""
    _, body = server.get(f"http://127.0.0.1:{port}/metrics")
    lines = [line for line in body.splitlines() if line.startswith("vllm:request_success_total")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def test_cards_of_two_kinds_get_an_engine_each(
    played: Played, until_ready: Callable[[], float]
) -> None:
    server = played.server
    played.plug_in("mixed")
    until_ready()
    # A card beside those that are planned with disturbs nothing, and it is said.
    assert streams(server)
    assert "0000:06:00.0 is new" in readiness(server)["hardware"][0]
    done = played.run("site.yml", skip="verify")
    assert done.returncode == 0, done.stdout[-4000:]
    assert soon(both_serve, server)
    engines = played.plan()["engines"]
    assert [engine["name"] for engine in engines] == ["main", "engine2"]
    cards_of = [engine["environment"]["CUDA_VISIBLE_DEVICES"] for engine in engines]
    assert len(set(cards_of)) == 2
    settles(played)
    before = [served(server, engine["port"]) for engine in engines]
    for _ in range(24):
        assert ask(server, chat(max_tokens=2)).ended
    shares = [served(server, e["port"]) - b for e, b in zip(engines, before, strict=True)]
    assert min(shares) > 0, shares
    figure(f"two engines, weights {[e['weight'] for e in engines]}: requests {shares}")


def test_an_engine_whose_card_is_gone_goes_with_it(
    played: Played, until_ready: Callable[[], float]
) -> None:
    server = played.server
    played.plug_in("rtx-5090")
    until_ready()
    assert streams(server)
    assert server.show("millrace-vllm@engine2", "ActiveState")["ActiveState"] == "inactive"
    assert "millrace-guard@engine2.service" in failed(server)
    done = played.run("site.yml", skip="verify")
    assert done.returncode == 0, done.stdout[-4000:]
    assert server.run("ls /etc/millrace/vllm").split() == ["main.env", "main.yaml"]
    assert server.run("ls /run/millrace/hardware").split() == ["main.json"]
    told = server.show("millrace-vllm@engine2", "ActiveState", "UnitFileState")
    assert told == {"ActiveState": "inactive", "UnitFileState": "disabled"}
    assert "millrace-guard@engine2.service" not in failed(server)
    settles(played)


def test_a_card_of_another_maker(played: Played) -> None:
    played.plug_in("foreign")
    stays_down(played, "GeForce RTX 5090 at 0000:05:00.0 is missing")
    done = played.run("site.yml")
    assert done.returncode != 0
    told = " ".join(done.stdout.split())
    assert "there is no NVIDIA card here" in told
    # What is left to an owner: the processor.
    done = played.run("site.yml", "vllm_device=cpu", skip="verify")
    assert done.returncode == 0, done.stdout[-4000:]
    assert played.plan()["engines"][0]["device"] == "cpu"
    assert soon(streams, played.server)
    settles(played, "vllm_device=cpu")


def test_from_the_processor_to_cards_of_two_kinds(played: Played) -> None:
    played.plug_in("mixed")
    done = played.run("site.yml", skip="verify")
    assert done.returncode == 0, done.stdout[-4000:]
    assert soon(both_serve, played.server)
    assert [engine["device"] for engine in played.plan()["engines"]] == ["cuda", "cuda"]


@pytest.mark.timing
def test_it_streams_with_an_engine_for_each_kind(played: Played) -> None:
    done = played.run("playbooks/verify.yml")
    assert done.returncode == 0, done.stdout[-4000:]
    measured = json.loads(played.server.run("cat /var/lib/millrace/measured.json"))
    planned = [engine["kv_cache_tokens"] for engine in played.plan()["engines"]]
    assert [one["planned_tokens"] for one in measured] == planned
    assert all(one["logged_tokens"] > 0 for one in measured)
