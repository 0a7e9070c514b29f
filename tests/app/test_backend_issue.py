"""The server's end of `./millrace key`: the file that it owns, changed whole or not at all."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
import time

import pytest
from backend.issue import main
from backend.key_files import KeyFiles
from conftest import APP, key_entry, write_keys

NOW = int(time.time())


class Server:
    def __init__(self, folder, monkeypatch, capsys):
        self.files = KeyFiles(folder / "keys.json", folder / "keys.issued.json")
        write_keys(self.files.inventory, owner="mr-owner")
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def run(self, word="change", **order):
        text = io.TextIOWrapper(io.BytesIO(json.dumps(order).encode()))
        self._monkeypatch.setattr("sys.stdin", text)
        status = main([word, str(self.files.inventory), str(self.files.issued)])
        out, err = self._capsys.readouterr()
        return status, json.loads(out)["keys"] if out else None, err

    def add(self, name, key, **more):
        return self.run(do="add", entry=key_entry(name, key, created=NOW, **more))


@pytest.fixture
def server(tmp_path, monkeypatch, capsys):
    return Server(tmp_path, monkeypatch, capsys)


def test_a_key_is_added_and_told_without_its_hash(server):
    limits = {"requests_per_minute": 5}
    status, keys, err = server.add("bob", "mr-bob", expires=NOW + 90, models=["t"], limits=limits)
    assert (status, err) == (0, "")
    assert [key["name"] for key in keys] == ["owner", "bob"]
    assert [key["origin"] for key in keys] == ["inventory", "issued"]
    assert keys[1]["limits"] == {
        "requests_per_minute": 5, "tokens_per_minute": None, "concurrent_streams": None,
    }  # fmt: skip
    assert key_entry("", "mr-bob")["sha256"] not in json.dumps(keys)
    (entry,) = json.loads(server.files.issued.read_text())["keys"]
    assert entry == key_entry(
        "bob", "mr-bob", created=NOW, expires=NOW + 90, models=["t"], limits=limits
    )
    assert [
        path.name for path in server.files.issued.parent.iterdir() if path.name.startswith(".")
    ] == []


def test_the_backend_may_read_it_and_others_not(server):
    server.files.inventory.chmod(0o640)
    server.add("bob", "mr-bob")
    assert stat.S_IMODE(server.files.issued.stat().st_mode) == 0o640


def test_a_trial_writes_nothing(server):
    status, keys, _ = server.run("try", do="add", entry=key_entry("bob", "mr-bob"))
    assert (status, len(keys)) == (0, 2)
    assert not server.files.issued.exists()


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (key_entry("owner", "x"), "there is a key owner already"),
        (key_entry("bob", "x"), "there is a key bob already"),
        (key_entry("new", "mr-owner"), "owner and new have the same key"),
        (key_entry("new", "mr-bob"), "bob and new have the same key"),
        (key_entry("new", "x", expires=90), "expires"),
        (key_entry("new", "x", limits={"requests": 1}), "limits.requests"),
        (key_entry("a\nb", "x"), "name"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_changes(server, entry, said):
    server.add("bob", "mr-bob")
    before = server.files.issued.read_bytes()
    status, keys, err = server.run(do="add", entry=entry)
    assert (status, keys) == (1, None)
    assert said in err
    assert server.files.issued.read_bytes() == before


def test_rotating_keeps_what_the_key_may_do(server):
    server.add("bob", "mr-bob", models=["t"])
    sha256 = key_entry("", "mr-new")["sha256"]
    order = {"do": "rotate", "name": "bob", "sha256": sha256, "previous_expires": NOW + 600}
    status, keys, _ = server.run(**order)
    assert (status, keys[1]["previous_expires"]) == (0, NOW + 600)
    (entry,) = json.loads(server.files.issued.read_text())["keys"]
    previous = {"sha256": key_entry("", "mr-bob")["sha256"], "expires": NOW + 600}
    assert entry == key_entry("bob", "mr-new", created=NOW, models=["t"], previous=previous)
    _, keys, _ = server.run(do="rotate", name="bob", sha256=key_entry("", "mr-3")["sha256"])
    assert keys[1]["previous_expires"] is None
    assert "previous" not in server.files.issued.read_text()


def test_revoking_and_listing(server):
    server.add("bob", "mr-bob")
    status, keys, _ = server.run(do="revoke", name="bob")
    assert (status, [key["name"] for key in keys]) == (0, ["owner"])
    assert json.loads(server.files.issued.read_text()) == {"version": 2, "keys": []}
    assert server.run(do="list")[1] == keys


@pytest.mark.parametrize("order", [{"do": "revoke"}, {"do": "rotate", "sha256": "0" * 64}])
def test_the_inventorys_keys_and_unknown_ones_are_not_ours_to_change(server, order):
    status, _, err = server.run(name="owner", **order)
    assert status == 1
    assert "millrace_client_keys" in err
    status, _, err = server.run(name="nobody", **order)
    assert status == 1
    assert "there is no key nobody" in err


def test_a_name_that_both_have_can_be_mended_by_revoking(server):
    server.add("bob", "mr-bob")
    write_keys(server.files.inventory, owner="mr-owner", bob="mr-other")
    assert main(["check", str(server.files.inventory), str(server.files.issued)]) == 1
    assert server.run(do="revoke", name="bob")[0] == 0
    assert main(["check", str(server.files.inventory), str(server.files.issued)]) == 0


def test_a_malformed_order_or_command(server):
    assert server.run(do="burn")[0] == 1
    assert main(["change"]) == 2


def test_many_at_once_lose_nothing(server):
    command = [sys.executable, "-m", "backend.issue", "change"]
    command += [str(server.files.inventory), str(server.files.issued)]
    running = []
    for number in range(8):
        order = {"do": "add", "entry": key_entry(f"k{number}", f"mr-{number}")}
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": f"{APP}:{os.environ.get('PYTHONPATH', '')}"},
        )  # fmt: skip
        process.stdin.write(json.dumps(order).encode())
        process.stdin.close()
        running.append(process)
    assert [process.wait(60) for process in running] == [0] * 8
    names = {entry.name for entry in server.files.read()}
    assert names == {"owner", *(f"k{number}" for number in range(8))}
