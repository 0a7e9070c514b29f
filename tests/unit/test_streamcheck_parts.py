"""The stream check's pure parts: events, codings, bursts, verdicts, addresses."""

from __future__ import annotations

import dataclasses
import datetime
import gzip
import itertools
import json
import random
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brotli
import hypothesis.strategies as st
import pytest
from backports import zstd
from hypothesis import given
from streamcheck import chain, doubts, emission, features, generation, judge, kinds, noise, report
from streamcheck.decode import LARGEST_STEP_BYTES, CodingError, decoder
from streamcheck.emission import Plan
from streamcheck.model import CheckError, Hop, Observation, Target
from streamcheck.sse import LONGEST_EVENT_BYTES, Parser, TooLongError
from streamcheck_kit import PLAN, answered, emitted, steady

_NOW = datetime.datetime(2026, 11, 25, tzinfo=datetime.UTC)
STREAM = 'id: 1\ndata: {"a": "\u2028"}\n\n: beat\n\ndata: x\ndata: y\r\n\r\nevent: end\ndata:z\n\n'


def test_events_are_read_by_the_book() -> None:
    blocks = Parser().feed(STREAM.encode())
    assert [block.data for block in blocks] == ['{"a": "\u2028"}', None, "x\ny", "z"]
    assert blocks[3].event == "end"
    assert b"".join(block.raw for block in blocks) == STREAM.encode()


@given(st.lists(st.integers(0, len(STREAM.encode())), max_size=8))
def test_events_may_be_cut_anywhere(cuts: list[int]) -> None:
    raw, parser = STREAM.encode(), Parser()
    edges = [0, *sorted(cuts), len(raw)]
    blocks = [b for i, j in itertools.pairwise(edges) for b in parser.feed(raw[i:j])]
    assert blocks == Parser().feed(raw)
    assert parser.rest == b""


@pytest.mark.parametrize("line", [b"x" * 70_000, b"data: " + b"x" * 60_000 + b"\n"])
def test_an_event_without_an_end_is_refused_in_time(line: bytes) -> None:
    parser, enough = Parser(), LONGEST_EVENT_BYTES // len(line)
    for _ in range(enough):
        assert parser.feed(line) == []
    with pytest.raises(TooLongError):
        parser.feed(line)


def gzip_pieces() -> Callable[[bytes], bytes]:
    engine = zlib.compressobj(wbits=31)
    return lambda data: engine.compress(data) + engine.flush(zlib.Z_SYNC_FLUSH)


def brotli_pieces() -> Callable[[bytes], bytes]:
    engine = brotli.Compressor()
    return lambda data: engine.process(data) + engine.flush()


def zstd_pieces() -> Callable[[bytes], bytes]:
    engine = zstd.ZstdCompressor()
    return lambda data: engine.compress(data, zstd.ZstdCompressor.FLUSH_BLOCK)


@pytest.mark.parametrize(
    ("coding", "make"), [("gzip", gzip_pieces), ("br", brotli_pieces), ("zstd", zstd_pieces)]
)
def test_a_flushed_piece_is_readable_at_once(coding: str, make: Any) -> None:
    pack, unpack = make(), decoder(coding)
    for n in range(50):
        assert unpack(pack(b"event %d\n\n" % n)) == b"event %d\n\n" % n


@pytest.mark.parametrize(
    ("coding", "bomb"),
    [
        ("gzip", gzip.compress(bytes(4 * LARGEST_STEP_BYTES))),
        ("br", brotli.compress(bytes(4 * LARGEST_STEP_BYTES))),
        ("zstd", zstd.compress(bytes(4 * LARGEST_STEP_BYTES))),
    ],
    ids=["gzip", "br", "zstd"],
)
def test_what_grows_without_measure_is_refused(coding: str, bomb: bytes) -> None:
    with pytest.raises(CodingError, match="beyond all measure"):
        decoder(coding)(bomb)


def test_what_is_not_as_it_says_is_refused() -> None:
    for coding in ("gzip", "br", "zstd", "deflate"):
        with pytest.raises(CodingError):
            decoder(coding)(b"data: plain text, and plenty of it\n\n" * 20)
    with pytest.raises(CodingError, match="nobody asked"):
        decoder("compress")


# Observations made by hand -------------------------------------------------------------------


def found(seen: Observation) -> list[str]:
    return [finding.kind for finding in emission.judge(seen, PLAN)]


def test_a_stream_has_no_finding() -> None:
    assert found(emitted(lambda s: s + 0.001)) == []


