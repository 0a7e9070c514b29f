"""The bench's arithmetic: what it makes of times, counts and the kernel's figures."""

from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from unit_kit import ROOT

from bench import charge, engine, figures, load, measure, page, summary, text
from bench.__main__ import PRESETS, _parser, _points
from bench.chains import CHAINS
from bench.hops import Hop, UnavailableError, free_port, running
from bench.units import read_unit

WHOLE = {
    "requests": 1000, "failed": 0, "missing": 0, "disordered": 0, "late": 0,
    "longest_gap_seconds": 0.02, "tokens_per_second": 3200.0,
}  # fmt: skip


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1))
def test_a_quantile_is_a_value_that_was_seen(values: list[float], share: float) -> None:
    ordered = sorted(values)
    found = figures.quantile(ordered, share)
    assert found in ordered
    assert sum(value <= found for value in ordered) >= share * len(ordered) - 1e-9


def test_quantiles_of_a_hundred() -> None:
    assert figures.quantiles(range(100, 0, -1)) == {"p50": 50, "p99": 99, "max": 100}
    assert all(math.isnan(value) for value in figures.quantiles([]).values())


def test_a_spread_leaves_out_what_is_no_number() -> None:
    spread = figures.Spread.of([3, math.nan, 1, 2])
    assert (spread.median, spread.least, spread.most) == (2, 1, 3)
    assert figures.Spread.of([math.nan]).as_json() == {"median": None, "least": None, "most": None}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({}, ""),
        ({"failed": 1}, "1 of 1000 requests failed"),
        ({"requests": 1001, "failed": 1}, ""),
        ({"missing": 1}, "1 tokens missing"),
        ({"disordered": 2}, "2 tokens twice or out of order"),
        ({"tokens_per_second": 3041.0}, ""),
        ({"tokens_per_second": 3039.0}, "3,039 of 3,200 tokens/s came"),
        ({"late": 3}, "3 streams not over in time"),
        ({"longest_gap_seconds": 0.2}, ""),
        ({"longest_gap_seconds": 0.21}, "a gap of 0.21 s"),
    ],
)
def test_what_stalls(found: dict[str, Any], said: str) -> None:
    assert figures.stalls({**WHOLE, **found}, 50, 3200) == ([said] if said else [])


def test_streams_are_held_up_to_the_first_stall() -> None:
    assert figures.sustained({1: [], 16: [], 64: ["a gap"], 256: []}) == 16
    assert figures.sustained({64: ["a gap"], 16: ["a gap"]}) == 0


def test_a_late_timer_makes_a_run_invalid() -> None:
    assert figures.limits({"load": 0.009, "engine": 0.009}, 50) == []
    assert figures.limits({"load": 0.011, "engine": 0.0}, 50) == ["the load's timer was 11 ms late"]


# The kernel's figures ---------------------------------------------------------------------------


def proc(folder: Path, processes: dict[int, tuple[int, tuple[int, int, int, int], int]]) -> Path:
    """Make a /proc: each process's parent, its four times in ticks, its threads' nanoseconds."""
    for pid, (parent, times, nanoseconds) in processes.items():
        task = folder / f"{pid}/task/{pid}"
        task.mkdir(parents=True)
        fields = ["S", str(parent), *["0"] * 9, *map(str, times), "0"]
        (folder / f"{pid}/stat").write_text(f"{pid} (a (b) c) {' '.join(fields)}\n")
        if nanoseconds:
            (task / "schedstat").write_text(f"{nanoseconds} 5 6\n")
        (folder / f"{pid}/smaps_rollup").write_text("head\nRss: 9 kB\nPss:  7 kB\nPss_Anon: 1 kB\n")
    return folder


