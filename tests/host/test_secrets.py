"""Secrets lie where they must and nowhere else, and only who needs one can read it.

Those of the controller's folder of the server, and each private key that lies on the server itself.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from conftest import unit_of
from leaks import everywhere, holding, needles_of, told_in, watched
from servers import ROOT, Server, figure, playbook
from test_again import changes

# Who reads which of the controller's secrets on the server, root left out. One that is not listed
# does not lie on the server at all: of a client's key it has the hash alone.
MAY_READ = {
    "engine_key": {"millrace-vllm", "millrace-litellm", "millrace-streamcheck"},
    "gateway_key": {"millrace-litellm", "millrace-backend", "millrace-streamcheck"},
    "session_secret": {"millrace-backend"},
    "client_streamcheck": {"millrace-streamcheck"},
    "cloudflare_tunnel.json": {"millrace-cloudflared"},
}
# What a server has only where its settings ask for it.
NOT_EVERYWHERE = {"cloudflare_tunnel.json"}
# While its part of the chain runs, each reads what it is given; the check runs by the clock.
READS_NOW = {
    "gateway": ("millrace-litellm", {"engine_key", "gateway_key"}),
    "backend": ("millrace-backend", {"gateway_key", "session_secret"}),
    "engine": ("millrace-vllm", {"engine_key"}),
}
PLACES = ("/etc/millrace/", "/run/credentials/")
# Roles that write secrets. The certificate's is left out: whoever holds the old would not trust it;
# and the engine's, for its key is in LiteLLM's file too and to load it again takes longer.
WRITING = "litellm,backend,streamcheck"
WRITTEN = ("/etc/millrace/litellm/", "/etc/millrace/streamcheck/",
           "/etc/millrace/backend/gateway_key", "/etc/millrace/backend/session_secret")  # fmt: skip


@pytest.fixture(scope="module")
def found(server: Server) -> dict[str, Any]:
    """What a look at everything on the server finds."""
    return everywhere(server)


def readers(found: dict[str, Any]) -> dict[str, set[str]]:
    """Return each user who reads a secret, and which."""
    told: dict[str, set[str]] = {}
    for file in found["files"]:
        for user in file["readers"]:
            told.setdefault(user, set()).update(file["secrets"])
    return told


def assert_not_told(found: dict[str, Any]) -> None:
    """Nothing tells a secret: no process, no journal, nor systemd, whom anybody may ask."""
    telling = ("processes", "journal", "units", "manager", "kernel")
    assert {what: found[what] for what in telling} == {what: [] for what in telling}


@pytest.mark.breaks
@pytest.mark.timeout(600)
def test_a_run_that_writes_them_all_tells_none(
    engine: Server, found: dict[str, Any], until_ready: Callable[[], float]
) -> None:
    """The most talkative run: not in its output, nor in any process here or there meanwhile."""
    needles = needles_of(engine.secrets)
    files = " ".join(holding(found, WRITTEN))
    assert files.count("/") > 10, files
    kept = engine.run("mktemp -d /root/kept.XXXX").strip()
    engine.run(f"for f in {files}; do mv $f {kept}/$(echo $f | tr / _); done")
    back = f"for f in {files}; do test -e $f || cp -p {kept}/$(echo $f | tr / _) $f; done"
    try:
        with watched(engine, needles) as there, watched(None, needles) as here:
            done = playbook("site.yml", "--limit", engine.name, "--tags", WRITING, "--diff", "-vvv")
    finally:
        engine.run(f"{back}; rm -r {kept}")
    assert done.returncode == 0, done.stdout[-4000:]
    assert changes(done.stdout)[engine.name] >= 3, "they were not written again"
    assert told_in(done.stdout + done.stderr, needles) == []
    assert there.looks > 50
    assert here.looks > 20
    assert there.processes == []
    assert here.processes == []
    until_ready()
    assert_not_told(everywhere(engine))
    figure(f"looks at processes during a run: {there.looks} on the server, {here.looks} here")


def test_each_service_reads_its_own_and_nobody_anothers(found: dict[str, Any]) -> None:
    """By trying, as every user of the system, to open every file that holds one."""
    for file in found["files"]:
        assert int(file["mode"], 8) & 0o007 == 0, file
        for secret in file["secrets"]:
            assert set(file["readers"]) <= MAY_READ.get(secret, set()), file


@pytest.mark.parametrize("part", sorted(READS_NOW))
def test_what_each_reads_comes_to_it(server: Server, part: str, request: Any) -> None:
    """The search finds what is there: a test that finds nothing would prove nothing."""
    if part == "engine":
        request.getfixturevalue("engine")
    user, secrets = READS_NOW[part]
    found = request.getfixturevalue("found")
    assert readers(found)[user] == secrets
    unit = unit_of(server, part)
    credentials = [f["path"] for f in found["files"] if f["path"].startswith("/run/credentials/")]
    assert any(path.startswith(f"/run/credentials/{unit}/") for path in credentials)


def test_no_other_secret_reaches_the_server(server: Server, found: dict[str, Any]) -> None:
    """Of clients' keys it has hashes; what the controller keeps for others never comes."""
    there = {secret for file in found["files"] for secret in file["secrets"]}
    ours = set(needles_of(server.secrets))
    assert {"client_owner", *MAY_READ} - NOT_EVERYWHERE <= ours
    assert there & ours <= set(MAY_READ)


