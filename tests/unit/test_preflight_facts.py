"""What preflight observes: listeners, space, ways out, and where a model comes from."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from preflight_facts import folder_model, hub_model, listeners, reach, space
from unit_kit import ROOT, clean_environment, mail_server


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine that runs the tests may have a proxy; what is asked here is on it."""
    for name in [n for n in os.environ if n.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


def a_listener(family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
    """Return a socket that listens on a free port of the loopback."""
    server = socket.socket(family)
    server.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
    server.listen()
    return server


# Listeners -----------------------------------------------------------------------------------


def test_a_listener_is_found_with_its_process() -> None:
    with a_listener() as server:
        port = server.getsockname()[1]
        found = listeners([port])
    assert list(found) == [str(port)]
    name = Path("/proc/self/comm").read_text().strip()
    assert found[str(port)]["process"] == name


def test_a_listener_on_ipv6_is_found() -> None:
    if not Path("/proc/net/if_inet6").exists() or not Path("/proc/net/if_inet6").read_text():
        pytest.skip("this machine has no IPv6")
    with a_listener(socket.AF_INET6) as server:
        port = server.getsockname()[1]
        assert str(port) in listeners([port])


def test_only_the_ports_asked_for_are_told() -> None:
    with a_listener() as one, a_listener() as other:
        ports = [s.getsockname()[1] for s in (one, other)]
        assert list(listeners(ports[:1])) == [str(ports[0])]


def test_a_connection_is_no_listener() -> None:
    with a_listener() as server:
        with socket.create_connection(server.getsockname()) as client:
            port = client.getsockname()[1]
            assert listeners([port]) == {}
        port = server.getsockname()[1]
    assert listeners([port]) == {}


def test_a_busy_process_is_still_known_by_name() -> None:
    """A server under load opens and closes files all the time, also while they are listed."""
    code = (
        "import os, socket, sys\n"
        "s = socket.create_server(('127.0.0.1', 0))\n"
        "print(s.getsockname()[1], flush=True)\n"
        "while True:\n"
        "    fds = [os.open('/dev/null', os.O_RDONLY) for _ in range(200)]\n"
        "    for fd in fds: os.close(fd)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as busy:
        try:
            assert busy.stdout is not None
            port = int(busy.stdout.readline())
            names = {listeners([port])[str(port)]["process"] for _ in range(15)}
        finally:
            busy.kill()
    assert "unknown" not in names


# Space ---------------------------------------------------------------------------------------


def test_a_folder_that_is_not_there_yet_has_its_parents_space(tmp_path: Path) -> None:
    here, missing = space(str(tmp_path)), space(str(tmp_path / "a/b/c"))
    assert here["exists"] is True
    assert missing["exists"] is False
    assert missing["device"] == here["device"] == tmp_path.stat().st_dev
    assert abs(missing["free_mib"] - here["free_mib"]) < 1024
    assert here["free_mib"] > 0


def test_a_dangling_link_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(tmp_path / "gone")
    assert space(str(tmp_path / "current"))["exists"] is False


# Ways out ------------------------------------------------------------------------------------


def test_an_open_port_can_be_reached() -> None:
    with a_listener() as server:
        assert reach(f"http://127.0.0.1:{server.getsockname()[1]}/simple/") == ""


def test_a_closed_port_is_told_with_its_address() -> None:
    with a_listener() as server:
        port = server.getsockname()[1]
    told = reach(f"https://127.0.0.1:{port}/")
    assert told.startswith(f"127.0.0.1:{port}: ")
    assert "refused" in told


def test_a_name_that_nobody_knows_is_told() -> None:
    assert reach("https://no-such-host.invalid/").startswith("no-such-host.invalid:443: ")


def test_behind_a_proxy_the_proxy_is_what_has_to_be_reached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with a_listener() as server:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert reach("https://no-such-host.invalid/") == ""


# Models --------------------------------------------------------------------------------------


def test_a_model_in_a_folder(tmp_path: Path) -> None:
    assert folder_model(str(tmp_path / "gone")) == {"problem": "missing"}
    assert folder_model(str(tmp_path)) == {"problem": "no_config"}
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/model.safetensors").write_bytes(b"x" * 1000)
    assert folder_model(str(tmp_path)) == {"problem": "", "bytes": 1002, "revision": ""}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve two repositories by the stand-in of the hub."""
    root = tmp_path_factory.mktemp("hub")
    for name, files in {
        "both": {"config.json": 10, "a.safetensors": 5000, "a.bin": 5000, "a.gguf": 700},
        "old": {"config.json": 10, "a.bin": 3000, "a.gguf": 700},
        "private": {"config.json": 10, ".private": 0},
    }.items():
        folder = root / "owner" / name
        folder.mkdir(parents=True)
        for file, size in files.items():
            (folder / file).write_bytes(b"x" * size)
    with subprocess.Popen(
        [sys.executable, ROOT / "tests/fixtures/hub.py", "--root", root, "--token", "hf_right"],
        stdout=subprocess.PIPE, text=True, env=clean_environment(),
    ) as process:  # fmt: skip
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.kill()


def asked(hub: str, name: str, revision: str = "", token: str = "", path: str = "/gone") -> Any:
    """Ask the hub for a model as preflight does."""
    return hub_model({"id": name, "revision": revision, "path": path}, hub, token)


COMMIT = "5" * 40


def test_of_two_formats_only_the_one_to_be_fetched_counts(hub: str) -> None:
    expected = {"problem": "", "bytes": 5010, "revision": COMMIT, "present": False}
    assert asked(hub, "owner/both") == expected
    assert asked(hub + "/", "owner/both", COMMIT) == expected
    assert asked(hub, "owner/old")["bytes"] == 3010


def test_a_revision_that_is_not_there(hub: str) -> None:
    assert asked(hub, "owner/both", "no/such") == {"problem": "http_404"}


def test_a_model_that_is_not_shown(hub: str) -> None:
    assert asked(hub, "owner/none") == {"problem": "http_401"}
    assert asked(hub, "owner/none", token="hf_right") == {"problem": "http_404"}
    assert asked(hub, "owner/private") == {"problem": "http_401"}
    assert asked(hub, "owner/private", token="hf_right")["problem"] == ""


def test_a_hub_that_cannot_be_reached_says_why() -> None:
    with a_listener() as server:
        port = server.getsockname()[1]
    told = asked(f"http://127.0.0.1:{port}", "owner/both")
    assert told["problem"] == "unreachable"
    assert "refused" in told["detail"]


def test_something_else_in_the_hubs_place_is_unreachable_too(serve: Callable[..., str]) -> None:
    def page(request: Any) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "6")
        request.end_headers()
        request.wfile.write(b"<html>")

    assert asked(serve(page), "owner/both")["problem"] == "unreachable"


def test_something_that_speaks_no_http_is_unreachable_too() -> None:
    with mail_server() as port:
        assert asked(f"http://127.0.0.1:{port}", "owner/both")["problem"] == "unreachable"


def test_a_model_that_is_there_is_not_asked_for(tmp_path: Path) -> None:
    (tmp_path / ".revision").write_text(f"{COMMIT}\n")
    nowhere = "http://127.0.0.1:9"
    there = {"problem": "", "bytes": 0, "revision": COMMIT, "present": True}
    assert asked(nowhere, "owner/both", path=str(tmp_path)) == there
    assert asked(nowhere, "owner/both", COMMIT, path=str(tmp_path)) == there
    other = asked(nowhere, "owner/both", "6" * 40, path=str(tmp_path))
    assert other["problem"] == "unreachable"


# The whole module ----------------------------------------------------------------------------


def test_the_module_looks_and_changes_nothing(
    module: Callable[..., Any], tmp_path: Path, hub: str
) -> None:
    with a_listener() as server:
        port = server.getsockname()[1]
        told = module(
            "preflight_facts",
            check_mode=True,
            ports=[port],
            paths=[str(tmp_path), str(tmp_path / "gone")],
            python=sys.executable,
            try_package_sources=False,
            installed_mark=str(tmp_path / "gone"),
            model={"source": "hub", "id": "owner/both", "revision": "", "path": "/gone"},
            hub_url=hub,
            hub_token="hf_secret",
        )
    assert told["changed"] is False
    assert told["user_id"] == os.geteuid()
    assert told["python_version"] == "{}.{}".format(*sys.version_info[:2])
    assert told["listeners"][str(port)]["process"]
    assert set(told["space"]) == {str(tmp_path), str(tmp_path / "gone")}
    assert told["memory_mib"] > 100
    assert told["model"]["bytes"] == 5010
    assert "hf_secret" not in str(told)


def test_a_missing_interpreter_is_told_as_none(module: Callable[..., Any], tmp_path: Path) -> None:
    told = module(
        "preflight_facts",
        ports=[],
        paths=[str(tmp_path)],
        python="no-such-python",
        index_url="http://127.0.0.1:9/simple",
        try_package_sources=True,
        installed_mark=str(tmp_path),  # it is there: no source is needed, none is tried
        model={"source": "builtin", "id": "recital", "revision": "", "path": "/gone"},
        hub_url="http://127.0.0.1:9",
    )
    assert told["python_version"] == ""
    assert told["unreachable"] == []
    assert told["model"]["present"] is True