def test_a_tree_is_charged_whole_and_nobody_else(tmp_path: Path) -> None:
    here = proc(
        tmp_path,
        {1: (0, (9, 9, 9, 9), 0), 5: (1, (3, 4, 0, 0), 0), 6: (5, (10, 0, 2, 0), 0),
         7: (6, (99, 99, 1, 0), 250_000_000), 8: (1, (50, 0, 0, 0), 0)},
    )  # fmt: skip
    pids = charge.tree(5, charge.parents(here))
    assert sorted(pids) == [5, 6, 7]
    ticks = (3 + 4) + (10 + 2) + 1
    # The threads' nanoseconds, where they are told, are better than their ticks.
    expected = ticks * charge.TICK_SECONDS + 0.25
    assert charge.cpu_seconds(pids, here) == pytest.approx(expected)
    assert charge.memory_bytes([*pids, 4711], here) == 3 * 7 * 1024


def test_a_real_process_is_charged_what_it_says_itself() -> None:
    work = (
        "import time\nwhile time.process_time() < 0.3: pass\n"
        "print(time.process_time(), flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        own = float(child.stdout.readline())
        assert charge.cpu_seconds([child.pid]) == pytest.approx(own, abs=0.05)
        child.communicate("\n")


def test_a_token_is_charged_without_what_a_hop_takes_when_idle() -> None:
    live = measure.Live(CHAINS["direct"](_setting()), idle={"hop": 0.1})  # type: ignore[arg-type]
    marks = [(0.0, {"hop": 1.0}, (0.0, 0.0), 0.0), (2.0, {"hop": 1.4}, (2.0, 4.0), 0.1),
             (3.0, {"hop": 1.7}, (0.0, 0.0), 0.0)]  # fmt: skip
    found = {"steady_events": 1000, "probing_events": 540}
    told = measure._charged(live, found, marks, measure.Phases(2, 1, 10))
    assert told["token_us"]["hop"] == pytest.approx(200)
    # 0.3 s, of which 0.1 s idle and 500 tokens of the streams.
    assert told["request_ms"]["hop"] == pytest.approx(10)
    assert told["machine_busy"] == 0.5


class _Setting:
    class engine:  # noqa: N801
        port, key, model = 1, "k", "bench"


def _setting() -> Any:
    return _Setting()


# The load and the stand-in ------------------------------------------------------------------------


def answer(numbers: list[int], *, chunked: bool = True) -> bytes:
    """Return an answer with these tokens, as the stand-in makes it."""
    events = b"".join(
        engine.chunked({"choices": [{"delta": {"content": engine.text(n)}}]}) for n in numbers
    )
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + events + engine.END


def checked(numbers: list[int], tokens: int, cut: int = 0) -> tuple[int, int]:
    """Return what the load finds wrong with an answer."""
    job: Any = type("Job", (), {"numbered": True})
    made = load.Load.__new__(load.Load)
    made.job = job
    whole = answer(numbers)
    ended = math.nan if cut else 1.0
    request = load.Request(tokens=tokens, parts=[whole[: -cut or None]], times=[1.0], ended=ended)
    return made._check(request)


@pytest.mark.parametrize(
    ("numbers", "wrong"),
    [([1, 2, 3, 4], (0, 0)), ([1, 2, 4], (1, 0)), ([1, 2, 3], (1, 0)), ([1, 2, 2, 3, 4], (0, 1)),
     ([2, 1, 3, 4], (0, 1)), ([], (4, 0))],
)  # fmt: skip
def test_what_is_missing_or_doubled_is_seen(numbers: list[int], wrong: tuple[int, int]) -> None:
    assert checked(numbers, 4) == wrong


def test_what_was_cut_off_lacks_nothing_but_what_is_missing_in_between() -> None:
    assert checked([1, 2, 3], 400, cut=20) == (0, 0)
    assert checked([1, 3], 400, cut=20) == (1, 0)


def test_chunks_may_be_cut_anywhere() -> None:
    body = b'data: {"content": " amber 2"}\n\ndata: [DONE]\n\n'
    pieces = [body[:9], body[9:11], body[11:]]
    framed = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert load.dechunked(head + framed) == body
    assert load.dechunked(head + framed + b"no number\r\n") == body
    assert load.dechunked(head + b"no number\r\n" + framed) == b""
    assert load.dechunked(b"HTTP/1.1 200 OK\r\n\r\n" + body) == body


def test_the_stand_in_speaks_as_vllm_does() -> None:
    events = engine.Events("m")
    role = json.loads(events.role(counted=False).split(b"data: ")[1].split(b"\n")[0])
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    last = json.loads(events.last(3, counted=True).split(b"data: ")[1].split(b"\n")[0])
    assert last["choices"][0]["finish_reason"] == "length"
    assert last["usage"]["completion_tokens"] == 3
    texts = {engine.text(n) for n in range(1, 500)}
    assert len(texts) == 499, "LiteLLM ends a stream that repeats itself"


@pytest.mark.parametrize("aligned", [False, True])
def test_a_load_on_the_stand_in_finds_all_tokens_in_time(tmp_path: Path, aligned: bool) -> None:
    with measure.stand_in(tmp_path) as standing:
        standing.set_pace(100, aligned=aligned)
        job = load.Job(
            "127.0.0.1", standing.port, "/v1/chat/completions", {"Host": "x"},
            {"model": "bench", "stream": True, "messages": []}, streams=8, rate=100.0,
            begin=time.monotonic() + 0.2, ramp=0.1, settle=0.1, window=0.5, probing=0.3, probes=4,
            patience=5, keep_alive=True,
        )  # fmt: skip
        found = uvloop.run(load.run(job))
        state = standing.ask("state")
    assert (found["failed"], found["missing"], found["disordered"], found["late"]) == (0, 0, 0, 0)
    assert found["requests"] == 12
    assert found["steady_events"] == pytest.approx(8 * 100 * 0.5, rel=0.2)
    assert found["gap_seconds"]["p50"] == pytest.approx(0.01, abs=0.005)
    assert state["open"] == 0


def test_a_read_with_several_events_counts_them_all() -> None:
    async def looked_at() -> dict[str, Any]:
        job = load.Job(
            "h", 1, "/", {}, {}, streams=1, rate=10.0, begin=0.0, ramp=0.0, settle=1.0, window=1.0,
            probing=1.0, probes=0, patience=1,
        )  # fmt: skip
        made = load.Load(job)
        # Before, in and behind the steady phase; a comment is no token and ends no gap.
        head, end = answer([]).removesuffix(engine.END), engine.END
        one, two, three, four = (
            answer([n]).removeprefix(head).removesuffix(end) for n in range(1, 5)
        )
        events = [head + one, b"8\r\n: ping\n\n\r\n", two + three, four + end]
        times = [0.9, 1.0, 1.5, 2.5]
        made.streams[0] = load.Request(0.5, 4, times, events, 0.9, 2.5)
        return made.found()

    found = asyncio.run(looked_at())
    assert (found["steady_events"], found["probing_events"]) == (2, 1)
    assert found["events_per_read"] == 2
    assert found["longest_gap_seconds"] == pytest.approx(1.0)
    assert found["first_token_of_streams_seconds"]["p50"] == pytest.approx(0.4)


def test_a_request_that_is_refused_is_a_failure(serve: Callable[..., str]) -> None:
    def refuse(request: Any) -> None:
        request.rfile.read(int(request.headers["Content-Length"]))
        request.send_response(429)
        request.send_header("Content-Length", "2")
        request.end_headers()
        request.wfile.write(b"no")

    port = int(serve(refuse).rpartition(":")[2])
    job = load.Job(
        "127.0.0.1", port, "/", {"Host": "x"}, {}, streams=2, rate=50.0, begin=time.monotonic(),
        ramp=0.0, settle=0.0, window=0.1, probing=0.1, probes=1, patience=2,
    )  # fmt: skip
    found = uvloop.run(load.run(job))
    assert (found["requests"], found["failed"]) == (3, 3)
    assert "429" in found["errors"][0]


# Hops ---------------------------------------------------------------------------------------------


def test_a_unit_is_read_as_systemd_reads_it() -> None:
    unit = read_unit(
        "[Service]\nEnvironment=A=1 B=x=y\nEnvironment=C=%i\nLoadCredential=key:/etc/key\n"
        "ExecStart=/bin/it --config ${CREDENTIALS_DIRECTORY}/key --as %i\n",
        "a", "/run/c",
    )  # fmt: skip
    assert unit.command == ("/bin/it", "--config", "/run/c/key", "--as", "a")
    assert unit.environment == {"A": "1", "B": "x=y", "C": "a", "CREDENTIALS_DIRECTORY": "/run/c"}
    assert unit.credentials == ("key",)
    batch = read_unit("[Service]\nCPUSchedulingPolicy=batch\nExecStart=/bin/it\n")
    assert batch.command == ("chrt", "--batch", "0", "/bin/it")
    with pytest.raises(ValueError, match="ExecStart"):
        read_unit("[Service]\n")


def test_a_hop_that_ends_says_its_last_words(tmp_path: Path) -> None:
    command = (sys.executable, "-c", "import sys; sys.exit('no such key')")
    with (
        pytest.raises(UnavailableError, match="no such key"),
        running(Hop("it", command, free_port()), tmp_path),
    ):
        pass


def test_a_hop_gets_its_socket_as_from_systemd(tmp_path: Path) -> None:
    code = "import socket,time; s=socket.socket(fileno=3); print(s.family); time.sleep(60)"
    hop = Hop("it", (sys.executable, "-u", "-c", code), socket=tmp_path / "it.sock")
    with running(hop, tmp_path):
        until = time.monotonic() + 10
        while "1" not in (said := (tmp_path / "it.log").read_text()):
            assert time.monotonic() < until, said
            time.sleep(0.05)


def test_a_chain_that_is_kept_up_is_asked_and_leaves_nothing_behind() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "bench", "--serve", "direct"], text=True, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'app'}"},
    ) as bench:  # fmt: skip
        assert bench.stdout is not None
        url = bench.stdout.readline().strip()
        assert bench.stdout.readline() == "model bench\n"
        below = charge.tree(bench.pid, charge.parents())
        asked = urllib.request.Request(url, b'{"model": "bench", "max_tokens": 2, "messages": []}')
        with urllib.request.urlopen(asked) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] == 2
        bench.terminate()
        assert bench.wait(20) == 0
    assert len(below) == 2
    assert not set(below) & set(charge.parents())


