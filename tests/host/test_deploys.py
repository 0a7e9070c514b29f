"""Deploys drop nothing: hand-overs of the backend and reloads of nginx, under load."""

from __future__ import annotations

import json
import shlex
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from h2.exceptions import ProtocolError
from servers import RECITAL, Server, figure
from test_api import PROTOCOLS, ask, chat, get, streams
from wire import Reads

pytestmark = [pytest.mark.breaks, pytest.mark.timing, pytest.mark.timeout(600)]

CLIENTS = 24
HANDOVERS = RELOADS = 5
QUIET_SECONDS = 12
"""Load before the first hand-over, to know how long a first byte takes on this machine."""
LATE_SECONDS = 2.0
SETTINGS = "/etc/millrace/backend/settings.json"
ROOT = "/opt/millrace/backend"
TRIED = "tried-by-a-test"


@dataclass
class Stream:
    """One request: when it began and ended, how long it waited, and what came."""

    began: float
    ended: float = 0.0
    seen: Reads = field(default_factory=Reads)
    problem: str = ""

    @property
    def first_byte(self) -> float:
        """Seconds from before the connection was opened to the first byte of the answer."""
        reading = self.seen.reads[-1][0] - self.seen.reads[0][0]
        return self.ended - self.began - reading


class Load:
    """Clients that ask for one stream after another until they are told to stop."""

    def __init__(self, server: Server, bodies: list[dict[str, Any]]) -> None:
        self.streams: list[Stream] = []
        self._server = server
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._client, args=(number, bodies[number % len(bodies)]))
            for number in range(CLIENTS)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(timeout=120)

    def _client(self, number: int, body: dict[str, Any]) -> None:
        time.sleep(number * 0.2)
        while not self._over.is_set():
            stream = Stream(time.monotonic())
            try:
                stream.seen = ask(self._server, body, PROTOCOLS[number % 2])
            except (AssertionError, OSError, ProtocolError) as error:
                stream.problem = f"{type(error).__name__}: {error}"
            stream.ended = time.monotonic()
            self.streams.append(stream)

    def open_at(self, moment: float) -> int:
        """How many of the streams were open at that time."""
        return sum(stream.began < moment < stream.ended for stream in self.streams)


@pytest.fixture
def staged(engine: Server) -> Iterator[Server]:
    """A server whose staged settings and release are as before afterwards."""
    release = engine.run(f"readlink {ROOT}/current").strip()
    engine.run(f"cp -a {SETTINGS} /root/kept.settings.json")
    yield engine
    engine.run(f"cp -a /root/kept.settings.json {SETTINGS}; rm /root/kept.settings.json")
    engine.run(f"millrace-handover --release {release}", timeout=180)
    # The other instance was the last that ran from it.
    engine.run(f"millrace-handover --again; rm -rf {ROOT}/releases/{TRIED}", timeout=180)


def stage(server: Server, **changes: Any) -> None:
    """Change the settings that the next hand-over takes."""
    told = json.loads(server.run(f"cat {SETTINGS}")) | changes
    # Written in place: owner and mode stay.
    server.run(f"printf %s {shlex.quote(json.dumps(told))} > {SETTINGS}")


