"""Limits under load: never one over, and everything back afterwards, however it ended."""

from __future__ import annotations

import asyncio
import json
import re
import time

import pytest
from backend.admission import Admission, Ask
from backend.errors import ApiError
from backend.house import House
from backend.key_files import Limits
from backend.keys import Key
from backend.metrics import Metrics
from backend.rates import RequestRate, TokenRate, duration, open_store
from backend.settings import Settings
from backend.usage import Usage
from backend_client import Connection, ask, chat, error_of, events
from backend_upstream import DONE, ROLE, eventually, token
from conftest import key_entry, write_keys
from limits.aio.storage import MemoryStorage

CHAT = "/v1/chat/completions"
KEY_TEXT = "mr-limited"
CLIENTS = 200


@pytest.fixture
def admissions(monkeypatch):
    """Those of the backends that were started."""
    made = []

    def make(settings, metrics):
        made.append(Admission(settings, metrics))
        return made[-1]

    monkeypatch.setattr("backend.application.Admission", make)
    return made


@pytest.fixture
def limited(files, start_backend, admissions):
    """Start a backend whose one key has these limits."""

    def start(limits, **settings):
        write_keys(files.keys, key_entry("bob", KEY_TEXT, limits=limits))
        # Two hundred clients and the engine are in this process as well.
        return start_backend(connect_timeout_seconds=20, **settings).port

    return start


def code_of(response):
    return response.status, response.json()["error"]["code"]


def all_back(admission, places):
    return admission.house.free == places and not admission.slots.taken and not admission.closing


class Engine:
    """An upstream that counts how many it has at once, and how many it had."""

    def __init__(self, seconds=0.05, usage=None):
        self.now = self.most = self.total = 0
        self.seconds = seconds
        self.usage = usage

    async def __call__(self, request, answer):
        self.now += 1
        self.total += 1
        self.most = max(self.most, self.now)
        try:
            if not json.loads(request.body).get("stream"):
                await asyncio.sleep(self.seconds)
                await answer.whole(json.dumps({"choices": [], "usage": self.usage}).encode())
                return
            await answer.head()
            await answer.chunk(ROLE)
            await asyncio.sleep(self.seconds)
            await answer.chunk(token("Hi"))
            if self.usage:
                line = json.dumps({"choices": [], "usage": self.usage})
                await answer.chunk(f"data: {line}\n\n".encode())
            await answer.chunk(DONE)
            await answer.end()
        finally:
            self.now -= 1


async def crowd(port, count=CLIENTS, body=None, key=KEY_TEXT):
    given = chat() if body is None else body
    return await asyncio.gather(
        *(ask(port, "POST", CHAT, given, key=key, seconds=60) for _ in range(count))
    )


async def test_requests_a_minute_never_one_over(limited, upstream, admissions):
    upstream.script = engine = Engine()
    port = limited({"requests_per_minute": 30})
    responses = await crowd(port)
    good = [r for r in responses if r.status == 200]
    refused = [r for r in responses if r.status == 429]
    assert (len(good), len(refused), engine.total) == (30, CLIENTS - 30, 30)
    for response in refused:
        assert code_of(response) == (429, "rate_limit_exceeded")
        assert response.json()["error"]["type"] == "requests"
        assert 1 <= int(response.headers["retry-after"]) <= 60
        assert response.headers["x-ratelimit-remaining-requests"] == "0"
    for response in responses:
        assert response.headers["x-ratelimit-limit-requests"] == "30"
        assert re.fullmatch(r"\d+ms|\d+s|\d+m\d+s", response.headers["x-ratelimit-reset-requests"])
    left = sorted(int(r.headers["x-ratelimit-remaining-requests"]) for r in good)
    assert left == list(range(30))
    await eventually(lambda: all_back(admissions[0], 1024))


async def test_concurrent_streams_never_one_over(limited, upstream, admissions):
    upstream.script = engine = Engine(0.3)
    port = limited({"concurrent_streams": 7})
    responses = await crowd(port)
    assert engine.most == 7
    refused = [r for r in responses if r.status == 429]
    assert len(refused) == CLIENTS - engine.total
    assert {code_of(r) for r in refused} == {(429, "too_many_streams")}
    assert {r.headers["retry-after"] for r in refused} == {"1"}
    await eventually(lambda: all_back(admissions[0], 1024))
    assert (await ask(port, "POST", CHAT, chat(), key=KEY_TEXT)).status == 200


async def test_tokens_a_minute_never_one_over(limited, upstream, admissions):
    # Long enough for all to come before the first ends, and gives back what it did not use.
    upstream.script = engine = Engine(4)
    port = limited({"tokens_per_minute": 5000})
    body = chat(max_tokens=400)
    each = len(body) // 4 + 1 + 400
    responses = await crowd(port, body=body)
    good = [r for r in responses if r.status == 200]
    assert {r.status for r in responses} == {200, 429}, responses[0]
    assert len(good) == engine.total == 5000 // each
    for response in responses:
        if response.status == 429:
            assert response.json()["error"]["type"] == "tokens"
            assert int(response.headers["x-ratelimit-remaining-tokens"]) < each
            assert 1 <= int(response.headers["retry-after"]) <= 60