# What it comes to ---------------------------------------------------------------------------------


def run_of(us: float, first: float, limits: list[str] | None = None) -> dict[str, Any]:
    """Return a run, as measure.run does."""
    times = {"p50": first, "p99": 2 * first, "max": 3 * first}
    return {
        **WHOLE, "token_us": {"a": us, "b": us}, "request_ms": {"a": 1.0, "b": 2.0},
        "tokens_per_second": 100.0, "first_token_seconds": times, "gap_seconds": times,
        "gaps": figures.distribution([first, 2 * first, 3 * first]), "events_per_read": 1.0,
        "cores": {"a": 0.1, "b": 0.2},
        "machine_busy": 0.5, "stalls": [], "errors": [], "limits": limits or [],
    }  # fmt: skip


def points() -> list[dict[str, Any]]:
    """Return two points, of which the chain stalls at the second."""
    late = [run_of(50, 0.5, ["the load's timer was 99 ms late"]), run_of(70, 0.03)]
    first = {
        "direct": [run_of(0, 0.01), run_of(0, 0.02)], "nginx": [run_of(5, 0.01), run_of(5, 0.03)],
        "tutorial": [run_of(200, 0.2), run_of(200, 0.2)], "inline": late,
    }  # fmt: skip
    stalled = {**run_of(60, 0.1), "stalls": ["a gap of 9.00 s"], "tokens_per_second": 60.0}
    made = [
        {"streams": 2, "rate": 50.0, "chains": summary.of_point(first)},
        {"streams": 4, "rate": 50.0, "chains": summary.of_point({"inline": [stalled]})},
    ]
    summary.compare(made)
    return made


