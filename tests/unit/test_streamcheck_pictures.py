"""The stream check's pictures: what a person must see in them, and what must stay out."""

from __future__ import annotations

import html.parser
import itertools
import re
import unicodedata
from typing import Any

import pytest
from streamcheck.page import plot, render_page
from streamcheck.text import render
from streamcheck.timeline import Timeline, shown, together

CHAIN = ("vllm", "litellm", "backend", "nginx", "public")
HOSTILE = "<script>alert(1)</script>\x1b[31mred\r\nnext line\u202e\x9b1m \ud800 水車"
Report = dict[str, Any]


def probe(arrivals: list[list[float]] | None = None, **more: Any) -> Report:
    """Return one request; 65 events, 12 ms apart, unless told otherwise."""
    if arrivals is None:
        arrivals = [[0.05 + 0.012 * n, 210, 1] for n in range(65)]
    times = [time for time, _, _ in arrivals] or [0.0]
    events = sum(int(count) for _, _, count in arrivals)
    gaps = [1000 * (b - a) for a, b in itertools.pairwise(times)] or [0.0]
    return {
        "source": "generation",
        "way": f"{more.get('method', 'POST')} {more.get('protocol', 'http/1.1')} "
        f"{more.get('encoding', 'identity')}",
        "method": "POST",
        "protocol": "http/1.1",
        "encoding": "identity",
        "status": 200,
        "http_version": "1.1",
        "headers": {"content-type": "text/event-stream", "x-accel-buffering": "no"},
        "connect_seconds": 0.001,
        "headers_seconds": 0.02,
        "first_byte_seconds": times[0],
        "first_token_seconds": times[0],
        "end_seconds": times[-1] + 0.002,
        "events": events,
        "tokens": events - 1,
        "comments": 0,
        "bytes": 210 * events,
        "wire_bytes": 220 * events,
        "reads": len(arrivals),
        "gap_p50_ms": sorted(gaps)[len(gaps) // 2],
        "gap_p95_ms": sorted(gaps)[len(gaps) * 95 // 100],
        "gap_max_ms": max(gaps),
        "events_per_read": events / max(1, len(arrivals)),
        "short_gap_share": 0.0,
        "events_per_token": 1.0,
        "longest_silence_seconds": max(gaps) / 1000,
        "delay_p50_ms": None,
        "delay_max_ms": None,
        "ended": "terminal",
        "error": None,
        "arrivals": arrivals,
        **more,
    }


def ways() -> list[Report]:
    """Return the requests that a healthy hop was asked."""
    return [
        probe(),
        probe(encoding="gzip, br, zstd"),
        probe(protocol="h2", http_version="2"),
        probe(method="GET", source="emitter", delay_p50_ms=0.4, delay_max_ms=2.0),
    ]


def hop(name: str, *probes: Report, **more: Any) -> Report:
    """Return one hop."""
    return {
        "name": name,
        "title": f"{name} on the server",
        "address": f"https://127.0.0.1/{name}",
        "seen_from": "here" if name == "public" else "server",
        "verdict": "streams",
        "kind": None,
        "confidence": 0.99,
        "summary": "",
        "findings": [],
        "probes": list(probes) or ways(),
        **more,
    }


def report(*hops: Report, **more: Any) -> Report:
    """Return a report; everything streams unless told otherwise."""
    return {
        "schema": 1,
        "verdict": "streams",
        "culprit": None,
        "kind": None,
        "confidence": 0.99,
        "summary": "Every token arrives as soon as it is made, through every hop.",
        "remedy": None,
        "error": None,
        "started": "2026-11-25T02:10:00+00:00",
        "took_seconds": 31.2,
        "noise": [
            {"where": "here", "p50_ms": 0.1, "p99_ms": 1.2, "max_ms": 4.0},
            {"where": "server", "p50_ms": 0.1, "p99_ms": 0.8, "max_ms": 2.0},
        ],
        "hops": list(hops) or [hop(name) for name in CHAIN],
        "checks": [
            {
                "name": "silence",
                "hop": "public",
                "result": "passed",
                "summary": "60 s without a token were bridged by heartbeats",
                "kind": None,
            },
            {
                "name": "disconnect",
                "hop": "public",
                "result": "skipped",
                "summary": "not asked for (--deep)",
                "kind": None,
            },
        ],
        "notes": [],
        **more,
    }


def broken(name: str, kind: str, *probes: Report, **detail: Any) -> Report:
    """Return one hop that was found out by its first request."""
    finding = {
        "kind": kind,
        "confidence": 0.97,
        "summary": f"{name}: {kind}",
        "detail": detail,
        "ways": [probes[0]["way"]],
    }
    return hop(name, *probes, verdict="broken", kind=kind, findings=[finding])


def held() -> Report:
    """Return a report of an nginx that holds every answer until it has ended."""
    whole = [[0.02, 8, 0], [1.604, 13860, 65]]
    late = [[1.62 + 0.00003 * n, 210, 1] for n in range(65)]
    hops = [
        hop(name, probe([[0.05 + 0.0242 * n, 210, 1] for n in range(65)])) for name in CHAIN[:3]
    ]
    hops.append(broken("nginx", "whole_response_held", probe(whole), probe(whole, protocol="h2")))
    hops.append(broken("public", "whole_response_held", probe(late), probe(late, protocol="h2")))
    return report(
        *hops,
        verdict="broken",
        culprit="nginx",
        kind="whole_response_held",
        confidence=0.97,
        summary="nginx holds the answer until it is complete: nothing for 1.6 s, then 65 events at "
        "once, while the backend before it sends one every 24 ms.",
        remedy={
            "setting": "proxy_buffering off",
            "file": "/etc/nginx/nginx.conf",
            "why": "the answer says X-Accel-Buffering: no and nginx buffers all the same, which is "
            "what proxy_ignore_headers or a location without the setting does.",
        },
        checks=[
            {
                "name": "silence",
                "hop": "public",
                "result": "failed",
                "kind": "cut_on_silence",
                "summary": "after 60.0 s without a byte the connection was closed",
            },
            {
                "name": "slow reader",
                "hop": "public",
                "result": "unsure",
                "kind": None,
                "summary": "the other stream ended before the slow one was felt",
            },
            {
                "name": "disconnect",
                "hop": "public",
                "result": "skipped",
                "kind": None,
                "summary": "the server's log cannot be read from here",
            },
        ],
        notes=["public is broken too, but only passes on what nginx does."],
    )


def batched() -> Report:
    """Return a report of a proxy outside that lets 16 KB go at a time."""
    batch = [[0.05 + 0.012 * 78 * n, 16384, 78] for n in range(1, 8)]
    paced = [[0.05 + 0.012 * n, 210, 1] for n in range(560)]
    plain = [probe(paced), probe(paced, source="emitter", method="GET")]
    hops = [hop(name, *plain) for name in CHAIN[:4]]
    emitted = probe(batch, source="emitter", method="GET")
    hops.append(broken("public", "batched_bytes", emitted, probe(), bytes=16384))
    return report(
        *hops,
        verdict="broken",
        culprit="public",
        kind="batched_bytes",
        confidence=0.8,
        summary="What stands before the server lets 16384 bytes go at a time.",
    )


def cached() -> Report:
    """Return a report of an edge that answers from its cache."""
    at_once = [[0.004, 13860, 65]]
    aged = probe(at_once, headers={"age": "31", "cf-cache-status": "HIT"})
    return report(
        *(hop(name) for name in CHAIN[:4]),
        broken("public", "cached", aged),
        verdict="broken",
        culprit="public",
        kind="cached",
        confidence=1.0,
        summary="The edge answers from its cache.",
        noise=[{"where": "here", "p50_ms": 0.1, "p99_ms": 9.4, "max_ms": 22.0}],
    )


def cut() -> Report:
    """Return a report of a silence that a hop cut."""
    silent = [[0.05 + 0.02 * n, 210, 1] for n in range(50)]
    beats = [[1.05 + 15 * n, 14, 0] for n in range(1, 6)]
    whole = [*silent, *beats, *([80 + 0.02 * n, 210, 1] for n in range(50))]
    good = [probe(), probe(whole, source="emitter", method="GET")]
    bad = probe(silent, source="emitter", method="GET", ended="cut", end_seconds=61.0, error="EOF")
    return report(
        *(hop(name, probe()) for name in CHAIN[:2]),
        *(hop(name, *good) for name in CHAIN[2:4]),
        broken("public", "cut_on_silence", probe(), bad)
        | {
            "findings": [
                {
                    "kind": "cut_on_silence",
                    "confidence": 0.9,
                    "summary": "",
                    "detail": {},
                    "ways": [bad["way"]],
                }
            ]
        },
        verdict="broken",
        culprit="public",
        kind="cut_on_silence",
        confidence=0.9,
        summary="A stream that is silent for 60 s is cut.",
    )


def unreachable() -> Report:
    """Return a report of a service that could not be asked."""
    hops = [hop(name, verdict="unreachable", probes=[]) for name in CHAIN]
    return report(
        *hops,
        verdict="unreachable",
        summary=None,
        error="https://chat.example.org refuses the key",
        checks=[],
        noise=[],
    )


def nulls() -> Report:
    """Return a report with nothing in it that may be missing."""
    empty: Report = dict.fromkeys(probe())
    hops = [hop(name, empty | {"arrivals": [[None, None, None]]}, empty) for name in CHAIN[:4]]
    bare = dict.fromkeys(hop("x")) | {"name": "public", "verdict": "not_judged"}
    noise = {"where": "here", "p50_ms": None, "p99_ms": None, "max_ms": None}
    check = dict.fromkeys(("name", "hop", "result", "summary", "kind"))
    return report(
        *hops,
        bare,
        verdict="unsure",
        confidence=None,
        summary=None,
        took_seconds=None,
        noise=[noise],
        checks=[check],
        started=None,
    )


def hostile() -> Report:
    """Return a report in which every text that may come from outside is an attack."""
    bad = probe(headers={"server": HOSTILE, HOSTILE: "x" * 9000}, error=HOSTILE, status=502)
    hops = [hop("vllm"), broken("nginx", "truncated", bad) | {"summary": HOSTILE, "title": HOSTILE}]
    check = {
        "name": HOSTILE,
        "hop": HOSTILE,
        "result": HOSTILE,
        "summary": HOSTILE,
        "kind": HOSTILE,
    }
    return report(
        *hops,
        verdict="broken",
        culprit="nginx",
        kind=HOSTILE,
        summary=HOSTILE * 9,
        checks=[check],
        notes=[HOSTILE, "word" * 90],
        error=HOSTILE,
        remedy={"setting": HOSTILE, "file": HOSTILE, "why": HOSTILE},
    )


def many() -> Report:
    """Return a report of a long and fast answer."""
    return report(
        *(hop(n, probe([[0.05 + k * 0.001, 210, 1] for k in range(5000)])) for n in CHAIN)
    )


SAMPLES = {
    f.__name__: f for f in (report, held, batched, cached, cut, unreachable, nulls, hostile, many)
}


def text(sample: Report, **how: Any) -> str:
    """Return the report in a terminal of 80 columns."""
    return render(sample, **{"width": 80, **how})


def row(shown: str, name: str) -> str:
    """Return the timeline of a hop."""
    return next(line for line in shown.splitlines() if re.match(rf"[▶ ] {name} +│", line))


def drawing(shown: str, name: str) -> str:
    """Return what stands between the two bars of a hop's timeline."""
    return row(shown, name).split("│")[1]


class Page(html.parser.HTMLParser):
    """What a page is made of, as a browser would see it."""

    def __init__(self, sample: Report) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.source = render_page(sample)
        self.words = ""
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words += " ".join(data.split()) + " "

    def classed(self, name: str) -> list[dict[str, str | None]]:
        """Return the attributes of all elements of a class."""
        return [attrs for _, attrs in self.tags if name in (attrs.get("class") or "").split()]


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("width", [20, 60, 80, 120])
def test_text_fits_and_is_clean(name: str, width: int) -> None:
    for verbose in (False, True):
        how = {"width": width, "verbose": verbose}
        shown = render(SAMPLES[name](), **how)
        assert shown.endswith("\n")
        assert not shown.endswith("\n\n")
        for line in shown.splitlines():
            cells = sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line)
            assert cells <= max(60, width), line
            assert line == line.rstrip()
            assert not [c for c in line if unicodedata.category(c)[0] == "C"], line
        colored = render(SAMPLES[name](), color=True, **how)
        assert re.sub(r"\x1b\[[0-9;]+m", "", colored) == shown
        plain = render(SAMPLES[name](), ascii_only=True, **how)
        assert plain.isascii()
        assert len(plain.splitlines()) == len(shown.splitlines())


@pytest.mark.parametrize("name", SAMPLES)
def test_page_stands_alone(name: str) -> None:
    page = Page(SAMPLES[name]())
    assert page.open == []
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "img", "iframe", "object", "a", "form", "base"}
    attributes = {attribute for _, attrs in page.tags for attribute in attrs}
    assert not [a for a in attributes if a.startswith("on") or a in ("src", "href", "action")]
    policy = {
        "http-equiv": "Content-Security-Policy",
        "content": "default-src 'none'; style-src 'unsafe-inline'",
    }
    assert ("meta", policy) in page.tags
    assert "url(" not in page.source
    assert "@import" not in page.source
    assert "prefers-color-scheme: dark" in page.source
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in page.tags:
        assert set((attrs.get("aria-labelledby") or "").split()) <= set(ids)
    assert not [c for c in page.source if unicodedata.category(c)[0] == "C" and c != "\n"]
    page.source.encode()


