"""Running again: nothing changes, refusals come first, and what broke off is finished.

The proof at the end of a run judges by short times: test_streamcheck.py runs it again.
"""

from __future__ import annotations

import re
import subprocess

import pytest
from servers import ROOT, Server, figure, playbook, servers

pytestmark = pytest.mark.timeout(900)


def limit() -> str:
    """The servers whose engine runs."""
    whole = [s.name for s in servers().values() if not s.run("cat /etc/millrace/no-engine", False)]
    return ",".join(whole)


def changes(output: str) -> dict[str, int]:
    """Server to the number of changes, from the recap."""
    recap = re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", output, re.M)
    return {name: int(count) for name, count in recap}


def secrets() -> list[str]:
    """Every secret of every server."""
    return [
        file.read_text().strip()
        for server in servers().values()
        for file in server.secrets.iterdir()
        if file.suffix not in (".crt", ".json")
    ]


def test_second_run_changes_nothing() -> None:
    done = playbook("site.yml", "--limit", limit(), "--skip-tags", "verify")
    assert done.returncode == 0, done.stdout[-4000:]
    assert set(changes(done.stdout).values()) == {0}, done.stdout
    figure(f"no-op run: {done.stdout.splitlines()[-1]}")


def check_mode(book: str, *arguments: str) -> None:
    """The most talkative run there is changes nothing, and tells no secret."""
    done = playbook(book, *arguments, "--check", "--diff", "-vvv")
    assert done.returncode == 0, done.stdout[-4000:]
    assert set(changes(done.stdout).values()) == {0}, done.stdout
    for secret in secrets():
        assert secret not in done.stdout + done.stderr


def test_check_mode_changes_nothing_and_tells_no_secret() -> None:
    check_mode("site.yml", "--limit", limit(), "--skip-tags", "verify")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["vllm_modle=x"], "vllm_modle: no role knows this setting. Did you mean vllm_model?"),
        (["vllm_device=gpu"], "value of vllm_device must be one of: cuda, cpu"),
        (["vllm_model=/srv/nothing"], "there is no folder /srv/nothing on the server"),
        (["vllm_model=what is this"], "must be 'recital' (built in), owner/name on the hub"),
        (["plan_kv_cache_mib=9000000"], "choose a smaller model or a larger server"),
        (["millrace_gateway_key=short"], "vault_millrace_gateway_key: sk- and 29 or more"),
        (["plan_engine_port=22", '{"preflight_ports": [22]}'], "port 22 is taken by sshd"),
        (['{"ssh_from": ["192.0.2.0/24"]}'], "and ssh would be closed to it: add it to ssh_from"),
        (["ssh_root_login=no"], "this run comes in as root: set ansible_user"),
        (["vllm_model=no/thing", "millrace_hub_url=http://127.0.0.1:9"], "cannot be reached"),
    ],
)  # fmt: skip
def test_refuses_before_anything_is_changed(one: Server, settings: list[str], told: str) -> None:
    extra = [part for setting in settings for part in ("-e", setting)]
    done = playbook("site.yml", "--limit", one.name, *extra)
    assert done.returncode != 0
    assert told in " ".join(done.stdout.split()), done.stdout
    assert set(changes(done.stdout).values()) == {0}
    assert "Base system" not in done.stdout


def test_a_half_installed_release_is_finished(one: Server) -> None:
    release = one.run("readlink -f /opt/millrace/backend/current").strip()
    one.run(f"rm -rf {release}/.complete {release}/venv/lib/python3*/site-packages/fastapi")
    done = playbook("playbooks/backend.yml", "--limit", one.name)
    assert done.returncode == 0, done.stdout
    assert one.run(f"cat {release}/.complete")
    assert one.run(f"ls -d {release}/venv/lib/python3*/site-packages/fastapi").strip()


def test_installs_without_a_network_from_a_wheelhouse(one: Server) -> None:
    """A new release of the backend, with every way out cut off."""
    release = one.run("readlink -f /opt/millrace/backend/current").strip()
    one.run(
        f"for lock in pip requirements; do {release}/venv/bin/python -m pip download -q --no-deps "
        f"--require-hashes -d /srv/wheelhouse -r {release}/$lock.txt; done",
        timeout=300,
    )
    cut = (
        "add table inet cut\n"
        "add chain inet cut out { type filter hook output priority 0; policy drop; }\n"
        "add rule inet cut out oif lo accept\n"
        # By the port: to connection tracking that begins now our own connection is a new one until
        # we say something, and we wait for the answer.
        "add rule inet cut out tcp sport 22 accept\n"
    )
    try:
        one.run(f"printf %s '{cut}' | nft -f -")
        one.run("! timeout 5 bash -c 'exec 3<>/dev/tcp/192.0.2.1/80'")
        done = playbook(
            "playbooks/backend.yml", "--limit", one.name,
            "-e", "millrace_wheelhouse=/srv/wheelhouse",
            "-e", "python_release_python=/usr/bin/python3",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        fresh = one.run("readlink -f /opt/millrace/backend/current").strip()
        assert fresh != release
    finally:
        one.run("nft delete table inet cut", check=False)
    # Back again: the release before is still there, so this is a switch and a restart.
    done = playbook("playbooks/backend.yml", "--limit", one.name)
    assert done.returncode == 0, done.stdout
    assert one.run("readlink -f /opt/millrace/backend/current").strip() == release
    assert "Install the backend" not in done.stdout
    one.run("rm -rf /srv/wheelhouse")


def test_example_inventory_is_whole() -> None:
    """The inventory that the README has people copy names nothing unknown."""
    done = subprocess.run(
        ["ansible-inventory", "-i", "inventory/hosts.example.yml", "--list"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert '"chat"' in done.stdout
