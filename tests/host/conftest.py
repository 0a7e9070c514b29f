"""Fixtures of the host tests: real servers, asked from inside and from outside.

`./millrace test host` makes the servers. To work on a test, make them once and run pytest alone:
    ansible-playbook -i inventory/sandbox/test.yml playbooks/sandbox.yml
    ansible-playbook -i inventory/sandbox/test.yml site.yml
    pytest tests/host -k edge
test_cards.py and test_driver.py change the hardware of servers of their own, and leave them so: the
next time they want fresh ones (-e sandbox_state=rebuilt).
"""

from __future__ import annotations

import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import testinfra

sys.path.insert(0, str(Path(__file__).parent))
from outside import Outside, found_outside
from servers import Server, servers

UNITS = {
    "engine": "millrace-vllm@main.service",
    "gateway": "millrace-litellm.service",
    "backend": "millrace-backend@*.service",
    "edge": "nginx.service",
}
READY_SECONDS = 240


def unit_of(server: Server, part: str) -> str:
    """The unit of a part of the chain, as it is now: of the backend, the instance that serves."""
    return server.backend() if part == "backend" else UNITS[part]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that asks for a `server` on every server that serves."""
    if "server" in metafunc.fixturenames:
        found = sorted(servers())
        metafunc.parametrize("server", found, indirect=True, scope="session")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what disturbs the servers last."""
    items.sort(key=lambda item: item.get_closest_marker("breaks") is not None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Print the units' journal under a failure."""
    report = yield
    given = getattr(item, "funcargs", {})
    server = given.get("server") or getattr(given.get("played"), "server", None)
    if report.failed and isinstance(server, Server):
        units = " ".join(f"-u '{unit}'" for unit in UNITS.values())
        journal = server.run(f"journalctl --no-pager -n 60 -o short-precise {units}", check=False)
        report.sections.append((f"journal of {server.name}", journal))
    return report


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Server:
    """One server of the inventory."""
    found: Server = servers()[request.param]
    return found


@pytest.fixture(scope="session")
def host(server: Server) -> testinfra.host.Host:
    """The same server, for testinfra's modules."""
    arguments = " ".join(server.ssh_arguments)
    return testinfra.get_host(f"ssh://root@{server.address}", ssh_extra_args=arguments)


def skip_without_engine(server: Server) -> None:
    """Skip where no engine can be had, and say why."""
    reason = server.run("cat /etc/millrace/no-engine 2>/dev/null", check=False).strip()
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def engine(server: Server) -> Server:
    """A server whose engine runs; skips where none can be had, and says why."""
    skip_without_engine(server)
    return server


def status(server: Server, path: str) -> int:
    """The status of a GET from outside; 0 when there is no answer."""
    context = ssl.create_default_context(cafile=str(server.secrets / "server.crt"))
    try:
        with urllib.request.urlopen(
            f"https://{server.address}{path}", timeout=10, context=context
        ) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def wait_until_ready(server: Server) -> float:
    """Wait until /readyz says yes from outside; return the seconds it took."""
    began = time.monotonic()
    while time.monotonic() - began < READY_SECONDS:
        if status(server, "/readyz") == 200:
            return time.monotonic() - began
        time.sleep(1)
    raise AssertionError(f"not ready after {READY_SECONDS} s")


@pytest.fixture
def until_ready(engine: Server) -> Callable[[], float]:
    """Wait until /readyz says yes from outside; returns the seconds it took."""
    return lambda: wait_until_ready(engine)


@pytest.fixture(scope="session")
def outside() -> Outside:
    """The outside host with its tools; skips where they cannot be had."""
    found = found_outside()
    if found is None:
        pytest.skip("the inventory has no outside host")
    if reason := found.install():
        pytest.skip(f"the tools cannot be installed: {reason}")
    return found


@pytest.fixture(scope="session")
def one() -> Server:
    """One server, for what takes a minute."""
    return sorted(servers().items())[0][1]