def test_rounds_come_to_medians_and_ratios() -> None:
    found = points()[0]["chains"]["inline"]
    assert found["token_us"]["all"] == {"median": 120.0, "least": 100.0, "most": 140.0}
    assert found["cpu_to_tutorial"] == pytest.approx(120 / 400)
    assert found["cpu_to_nginx"] == pytest.approx(12)


def test_time_is_taken_from_rounds_in_which_nothing_that_measures_was_late() -> None:
    found = points()[0]["chains"]["inline"]
    assert found["first_token_ms"]["p50"]["median"] == pytest.approx(30)
    # Of the same round, 30 ms through the chain and 20 ms without.
    assert found["added_first_token_ms"]["p50"]["median"] == pytest.approx(10)
    assert found["added_gap_ms"]["p50"]["median"] == pytest.approx(10)
    assert found["limits"] == []


def test_a_chain_holds_what_it_held() -> None:
    told = summary.of_chain("inline", points())
    assert told["held"] == {"50": {"streams": 2, "stalled_at": 4}}
    assert told["more_were_offered"] is False
    assert summary.to_skip((256, 50), [(16, 50), (64, 50)])
    assert not summary.to_skip((256, 50), [(16, 20), (64, 50)])


def document() -> dict[str, Any]:
    """Return a document of results."""
    found = points()
    chains = [
        {"name": name, "title": f"<{name}>", "note": "", "hops": ["a", "b"], "versions": {"a": "1"},
         "memory_bytes": {"a": 1000}, "idle_cores": {"a": 0.01}, **summary.of_chain(name, found)}
        for name in found[0]["chains"]
    ]  # fmt: skip
    return {
        "at": "now", "load_before": [0.1], "load_after": [0.2], "points": found, "chains": chains,
        "machine": {"cores": 2, "cpu": "c", "memory_gib": 1, "system": "s", "kernel": "k",
                    "python": "3"},
        "settings": {"engine": "a stand-in", "phases": "p"}, "unavailable": {"smg": "not there"},
    }  # fmt: skip


