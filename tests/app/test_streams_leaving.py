"""Chat streams that are stopped, left, kept, outgrown by their readers, or outlived by none."""

from __future__ import annotations

import asyncio
import json
import time

from backend_client import ask, becomes, chat
from backend_upstream import DONE, Flood, eventually, token
from streams_client import STREAMS, Reader, begin, poll
from test_backend_leaving import resident_bytes
from test_streams_resume import line_of


async def endless(request, answer):
    await answer.head()
    number = 0
    while not request.gone.is_set():
        await answer.chunk(token(str(number)))
        number += 1
        await asyncio.sleep(0.01)


async def silent(request, answer):
    await request.gone.wait()


async def ended(port, stream_id):
    async with asyncio.timeout(5):
        while True:
            told = (await ask(port, "GET", f"{STREAMS}/{stream_id}")).json()
            if told["ended"]:
                return told
            await asyncio.sleep(0.02)


async def test_a_stop_frees_the_engine_at_once_and_ends_the_readers(port, upstream, logs):
    upstream.script = endless
    made = await begin(port)
    reader = await Reader.open(port, made["events"])
    await reader.until(5)
    asked = time.monotonic()
    response = await ask(port, "POST", f"{STREAMS}/{made['id']}/stop")
    assert response.json() == {"id": made["id"], "ended": True}
    await asyncio.wait_for(upstream.received[0].gone.wait(), 1)
    assert upstream.received[0].gone_at - asked < 0.5
    seen = await reader.rest()
    assert seen[-1][1] == "[DONE]"
    assert reader.ids == list(range(1, len(seen) + 1))
    assert (await ended(port, made["id"]))["outcome"] == "stopped"
    assert (await Reader.open(port, made["events"], after=len(seen))).status == 204
    again = await ask(port, "POST", f"{STREAMS}/{made['id']}/stop")
    assert again.json()["ended"] is True
    await eventually(lambda: line_of(logs, made))
    assert line_of(logs, made)["ended"] == "stopped"


async def test_a_stop_before_the_first_token(port, upstream):
    upstream.script = silent
    made = await begin(port)
    assert (await ask(port, "POST", f"{STREAMS}/{made['id']}/stop")).status == 200
    await asyncio.wait_for(upstream.received[0].gone.wait(), 1)
    reader = await Reader.open(port, made["events"])
    assert await reader.rest() == [(1, "[DONE]")]


async def test_a_stream_that_nobody_reads_is_aborted_after_the_grace(start_backend, upstream, logs):
    upstream.script = endless
    port = start_backend(stream_grace_seconds=0.5).port
    began = time.monotonic()
    made = await begin(port)
    await asyncio.wait_for(upstream.received[0].gone.wait(), 2)
    assert 0.4 < upstream.received[0].gone_at - began < 1.0
    told = await ended(port, made["id"])
    assert told["outcome"] == "abandoned"
    seen = await (await Reader.open(port, made["events"])).rest()
    assert json.loads(seen[-2][1])["error"]["code"] == "stream_abandoned"
    assert seen[-1] == (told["last_event_id"], "[DONE]")
    await eventually(lambda: line_of(logs, made))
    assert line_of(logs, made)["ended"] == "abandoned"


async def test_the_grace_begins_anew_with_each_reader(start_backend, upstream):
    upstream.script = endless
    port = start_backend(stream_grace_seconds=0.4).port
    made = await begin(port)
    known = 0
    for _ in range(4):
        reader = await Reader.open(port, made["events"], after=known)
        await reader.until(3)
        await asyncio.sleep(0.3)
        known += len(reader.seen)
        reader.close()
        await asyncio.sleep(0.25)
    for _ in range(4):
        known = (await poll(port, made["id"], known)).json()["events"][-1]["id"]
        await asyncio.sleep(0.25)
    assert not upstream.received[0].gone.is_set()
    two = [await Reader.open(port, made["events"], after=known) for _ in range(2)]
    two[0].close()
    await asyncio.sleep(0.6)
    assert not upstream.received[0].gone.is_set(), "one of two readers is still there"
    two[1].close()
    await asyncio.wait_for(upstream.received[0].gone.wait(), 2)


async def test_what_has_ended_is_kept_for_a_while(start_backend, upstream):
    port = start_backend(stream_linger_seconds=0.6, stream_grace_seconds=0.2).port
    made = await begin(port)
    await ended(port, made["id"])
    await asyncio.sleep(0.3)
    assert (await (await Reader.open(port, made["events"])).rest())[-1][1] == "[DONE]"
    await becomes(port, f"{STREAMS}/{made['id']}", 404)
    assert (await ask(port, "GET", made["events"])).status == 404


async def test_a_bounded_number_is_kept(start_backend, upstream):
    port = start_backend(streams_kept_per_key=3).port
    made = []
    for _ in range(6):
        made.append((await begin(port))["id"])
        await ended(port, made[-1])
    statuses = [(await ask(port, "GET", f"{STREAMS}/{one}")).status for one in made]
    assert statuses == [404, 404, 404, 200, 200, 200]


