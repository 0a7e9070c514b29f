"""The stream check against a chain that is broken on purpose, one fault at a time.

The backend is the real one, the engine a stand-in with a steady pace, the proxy in front home-made.
The real engine, gateway and nginx are broken in tests/host/test_streamcheck.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from backend_client import KEY
from conftest import Files, ProcessBackend

sys.path.insert(0, str(Path(__file__).parents[1] / "fixtures"))
from confusion import Confusion, check
from engine_standin import EngineStandin
from faulty_proxy import FAULTS, FaultyProxy

# What the check must say of the address in front when the backend's emitter can be asked.
KINDS = {
    "none": None,
    "jitter": None,
    "gzip_flush": None,
    "br_flush": None,
    "zstd_flush": None,
    "hold_all": "whole_response_held",
    "hold_body": "whole_response_held",
    "buffer_bytes": "batched_bytes",
    "buffer_whole_events": "batched_bytes",
    "coalesce": "batched_time",
    "nagle": "batched_time",
    "delay": "delayed",
    "delay_each": "batched_time",
    "truncate": "truncated",
    "truncate_politely": "truncated",
    "content_type": "content_type_changed",
    "http10": "http_1_0_downgrade",
    "gzip_hold": "compression_held",
    "br_hold": "compression_held",
    "zstd_hold": "compression_held",
    "cache": "cached",
    "cache_silent": "cached",
    "replay_paced": "cached",
    "hold_headers": "first_byte_held",
    "drop_events": "events_lost",
    "strip_done": "truncated",
    "strip_comments": "bytes_changed",
}
# What only the answers of a model tell: with the engine to compare with, and without.
BESIDE_THE_ENGINE = {
    "none": None,
    "jitter": None,
    "hold_all": "whole_response_held",
    "buffer_bytes": "batched_bytes",
    "coalesce": "batched_time",
    "nagle": "batched_time",
    "delay": "delayed",
    "truncate": "truncated",
    "strip_done": "truncated",
    "cache": "cached",
    "throttle": "slow_hop",
    "gzip_hold": "compression_held",
}
ALONE = {
    "none": None,
    "hold_body": "whole_response_held",
    "buffer_bytes": "batched_bytes",
    "coalesce": "batched_time",
    "nagle": "batched_time",
    "br_hold": "compression_held",
    "cache": "cached",
    "http10": "http_1_0_downgrade",
    "content_type": "content_type_changed",
}
NO_STREAM = {"error_page", "redirect", "never_answers", "endless", "html_200", "json_200"}
ELSEWHERE = {"cut_on_silence", "ignore_disconnect", "serial", "throttle"}


@pytest.fixture(scope="module")
def engine() -> Iterator[EngineStandin]:
    with EngineStandin(pace_ms=6) as engine:
        yield engine


@pytest.fixture(scope="module")
def backend(engine: EngineStandin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The backend in front of the stand-in; gives its address."""
    files = Files(tmp_path_factory.mktemp("backend"))
    port = int(engine.url.rpartition(":")[2])
    config = files.write_config(
        port, upstream_url=engine.url, models=[{"id": "standin"}], heartbeat_seconds=15
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CREDENTIALS_DIRECTORY", str(files.folder / "credentials"))
        process = ProcessBackend(files, config)
    yield f"http://127.0.0.1:{process.port}"
    process.process.kill()
    process.process.wait(10)


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[Confusion]:
    table = Confusion("stream check against a home-made proxy")
    yield table
    table.keep()


def test_every_fault_is_in_some_list() -> None:
    assert set(KINDS) | NO_STREAM | ELSEWHERE == set(FAULTS)


@pytest.mark.parametrize("fault", KINDS)
def test_in_front_of_the_backend(backend: str, table: Confusion, fault: str) -> None:
    with FaultyProxy(backend, fault) as proxy:
        seen = check(proxy.url, "--silence=0", key=KEY)
    table.judge(fault, seen, "public", KINDS[fault])


@pytest.mark.parametrize("fault", BESIDE_THE_ENGINE)
def test_beside_the_hop_behind(engine: EngineStandin, table: Confusion, fault: str) -> None:
    with FaultyProxy(engine.url, fault) as proxy:
        seen = check(f"--hop=engine={engine.url}", f"--hop=proxy={proxy.url}", "--silence=0")
    table.judge(f"{fault}, no emitter", seen, "proxy", BESIDE_THE_ENGINE[fault])


@pytest.mark.parametrize("fault", ALONE)
def test_alone(engine: EngineStandin, table: Confusion, fault: str) -> None:
    with FaultyProxy(engine.url, fault) as proxy:
        seen = check(proxy.url, "--silence=0")
    table.judge(f"{fault}, no emitter, alone", seen, "public", ALONE[fault])


def test_a_short_patience_with_silence(backend: str, table: Confusion) -> None:
    """Twenty seconds, where a heartbeat comes every fifteen: one that is late ends the stream."""
    with FaultyProxy(backend, "cut_on_silence", seconds=20) as proxy:
        seen = check(proxy.url, key=KEY)
    table.judge("cut_on_silence", seen, "public", "cut_on_silence")
    assert seen.report["hops"][0]["findings"][0]["detail"]["seconds"] == pytest.approx(20, abs=2)


def test_the_first_of_two_faults_is_named(backend: str) -> None:
    with (
        FaultyProxy(backend, "coalesce") as first,
        FaultyProxy(first.url, "hold_all") as second,
    ):
        hops = [f"--hop=backend={backend}", f"--hop=one={first.url}", f"--hop=two={second.url}"]
        seen = check(*hops, "--silence=0", key=KEY)
    assert seen.said == ("broken", "one", "batched_time")
    verdicts = [hop["verdict"] for hop in seen.report["hops"]]
    assert verdicts == ["streams", "broken", "broken"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"pace_ms": 1}, "a quick engine"),
        ({"pace_ms": 1.5, "jitter_ms": 4}, "a quick and uneven engine"),
        ({"pace_ms": 150}, "a slow engine"),
        ({"jitter_ms": 30}, "an uneven engine"),
        ({"first_token_ms": 2000}, "a long prefill"),
    ],
)
def test_no_engine_is_taken_for_a_fault(options: dict[str, float], told: str) -> None:
    with EngineStandin(**options) as engine, FaultyProxy(engine.url, "none") as proxy:
        for where in ([proxy.url], [f"--hop=engine={engine.url}", f"--hop=proxy={proxy.url}"]):
            seen = check(*where, "--silence=0", "--tokens=32")
            assert seen.said[0] == "streams", f"{told}: {seen.report['summary']}"