def test_every_stream_ends_whole(staged: Server) -> None:
    server = staged
    short = chat(max_tokens=200)
    beginning = ask(server, short).text
    assert RECITAL.startswith(beginning)
    release = server.run(f"readlink {ROOT}/current").strip()
    releases = [release, f"{ROOT}/releases/{TRIED}"]
    server.run("cp -a {} {}".format(*releases))
    moments, took = [], []
    # One client in eight asks for all of the text.
    with Load(server, [chat(), *[short] * 7]) as load:
        time.sleep(QUIET_SECONDS)
        quiet = time.monotonic()
        for number in range(HANDOVERS):
            before = server.backend()
            if number % 2:
                releases.reverse()
            else:
                stage(server, max_body_bytes=8_000_000 + number)
            began = time.monotonic()
            server.run(f"millrace-handover --release {releases[0]}", timeout=180)
            moments.append(time.monotonic())
            took.append(moments[-1] - began)
            assert server.backend() != before
            server.run("systemctl reload nginx")
            time.sleep(1)
    whole = {len(beginning): beginning, len(RECITAL): RECITAL}
    bad = [
        stream.problem or f"{stream.seen.status}, {len(stream.seen.text)} characters"
        for stream in load.streams
        if stream.problem
        or stream.seen.status != 200
        or not stream.seen.ended
        or whole.get(len(stream.seen.text)) != stream.seen.text
    ]
    assert bad == []
    across = [load.open_at(moment) for moment in moments]
    assert min(across) >= CLIENTS // 2, across
    before = max(stream.first_byte for stream in load.streams if stream.began < quiet)
    after = max(stream.first_byte for stream in load.streams if stream.began >= quiet)
    figure(
        f"{HANDOVERS} hand-overs ({min(took):.1f} to {max(took):.1f} s) and {RELOADS} reloads of "
        f"nginx: {len(load.streams)} streams, all whole, {min(across)} to {max(across)} open at "
        f"each; slowest first byte {after:.2f} s, before them {before:.2f} s"
    )
    assert after <= before + LATE_SECONDS


def test_one_that_does_not_start_leaves_the_old_one(staged: Server) -> None:
    server = staged
    before = server.show(server.backend(), "Id", "MainPID", "InvocationID")
    stage(server, heartbeat_seconds="often")
    said = server.run("millrace-handover 2>&1; echo status $?", timeout=180)
    assert "heartbeat_seconds: Input should be a valid number" in said
    assert "goes on serving as before" in said
    assert "status 1" in said
    assert server.show(server.backend(), "Id", "MainPID", "InvocationID") == before
    failed = "systemctl list-units --state=failed --plain --no-legend 'millrace-backend@*'"
    assert server.run(failed) == ""
    assert streams(server)


def test_a_crash_brings_back_what_was_there(staged: Server) -> None:
    """Whatever is staged: an instance has settings of its own."""
    server = staged
    stage(server, models=[{"id": "another"}])
    unit = server.backend()
    main = server.show(unit, "MainPID")["MainPID"]
    server.run(f"kill -9 {main}")
    # The socket is open: it waits.
    code, _, body = get(server, "/v1/models", server.key)
    assert code == 200
    assert [model["id"] for model in json.loads(body)["data"]] == ["recital"]
    assert server.backend() == unit
    assert server.show(unit, "MainPID")["MainPID"] != main


def test_the_socket_starts_the_one_that_was_chosen(staged: Server) -> None:
    server = staged
    for _ in range(2):
        unit = server.backend()
        server.run(f"systemctl stop {unit}")
        assert get(server, "/healthz")[0] == 200
        assert server.show(unit, "ActiveState")["ActiveState"] == "active"
        running = server.run("systemctl list-units --plain --no-legend 'millrace-backend@*'")
        assert [line.split()[0] for line in running.splitlines()] == [unit]
        server.run("millrace-handover --again", timeout=180)


def test_only_the_backends_user_opens_its_private_socket(server: Server) -> None:
    instance = server.backend().split("@")[1].removesuffix(".service")
    path = f"/run/millrace-backend-{instance}/private.sock"
    script = (
        "import http.client,socket;c=http.client.HTTPConnection('x');"
        f"c.sock=socket.socket(socket.AF_UNIX);c.sock.connect('{path}');"
        "c.request('GET','/healthz');print(c.getresponse().status)"
    )
    asked = f'runuser -u {{}} -- python3 -c "{script}" 2>&1'
    assert server.run(asked.format("millrace-backend")).strip() == "200"
    assert "PermissionError" in server.run(asked.format("www-data"), check=False)
