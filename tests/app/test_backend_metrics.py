"""What the backend counts, read as Prometheus would read it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
import urllib.request
from pathlib import Path
from timeit import repeat
from types import SimpleNamespace

import pytest
from backend.exchange import Exchange, conclude
from backend.metrics import Metrics, _release
from backend.pace import GapCounts, Pace
from backend.usage import Usage
from backend_client import Connection, ask, chat
from backend_upstream import DONE, ROLE, eventually, token
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

CHAT = "/v1/chat/completions"


def parsed(text: str) -> dict[str, float]:
    """Return every sample under `name{label="value",…}`, labels in alphabetical order."""
    return {
        sample.name + (f"{{{labels}}}" if labels else ""): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        for labels in [",".join(f'{k}="{v}"' for k, v in sorted(sample.labels.items()))]
    }


def read(metrics: Metrics) -> dict[str, float]:
    """Return what a scrape would."""
    return parsed(generate_latest(metrics.registry).decode())


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
        metrics, route=CHAT, key=ALICE, stream=True, status=200,
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


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


async def scrape(port: int) -> dict[str, float]:
    def fetch() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return str(answer.read(), "utf-8")

    return parsed(await asyncio.to_thread(fetch))


async def test_a_scrape_after_real_requests(start_backend, upstream, logs):
    async def in_pieces(request, answer):
        await answer.head()
        for piece in (ROLE, token("a"), token("b"), DONE):
            await answer.chunk(piece)
            await asyncio.sleep(0.05)
        await answer.end()

    upstream.script = in_pieces
    scraped = free_port()
    port = start_backend(metrics_ports={"a": scraped}).port
    await ask(port, "POST", CHAT, chat())
    await ask(port, "POST", CHAT, b"{")
    await ask(port, "GET", "/v1/models", key="wrong")
    await ask(port, "GET", "/nothing")
    await ask(port, "GET", "/v1/streamcheck?events=5")
    await eventually(lambda: len(logs.requests()) == 5)
    seen = await scrape(scraped)
    answered = {k: v for k, v in seen.items() if k.startswith("millrace_requests_total")}
    assert answered == {
        f'millrace_requests_total{{ended="complete",route="{CHAT}",status="200"}}': 1,
        f'millrace_requests_total{{ended="refused",route="{CHAT}",status="400"}}': 1,
        'millrace_requests_total{ended="complete",route="/v1/streamcheck",status="200"}': 1,
        'millrace_requests_total{ended="refused",route="other",status="401"}': 1,
        'millrace_requests_total{ended="refused",route="other",status="404"}': 1,
    }
    # The emitter's stream is no engine's.
    assert seen["millrace_stream_seconds_count"] == 1
    assert seen["millrace_first_token_seconds_count"] == 1
    assert seen["millrace_stream_gap_seconds_count"] == 3
    assert seen["millrace_stream_gap_seconds_sum"] == pytest.approx(0.15, rel=0.5)
    assert seen["millrace_open_requests"] == 0
    assert seen["process_open_fds"] > 0


async def test_an_active_stream_is_seen_and_goes(start_backend, upstream, logs):
    async def unfinished(request, answer):
        await answer.head()
        await answer.chunk(ROLE + token("a"))
        await asyncio.sleep(60)

    upstream.script = unfinished
    scraped = free_port()
    port = start_backend(metrics_ports={"a": scraped}).port
    connection = await Connection.open(port)
    await connection.send("POST", CHAT, chat())
    await connection.head()
    await connection.until(b"data:")
    name = f'millrace_active_streams{{route="{CHAT}"}}'
    assert (await scrape(scraped))[name] == 1
    connection.close()
    await logs.next_request()
    seen = await scrape(scraped)
    assert name not in seen
    assert seen[f'millrace_requests_total{{ended="client_left",route="{CHAT}",status="200"}}'] == 1


async def test_the_service_does_without_the_port(start_backend, upstream, logs):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = start_backend(metrics_ports={"a": taken.getsockname()[1]}).port
        assert (await ask(port, "POST", CHAT, chat())).status == 200
    assert any("no /metrics: cannot listen" in line for line in logs.lines)


async def test_metrics_are_not_on_the_services_own_listener(start_backend):
    port = start_backend(metrics_ports={"a": free_port()}).port
    assert (await ask(port, "GET", "/metrics")).status == 404


async def breaks_off(request, answer):
    await answer.head()
    await answer.chunk(ROLE + token("a"))
    answer.reset()


async def ends_early(request, answer):
    await answer.head()
    await answer.chunk(ROLE + token("a"))
    await answer.end()


async def falls_silent(request, answer):
    await answer.head()
    await answer.chunk(ROLE + token("a"))
    await asyncio.sleep(60)


async def never_begins(request, answer):
    await asyncio.sleep(60)


async def is_broken(request, answer):
    await answer.whole(b"{}", status=500)


async def wants_another_key(request, answer):
    await answer.whole(b"{}", status=401)


async def finds_a_mistake(request, answer):
    await answer.whole(b"{}", status=400)


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        (breaks_off, "broken_off"),
        (ends_early, "incomplete"),
        (falls_silent, "idle_timeout"),
        (never_begins, "first_byte_timeout"),
        (is_broken, "engine_error"),
        (wants_another_key, "key_refused"),
        (finds_a_mistake, None),
    ],
)
async def test_what_failed_behind_is_named(start_backend, upstream, logs, script, fault):
    upstream.script = script
    scraped = free_port()
    limits = {"idle_timeout_seconds": 0.3, "first_byte_timeout_seconds": 0.3}
    port = start_backend(metrics_ports={"a": scraped}, **limits).port
    await ask(port, "POST", CHAT, chat())
    line = await logs.next_request()
    assert line["fault"] == fault
    seen = await scrape(scraped)
    found = {k: v for k, v in seen.items() if k.startswith("millrace_upstream_errors")}
    wanted = {f'millrace_upstream_errors_total{{kind="{fault}"}}': 1} if fault else {}
    assert found == wanted


async def test_an_engine_that_is_not_there_is_waited_for_and_named(start_backend, upstream, logs):
    await upstream.stop()
    scraped = free_port()
    port = start_backend(metrics_ports={"a": scraped}, restart_wait_seconds=3).port
    asked = asyncio.create_task(ask(port, "POST", CHAT, chat()))
    waiting = 'millrace_waiting_requests{what="engine"}'
    for _ in range(50):
        if (await scrape(scraped))[waiting]:
            break
        await asyncio.sleep(0.05)
    else:
        pytest.fail("nobody waits")
    await asked
    seen = await scrape(scraped)
    assert seen[waiting] == 0
    assert seen['millrace_wait_seconds_count{what="engine"}'] == 1
    assert seen['millrace_upstream_errors_total{kind="unreachable"}'] == 1


async def test_who_waits_for_a_place_is_counted(start_backend, upstream, logs):
    async def unfinished(request, answer):
        await answer.head()
        await answer.chunk(ROLE + token("a"))
        await asyncio.sleep(60)

    upstream.script = unfinished
    scraped = free_port()
    port = start_backend(metrics_ports={"a": scraped}, house_streams=1).port
    first, second = await Connection.open(port), await Connection.open(port)
    await first.send("POST", CHAT, chat())
    await first.head()
    await second.send("POST", CHAT, chat())
    waiting = 'millrace_waiting_requests{what="place"}'
    for wanted in (1, 0):
        for _ in range(50):
            if (await scrape(scraped))[waiting] == wanted:
                break
            await asyncio.sleep(0.05)
        else:
            pytest.fail(f"not {wanted} in the queue")
        # The first one goes, and the second has its place.
        first.close()
    assert (await scrape(scraped))['millrace_wait_seconds_count{what="place"}'] == 1
    second.close()