def test_they_lie_where_they_are_configured_and_nowhere_else(
    server: Server, found: dict[str, Any]
) -> None:
    """Not in a log, a folder of temporary files, or what somebody left at home."""
    ours = set(needles_of(server.secrets))
    elsewhere = [
        file["path"]
        for file in found["files"]
        if set(file["secrets"]) & ours and not file["path"].startswith(PLACES)
    ]
    assert elsewhere == []


def test_private_keys_are_roots_alone(found: dict[str, Any]) -> None:
    for place in ("/etc/millrace/tls/", "/etc/ssh/ssh_host_"):
        assert any(path.startswith(place) for path in found["keys"]), place
    for file in found["files"]:
        if set(file["secrets"]) & set(found["keys"]):
            assert (file["uid"], file["readers"]) == (0, []), file


def test_secrets_are_in_no_argument_no_environment_and_no_journal(found: dict[str, Any]) -> None:
    assert_not_told(found)


def test_the_controllers_folder_is_its_owners_alone(server: Server) -> None:
    assert server.secrets.stat().st_mode & 0o077 == 0
    held = needles_of(server.secrets)
    assert held
    for name in held:
        assert (server.secrets / name).stat().st_mode & 0o077 == 0, name


def test_no_secret_is_in_the_repository_or_left_by_ansible(server: Server) -> None:
    """Not in what git would take, and not in what Ansible keeps of a run on this machine."""
    needles = needles_of(server.secrets)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    left = [p for folder in (ROOT / ".ansible", ROOT / "artefacts") for p in folder.rglob("*")]
    files = [*(ROOT / name for name in listed if name), *left]
    told = {
        str(file): names
        for file in files
        if file.is_file() and (names := told_in(file.read_text(errors="replace"), needles))
    }
    assert told == {}


@pytest.mark.parametrize(
    "url",
    ["8001/v1/models", "4100/v1/models", "4100/vllm/v1/models", "4100/key/list"],
)
def test_engine_and_gateway_ask_whoever_is_on_the_server_for_a_key(
    engine: Server, url: str
) -> None:
    """Any user reaches loopback: there a key is what lets in."""
    for headers in ({}, {"Authorization": f"Bearer {engine.key}"}):
        code, _ = engine.get(f"http://127.0.0.1:{url}", **headers)
        # LiteLLM has no store of keys to look a wrong one up in, and says so with 400.
        assert code in ((400, 401) if headers and url.startswith("4100") else (401,)), (url, code)


@pytest.mark.parametrize("path", ["docs", "redoc", "openapi.json"])
def test_the_gateway_shows_no_documents(engine: Server, path: str) -> None:
    code, _ = engine.get(f"http://127.0.0.1:4100/{path}")
    assert code in (401, 403, 404), (path, code)
