"""`./millrace key` against a real server: made, used, rotated, revoked, and kept by a run."""

from __future__ import annotations

import http.client
import json
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
from servers import INVENTORY, ROOT, Server, playbook
from test_api import chat, get
from wire import post

NAME = "host-test"
pytestmark = pytest.mark.timing

SEEN_SECONDS = 1.0


def verb(server: Server, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the verb for one server."""
    return subprocess.run(
        [ROOT / "millrace", "key", *words, server.name, "-i", INVENTORY],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def becomes(ask_for: Callable[[], int], wanted: int) -> float:
    """Ask until the status is the wanted one and return the seconds it took, at most a few."""
    began = time.monotonic()
    while (got := ask_for()) != wanted:
        assert time.monotonic() - began < 5, f"still {got}"
        time.sleep(0.05)
    return time.monotonic() - began


@pytest.fixture
def gone(server: Server) -> Iterator[None]:
    """Leave no key of ours behind."""
    verb(server, "revoke", NAME)
    yield
    verb(server, "revoke", NAME)


@pytest.mark.usefixtures("gone")
def test_a_key_from_its_making_to_its_end(engine: Server) -> None:
    def status(key: str) -> int:
        return get(engine, "/v1/models", key)[0]

    done = verb(engine, "add", NAME, "--expires", "1d", "--models", "recital")
    assert done.returncode == 0, done.stderr
    key = done.stdout.strip()
    assert becomes(lambda: status(key), 200) < SEEN_SECONDS
    assert post(engine.address, engine.secrets / "server.crt", key, chat()).ended

    done = verb(engine, "rotate", NAME)
    assert done.returncode == 0, done.stderr
    fresh = done.stdout.strip()
    assert becomes(lambda: status(key), 401) < SEEN_SECONDS
    assert status(fresh) == 200

    run = playbook("site.yml", "--limit", engine.name, "--tags", "backend")
    assert run.returncode == 0, run.stdout
    assert status(fresh) == 200, "a run keeps what the verb made"
    assert status(engine.key) == 200

    listed = verb(engine, "list").stdout
    assert f"\n{NAME}" in listed
    assert "owner" in listed
    assert key not in listed
    files = "/etc/millrace /var/log /run /root /tmp"
    for text in (key, fresh):
        assert not engine.run(f"grep -rlF -e {text} {files} || true")
        assert (
            engine.run(f"journalctl --no-pager -o cat | grep -cF -e {text} || true").strip() == "0"
        )
    told = engine.run("stat -c '%a %U %G' /etc/millrace/backend/keys.issued.json").split()
    assert told == ["640", "root", "millrace-backend"]

    process = engine.run("pgrep -f 'python -m backend'")
    done = verb(engine, "revoke", NAME)
    assert done.returncode == 0, done.stderr
    assert becomes(lambda: status(fresh), 401) < SEEN_SECONDS
    assert engine.run("pgrep -f 'python -m backend'") == process, "no restart"


def test_a_name_of_the_inventory_is_refused(server: Server) -> None:
    done = verb(server, "add", "owner")
    assert done.returncode == 1
    assert "there is a key owner already" in done.stderr


def test_a_session_through_nginx(engine: Server) -> None:
    """Log in, be known by the cookie, be refused from another site, log out."""
    context = ssl.create_default_context(cafile=str(engine.secrets / "server.crt"))

    def send(method: str, body: str = "", **headers: str) -> http.client.HTTPResponse:
        link = http.client.HTTPSConnection(engine.address, timeout=20, context=context)
        link.request(method, "/v1/session", body, headers)
        answer = link.getresponse()
        answer.read()
        link.close()
        return answer

    login = send("POST", json.dumps({"key": engine.key}))
    assert login.status == 204
    cookie, flags = str(login.getheader("set-cookie")).split("; ", 1)
    assert flags == "Max-Age=2592000; Path=/; Secure; HttpOnly; SameSite=Strict"
    assert send("GET", Cookie=cookie).status == 200
    assert send("DELETE", Cookie=cookie, Origin="https://evil.example").status == 403
    assert send("DELETE", Cookie=cookie, Origin=f"https://{engine.address}").status == 204