def test_the_text_tells_ratios_doubts_and_what_was_left_out() -> None:
    said = text.text(document())
    assert "0.30" in said
    assert "no: a gap of 9.00 s" in said
    assert "left out, smg: not there" in said
    assert "not quiet" not in said
    assert "not quiet" in text.text({**document(), "load_before": [1.5]})


def test_the_page_draws_and_loads_nothing() -> None:
    html = page.render_page(document())
    assert html.count("<rect") > 10
    assert "&lt;inline&gt;" in html
    assert "http" not in html.replace("http-equiv", "")
    assert page.across(1) == 0
    assert page.across(10_000) == page.WIDTH


def test_a_bars_pieces_stand_side_by_side() -> None:
    pieces = page.bars(points()[0])["tutorial"]
    assert [piece["at"] for piece in pieces] == [0, 500]
    assert sum(piece["width"] for piece in pieces) == page.WIDTH


def test_presets_and_points() -> None:
    asked = _points(_parser().parse_args(["--streams=2,1", "--rates=20"]), PRESETS["default"])
    assert [(point.streams, point.rate, rounds) for point, rounds in asked] == [
        (1, 20, 3),
        (2, 20, 3),
    ]
    grid = _points(_parser().parse_args([]), PRESETS["full"])
    assert len(grid) == 15
    for preset in PRESETS.values():
        assert set(preset.chains) <= set(CHAINS)
    readme = (ROOT / "bench/README.md").read_text()
    for name in CHAINS:
        assert f"`{name}`" in readme
