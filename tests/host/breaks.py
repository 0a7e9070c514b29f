"""Break what each host check guards, see the check fail, mend it, and see it pass.

    python tests/host/breaks.py [-k WORD ...]      against the servers of MILLRACE_TEST_INVENTORY

Not part of `./millrace test`: it proves the checks, not the product. Run it after changing a check;
break_rows.py is the list. Prints a row per check. Exit status 1 when a check did not notice its
break, did not pass afterwards, or could not be broken; one that was skipped is said to be.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from break_rows import BREAKS
from breaking import BROUGHT, Break
from servers import ROOT, Server, playbook, servers

EXPRESS = "test_express.py"
MENDED_TRIES = 6
SAID = 300


@dataclass
class Seen:
    """A plugin of pytest's: what came of a check, the last word of each kind."""

    told: dict[str, str] = field(default_factory=dict)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take in a part of a test."""
        if report.failed or report.skipped or report.when == "call":
            said = report.longrepr
            reason = said[2] if isinstance(said, tuple) else getattr(said, "reprcrash", said or "")
            self.told[report.outcome] = str(getattr(reason, "message", reason)).replace("\n", " ")


def ask(test: str) -> tuple[str, str]:
    """Run one check; return `passes`, `fails`, `skipped` or `no such check`, and what it said.

    In this process: to load everything anew takes longer than most checks.
    """
    seen = Seen()
    quiet = ["-x", "-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}"]
    with contextlib.redirect_stdout(io.StringIO()):
        code = pytest.main([*quiet, str(ROOT / "tests/host" / test)], plugins=[seen])
    if code == pytest.ExitCode.TESTS_FAILED:
        return "fails", seen.told.get("failed", "")[:SAID]
    if code:
        return "no such check", str(code)
    if "passed" in seen.told:
        return "passes", ""
    return "skipped", seen.told.get("skipped", "")


def act(server: Server, item: Break, command: str) -> None:
    """Run what breaks or mends; raise AssertionError when it fails."""
    if not item.here:
        server.run(command, timeout=300)
        return
    given = {**os.environ, "SECRETS": str(server.secrets)}
    done = subprocess.run(
        ["sh", "-c", command], cwd=ROOT, env=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def broken(server: Server, item: Break) -> tuple[str, str]:
    """Break it, ask, and mend it; return what came of it and what the check said."""
    if item.brings:
        server.put(server.secrets / item.brings, BROUGHT)
    try:
        act(server, item, item.do)
    except AssertionError as error:
        outcome = "COULD NOT BE BROKEN", str(error)[-300:]
    else:
        found, said = ask(item.test)
        outcome = {"fails": "noticed", "passes": "NOT NOTICED"}.get(found, found), said
    finally:
        try:
            act(server, item, item.undo)
        except AssertionError as error:
            print(f"could not be mended: {error}", file=sys.stderr)
        if item.brings:
            server.run(f"rm -f {BROUGHT}")
    return outcome


def mended(test: str) -> bool:
    """Whether the check passes; what was restarted may take a while."""
    for _ in range(MENDED_TRIES):
        if ask(test)[0] == "passes":
            return True
        time.sleep(5)
    return False


def prove(server: Server, item: Break) -> bool:
    """Break, expect failure, mend, expect success."""
    outcome, said = broken(server, item)
    skipped = outcome == "skipped"
    again = "-" if skipped else "passes" if mended(item.test) else "STILL FAILS"
    print(f"| {item.test} | {item.broken_by} | {outcome} | {again} |", flush=True)
    if said:
        print(f"{outcome}: {said}", file=sys.stderr, flush=True)
    return skipped or (outcome, again) == ("noticed", "passes")


@contextlib.contextmanager
def going(server: Server, way: str) -> Iterator[None]:
    """Have streamed answers go that way meanwhile, which the checks then leave as it is."""

    def go(where: str) -> None:
        settings = json.dumps({"nginx_stream_path": where})
        done = playbook("site.yml", "--limit", server.name, "--tags", "nginx", "-e", settings)
        assert done.returncode == 0, done.stdout[-4000:]

    go(way)
    try:
        yield
    finally:
        go("inline")


def main() -> int:
    """Prove every check, or those whose row holds one of the words."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("-k", metavar="WORD", nargs="+", default=[""], help="rows with such a word")
    words = parser.parse_args().k
    # The checks run playbooks, with the tools beside this Python.
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    server = min(servers().values(), key=lambda one: one.name)
    chosen = [i for i in BREAKS if any(word in f"{i.test} {i.broken_by}" for word in words)]
    express = [item for item in chosen if item.test.startswith(EXPRESS)]
    print("| check | broken by | broken | mended |\n| --- | --- | --- | --- |")
    proved = [prove(server, item) for item in chosen if item not in express]
    if express:
        with going(server, "express"):
            proved += [prove(server, item) for item in express]
    return 0 if all(proved) else 1


if __name__ == "__main__":
    sys.exit(main())