def test_a_stream_is_drawn_event_by_event() -> None:
    shown = text(report())
    for name in CHAIN:
        assert set(drawing(shown, name)) == {"·", " "}
        assert row(shown, name).endswith("every 12 ms")
    assert "▶" not in shown
    assert shown.splitlines()[-2:] == [
        "STREAMS (99% sure)",
        "Every token arrives as soon as it is made, through every hop.",
    ]
    assert "✓ Every hop streams" in Page(report()).words


def test_a_held_answer_is_seen_and_named() -> None:
    shown = text(held())
    assert set(drawing(shown, "backend")) == {"·", " "}
    assert drawing(shown, "nginx").split() == ["'", "█"], "a comment alone is no event"
    assert drawing(shown, "public").strip() == "█", "reads 0.03 ms apart came together"
    assert row(shown, "nginx").startswith("▶")
    assert row(shown, "nginx").endswith("held 1.6 s")
    for said in (
        "BROKEN at nginx (97% sure)",
        "whole response held",
        "proxy_buffering off",
        "/etc/nginx/nginx.conf",
        "X-Accel-Buffering",
        "\n- public is broken too",
    ):
        assert said in shown
    for check in (
        r"FAILED +silence \(public\): after",
        r"unsure +slow reader \(public\): the other",
        r"skipped +disconnect \(public\): the server's log cannot",
    ):
        assert re.search(rf"^{check}", shown, re.MULTILINE)

    page = Page(held())
    for said in (
        "✗ The stream breaks at nginx",
        "proxy_buffering off",
        "breaks it first",
        "97% sure",
        "held 1.6 s",
        "public is broken too",
        "cannot be read from here",
    ):
        assert said in page.words
    words = re.sub(r"<[^>]+>", "", page.source)
    assert "What to change: proxy_buffering off in /etc/nginx/nginx.conf" in words
    assert len(page.classed("culprit")) == 1
    opened = [attrs for tag, attrs in page.tags if tag == "details" and "open" in attrs]
    assert [attrs["class"] for attrs in opened] == ["hop broken"]
    # Two hops, each in the overview and twice in the details.
    assert (
        len([attrs for attrs in page.classed("batch") if (attrs["d"] or "").count("M") == 1]) == 6
    )