def test_distance_is_no_finding() -> None:
    """Far away, with a network that shakes every event by some milliseconds."""
    assert found(emitted(lambda s: s + 0.140 + (s * 997 % 1) * 0.010)) == []


def test_one_stall_of_the_machine_is_no_finding() -> None:
    assert found(emitted(lambda s: max(s, 0.9) if 0.6 < s < 0.9 else s)) == []


@pytest.mark.parametrize("step", [0.04, 0.1, 0.2, 0.35])
def test_a_timer_is_told_by_its_interval(step: float) -> None:
    seen = emitted(lambda s: (s // step + 1) * step)
    first = emission.judge(seen, PLAN)[0]
    assert first.kind == "batched_time"
    assert first.detail["milliseconds"] == pytest.approx(1000 * step, rel=0.1)


@pytest.mark.parametrize("count", [7, 13, 27])
def test_a_buffer_is_told_by_its_size(count: int) -> None:
    sent = [event.sent for event in emitted(lambda s: s).numbered]
    full = {s: sent[min((n // count + 1) * count, len(sent)) - 1] for n, s in enumerate(sent)}
    size = 300 * count
    first = emission.judge(emitted(lambda s: full[s]), PLAN)[0]
    assert (first.kind, first.detail["bytes"]) == ("batched_bytes", size)


def test_a_hold_is_told_from_a_batch() -> None:
    assert found(emitted(lambda s: 1.3)) == ["whole_response_held"]


def test_who_holds_an_answer_needs_time_to_write_it() -> None:
    """A busy writer's pauses do not make portions of what was held."""
    assert found(emitted(lambda s: 1.3 + s // 0.1 * 0.005)) == ["whole_response_held"]


def test_back_pressure_is_told_from_a_buffer() -> None:
    assert found(emitted(lambda s: 3 * s)) == ["slow_hop"]


def test_a_held_beginning() -> None:
    held = emitted(lambda s: s, first_byte_seconds=0.203, headers_seconds=0.203)
    assert found(held) == ["first_byte_held"]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"ended": "cut", "digest_right": None}, "truncated"),
        ({"ended": "end"}, "truncated"),
        ({"ended": "error_event", "error": "x"}, "error_in_stream"),
        ({"digest_right": False}, "bytes_changed"),
        ({"comments": 0}, "bytes_changed"),
        ({"headers": {"content-type": "text/plain"}}, "content_type_changed"),
        ({"headers": {}}, "content_type_changed"),
        ({"http_version": "1.0"}, "http_1_0_downgrade"),
        ({"start": {"request": {"http_version": "1.0"}}}, "http_1_0_downgrade"),
    ],
)
def test_what_an_emission_tells(change: dict[str, Any], kind: str) -> None:
    assert found(emitted(lambda s: s, **change)) == [kind]


def test_missing_and_doubled_events() -> None:
    seen = emitted(lambda s: s)
    missing = dataclasses.replace(seen, numbered=seen.numbered[:40] + seen.numbered[41:])
    doubled = dataclasses.replace(seen, numbered=seen.numbered[:40] + seen.numbered[39:])
    assert found(missing) == found(doubled) == ["events_lost"]


def test_a_cut_in_the_silence_is_told_with_its_length() -> None:
    quiet = dataclasses.replace(PLAN, silence_seconds=32.0)
    cut = emitted(lambda s: s, ended="cut", digest_right=None, end_seconds=21.4)
    first = emission.judge(cut, quiet)[0]
    assert (first.kind, first.detail) == ("cut_on_silence", {"seconds": 20.2})
    soon = emitted(lambda s: s, ended="cut", digest_right=None, end_seconds=1.3)
    assert emission.judge(soon, quiet)[0].kind == "truncated"
    assert emission.judge(emitted(lambda s: s + (s > 0.5) * 32), quiet) == []


def test_the_plan_knows_its_length_and_address() -> None:
    plan = Plan("r", events=10, paces_ms=(10, 30), lead_ms=100, silence_seconds=3)
    assert plan.seconds == pytest.approx(3.3)
    assert plan.path.startswith("/streamcheck?run=r&events=10&pace_ms=10,30&lead_ms=100")
    assert "heartbeats=1" in plan.path
    assert "heartbeats=0" in dataclasses.replace(plan, heartbeats=False).path


@pytest.mark.parametrize(
    ("late", "near", "kinds_found"),
    [(0.041, True, ["delayed"]), (0.02, True, []), (0.041, False, [])],
)
def test_an_even_delay_without_a_shared_clock(late: float, near: bool, kinds_found: Any) -> None:
    """Only where there is no distance that could be its reason."""
    assert found(emitted(lambda s: s + late, is_near=near)) == kinds_found


@pytest.mark.parametrize(("late", "kinds_found"), [(0.041, ["delayed"]), (0.02, [])])
def test_an_even_delay_on_a_shared_clock(
    late: float, kinds_found: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request may take its time: what counts is from the sending on."""
    monkeypatch.setattr(emission, "_boot", lambda: "here")
    start = {"boot": "here", "started_monotonic": 1000.7}
    seen = emitted(lambda s: s + late + 0.7, start=start, requested_at=1000.0)
    assert found(seen) == kinds_found
    elsewhere = dataclasses.replace(seen, start={**start, "boot": "there"})
    assert found(elsewhere) == []
    monkeypatch.setattr(emission, "_boot", lambda: None)
    assert found(dataclasses.replace(seen, start={**start, "boot": None})) == []


@pytest.mark.parametrize("pace", [0.0005, 0.002, 0.012, 0.05, 0.4])
def test_no_steady_engine_is_broken_beside_itself(pace: float) -> None:
    assert judge.findings_of(steady(pace), steady(pace), PLAN) == []


def test_a_quick_answer_in_one_burst_is_not_held() -> None:
    """A thousand tokens a second: its reads touch one another at one hop, and at another not."""
    touching, apart = (
        steady(0.001),
        answered([0.1 + n * 0.001 + (n // 8) * 0.002 for n in range(64)]),
    )
    assert generation.judge(touching, apart) == []
    assert generation.judge(touching, None) == []
    assert [f.kind for f in generation.judge(answered([0.2] * 64), apart)] == [
        "whole_response_held"
    ]


def test_an_answer_that_was_held_is_not_written_in_one_go() -> None:
    """LiteLLM takes a fifth of a millisecond for an event, and some more now and then."""
    written = answered([1.5 + n * 0.0002 + n // 16 * 0.003 for n in range(64)])
    assert [f.kind for f in generation.judge(written, steady(0.02))] == ["whole_response_held"]
    assert [f.kind for f in generation.judge(written, None)] == ["whole_response_held"]


def test_batches_alone_are_less_sure_than_beside_the_hop_behind() -> None:
    coalesced = answered([0.1 + (n // 3) * 0.04 for n in range(60)])
    alone = generation.judge(coalesced, None)[0]
    beside = generation.judge(coalesced, steady(0.013))[0]
    assert alone.kind == beside.kind == "batched_time"
    assert alone.confidence < 0.5 < 0.9 < beside.confidence


def test_a_burst_at_both_hops_is_the_engines() -> None:
    bursts = answered([0.1 + (n // 4) * 0.05 for n in range(64)])
    assert generation.judge(bursts, bursts) == []


def test_a_hop_that_gives_less_than_the_hop_behind() -> None:
    assert [f.kind for f in judge.findings_of(steady(0.05), steady(0.01), PLAN)] == ["slow_hop"]
    assert judge.findings_of(steady(0.05), steady(0.03), PLAN) == []
    elsewhere = dataclasses.replace(steady(0.01), connect_seconds=None)
    assert judge.findings_of(steady(0.05), elsewhere, PLAN) == []


def test_a_stall_at_the_hop_behind_is_no_pace_to_be_held_to() -> None:
    """What was held up comes quicker afterwards."""
    stalled = answered([max(0.1 + n * 0.012, 0.7) for n in range(64)])
    assert judge.findings_of(steady(0.012), stalled, PLAN) == []


def test_a_metronome_that_is_held_up_itself_counts() -> None:
    """What keeps us from reading keeps it from noting how late it is, until both are woken."""
    metronome = noise.Metronome()
    metronome.stop()
    now = time.monotonic()
    metronome._late.clear()
    metronome._asleep_since = now - 0.8
    assert metronome.worst(now - 0.9, now) == pytest.approx(0.796, abs=0.001)
    # It woke a moment after our answer had ended.
    metronome._late.append((now, 0.796))
    metronome._asleep_since = now
    assert metronome.worst(now - 0.9, now - 0.001) == 0.796
    assert metronome.worst(now - 3, now - 2) == 0.0


def test_a_busy_machine_excuses_what_load_does() -> None:
    busy = dataclasses.replace(steady(0.05), busy_share=0.97)
    assert doubts._is_excused("slow_hop", busy)
    assert not doubts._is_excused("batched_bytes", busy)
    assert not doubts._is_excused("slow_hop", steady(0.05))
    stalled = dataclasses.replace(steady(0.05), noise_seconds=0.2)
    assert doubts._is_excused("batched_bytes", stalled)
    assert not doubts._is_excused("truncated", stalled)


def test_processors_are_counted() -> None:
    worked, passed = noise.processor_ticks()
    assert 0 < worked < passed


def test_a_first_token_that_waits() -> None:
    late = steady(0.012, start=0.145)
    assert [f.kind for f in judge.findings_of(late, steady(0.012), PLAN)] == ["delayed"]
    assert judge.findings_of(late, steady(0.012), PLAN, "litellm") == []
    far = dataclasses.replace(late, connect_seconds=0.03)
    assert judge.findings_of(far, steady(0.012), PLAN) == []


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"ended": "cut"}, "truncated"),
        ({"ended": "end", "finish_seen": False}, "truncated"),
        ({"ended": "cut", "end_seconds": 30.0}, "cut_on_silence"),
        ({"ended": "error_event"}, "error_in_stream"),
        ({"http_version": "1.0"}, "http_1_0_downgrade"),
        ({"headers": {"content-type": "application/json"}}, "content_type_changed"),
        ({"status": 502, "error": "no"}, "request_refused"),
    ],
)
def test_what_an_answer_tells(change: dict[str, Any], kind: str) -> None:
    seen = dataclasses.replace(steady(0.012), **change)
    assert [f.kind for f in judge.findings_of(seen, None, PLAN)] == [kind]


def test_an_end_without_done_is_a_loss_only_where_the_hop_behind_has_it() -> None:
    seen = dataclasses.replace(steady(0.012), ended="end")
    assert generation.judge(seen, None) == []
    assert [f.kind for f in generation.judge(seen, steady(0.012))] == ["truncated"]
    assert generation.judge(seen, seen) == []


def same(**more: Any) -> Observation:
    return dataclasses.replace(steady(0.012), **{"answer_id": "id-1", "text": "words", **more})


@pytest.mark.parametrize(
    ("again", "sure"),
    [
        (same(headers={"age": "3"}), 0.97),
        (same(headers={"cf-cache-status": "HIT"}), 0.97),
        (same(headers={"x-cache": "hit from edge"}), 0.97),
        (same(end_seconds=0.2), 0.85),
        (same(), None),
        (same(answer_id="id-2", headers={"age": "3"}), None),
        (same(text="other", headers={"age": "3"}), None),
        (same(answer_id=""), None),
    ],
)
def test_the_same_answer_twice(again: Observation, sure: float | None) -> None:
    """Some services give every answer the same id: that alone is no cache."""
    kept = generation.kept_somewhere(same(), again)
    assert (kept.confidence if kept else None) == sure


def test_the_emitters_own_stamp_proves_a_cache() -> None:
    first, again = same(start={"started_monotonic": 5.0}), same(start={"started_monotonic": 5.0})
    other = same(start={"started_monotonic": 6.0})
    kept = generation.kept_somewhere(first, again)
    assert kept is not None
    assert kept.confidence == 0.99
    assert generation.kept_somewhere(first, other) is None


# Verdicts ------------------------------------------------------------------------------------


def hop(name: str, *seen: Observation, **more: Any) -> Hop:
    made = Hop(Target(name, name.title(), f"https://{name}.example/v1"), list(seen))
    for field, value in more.items():
        setattr(made, field, value)
    return made


def test_compressed_answers_alone_held() -> None:
    held = answered([0.9] * 64, headers={
        "content-type": "text/event-stream", "content-encoding": "gzip"})  # fmt: skip
    broken = hop("nginx", steady(0.012), held)
    findings = judge.judge(broken, hop("backend", steady(0.012)), PLAN)
    assert [finding.kind for finding in findings] == ["compression_held"]


def test_held_in_every_coding_is_no_compressors_fault() -> None:
    coded = {"content-type": "text/event-stream", "content-encoding": "gzip"}
    both = hop("nginx", answered([0.9] * 64), answered([0.9] * 64, headers=coded))
    kinds_found = [f.kind for f in judge.judge(both, hop("backend", steady(0.012)), PLAN)]
    assert kinds_found == ["whole_response_held"]


def test_the_emitters_word_on_portions_comes_first() -> None:
    """Its answers are longer: a short one that is held whole may be less than a buffer."""
    step = emitted(lambda s: (s // 0.2 + 1) * 0.2)
    seen = hop("nginx", answered([0.9] * 64), step)
    findings = judge.judge(seen, hop("backend", steady(0.012)), PLAN)
    assert [(f.kind, f.source) for f in findings] == [
        ("batched_time", "emitter"), ("whole_response_held", "generation"),
    ]  # fmt: skip


def test_a_late_first_token_counts_when_every_answer_has_it() -> None:
    behind, late = hop("engine", steady(0.012)), steady(0.012, start=0.15)
    assert [f.kind for f in judge.judge(hop("proxy", late, late), behind, PLAN)] == ["delayed"]
    assert judge.judge(hop("proxy", late, steady(0.012)), behind, PLAN) == []
    # Where the emitter answers, it knows better.
    assert judge.judge(hop("proxy", late, emitted(lambda s: s)), behind, PLAN) == []


def test_how_sure_a_healthy_verdict_is() -> None:
    told = [report.hop_entry(hop("public", steady(0.012)))]
    assert judge.verdict(told)["confidence"] == 0.9
    told = [report.hop_entry(hop("public", steady(0.012), emitted(lambda s: s)))]
    assert judge.verdict(told)["confidence"] == 0.99


def test_the_first_hop_that_breaks_is_named() -> None:
    finding = generation.judge(answered([0.9] * 64), steady(0.012))
    hops = [
        hop("backend", steady(0.012)),
        hop("nginx", steady(0.012), findings=finding),
        hop("public", steady(0.012), findings=finding),
    ]
    told = report.report([report.hop_entry(h) for h in hops], started=_NOW, took_seconds=1,
                         noise=[], notes=[])  # fmt: skip
    assert (told["verdict"], told["culprit"]) == ("broken", "nginx")
    assert told["kind"] == "whole_response_held"
    assert "proxy_buffering off" in told["remedy"]["setting"]
    assert json.loads(json.dumps(told)) == told


def test_an_error_and_a_doubt() -> None:
    for more, verdict in (({"error": "no"}, "unreachable"), ({"doubts": ["hm"]}, "unsure")):
        told = judge.verdict([report.hop_entry(hop("public", steady(0.01), **more))])
        assert told["verdict"] == verdict


def test_a_hop_comes_back_from_a_report() -> None:
    entry = report.hop_entry(hop("nginx", steady(0.012)))
    seen = judge.plainest(report.remembered(json.loads(json.dumps(entry))))
    assert seen is not None
    assert generation.judge(seen, steady(0.012)) == []
    assert features.events_per_burst(seen) == 1.0


def test_every_kind_has_a_remedy_at_every_hop() -> None:
    for name in ("vllm", "litellm", "backend", "nginx", "public", "my own proxy"):
        for kind in kinds.KINDS:
            told = kinds.remedy(name, kind, "cloudflare")
            assert told["setting"]
            assert told["why"]
    assert not {kind for _, kind in kinds.REMEDIES} - set(kinds.KINDS)
    assert "Cloudflare" in kinds.remedy("public", "cached", "cloudflare")["file"]
    assert kinds.remedy("public", "whole_response_held", "nginx/1.22")["file"] == ""


def test_every_kind_is_in_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs/streamcheck.md").read_text()
    for kind in kinds.KINDS:
        assert f"`{kind}`" in page


# Addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_url", "root"),
    [
        ("https://h", "https://h/v1"),
        ("https://h/", "https://h/v1"),
        ("https://h/v1", "https://h/v1"),
        ("https://h/v1/", "https://h/v1"),
        ("https://h:8443/openai/v1/chat/completions", "https://h:8443/openai/v1"),
        ("http://[::1]:80/api/v3", "http://[::1]:80/api/v3"),
        ("https://user:secret@h/v1", "https://h/v1"),
        (" http://h/vllm ", "http://h/vllm/v1"),
    ],
)
def test_an_address_with_or_without_its_version(given_url: str, root: str) -> None:
    assert chain.api_root(given_url) == root


@pytest.mark.parametrize(
    "url", ["", "chat.example.org", "ftp://h", "https://", "https://h:99999", "http://[::1"]
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(CheckError, match="is no address"):
        chain.api_root(url)


def test_the_servers_own_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway's address is the one that the backend really uses."""
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys/one").write_text("sk-1\n")
    (tmp_path / "backend.json").write_text('{"upstream_url": "http://127.0.0.1:4100/vllm"}')
    hops = [
        {"name": "litellm", "upstream_of": str(tmp_path / "backend.json"), "key": "one"},
        {"name": "backend", "url": "http://localhost/v1", "connect": "unix:/s", "key": "one"},
    ]
    told = {"model": "m", "metrics": "http://127.0.0.1:1/metrics"}
    (tmp_path / "chain.json").write_text(json.dumps({**told, "hops": hops}))
    read = chain.from_file(tmp_path / "chain.json")
    assert [hop.url for hop in read.hops] == [
        "http://127.0.0.1:4100/vllm/v1",
        "http://localhost/v1",
    ]
    assert [hop.has_emitter for hop in read.hops] == [False, True]
    assert {hop.key for hop in read.hops} == {"sk-1"}
    (tmp_path / "keys/one").unlink()
    with pytest.raises(CheckError, match="cannot be read"):
        chain.from_file(tmp_path / "chain.json")
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "one").write_text("sk-2")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    assert chain.from_file(tmp_path / "chain.json").hops[0].key == "sk-2"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": "m"}'])
def test_a_chain_that_is_not_as_it_should_be(tmp_path: Path, text: str) -> None:
    (tmp_path / "chain.json").write_text(text)
    with pytest.raises(CheckError, match="millrace site"):
        chain.from_file(tmp_path / "chain.json")


@pytest.mark.parametrize("text", ["", "two words", "a\nb", "caf\xe9 "])
def test_a_key_file_holds_one_key(tmp_path: Path, text: str) -> None:
    (tmp_path / "key").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckError, match="key file"):
        chain.read_key(tmp_path / "key")
    (tmp_path / "key").write_text("  sk-1 \n")
    assert chain.read_key(tmp_path / "key") == "sk-1"


def test_a_server_of_the_inventory(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("k1")
    told = {"url": "https://203.0.113.10", "ca": "ca", "model": "m", "ssh": ["-p", "22", "h"],
            "key_file": str(tmp_path / "key")}  # fmt: skip
    service = tmp_path / "service.json"
    service.write_text(json.dumps(told))
    read = chain.from_service(service, "")
    assert (read.hops[0].url, read.hops[0].key) == ("https://203.0.113.10/v1", "k1")
    assert read.ssh == ["-p", "22", "h"]
    named = chain.from_service(service, "k2", address="https://chat.example", outside_only=True)
    assert (named.hops[0].url, named.hops[0].key) == ("https://chat.example/v1", "k2")
    assert named.hops[0].origin == "https://203.0.113.10/v1"
    assert named.ssh == []


# Read on a machine of two cores that three other processes kept busy.
LATE_NAGLE = [7, 7, 7, 6, 7, 5, 10, 7, 7, 6, 7, 7, 4, 10, 8, 7, 7, 6, 8, 6, 7, 7, 7, 6, 8, 6, 7, 7]


@pytest.mark.parametrize("counts", [[6, 7, 7, 6, 7, 7, 7], [2, 3] * 10, LATE_NAGLE])
def test_a_timer_cuts_a_steady_flow_into_two_counts(counts: list[int]) -> None:
    assert generation.timed(counts)


NO_TIMER = [[], [3], [3] * 20, [3] * 19 + [2], [3, 1, 2] * 6, [1, 3, 5] * 5, [1, 2] * 9]


@pytest.mark.parametrize("counts", NO_TIMER)
def test_other_counts_come_from_no_timer(counts: list[int]) -> None:
    assert not generation.timed(counts)


@pytest.mark.parametrize("guessed", [2, 3, 5, 7])
@pytest.mark.parametrize("accepted", [0.5, 0.7, 0.8, 0.9, 0.95, 0.99])
def test_guessing_ahead_is_not_taken_for_a_timer(guessed: int, accepted: float) -> None:
    """Each guess holds with the same chance, and the first that does not ends the step."""
    chance = random.Random(7)
    for _ in range(20):
        steps = [
            1 + next((n for n in range(guessed) if chance.random() > accepted), guessed)
            for _ in range(100)
        ]
        assert not generation.timed(steps), steps


def test_a_step_that_was_written_in_two_is_one() -> None:
    whole = [0.1 + step * 0.04 for step in range(30) for _ in range(3)]
    torn = [at + 0.004 * (n % 3 > 0 and n // 3 in (4, 9, 17, 21)) for n, at in enumerate(whole)]
    for seen in (answered(whole), answered(torn)):
        assert [f.confidence for f in generation.judge(seen, None)] == [0.4]