def test_an_engine_that_guesses_ahead_is_no_buffer_for_sure() -> None:
    """Alone it looks like a buffer that is flushed every 40 ms: the check does not guess."""
    with EngineStandin(pace_ms=40, burst=3) as engine:
        seen = check(engine.url, "--silence=0")
        assert seen.report["verdict"] == "unsure"
        assert seen.code == 2
        with FaultyProxy(engine.url, "none") as proxy:
            hops = [f"--hop=engine={engine.url}", f"--hop=proxy={proxy.url}"]
            assert check(*hops, "--silence=0").report["hops"][1]["verdict"] == "streams"


def test_an_error_in_the_stream() -> None:
    with EngineStandin(error_after=10) as engine:
        seen = check(engine.url, "--silence=0")
    assert seen.said == ("broken", "public", "error_in_stream")


def test_deep(backend: str) -> None:
    with FaultyProxy(backend, "none") as proxy:
        seen = check(proxy.url, "--silence=0", "--deep=prompt,awkward,slow_reader,leave", key=KEY)
    assert seen.said[0] == "streams"
    wanted = {"prompt": "passed", "awkward": "passed", "slow_reader": "passed", "leave": "skipped"}
    assert seen.deep == {(name, "public"): result for name, result in wanted.items()}


def test_a_reader_who_blocks_others(backend: str) -> None:
    with FaultyProxy(backend, "serial") as proxy:
        seen = check(proxy.url, "--silence=0", "--deep=slow_reader", key=KEY)
    assert seen.said == ("broken", "public", "slow_reader_blocks")