def test_batches_stand_apart() -> None:
    shown = text(batched())
    assert re.fullmatch(r"( +█){7} *", drawing(shown, "public"))
    assert row(shown, "public").endswith("78 at once")
    assert "emitter" in shown, "the batches were seen in the emitter's stream"
    assert set(drawing(shown, "nginx")) == {"·"}
    assert [(a["d"] or "").count("M") for a in Page(batched()).classed("batch")] == [7, 7]


def test_a_refusal_is_told_by_its_status() -> None:
    refused = probe([], status=502, ended="refused", error="502 Bad Gateway")
    shown = text(report(hop("vllm"), broken("nginx", "request_refused", refused)), verbose=True)
    assert row(shown, "nginx").endswith("status 502")
    assert "- nginx: POST http/1.1 identity: 502 Bad Gateway" in shown


def test_a_cached_answer_is_at_the_start() -> None:
    shown = text(cached())
    assert drawing(shown, "public").rstrip() == "█"
    assert row(shown, "public").endswith("from a cache")
    assert "HIT" in Page(cached()).words


def test_what_falls_into_one_tick_is_drawn_as_the_most_of_it() -> None:
    paths = plot(Timeline({}, {}, [(0.5, 64), (0.5001, 1), (0.75, 1)], 1.0, ""), 1.0)["paths"]
    assert paths == {"comment": "", "single": "M750 100v-40", "batch": "M500 100v-100"}