async def test_the_house_never_one_over_and_in_order(limited, upstream, admissions):
    upstream.script = engine = Engine(0.02)
    port = limited({}, house_streams=8, house_queue_length=CLIENTS)
    responses = await crowd(port)
    assert {r.status for r in responses} == {200}
    assert (engine.most, engine.total) == (8, CLIENTS)
    await eventually(lambda: all_back(admissions[0], 8))
    assert admissions[0].house.waiting == 0


async def test_a_full_queue_says_so_at_once_and_a_long_one_in_time(limited, upstream, admissions):
    upstream.script = Engine(1.5)
    port = limited({}, house_streams=2, house_queue_length=3, house_wait_seconds=0.4)
    began = time.monotonic()
    responses = await crowd(port, 20, chat(False))
    codes = [r.status for r in responses]
    assert (codes.count(200), codes.count(503)) == (2, 18)
    assert time.monotonic() - began < 10
    told = {r.json()["error"]["message"] for r in responses if r.status == 503}
    assert len(told) == 2, "the queue is full; no place came in time"
    assert {r.headers["retry-after"] for r in responses if r.status == 503} == {"10"}
    await eventually(lambda: all_back(admissions[0], 2))


async def test_who_waits_gets_heartbeats_and_then_an_honest_end(limited, upstream, admissions):
    upstream.script = Engine(3)
    port = limited({}, house_streams=1, house_wait_seconds=0.5, heartbeat_seconds=0.1)
    first = asyncio.create_task(ask(port, "POST", CHAT, chat(), key=KEY_TEXT))
    await eventually(lambda: admissions[0].house.free == 0)
    response = await ask(port, "POST", CHAT, chat(), key=KEY_TEXT)
    assert response.status == 200
    assert response.body.count(b": heartbeat") >= 3
    assert error_of(response.body)["code"] == "server_busy"
    assert (await first).status == 200
    await eventually(lambda: all_back(admissions[0], 1))


async def test_who_leaves_the_queue_frees_the_place_in_it(limited, upstream, admissions):
    upstream.script = engine = Engine(0.8)
    port = limited({"concurrent_streams": 2}, house_streams=1, house_queue_length=1)
    first = asyncio.create_task(ask(port, "POST", CHAT, chat(), key=KEY_TEXT))
    await eventually(lambda: engine.now == 1)
    leaving = await Connection.open(port)
    await leaving.send("POST", CHAT, chat(), key=KEY_TEXT)
    await eventually(lambda: admissions[0].house.waiting == 1)
    assert code_of(await ask(port, "POST", CHAT, chat(), key=KEY_TEXT)) == (429, "too_many_streams")
    leaving.close()
    await eventually(lambda: admissions[0].house.waiting == 0)
    await eventually(lambda: admissions[0].slots.taken["bob"] == 1)
    second = await ask(port, "POST", CHAT, chat(), key=KEY_TEXT)
    assert ((await first).status, second.status, engine.total) == (200, 200, 2)
    await eventually(lambda: all_back(admissions[0], 1))


async def stall(request, answer):
    await answer.head()
    await answer.chunk(token("one"))
    await request.gone.wait()


async def cut(request, answer):
    await answer.head()
    await answer.chunk(token("one"))
    answer.reset()


async def refuse(request, answer):
    await answer.whole(b'{"error": {"message": "no"}}', status=400)


async def silence(request, answer):
    answer.reset()


async def test_everything_comes_back_however_it_ends(limited, upstream, admissions, monkeypatch):
    limits = {"concurrent_streams": 50, "tokens_per_minute": 10_000_000}
    port = limited(limits, house_streams=20, idle_timeout_seconds=0.5)
    for script in (cut, refuse, silence, stall):
        upstream.script = script
        responses = await crowd(port, 40)
        assert {r.status for r in responses} <= {200, 400, 502, 503, 504}
        await eventually(lambda: all_back(admissions[0], 20))
    upstream.script = stall
    connections = [await Connection.open(port) for _ in range(45)]
    for connection in connections:
        await connection.send("POST", CHAT, chat(), key=KEY_TEXT)
    await eventually(lambda: admissions[0].house.free == 0)
    for connection in connections:
        connection.close()
    await eventually(lambda: all_back(admissions[0], 20), 10)

    def crash(*_, **__):
        raise KeyError

    monkeypatch.setattr("backend.relay.EventSplitter.feed", crash)
    upstream.script = Engine(0)
    for response in await crowd(port, 40):
        assert response.status == 500 or error_of(response.body)["message"]
    await eventually(lambda: all_back(admissions[0], 20))
    monkeypatch.setattr("backend.services.Relay", crash)
    await crowd(port, 5)
    await eventually(lambda: all_back(admissions[0], 20))


