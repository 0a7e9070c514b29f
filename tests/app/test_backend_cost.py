"""The bench measures all that it can: small here, in full by hand (docs/measurements.md)."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench/backend_cost.py"


def test_the_bench_tells_what_an_event_costs():
    done = subprocess.run(
        [sys.executable, BENCH, "--streams=4", "--seconds=2", "--rounds=1", "--steps=100"],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    cost = dict(re.findall(r"^(\S.*?) {2,}(\d+\.\d) ", done.stdout, re.M))
    assert float(cost["the backend"]) > 0
    assert float(cost["FastAPI with httpx"]) > 0
    assert ("bare nginx" in cost) == (shutil.which("nginx") is not None)
    assert "bare nginx" in done.stdout
