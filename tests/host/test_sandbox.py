"""The sandbox brings real servers up and leaves nothing of them behind, whatever happened.

These tests make servers of their own, with names and addresses that no set of the inventory uses,
and compare this machine before and after; other servers that are up stay up. As root:

    pytest tests/host/test_sandbox.py        about three minutes with a warm cache
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import testinfra
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
PLAYBOOK = REPOSITORY / "playbooks/sandbox.yml"
GROUP_VARS = REPOSITORY / "inventory/sandbox/group_vars"
STATE = Path(yaml.safe_load((GROUP_VARS / "sandbox.yml").read_text())["sandbox_state_dir"])
CACHE = Path("/var/cache/millrace")
# Indexes that no inventory has; the address and the link's name follow from them.
SERVERS = {"millrace-try-a": 251, "millrace-try-b": 252}
A, B = SERVERS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces and mounts"),
]


@dataclass
class Sandbox:
    """The playbook, run on an inventory of this test's own."""

    inventory: Path
    extra: list[str] = field(default_factory=list)

    def argv(self, *arguments: str, limit: str = A) -> list[str]:
        beside = Path(sys.executable).with_name("ansible-playbook")
        tool = str(beside) if beside.exists() else shutil.which("ansible-playbook")
        assert tool, "ansible-playbook is neither beside this Python nor on PATH"
        wanted = ["-i", str(self.inventory), str(PLAYBOOK), "--limit", limit]
        return [tool, *wanted, *self.extra, *arguments]

    def __call__(
        self, state: str = "present", *arguments: str, limit: str = A, fails: bool = False
    ) -> str:
        done = subprocess.run(
            self.argv("-e", f"sandbox_state={state}", *arguments, limit=limit),
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        said = done.stdout + done.stderr
        assert (done.returncode != 0) == fails, said
        return said

    def begin(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.argv(*arguments),
            cwd=REPOSITORY,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    folder = tmp_path_factory.mktemp("inventory")
    hosts = {
        name: {"sandbox_suite": "bookworm", "sandbox_index": index, "sandbox_machine": "no-gpu"}
        for name, index in SERVERS.items()
    }
    inventory = folder / "hosts.yml"
    inventory.write_text(yaml.safe_dump({"millrace": {"children": {"sandbox": {"hosts": hosts}}}}))
    (folder / "group_vars").symlink_to(GROUP_VARS)
    runner = Sandbox(inventory)
    runner("absent", limit="all")
    yield runner
    runner("absent", limit="all")


@pytest.fixture(scope="module")
def before(sandbox: Sandbox) -> "Machine":
    return look()


@pytest.fixture
def up(sandbox: Sandbox, before: "Machine") -> testinfra.host.Host:
    """A server that is up, whatever the test before did to it."""
    sandbox()
    return inside()


def inside(name: str = A) -> testinfra.host.Host:
    home = STATE / name
    return testinfra.get_host(
        f"ssh://root@10.91.{SERVERS[name]}.2",
        ssh_identity_file=str(home / "ssh/id_ed25519"),
        ssh_extra_args=f"-F none -o UserKnownHostsFile={home}/ssh/known_hosts "
        "-o StrictHostKeyChecking=yes -o ConnectTimeout=3",
    )


def command(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout


# What this machine shows of servers


@dataclass
class Machine:
    """What a server may leave behind: that of our own servers, and what all share."""

    own: dict[str, list[str]]
    shared: dict[str, object]
    others: list[str]


def ours(lines: list[str]) -> list[str]:
    words = [*SERVERS, *(f"mrs{index}" for index in SERVERS.values())]
    words += [f"10.91.{index}." for index in SERVERS.values()]
    return sorted(line for line in lines if any(word in line for word in words))


def processes() -> list[str]:
    """Every process that is ours by its command or its control group."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            said = (entry / "cmdline").read_text().replace("\0", " ")
            group = (entry / "cgroup").read_text()
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z" and "pytest" not in said:
            found.append(f"{entry.name} {said} {group}".replace("\n", " "))
    return ours(found)


def look() -> Machine:
    spaces = [line.split()[0] for line in command("ip", "netns", "list").splitlines()]
    mine = {f"mrs-{name}" for name in SERVERS}
    own = {
        "processes": processes(),
        "namespaces": ours(spaces),
        "links": ours(command("ip", "-o", "link").splitlines()),
        "addresses": ours(command("ip", "-o", "addr").splitlines()),
        "routes": ours(command("ip", "route").splitlines()),
        "mounts": ours(Path("/proc/mounts").read_text().splitlines()),
        "control groups": ours([str(path) for path in Path("/sys/fs/cgroup").rglob("*millrace*")]),
        "state": ours([str(path) for path in STATE.glob("*")]),
        "systemd-nspawn": ours([str(path) for path in Path("/run/systemd/nspawn").glob("*/*")]),
    }
    conf = Path("/proc/sys/net/ipv4/conf")
    keys = [f"{link}/{key}" for link in ("all", "default") for key in ("forwarding", "rp_filter")]
    keys += ["all/accept_redirects", "default/accept_redirects"]
    keys += [f"{link.name}/forwarding" for link in conf.iterdir() if not ours([link.name])]
    shared: dict[str, object] = {
        "nftables": command("nft", "list", "ruleset"),
        "ip_forward": Path("/proc/sys/net/ipv4/ip_forward").read_text(),
        **{key: (conf / key).read_text() for key in sorted(keys) if (conf / key).exists()},
        "/run/netns": Path("/run/netns").is_dir() and os.path.ismount("/run/netns"),
        "folders": [
            str(path)
            for path in (STATE, Path("/run/millrace-sandbox"), Path("/run/netns"))
            if path.exists()
        ],
    }
    others = [space for space in spaces if space.startswith("mrs-") and space not in mine]
    return Machine(own, shared, sorted(others))


def assert_untouched(before: Machine) -> None:
    """Nothing of ours is left; what servers share is as it was, unless others came or went."""
    for _ in range(20):  # the kernel takes namespaces apart in the background
        after = look()
        if after.own == before.own:
            break
        time.sleep(0.1)
    assert not any(after.own.values()), after.own
    if after.others == before.others:
        assert after.shared == before.shared


# Tests, in the order of a server's life


def test_a_fresh_server_is_what_a_hoster_delivers(up: testinfra.host.Host) -> None:
    assert up.system_info.codename == "bookworm"
    assert up.check_output("systemctl is-system-running") == "running"
    assert up.check_output("hostname") == A
    assert up.check_output("cat /proc/1/comm") == "systemd"
    assert up.check_output("ip -o -4 addr show eth0").split()[3] == "10.91.251.2/30"
    if Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").read_text() == "0\n":
        assert "fd91:251::2/64" in up.check_output("ip -o -6 addr show eth0 scope global")
        with socket.create_connection(("fd91:251::2", 22), timeout=5) as link:
            assert link.recv(4) == b"SSH-"
    for package in ("cron", "nginx", "curl", "python3-pip"):
        assert not up.package(package).is_installed, package
    listening = {socket for socket in up.socket.get_listening_sockets() if "tcp" in socket}
    assert listening == {"tcp://0.0.0.0:22", "tcp://:::22"}


def test_lspci_shows_the_profile_and_nothing_else(up: testinfra.host.Host) -> None:
    profile = REPOSITORY / "tests/fixtures/machines/no-gpu/machine.yml"
    wanted = [
        f"{device['slot']} {device['class'][:4]}: {device['vendor']}:{device['device']}"
        for device in yaml.safe_load(profile.read_text())["pci"]
    ]
    shown = up.check_output("lspci -D -n").splitlines()
    assert [line.split(" (rev")[0].strip() for line in shown] == wanted


def test_units_can_be_sandboxed(up: testinfra.host.Host) -> None:
    """What the kit's units use works here as on hardware, and is really enforced."""
    settings = [
        "DynamicUser=yes",
        "ProtectSystem=strict",
        "ProtectHome=yes",
        "PrivateTmp=yes",
        "PrivateDevices=yes",
        "PrivateUsers=yes",
        "NoNewPrivileges=yes",
        "CapabilityBoundingSet=",
        "RestrictNamespaces=yes",
        "RestrictSUIDSGID=yes",
        "LockPersonality=yes",
        "MemoryDenyWriteExecute=yes",
        "SystemCallFilter=@system-service",
        "ProtectKernelTunables=yes",
        "ProtectControlGroups=yes",
        "ProtectProc=invisible",
        "StateDirectory=try",
        "LoadCredential=word:/etc/hostname",
    ]
    options = " ".join(f"-p '{setting}'" for setting in settings)
    told = up.check_output(
        f"systemd-run --quiet --wait --pipe {options} sh -c 'cat $CREDENTIALS_DIRECTORY/word'"
    )
    assert told == A
    send = "python3 -c \"import socket; socket.socket(2, 2).sendto(b'x', ('10.91.251.1', 9))\""
    assert up.run(f"systemd-run --quiet --wait {send}").rc == 0
    assert up.run(f"systemd-run --quiet --wait -p IPAddressDeny=any {send}").rc != 0
    up.check_output("systemctl reset-failed")


def test_a_second_run_changes_nothing(sandbox: Sandbox, up: testinfra.host.Host) -> None:
    booted = up.check_output("cat /proc/sys/kernel/random/boot_id")
    assert "changed=0" in sandbox()
    assert up.check_output("cat /proc/sys/kernel/random/boot_id") == booted


def test_a_reboot_comes_back_as_the_same_server(up: testinfra.host.Host) -> None:
    up.check_output("echo still here > /root/mark")
    booted = up.check_output("cat /proc/sys/kernel/random/boot_id")
    with contextlib.suppress(RuntimeError):  # the line may break before the answer is through
        up.run("systemctl reboot")
    wait_for_another_boot(up, booted)
    assert up.check_output("cat /root/mark; hostname").split("\n") == ["still here", A]
    assert "10.91.251.2/30" in up.check_output("ip -o -4 addr show eth0")


def wait_for_another_boot(host: testinfra.host.Host, booted: str) -> None:
    asked = "cat /proc/sys/kernel/random/boot_id && systemctl is-system-running --wait"
    deadline, told = time.monotonic() + 120, "nothing"
    while time.monotonic() < deadline:
        with contextlib.suppress(RuntimeError):  # ssh is refused while it boots
            now = host.run(asked)
            told = now.stdout + now.stderr
            if now.rc == 0 and booted not in now.stdout:
                return
        time.sleep(0.3)
    failed = host.run("systemctl --failed --no-legend").stdout
    raise AssertionError(f"the server did not come back from its reboot; it says: {told}{failed}")


def pid_of(which: str, name: str = A) -> int:
    return int((STATE / name / f"{which}.pid").read_text().split()[0])


@pytest.mark.parametrize("which", ["supervisor", "nspawn", "init"])
def test_up_mends_a_killed(which: str, sandbox: Sandbox, up: testinfra.host.Host) -> None:
    up.check_output(f"echo {which} > /root/mark")
    os.kill(pid_of(which), signal.SIGKILL)
    time.sleep(0.5)
    sandbox()
    assert up.check_output("cat /root/mark") == which
    assert len([line for line in processes() if " systemd-nspawn " in line]) == 1
    assert "changed=0" in sandbox()


def test_packages_arrive_and_are_kept_for_the_next_server(
    sandbox: Sandbox, up: testinfra.host.Host
) -> None:
    archives = CACHE / "apt/bookworm"
    for kept in archives.glob("hello_*.deb"):
        kept.unlink()
    up.check_output("apt-get -q update && apt-get -q install -y hello")
    assert up.check_output("hello -g hi") == "hi"
    up.check_output("apt-get -q install -y python3-venv && python3 -m venv /root/venv")
    up.check_output("/root/venv/bin/pip download --quiet --no-deps -d /root/wheels six")
    assert "changed=1" in sandbox("harvested")
    assert list(archives.glob("hello_*.deb"))
    assert "changed=0" in sandbox("harvested")
    sandbox("rebuilt")
    assert up.file("/var/cache/apt/archives").listdir()
    assert not up.file("/root/venv").exists
    assert "hello" in up.check_output("ls /var/cache/apt/archives")
    assert up.run("apt-get -q install -y --no-download hello").rc == 0


def test_an_address_is_never_given_twice(sandbox: Sandbox, up: testinfra.host.Host) -> None:
    said = sandbox("present", "-e", f"sandbox_index={SERVERS[A]}", limit=B, fails=True)
    assert f"belongs to the server mrs-{A}" in said
    assert up.check_output("hostname") == A


def test_the_last_server_to_go_takes_what_they_shared(
    sandbox: Sandbox, up: testinfra.host.Host, before: Machine
) -> None:
    sandbox(limit=B)
    sandbox("absent")
    left = look().own
    assert left["namespaces"] == [f"mrs-{B}"]
    assert [path for path in left["state"] if A in path] == []
    assert inside(B).run("apt-get -q update").rc == 0  # still has its way out
    os.kill(pid_of("supervisor", B), signal.SIGKILL)
    assert "changed=1" in sandbox("absent", limit=B)
    assert_untouched(before)
    assert "changed=0" in sandbox("absent", limit="all")


def test_a_run_killed_while_copying_the_root_is_finished_by_the_next(
    sandbox: Sandbox, before: Machine
) -> None:
    sandbox("absent")
    killed_when(lambda: any((STATE / A).glob("new-*/usr")), sandbox.begin())
    sandbox()
    assert inside().check_output("systemctl is-system-running") == "running"
    os.kill(pid_of("nspawn"), signal.SIGKILL)
    sandbox("absent")
    assert_untouched(before)


def test_a_run_killed_while_building_the_image_is_finished_by_the_next(
    sandbox: Sandbox, before: Machine, tmp_path: Path
) -> None:
    """An empty cache and a small image: the half-built one of the killed run is never used."""
    cache = {
        "sandbox_cache_dir": f"{tmp_path}/cache/millrace",
        "sandbox_image_packages": ["dbus", "openssh-server", "python3-minimal", "systemd-sysv"],
    }
    settings = ["-e", json.dumps(cache)]
    images = tmp_path / "cache/millrace/images/bookworm"

    def half_built() -> bool:
        return any(images.glob("building-*/root/usr/bin"))

    killed_when(half_built, sandbox.begin(*settings))
    assert not list(images.glob("*/image.json"))
    sandbox("present", *settings)
    assert len(list(images.glob("*/image.json"))) == 1
    assert not list(images.glob("building-*"))
    assert inside().check_output("systemctl is-system-running") == "running"
    sandbox("absent", *settings)
    assert_untouched(before)
    shutil.rmtree(tmp_path / "cache")


def killed_when(ready: object, run: subprocess.Popen[bytes]) -> None:
    """Kill a run of the playbook, with all it started, at a certain moment."""
    assert callable(ready)
    deadline = time.monotonic() + 90
    while not ready():
        assert run.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for pid in (run.pid, *helpers_of(run.pid)):
        os.kill(pid, signal.SIGKILL)
    run.wait()


def helpers_of(run: int) -> list[int]:
    """The helper that one task of a run is running right now; other runs have theirs."""
    helpers = command("pgrep", "-f", "python.* millrace_sandbox (up|image)$").split()
    return [int(pid) for pid in helpers if run in ancestors(int(pid))]


def ancestors(pid: int) -> list[int]:
    """The processes that a process came from, as far up as they still are."""
    found: list[int] = []
    while pid > 1:
        pid = int(command("ps", "-o", "ppid=", "-p", str(pid)).strip() or 0)
        found.append(pid)
    return found


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("sandbox_index=0", "set sandbox_index"),
        ("sandbox_suite=buster", "must be one of"),
        ("sandbox_state=off", "must be one of"),
        ("sandbox_cache_dir=here", "must be absolute"),
        ("sandbox_machine=none", "none/machine.yml"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_changes(
    wrong: str, says: str, sandbox: Sandbox, before: Machine
) -> None:
    assert says in sandbox("present", "-e", wrong, fails=True)
    assert_untouched(before)