async def test_a_slow_reader_holds_the_engine_back_in_bounded_memory(start_process, upstream):
    event = token("w" * 4000)
    flood = Flood(event, 60_000)  # 240 MB, were it all taken
    upstream.script = flood
    backend = start_process(idle_timeout_seconds=0.5, stream_buffer_bytes=16_000_000)
    await becomes(backend.port, "/healthz", 200, key=None, seconds=20)
    made = await begin(backend.port)
    reader = await Reader.open(backend.port, made["events"], receive_buffer=8192)
    before = resident_bytes(backend.process.pid)
    await asyncio.sleep(2)  # Longer than the idle time: the silence is the reader's.
    stuck_at = flood.sent
    await asyncio.sleep(0.5)
    assert flood.sent == stuck_at, "the upstream was never held back"
    assert not upstream.received[0].gone.is_set(), "the reader's silence was held against it"
    assert flood.sent < flood.total / 4
    assert resident_bytes(backend.process.pid) - before < 24_000_000
    # Then it reads on, loses its line and comes back: nothing is lost or added.
    await reader.until(1000)
    reader.close()
    again = await Reader.open(backend.port, made["events"], after=len(reader.seen))
    await again.until(1000)
    seen = reader.seen + again.seen
    assert [number for number, _ in seen] == list(range(1, len(seen) + 1))
    again.close()


async def test_a_stop_reaches_a_generation_that_waits_for_its_reader(start_backend, upstream):
    async def flood(request, answer):
        await answer.head()
        while not request.gone.is_set():
            await answer.chunk(token("w" * 4000))

    upstream.script = flood
    port = start_backend(stream_buffer_bytes=100_000).port
    made = await begin(port)
    await asyncio.sleep(0.3)
    assert not upstream.received[0].gone.is_set()
    assert (await ask(port, "POST", f"{STREAMS}/{made['id']}/stop")).json()["ended"] is True
    await asyncio.wait_for(upstream.received[0].gone.wait(), 1)
    seen = await (await Reader.open(port, made["events"])).rest()
    assert seen[-1][1] == "[DONE]"
    assert [number for number, _ in seen] == list(range(1, len(seen) + 1))


async def test_many_streams_keep_within_what_all_may_take(start_process, upstream):
    event = token("w" * 1000)

    async def long_answer(request, answer):
        await answer.head()
        for _ in range(300):
            await answer.chunk(event * 10)
        await answer.chunk(DONE)
        await answer.end()

    upstream.script = long_answer
    backend = start_process(
        stream_buffer_bytes=1_000_000, streams_buffer_bytes=8_000_000, streams_kept_per_key=100
    )
    await becomes(backend.port, "/healthz", 200, key=None, seconds=20)

    async def one():
        made = await begin(backend.port)
        reader = await Reader.open(backend.port, made["events"])
        await reader.rest(60)
        assert reader.ids == list(range(1, 3002))

    await one()
    before = resident_bytes(backend.process.pid)
    # 40 streams of 3.3 MB each: 130 MB, of which one may keep 1 MB and all together 8 MB.
    for _ in range(4):
        await asyncio.gather(*(one() for _ in range(10)))
    assert resident_bytes(backend.process.pid) - before < 24_000_000


async def test_a_restart_lets_streams_finish_also_without_a_reader(start_process, upstream):
    finished = asyncio.Event()

    async def script(request, answer):
        await answer.head()
        for number in range(30):
            await answer.chunk(token(str(number)))
            await asyncio.sleep(0.05)
        await answer.chunk(DONE)
        await answer.end()
        finished.set()

    upstream.script = script
    backend = start_process(drain_seconds=10)
    await becomes(backend.port, "/healthz", 200, key=None, seconds=20)
    made = await begin(backend.port)
    unread = await begin(backend.port)
    assert unread["id"] != made["id"]
    reader = await Reader.open(backend.port, made["events"])
    await reader.until(3)
    backend.terminate()
    await reader.rest()
    assert reader.ids == list(range(1, 32))
    assert reader.data[-1] == "[DONE]"
    await backend.wait(5)
    assert finished.is_set()
    lines = [json.loads(line) for line in backend.log.splitlines()]
    outcomes = [line["ended"] for line in lines if line.get("path") == STREAMS]
    assert outcomes == ["complete", "complete"]


async def test_what_outlives_the_drain_time_is_ended_honestly(start_process, upstream):
    upstream.script = endless
    backend = start_process(drain_seconds=1)
    await becomes(backend.port, "/healthz", 200, key=None, seconds=20)
    made = await begin(backend.port)
    reader = await Reader.open(backend.port, made["events"])
    await reader.until(3)
    stopped = time.monotonic()
    backend.terminate()
    seen = await reader.rest()
    assert 0.9 < time.monotonic() - stopped < 4
    assert reader.ids == list(range(1, len(seen) + 1)), "the ending has ids as well"
    assert json.loads(seen[-2][1])["error"]["code"] == "service_unavailable"
    assert seen[-1][1] == "[DONE]"
    await backend.wait(5)
    await eventually(upstream.received[0].gone.is_set)
    lines = [json.loads(line) for line in backend.log.splitlines()]
    outcomes = {line["path"]: line["ended"] for line in lines if "path" in line}
    assert outcomes[STREAMS] == "server_stopping"


async def test_a_prompt_is_not_kept_while_its_answer_runs(start_process, upstream):
    upstream.script = endless
    backend = start_process(max_body_bytes=16_000_000)
    await becomes(backend.port, "/healthz", 200, key=None, seconds=20)
    prompt = chat(messages=[{"role": "user", "content": "x" * 8_000_000}])
    await begin(backend.port, prompt)
    before = resident_bytes(backend.process.pid)
    for _ in range(15):
        await begin(backend.port, prompt)
    # 120 MB of prompts; one that is being read takes a few times its size for a moment.
    assert resident_bytes(backend.process.pid) - before < 48_000_000