def test_a_broken_hop_shows_the_request_that_tells_why() -> None:
    asked = [probe(), probe(source="emitter"), probe(protocol="h2"), probe(method="GET")]
    told = [
        {"kind": "delayed", "ways": ["GET http/1.1 identity"], "source": "emitter"},
        {"kind": "batched_time", "ways": ["POST h2 identity"], "source": "generation"},
    ]
    bad = hop("nginx", *asked, verdict="broken", kind="batched_time", findings=told)
    assert shown(bad) is asked[2], "what the verdict names, not what is found first"
    told[1] |= {"ways": [asked[0]["way"]], "source": "emitter"}
    assert shown(bad) is asked[1]
    assert shown(bad | {"verdict": "streams"}) is asked[0]
    assert shown(bad | {"verdict": "streams"}, ("generation", "GET http/1.1 identity")) is asked[3]
    assert shown(hop("x", asked[2], asked[3])) is asked[2]
    assert shown(hop("x") | {"probes": []}) == {}


def test_what_counts_as_one_arrival_follows_the_innermost_pace() -> None:
    fast = hop("vllm", probe([[0.001 * n, 210, 1] for n in range(1001)]))
    slow = hop("nginx", probe(), probe(source="emitter"))
    apart = together(report(fast, slow))
    assert apart["generation"] == pytest.approx(0.00025, rel=0.01)
    assert apart["emitter"] == 0.002
    assert together(report(hop("x", probe([[1.0, 9, 9]]))))["generation"] == 0.0001


