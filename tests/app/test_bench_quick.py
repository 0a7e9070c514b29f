"""The bench, run small for real: every part of it works. What it finds is judged by nobody here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.parts import ROOT, find_nginx


def test_the_bench_measures_small(tmp_path: Path) -> None:
    if find_nginx() is None:
        pytest.skip("no nginx can be had here, which every chain begins with")
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--out", tmp_path],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'app'}"},
        cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    document = json.loads((tmp_path / "results.json").read_text())
    chains = {chain["name"]: chain for chain in document["chains"]}
    # Without LiteLLM's environment the chain is measured without LiteLLM, and it is said.
    ours = "inline" if "inline" in chains else "backend"
    assert set(chains) | set(document["unavailable"]) == {"direct", "nginx", "inline", ours}
    (point,) = document["points"]
    for name, hops in (("nginx", ["nginx"]), (ours, chains[ours]["hops"])):
        found = point["chains"][name]
        for hop in hops:
            assert found["token_us"][hop]["median"] > 0, (name, hop)
        assert found["first_token_ms"]["p50"]["median"] > 0
        assert found["gap_ms"]["p50"]["median"] > 0
        # Late it may be on a busy machine; lost is nothing.
        assert not [said for said in found["stalls"] if "missing" in said or "failed" in said]
    assert "Millrace" in (tmp_path / "results.txt").read_text()
    assert "<svg" in (tmp_path / "results.html").read_text()
