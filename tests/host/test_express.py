"""The express lane on a real server: nginx streams from vLLM, in its sandboxes and under its rules.

What both ways have in common is in tests/app/test_express.py; this is what only the units, their
users and LiteLLM's real router can show. For as long as these tests run, one server goes express;
afterwards every answer comes in line, as before.
"""

from __future__ import annotations

import json
import stat
import threading
import time
from collections.abc import Iterator

import pytest
from breaking import NGINX
from conftest import UNITS, skip_without_engine, wait_until_ready
from nginx_config import holding_back
from servers import RECITAL, Server, playbook
from test_api import PROTOCOLS, ask, chat, get
from test_logs import lines_of, request_line
from wire import Reads

pytestmark = [pytest.mark.breaks, pytest.mark.timeout(600)]

IN_LINE = "/v1/chat/completions?in=line"
"""A request with a query comes in line, whatever is set."""
LONG = {"max_tokens": 4000, "ignore_eos": True}


def go(server: Server, way: str) -> str:
    """Send streamed answers that way from now on, as docs/express.md says; return what was said."""
    settings = json.dumps({"nginx_stream_path": way})
    done = playbook("site.yml", "--limit", server.name, "--tags", "nginx", "-e", settings)
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def in_line(one: Server) -> dict[str, Reads]:
    """A short answer by protocol, as the first server gives it in line."""
    skip_without_engine(one)
    return {p: ask(one, chat(max_tokens=8), p, path=IN_LINE) for p in PROTOCOLS}


@pytest.fixture(scope="module")
def express(one: Server, in_line: dict[str, Reads]) -> Iterator[Server]:
    """The first server, whose streamed answers pass the backend by.

    One that goes express already is asked as it is, and left so: breaks.py breaks what it has.
    """
    if "location @engine_" in one.run(f"cat {NGINX}"):
        yield one
        return
    go(one, "express")
    yield one
    go(one, "inline")


def settled(server: Server, name: str) -> dict[str, object]:
    """Return the backend's line of a request, which is written when both witnesses have told."""
    for _ in range(40):
        if lines_of(server, "backend", name):
            return request_line(server, "backend", name)
        time.sleep(0.25)
    raise AssertionError(f"the backend wrote no line of {name}")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_byte_arrives_and_is_counted(express: Server, protocol: str) -> None:
    seen = ask(express, chat(), protocol)
    assert (seen.status, seen.text, seen.ended) == (200, RECITAL, True)
    name = seen.headers["x-request-id"]
    line = settled(express, name)
    assert (line["express"], line["ended"], line["status"]) == (True, "complete", 200)
    assert line["body_bytes"] == len(seen.body)
    engine = request_line(express, "vllm", name)
    assert (engine["ended"], engine["status"]) == ("complete", 200)
    assert len(lines_of(express, "nginx", name)) == 1
    assert lines_of(express, "litellm", name) == [], "LiteLLM chooses, and handles no token"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_its_head_is_the_same(express: Server, in_line: dict[str, Reads], protocol: str) -> None:
    def fixed(seen: Reads) -> dict[str, str]:
        own = ("date", "x-request-id")
        return {name: value for name, value in seen.headers.items() if name not in own}

    assert fixed(ask(express, chat(max_tokens=8), protocol)) == fixed(in_line[protocol])


def test_nothing_is_held_back(express: Server) -> None:
    places, wrong = holding_back(express)
    assert {"@engine_main", "@express_again", "= /v1/chat/completions"} <= places
    assert wrong == set()


def test_usage_is_counted_where_the_client_asked_for_none(express: Server) -> None:
    seen = ask(express, chat(max_tokens=120))
    assert b'"usage":{' not in seen.body
    assert settled(express, seen.headers["x-request-id"])["completion_tokens"] == 120
    told = ask(express, chat(max_tokens=120, stream_options={"include_usage": True}))
    assert json.loads(told.events[-2])["usage"]["completion_tokens"] == 120


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_who_leaves_frees_the_engine(express: Server, protocol: str) -> None:
    seen = ask(express, chat(**LONG), protocol, leave_after=3)
    for _ in range(20):
        time.sleep(0.25)
        if express.engine_metric("vllm:num_requests_running") == 0:
            break
    else:
        pytest.fail("the engine works for nobody")
    line = settled(express, seen.headers["x-request-id"])
    assert (line["express"], line["ended"]) == (True, "client_left")