async def test_tokens_are_settled_by_the_engines_own_count(limited, upstream, admissions):
    usage = {"prompt_tokens": 10, "completion_tokens": 15, "total_tokens": 25}
    upstream.script = Engine(0, usage)
    port = limited({"tokens_per_minute": 1000})
    for number, stream in enumerate((True, False, True)):
        body = chat(stream, max_tokens=300)
        response = await ask(port, "POST", CHAT, body, key=KEY_TEXT)
        assert response.status == 200
        assert response.headers["x-ratelimit-limit-tokens"] == "1000"
        reserved = len(body) // 4 + 1 + 300
        left = 1000 - 25 * number - reserved
        assert response.headers["x-ratelimit-remaining-tokens"] == str(left)
        await eventually(lambda: all_back(admissions[0], 1024))
    if stream:
        assert "[DONE]" in events(response.body)


async def test_what_can_never_fit_says_so(limited, upstream):
    port = limited({"tokens_per_minute": 1000})
    response = await ask(port, "POST", CHAT, chat(max_tokens=2000), key=KEY_TEXT)
    assert code_of(response) == (429, "rate_limit_exceeded")
    assert "Request too large" in response.json()["error"]["message"]
    assert response.headers["x-should-retry"] == "false"
    assert (await ask(port, "POST", CHAT, chat(), key=KEY_TEXT)).status == 200, "it is set aside"


async def test_without_limits_there_are_no_headers_of_them(port):
    response = await ask(port, "POST", CHAT, chat())
    assert not [name for name in response.headers if name.startswith("x-ratelimit")]


# The parts, without a server ------------------------------------------------------------------


def settings(**changes):
    given = {
        "upstream_url": "http://127.0.0.1:1", "upstream_key_credential": "k",
        "keys_file": "/k", "models": [{"id": "m"}], **changes,
    }  # fmt: skip
    return Settings.model_validate_json(json.dumps(given))


def key(**limits):
    return Key("bob", b"x" * 32, limits=Limits(**limits))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (-1, "0ms"), (0.0171, "18ms"), (1, "1s"), (59.2, "1m0s"), (360, "6m0s")],
)
def test_durations_as_openai_writes_them(seconds, text):
    assert duration(seconds) == text


async def test_requests_of_any_sixty_seconds(monkeypatch):
    rate = RequestRate(open_store("memory://"))
    real, shift = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + shift[0])
    for shift[0] in (0, 30, 45):
        assert (await rate.take("bob", 3))[0]
    for shift[0] in (46, 59):
        taken, stand = await rate.take("bob", 3)
        assert (taken, stand.remaining) == (False, 0)
        assert stand.reset - time.time() == pytest.approx(60 - shift[0], abs=0.5)
    taken = []
    for shift[0] in (61, 62, 89, 91, 92, 106):
        taken.append((await rate.take("bob", 3))[0])
    assert taken == [True, False, False, True, False, True]


def test_how_the_store_in_memory_sweeps_is_still_ours_to_say():
    """Else each request costs a thread for every key: look for the new name."""
    assert hasattr(MemoryStorage, "_MemoryStorage__schedule_expiry")


async def test_keys_that_are_gone_leave_no_memory(monkeypatch):
    store = open_store("memory://")
    rate, tokens = RequestRate(store), TokenRate(store)
    for number in range(100):
        await rate.take(f"key{number}", 3)
        await tokens.reserve(f"key{number}", 3, 1)
    real, monotonic = time.time, time.monotonic
    monkeypatch.setattr(time, "time", lambda: real() + 130)
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + 130)
    await rate.take("bob", 3)
    await eventually(lambda: len(store.events) + len(store.storage) <= 1)


async def left(tokens, limit):
    return (await tokens.reserve("bob", limit, 0))[1].remaining


async def test_settling():
    tokens = TokenRate(open_store("memory://"))
    first, _ = await tokens.reserve("bob", 1000, 600)
    assert (await tokens.reserve("bob", 1000, 401))[0] is None
    assert await left(tokens, 1000) == 400, "what was refused took nothing"
    await tokens.settle(first, 100)
    assert await left(tokens, 1000) == 900
    second, _ = await tokens.reserve("bob", 1000, 100)
    await tokens.settle(second, 500)
    assert await left(tokens, 1000) == 400, "100 and 500"
    third, _ = await tokens.reserve("bob", 1000, 400)
    await tokens.settle(third, 1400)
    assert await left(tokens, 1000) == 0
    assert (await tokens.reserve("bob", 1000, 1))[0] is None


