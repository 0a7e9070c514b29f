"""What the backend counts, read as Prometheus would read it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from timeit import repeat
from types import SimpleNamespace

import pytest
from backend.exchange import Exchange, conclude
from backend.metrics import Metrics, _release
from backend.pace import GapCounts, Pace
from backend.usage import Usage
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families


def read(metrics: Metrics) -> dict[str, float]:
    """Return every sample under `name{label="value",…}`, labels in alphabetical order."""
    text = generate_latest(metrics.registry).decode()
    return {
        sample.name + (f"{{{labels}}}" if labels else ""): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        for labels in [",".join(f'{k}="{v}"' for k, v in sorted(sample.labels.items()))]
    }


ALICE = SimpleNamespace(name="alice")


async def _nowhere(_: object) -> None: ...


def exchange(metrics: Metrics, **known: object) -> Exchange:
    made = Exchange("id", "POST", "/x", _nowhere, time.monotonic(), pace=metrics.pace())
    for name, value in known.items():
        setattr(made, name, value)
    metrics.begin(made)
    return made


def test_what_a_stream_leaves() -> None:
    metrics = Metrics()
    one = exchange(
        metrics, route="/v1/chat/completions", key=ALICE, stream=True, status=200,
        heartbeats=2, body_bytes=900, usage=Usage(7, 11), fault="broken_off",
        ended="upstream_error",
    )  # fmt: skip
    seen = read(metrics)
    assert seen['millrace_active_streams{route="/v1/chat/completions"}'] == 1
    assert seen["millrace_open_requests"] == 1
    assert one.pace is not None
    start = one.started
    role = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
    token = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    one.pace.note(b": life\n\n", start + 0.5)
    one.pace.note(role, start + 1)
    one.pace.note(token, start + 1.5)
    one.pace.note(b": life\n\n", start + 3)
    one.pace.note(token, start + 3.5)
    conclude(one, metrics)
    seen = read(metrics)
    assert "millrace_active_streams" not in "".join(seen)
    assert seen["millrace_open_requests"] == 0
    ended = 'ended="upstream_error",route="/v1/chat/completions",status="200"'
    assert seen[f"millrace_requests_total{{{ended}}}"] == 1
    assert seen['millrace_tokens_total{key="alice",kind="prompt"}'] == 7
    assert seen['millrace_tokens_total{key="alice",kind="completion"}'] == 11
    assert seen['millrace_upstream_errors_total{kind="broken_off"}'] == 1
    assert seen["millrace_heartbeats_total"] == 2
    assert seen["millrace_sent_bytes_total"] == 900
    assert seen["millrace_first_token_seconds_sum"] == pytest.approx(1.5)
    assert seen["millrace_stream_seconds_count"] == 1
    # A comment neither is an event nor makes a silence shorter.
    assert seen["millrace_stream_gap_seconds_count"] == 2
    assert seen["millrace_stream_gap_seconds_sum"] == pytest.approx(2.5)
    assert seen['millrace_stream_gap_seconds_bucket{le="0.5"}'] == 1
    assert seen['millrace_stream_gap_seconds_bucket{le="2.0"}'] == 2


def test_what_never_streamed_is_no_stream() -> None:
    metrics = Metrics()
    conclude(exchange(metrics, stream=True, status=400), metrics)
    seen = read(metrics)
    assert seen['millrace_requests_total{ended="refused",route="other",status="400"}'] == 1
    assert seen["millrace_stream_seconds_count"] == 0
    assert seen["millrace_first_token_seconds_count"] == 0


def test_waiting_is_counted_also_when_it_is_given_up() -> None:
    metrics = Metrics()
    with contextlib.suppress(asyncio.CancelledError), metrics.waiting("place"):
        assert read(metrics)['millrace_waiting_requests{what="place"}'] == 1
        raise asyncio.CancelledError
    seen = read(metrics)
    assert seen['millrace_waiting_requests{what="place"}'] == 0
    assert seen['millrace_wait_seconds_count{what="place"}'] == 1
    assert seen['millrace_wait_seconds_count{what="engine"}'] == 0


def test_the_release_is_named_by_its_folder() -> None:
    assert _release(Path("/opt/x/releases/ab12/app/backend/metrics.py")) == "ab12"
    assert _release(Path("/home/x/app/backend/metrics.py")) == "development"


def test_a_piece_costs_little() -> None:
    """Under 2 µs for each, whoever else uses the machine: the best of several runs."""
    pace = Pace(GapCounts("x_seconds", "x"))
    token = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    pace.note(token, 0.0)
    times = iter([n / 80 for n in range(10**6)])
    rounds = 20_000
    best = min(repeat(lambda: pace.note(token, next(times)), number=rounds, repeat=5)) / rounds
    print(f"{best * 1e6:.2f} µs a piece")
    assert best < 2e-6
