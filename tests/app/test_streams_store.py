"""Streams in a real Redis: what was generated outlives its process, and its end is honest."""

from __future__ import annotations

import asyncio
import json

from backend_client import KEY, ask, becomes, chat
from backend_upstream import DONE, eventually, token
from conftest import write_keys
from streams_client import STREAMS, Reader, begin, poll

OTHER_KEY = "mr-" + "o" * 43


def tokens_until(event, pause=0.02):
    async def script(request, answer):
        await answer.head()
        number = 0
        while not event.is_set() and not request.gone.is_set():
            await answer.chunk(token(str(number)))
            number += 1
            await asyncio.sleep(pause)
        await answer.chunk(DONE)
        await answer.end()

    return script


async def started(start_process, store, **changes):
    backend = start_process(store_url=store.url, **changes)
    await becomes(backend.port, "/healthz", 200, key=None, seconds=30)
    return backend


async def test_what_was_generated_outlives_a_crash_and_ends_honestly(
    start_process, upstream, store, files
):
    upstream.script = tokens_until(asyncio.Event())
    first = await started(start_process, store)
    made = await begin(first.port)
    reader = await Reader.open(first.port, made["events"])
    await reader.until(30)
    first.process.kill()
    seen = await reader.rest_or_cut()
    write_keys(files.keys, alice=KEY, bob=OTHER_KEY)
    second = await started(start_process, store)
    assert (await ask(second.port, "GET", made["events"], key=OTHER_KEY)).status == 404
    # The lease of the first must run out before it is known to be dead.
    halfway = await Reader.open(second.port, made["events"], after=10)
    assert halfway.status == 200
    rest = await halfway.rest(20)
    kept = [event for event in rest if event[0] < 1_000_000]
    assert kept == seen[10 : 10 + len(kept)]
    assert len(kept) >= 15, "more was lost than a moment's worth"
    assert json.loads(rest[-2][1])["error"]["code"] == "stream_lost"
    assert rest[-1][1] == "[DONE]"
    assert rest[-2][0] + 1 == rest[-1][0] > 1_000_000
    # A reader that had seen more than was written down gets the end, and nothing twice.
    ahead = await Reader.open(second.port, made["events"], after=len(seen) + 3)
    assert await ahead.rest() == rest[-2:]
    assert (await Reader.open(second.port, made["events"], after=rest[-1][0])).status == 204
    polled = (await poll(second.port, made["id"], len(seen) + 3)).json()
    assert [event["id"] for event in polled["events"]] == [rest[-2][0], rest[-1][0]]
    assert polled["ended"] is True
    told = (await ask(second.port, "GET", f"{STREAMS}/{made['id']}")).json()
    assert told["ended"] is True
    assert told["outcome"] == "lost"
    # It is kept no longer than any other that has ended.
    assert 0 < store.client.ttl(f"millrace:stream:{made['id']}") <= 300
    stop = await ask(second.port, "POST", f"{STREAMS}/{made['id']}/stop")
    assert stop.json()["ended"] is True


async def test_a_stream_that_ended_is_served_after_a_restart(start_process, upstream, store):
    done = asyncio.Event()
    upstream.script = tokens_until(done)
    first = await started(start_process, store)
    made = await begin(first.port)
    reader = await Reader.open(first.port, made["events"])
    await reader.until(10)
    done.set()
    seen = await reader.rest()
    first.terminate()
    await first.wait(10)
    second = await started(start_process, store)
    again = await Reader.open(second.port, made["events"])
    assert await again.rest() == seen
    assert (await Reader.open(second.port, made["events"], after=len(seen))).status == 204
    tail = await Reader.open(second.port, made["events"], after=len(seen) - 2)
    assert await tail.rest() == seen[-2:]
    told = (await ask(second.port, "GET", f"{STREAMS}/{made['id']}")).json()
    assert (told["outcome"], told["created"]) == ("complete", made["created"])


async def test_another_backend_follows_a_stream_that_is_being_made(start_process, upstream, store):
    done = asyncio.Event()
    upstream.script = tokens_until(done)
    first = await started(start_process, store)
    second = await started(start_process, store)
    made = await begin(first.port)
    here = await Reader.open(first.port, made["events"])
    await here.until(10)
    there = await Reader.open(second.port, made["events"])
    await there.until(30)
    assert not there.ended
    done.set()
    assert await there.rest() == await here.rest()


async def test_the_store_holds_no_more_than_the_buffer_and_no_longer(
    start_process, upstream, store
):
    async def script(request, answer):
        await answer.head()
        for _ in range(500):
            await answer.chunk(token("w" * 1000))
            await asyncio.sleep(0.001)
        await answer.chunk(DONE)
        await answer.end()

    upstream.script = script
    backend = await started(
        start_process, store, stream_buffer_bytes=100_000, stream_linger_seconds=2
    )
    made = await begin(backend.port)
    reader = await Reader.open(backend.port, made["events"])
    await reader.rest()
    events = f"millrace:stream:{made['id']}:events"
    await eventually(lambda: store.client.hget(f"millrace:stream:{made['id']}", "outcome"))
    assert 20 < store.client.xlen(events) < 100
    await eventually(lambda: not store.client.exists(events), 5)
    assert list(store.client.scan_iter("millrace:stream:*")) == []


async def test_a_store_that_is_away_hurts_no_stream(start_process, upstream, store):
    done = asyncio.Event()
    upstream.script = tokens_until(done)
    backend = await started(start_process, store)
    made = await begin(backend.port)
    reader = await Reader.open(backend.port, made["events"])
    await reader.until(10)
    store.stop()
    await reader.until(100)
    late = await begin(backend.port)
    assert (await ask(backend.port, "GET", f"{STREAMS}/{'0' * 32}")).status == 404
    store.start()
    await reader.until(250)
    done.set()
    seen = await reader.rest()
    assert [number for number, _ in seen] == list(range(1, len(seen) + 1))
    # What could not be written meanwhile was written when it could be again.
    await eventually(lambda: store.client.hget(f"millrace:stream:{made['id']}", "outcome"), 10)
    assert store.client.xlen(f"millrace:stream:{made['id']}:events") == len(seen)
    complaints = [line for line in backend.log.splitlines() if "cannot be used" in line]
    assert len(complaints) == 1
    assert late["id"]


async def test_nothing_is_kept_of_what_was_refused(start_process, upstream, store):
    async def refuse(request, answer):
        await answer.whole(b'{"error":{"message":"no","type":"t","param":null,"code":null}}', 400)

    upstream.script = refuse
    backend = await started(start_process, store)
    assert (await ask(backend.port, "POST", STREAMS, chat())).status == 400
    await asyncio.sleep(0.3)
    assert list(store.client.scan_iter("millrace:stream:*")) == []


async def test_no_text_is_in_the_log_when_the_store_fails(start_process, upstream, store):
    upstream.script = tokens_until(asyncio.Event())
    backend = await started(start_process, store)
    made = await begin(backend.port)
    reader = await Reader.open(backend.port, made["events"])
    await reader.until(5)
    store.stop()
    await reader.until(60)
    assert "delta" not in backend.log
    assert made["ticket"] not in backend.log