def test_what_is_refused_is_refused_in_the_same_words(express: Server) -> None:
    for body, status in ((chat(max_tokens=10_000_000), 400), (chat(model="nobody"), 404)):
        seen, in_line = ask(express, body), ask(express, body, path=IN_LINE)
        assert seen.status == in_line.status == status
        assert "error" in json.loads(seen.body)
        assert seen.body == in_line.body
        # Worded in line, also where an engine was asked first.
        assert settled(express, seen.headers["x-request-id"])["express"] is False


def test_what_takes_no_express_comes_in_line(express: Server) -> None:
    seen = ask(express, chat(stream=False, max_tokens=40))
    assert seen.status == 200
    line = settled(express, seen.headers["x-request-id"])
    assert (line["express"], line["completion_tokens"]) == (False, 40)


@pytest.mark.parametrize("path", ["/@engine_main", "/engine_main", "/@express_again"])
def test_nobody_gets_to_the_engine_by_a_name(express: Server, path: str) -> None:
    assert get(express, path)[0] == 404


def test_the_sockets_are_for_whom_they_should_be(express: Server) -> None:
    """nginx and vLLM tell of ends, and are other users; the private socket is the backend's own."""
    folder = f"/run/{express.backend().removesuffix('.service').replace('@', '-')}"
    told = express.run(f"stat -c '%n %f' {folder}/*.sock")
    modes = {line.split()[0].rpartition("/")[2]: int(line.split()[1], 16)
             for line in told.splitlines()}  # fmt: skip
    assert stat.S_IMODE(modes["ends.sock"]) == 0o666
    assert stat.S_IMODE(modes["private.sock"]) == 0o600


def test_the_stream_check_finds_every_hop_well(express: Server) -> None:
    told = json.loads(express.run("millrace-check --json", timeout=300))
    assert told["verdict"] == "streams", told["summary"]


def test_a_hand_over_cuts_nobody(express: Server) -> None:
    """The stream goes on past the backend that let it in, which stays until it has counted it."""
    seen = Reads()

    def read() -> None:
        nonlocal seen
        seen = ask(express, chat())

    reader = threading.Thread(target=read)
    reader.start()
    time.sleep(1)
    before = express.backend()
    express.run("millrace-handover --again", timeout=180)
    reader.join(120)
    assert express.backend() != before
    assert (seen.text, seen.ended) == (RECITAL, True)
    line = settled(express, seen.headers["x-request-id"])
    assert (line["express"], line["ended"]) == (True, "complete")


def test_an_engine_that_restarts_is_waited_for_in_line(express: Server) -> None:
    express.run(f"systemctl restart --no-block '{UNITS['engine']}'")
    time.sleep(1)
    seen = ask(express, chat())
    assert (seen.status, seen.text, seen.ended) == (200, RECITAL, True)
    assert b": heartbeat" in seen.body
    assert settled(express, seen.headers["x-request-id"])["express"] is False
    wait_until_ready(express)
    again = ask(express, chat())
    assert settled(express, again.headers["x-request-id"])["express"] is True


def test_the_way_there_and_back_cuts_nobody_and_is_idempotent(express: Server) -> None:
    assert "changed=0" in go(express, "express").rpartition("PLAY RECAP")[2]
    seen = []
    reader = threading.Thread(target=lambda: seen.append(ask(express, chat(**LONG))))
    reader.start()
    time.sleep(1)
    try:
        go(express, "inline")
        after = ask(express, chat())
        assert settled(express, after.headers["x-request-id"])["express"] is False
    finally:
        go(express, "express")
    reader.join(300)
    assert seen, "the answer that was under way was cut"
    assert seen[0].ended
    line = settled(express, seen[0].headers["x-request-id"])
    assert (line["express"], line["ended"], line["completion_tokens"]) == (True, "complete", 4000)
