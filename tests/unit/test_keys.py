"""`./millrace key`, carried out by Ansible on servers that are folders of this machine."""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from keys import table, terms
from keys.__main__ import order_of, parse
from keys.inventory import keys_file, unix_time
from unit_kit import ROOT, clean_environment

OWNER = "o" * 40


class Servers:
    """Two servers with a backend, and one without."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        release = folder / "backend/current"
        (release / "venv/bin").mkdir(parents=True)
        (release / "venv/bin/python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (release / "venv/bin/python").chmod(0o755)
        (release / "app").symlink_to(ROOT / "app")
        local = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "backend_root": str(folder / "backend"),
        }
        hosts = {name: {**local, "backend_config_dir": str(folder / name)} for name in "ab"}
        for name in hosts:
            (folder / name).mkdir()
            (folder / name / "keys.json").write_text(json.dumps(keys_file({"owner": OWNER})))
        self.inventory = folder / "hosts.yml"
        self.inventory.write_text(yaml.safe_dump({"millrace": {"hosts": hosts}}))
        bare = {"bare": {**local, "backend_root": str(folder / "nothing")}}
        (folder / "bare.yml").write_text(yaml.safe_dump({"millrace": {"hosts": bare}}))

    def key(self, *words: str, inventory: str = "hosts.yml") -> subprocess.CompletedProcess[str]:
        """Run the verb's program as the entry point does."""
        given = ["-i", str(self.folder / inventory), *words[1:]]
        environment = clean_environment(
            PYTHONPATH=str(ROOT / "app"),
            ANSIBLE_HOME=str(self.folder / "home"),
            ANSIBLE_LOCAL_TEMP=str(self.folder / "tmp"),
        )
        done = subprocess.run(
            [sys.executable, "-m", "keys", words[0], *given],
            cwd="/", capture_output=True, text=True, timeout=120, check=False, env=environment,
        )  # fmt: skip
        assert "Traceback" not in done.stderr
        return done

    def issued(self, name: str) -> list[dict[str, Any]]:
        """Return the entries that the verb has made on a server."""
        file = self.folder / name / "keys.issued.json"
        return list(json.loads(file.read_text())["keys"]) if file.exists() else []


@pytest.fixture
def servers(tmp_path: Path) -> Servers:
    """Make them."""
    return Servers(tmp_path)


def sha256(text: str) -> str:
    """Return what a server keeps of a key."""
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_keys_whole_life(servers: Servers) -> None:
    began = int(time.time())
    done = servers.key(
        "add", "bob", "--expires", "90d", "--models", "m, n", "--requests-per-minute", "5",
        "--concurrent-streams", "2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    key = done.stdout.strip()
    assert len(key) == 46
    assert "bob on a, b: until " in done.stderr
    assert "; only m, n; 5 requests/min, 2 streams." in done.stderr
    assert key not in done.stderr
    for name in "ab":
        (entry,) = servers.issued(name)
        assert entry.pop("sha256") == sha256(key)
        assert 0 <= entry.pop("created") - began < 60
        assert 0 <= entry.pop("expires") - began - 90 * 86_400 < 60
        assert entry == {
            "name": "bob", "models": ["m", "n"],
            "limits": {"requests_per_minute": 5, "concurrent_streams": 2},
        }  # fmt: skip

    listed = servers.key("list", "a").stdout.splitlines()
    assert listed[0].split() == ["NAME", "FROM", "MADE", "EXPIRES", "MODELS", "LIMITS"]
    assert listed[1].split()[:2] == ["owner", "inventory"]
    assert listed[2].startswith("bob    ./millrace key  20")

    done = servers.key("rotate", "bob", "a", "--grace", "10m", "--", "-vvv")
    assert done.returncode == 0, done.stderr
    fresh = done.stdout.strip()
    (entry,) = servers.issued("a")
    assert entry["sha256"] == sha256(fresh) != sha256(key)
    assert entry["previous"]["sha256"] == sha256(key)
    assert 400 < entry["previous"]["expires"] - time.time() <= 600
    assert entry["models"] == ["m", "n"]
    assert servers.issued("b")[0]["sha256"] == sha256(key), "only that server was named"

    assert servers.key("revoke", "bob").returncode == 0
    assert servers.issued("a") == servers.issued("b") == []
    said = [str(line) for line in servers.folder.rglob("*") if line.is_file()]
    assert not [f for f in said if fresh in Path(f).read_text(errors="replace")]


def test_where_one_server_cannot_none_is_changed(servers: Servers) -> None:
    servers.key("add", "bob", "b")
    done = servers.key("add", "bob")
    assert done.returncode == 1
    assert "there is a key bob already" in done.stderr
    assert done.stdout == ""
    assert servers.issued("a") == []


def test_what_the_inventory_has_is_changed_there(servers: Servers) -> None:
    done = servers.key("revoke", "owner")
    assert done.returncode == 1
    assert "owner comes from the inventory: change millrace_client_keys" in done.stderr


def test_a_server_without_a_backend_says_what_to_run(servers: Servers) -> None:
    done = servers.key("list", inventory="bare.yml")
    assert done.returncode == 1
    assert "run ./millrace site first" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "verb"),
        (["burn"], "invalid choice"),
        (["add"], "NAME"),
        (["add", "streamcheck"], "stream check's own"),
        (["add", "a\nb"], "none of them invisible"),
        (["add", "bob", "--expires", "soon"], "neither a duration"),
        (["add", "bob", "--models", ","], "at least one model"),
        (["add", "bob", "--tokens-per-minute", "0"], "no number from 1 up"),
        (["rotate", "bob", "--grace", "10"], "no duration"),
        (["revoke", "bob", "a", "b"], "unrecognized arguments: b"),
        (["list", "-i", "nowhere.yml"], "there is no nowhere.yml"),
    ],
)
def test_a_wrong_command_line_says_what_is_wrong(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(words)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_an_order_has_the_hash_alone() -> None:
    arguments = argparse.Namespace(do="rotate", name="bob", grace=None)
    order = order_of(arguments, "mr-secret", 7)
    assert order == {"do": "rotate", "name": "bob", "sha256": sha256("mr-secret")}


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("10m", 600), ("12h", 43_200), ("90d", 7_776_000)]
)
def test_durations(text: str, seconds: int) -> None:
    assert terms.duration(text) == seconds
    assert terms.Moment(text).unix(1000) == 1000 + seconds


def test_dates() -> None:
    assert terms.Moment("2027-12-31").unix(0) == 1830211200
    for given in (datetime.date(2027, 12, 31), "2027-12-31", 1830211200, "1830211200"):
        assert unix_time(given) == 1830211200
    moment = datetime.datetime(
        2027, 12, 31, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=1))
    )
    assert unix_time(moment) == 1830211200
    assert unix_time("2027-12-31T00:00:00") == 1830211200


def test_the_table_tells_what_is_over_and_what_still_works() -> None:
    limits = dict.fromkeys(("requests_per_minute", "tokens_per_minute", "concurrent_streams"))
    key = {
        "name": "bob", "origin": "issued", "created": 1830211200, "expires": 1830211200,
        "expired": True, "models": None, "limits": limits, "previous_expires": 1830211260,
    }  # fmt: skip
    told = table.lines({"a": {"keys": [key]}, "b": {"keys": []}})
    assert told[0] == "a:"
    assert "2027-12-31 00:00 UTC (over) (the old text: 2027-12-31 00:01 UTC)" in told[2]
    assert told[3] == "b:"
