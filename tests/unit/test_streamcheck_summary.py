"""What the stream check leaves for the status view: small, and nothing lost that is drawn."""

from __future__ import annotations

import datetime
import itertools
import json
import stat
from pathlib import Path
from typing import Any

from backend.last_check import CheckReport
from streamcheck import report
from streamcheck.keep import keep
from streamcheck.model import Hop, Target
from streamcheck.summary import summary, thinned
from streamcheck_kit import answered, steady

STARTED = datetime.datetime(2026, 11, 26, 3, tzinfo=datetime.UTC)


def document(*observations: Any, hops: int = 4) -> dict[str, Any]:
    """Return a report of hops that all gave these answers."""
    found = []
    for number in range(hops):
        hop = Hop(Target(f"hop{number}", f"Hop {number}", "http://127.0.0.1/v1"))
        hop.observations += observations
        found.append(report.hop_entry(hop))
    return report.report(found, started=STARTED, took_seconds=1, noise=[], notes=[])


def test_each_hop_has_its_figures_and_its_timeline() -> None:
    told = summary(document(steady(pace=0.012, count=64, start=0.1)))
    assert told["when"] == "2026-11-26T03:00:00+00:00"
    assert told["verdict"] == "streams"
    assert [hop["name"] for hop in told["hops"]] == ["hop0", "hop1", "hop2", "hop3"]
    first = told["hops"][0]
    assert first["verdict"] == "streams"
    assert first["first_token_ms"] == 100
    assert 11 < first["median_gap_ms"] < 13
    assert len(first["reads"]) == 64
    assert first["reads"][0] == (0.1, 1)


def test_a_long_answer_is_thinned_and_no_event_is_lost() -> None:
    times = [0.1 + 0.01 * n for n in range(5000)]
    told = summary(document(answered(times), hops=12))
    for hop in told["hops"]:
        assert 100 < len(hop["reads"]) <= 200
        assert sum(events for _, events in hop["reads"]) == 5000
        assert [at for at, _ in hop["reads"]] == sorted(at for at, _ in hop["reads"])
    assert len(json.dumps(told)) < 100_000


def test_thinning_keeps_a_silence_in_view() -> None:
    reads = [(0.01 * n, 1) for n in range(500)] + [(20 + 0.01 * n, 1) for n in range(500)]
    kept = thinned(reads)
    assert len(kept) <= 200
    assert max(b - a for (a, _), (b, _) in itertools.pairwise(kept)) > 14
    assert thinned([(1.0, 1)] * 300) == [(1.0, 300)]


def test_the_backend_takes_what_the_check_leaves(tmp_path: Path) -> None:
    told = [
        document(answered([0.1 + 0.01 * n for n in range(5000)])),
        document(),
        report.could_not("no\x1b[31m route", STARTED, 1),
    ]
    for one in told:
        keep(tmp_path, one)
        file = tmp_path / "summary.json"
        found = CheckReport.model_validate_json(file.read_bytes())
        assert found.verdict == one["verdict"]
        assert "\x1b" not in found.summary
        # The backend is another user; the unit's umask is tight.
        assert stat.S_IMODE(file.stat().st_mode) == 0o644