def test_a_cut_is_marked_where_it_happened() -> None:
    shown = text(cut())
    assert drawing(shown, "public").rstrip()[-1] == "✗"
    assert drawing(shown, "nginx").count("'") == 5, "heartbeats are drawn, but not as events"
    assert row(shown, "public").endswith("cut at 61 s")
    assert "GET http/1.1 identity, emitter (backend, nginx, public)" in " ".join(shown.split())
    (off,) = {attrs["style"] for attrs in Page(cut()).classed("off")} - {"left:100.00%"}
    assert re.fullmatch(r"left:7[0-9]\.\d+%", off or "")


def test_an_unreachable_service_is_one_line() -> None:
    assert text(unreachable()) == "https://chat.example.org refuses the key\n"
    page = Page(unreachable())
    assert "refuses the key" in page.words
    assert "sure" not in page.words
    assert page.classed("plot") == []
    assert text(unreachable() | {"hops": []}) == text(unreachable())
    assert Page(unreachable() | {"hops": []}).classed("row") == []


def test_figures_stand_in_columns() -> None:
    for sample in (report(), held(), cut(), nulls()):
        lines = render(sample, width=100).splitlines()
        heads = lines[lines.index("Figures") + 2]
        rows = lines[lines.index("Figures") + 3 :][:5]
        assert [line.split()[0] for line in rows] == list(CHAIN)
        for title in ("byte s", "token s", "p50 ms", "p95 ms", "max ms", "a read", "a token"):
            end = heads.index(title) + len(title)
            for line in rows:
                assert line[end - 1] != " " or "judged" in line
                assert line[end] == " "
    assert "\u2013" in render(nulls())


def test_verbose_has_a_row_per_request_and_the_noise() -> None:
    shown = render(report(), width=120, verbose=True)
    assert shown.count("  POST http/1.1 gzip, br, zstd  ") == 5
    assert shown.count("  GET http/1.1 identity, emitter  ") == 5
    assert "timers of the server were late by 0.8 ms" in shown
    assert "timers" not in text(report())
    assert "timers of this machine were late by 9.4 ms" in text(cached()), "that is a noisy machine"


def test_what_strangers_wrote_is_shown_and_not_obeyed() -> None:
    shown = render(hostile(), verbose=True)
    assert "<script>alert(1)</script>\ufffd[31mred next line" in shown
    source = render_page(hostile())
    assert "<script" not in source
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\ufffd[31mred next line" in source
    assert "水車" in shown


def test_a_fast_long_answer_is_a_stream_and_small() -> None:
    shown = text(many())
    assert set(drawing(shown, "public")) == {"·"}
    page = Page(many())
    ticks = [(attrs["d"] or "").count("M") for attrs in page.classed("single")]
    assert len(ticks) == 10
    assert all(900 < count <= 2000 for count in ticks)
    assert page.classed("batch") == []
    assert len(page.source) < 300_000


def test_every_request_is_on_the_page() -> None:
    page = Page(report())
    assert len([tag for tag, _ in page.tags if tag == "article"]) == 20
    assert len([tag for tag, _ in page.tags if tag == "svg"]) == 25
    for said in ("POST http/1.1 gzip, br, zstd", "x-accel-buffering", "events a read", "0.4 ms"):
        assert said in page.words