async def test_what_comes_back_after_its_minute_is_nobodys(monkeypatch):
    tokens = TokenRate(open_store("memory://"))
    old, _ = await tokens.reserve("bob", 1000, 600)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 61)
    assert await left(tokens, 1000) == 1000
    await tokens.reserve("bob", 1000, 200)
    await tokens.settle(old, 100)
    assert await left(tokens, 1000) == 800, "a new minute has nothing to give back"
    await tokens.settle(old, 700)
    assert await left(tokens, 1000) == 700, "what is owed is owed"


async def test_a_refusal_gives_back_what_was_taken_before_it():
    admission = Admission(settings(), Metrics())
    bob = key(requests_per_minute=1, tokens_per_minute=1000, concurrent_streams=5)
    permit = await admission.admit(bob, Ask(40, 100, True))
    for _ in range(20):
        with pytest.raises(ApiError) as refused:
            await admission.admit(bob, Ask(40, 100, True))
        assert refused.value.status == 429
    assert admission.slots.taken == {"bob": 1}
    assert await left(admission.tokens, 1000) == 1000 - 111
    await permit.close(Usage(1, 2))
    await permit.close(Usage(1, 2))
    assert await left(admission.tokens, 1000) == 997
    assert all_back(admission, 1024)


async def test_a_permit_is_closed_whole_by_one_who_is_cancelled():
    admission = Admission(settings(house_streams=1), Metrics())
    permit = await admission.admit(key(concurrent_streams=1), Ask(1, None, True))
    await permit.place()
    closing = asyncio.create_task(permit.close(None))
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.gather(closing, return_exceptions=True)
    await eventually(lambda: all_back(admission, 1))


async def test_the_queue_is_fair_and_loses_no_place():
    house = House(1, 1000, 60)
    await house.enter()
    order = []

    async def come(number):
        await house.enter()
        order.append(number)
        await asyncio.sleep(0)
        house.leave()

    waiting = [asyncio.create_task(come(number)) for number in range(100)]
    await asyncio.sleep(0)
    for number in range(0, 100, 3):
        waiting[number].cancel()
    house.leave()
    # Cancelled in the very step in which its turn comes, too.
    waiting[1].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert order == [n for n in range(100) if n % 3 and n != 1]
    assert (house.free, house.waiting) == (1, 0)


async def test_a_store_that_fails_stops_nobody(caplog):
    admission = Admission(settings(store_url="redis://127.0.0.1:1"), Metrics())
    bob = key(requests_per_minute=1, tokens_per_minute=10, concurrent_streams=1)
    for _ in range(3):
        permit = await admission.admit(bob, Ask(4, 1, True))
        await permit.place()
        await permit.close(Usage(1, 1))
    assert admission.house.free == 1024
    assert len([r for r in caplog.records if "store of limits fails" in r.message]) == 1
    await admission.close()


# Several backends that share a store ----------------------------------------------------------


async def test_two_backends_share_every_limit(store):
    both = [Admission(settings(store_url=store.url), Metrics()) for _ in range(2)]

    async def come(number, who):
        try:
            return await both[number % 2].admit(who, Ask(40, 89, True))
        except ApiError as error:
            return None if error.status == 429 else error

    for limits, most in (
        ({"requests_per_minute": 13}, 13),
        ({"concurrent_streams": 13}, 13),
        ({"tokens_per_minute": 1300}, 13),
    ):
        (what,) = limits
        who = Key(what, b"x" * 32, limits=Limits(**limits))
        permits = await asyncio.gather(*(come(number, who) for number in range(CLIENTS)))
        let_in = [permit for permit in permits if permit]
        assert len(let_in) == most, what
        await asyncio.gather(*(permit.close(None) for permit in let_in))
        if what == "requests_per_minute":
            continue
        again = [await come(number, who) for number in range(most + 1)]
        assert [bool(permit) for permit in again] == [True] * most + [False], "all of it came back"
    for admission in both:
        await admission.close()


async def test_what_a_dead_backend_held_is_free_again(store, monkeypatch):
    monkeypatch.setattr("backend.slots._LEASE_SECONDS", 2)
    monkeypatch.setattr("backend.slots._RENEW_SECONDS", 0.5)
    dead, alive = (Admission(settings(store_url=store.url), Metrics()) for _ in range(2))
    bob = key(concurrent_streams=2)
    await dead.admit(bob, Ask(1, 1, True))
    held = await alive.admit(bob, Ask(1, 1, True))
    with pytest.raises(ApiError):
        await alive.admit(bob, Ask(1, 1, True))
    await dead.slots.close()
    await asyncio.sleep(3)
    taken = await alive.admit(bob, Ask(1, 1, True))
    with pytest.raises(ApiError):
        await alive.admit(bob, Ask(1, 1, True))
    await held.close(None)
    await taken.close(None)
    await alive.close()
