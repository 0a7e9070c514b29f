"""A native EventSource sends no key: what lets it in, and how little that opens."""

from __future__ import annotations

import asyncio

from backend.streams import tickets
from backend.streams.tickets import COOKIE, Passes
from backend_client import ask, becomes
from backend_upstream import token
from conftest import write_keys
from streams_client import STREAMS, Reader, begin


async def steady(request, answer):
    await answer.head()
    number = 0
    while not request.gone.is_set():
        await answer.chunk(token(str(number)))
        number += 1
        await asyncio.sleep(0.02)


def with_ticket(made):
    return f"{made['events']}?ticket={made['ticket']}"


def cookie_of(reader):
    pair, *flags = reader.connection.headers["set-cookie"].split("; ")
    return pair, flags


async def test_a_ticket_lets_in_once_and_its_cookie_from_then_on(port, upstream, logs):
    upstream.script = steady
    made = await begin(port)
    reader = await Reader.open(port, with_ticket(made), key=None)
    assert reader.status == 200
    await reader.until(3)
    reader.close()
    pair, flags = cookie_of(reader)
    assert pair.startswith(f"{COOKIE}=")
    assert f"Path={STREAMS}/{made['id']}" in flags
    assert {"HttpOnly", "Secure", "SameSite=Strict"} <= set(flags)
    assert not any(flag.startswith("Domain") for flag in flags)
    used = await Reader.open(port, with_ticket(made), key=None)
    assert used.status == 401
    # As an EventSource reconnects: the same address, its last id, and the cookie.
    again = await Reader.open(
        port,
        with_ticket(made),
        after=3,
        key=None,
        headers={"Cookie": f'a={{"x":1}}; odd; {pair}; c=d'},
    )
    assert again.status == 200
    assert "set-cookie" not in again.connection.headers
    await again.until(1)
    assert again.ids[0] == 4
    logged = "".join(logs.lines)
    assert made["ticket"] not in logged
    assert pair.partition("=")[2] not in logged


async def test_neither_opens_anything_else(port, upstream):
    upstream.script = steady
    made, other = await begin(port), await begin(port)
    for stream in (other, {"events": STREAMS, "ticket": made["ticket"]}):
        path = f"{stream['events']}?ticket={made['ticket']}"
        assert (await ask(port, "GET", path, key=None)).status == 401
    for method, path in (
        ("GET", ""),
        ("POST", "/stop"),
        ("POST", "/ticket"),
        ("POST", "/events"),
        ("GET", "/events/"),
    ):
        address = f"{STREAMS}/{made['id']}{path}?ticket={made['ticket']}"
        assert (await ask(port, method, address, key=None)).status == 401
    # None of that used it up.
    reader = await Reader.open(port, with_ticket(made), key=None)
    assert reader.status == 200
    cookie = {"Cookie": cookie_of(reader)[0]}
    for method, path in (
        ("GET", other["events"]),
        ("GET", f"{STREAMS}/{made['id']}"),
        ("POST", f"{STREAMS}/{made['id']}/stop"),
        ("GET", "/v1/models"),
    ):
        assert (await ask(port, method, path, key=None, headers=cookie)).status == 401
    poll = f"{STREAMS}/{made['id']}/poll?after=0"
    assert (await ask(port, "GET", poll, key=None, headers=cookie)).status == 200


async def test_further_tickets_are_given_to_the_key(port, upstream):
    upstream.script = steady
    made = await begin(port)
    response = await ask(port, "POST", f"{STREAMS}/{made['id']}/ticket")
    given = response.json()
    assert response.status == 200
    assert given["ticket_expires_in"] == 60
    reader = await Reader.open(port, f"{made['events']}?ticket={given['ticket']}", key=None)
    assert reader.status == 200
    # A key that is sent decides alone: a good one does not use the ticket up.
    assert (await Reader.open(port, with_ticket(made))).status == 200
    assert (await Reader.open(port, with_ticket(made), key="wrong")).status == 401
    assert (await Reader.open(port, with_ticket(made), key=None)).status == 200


async def test_a_revoked_key_takes_its_tickets_and_cookies_with_it(port, upstream, files):
    upstream.script = steady
    made = await begin(port)
    reader = await Reader.open(port, with_ticket(made), key=None)
    cookie = {"Cookie": cookie_of(reader)[0]}
    assert (await Reader.open(port, made["events"], key=None, headers=cookie)).status == 200
    write_keys(files.keys)
    await becomes(port, "/v1/models", 401)
    response = await ask(port, "GET", made["events"], key=None, headers=cookie)
    assert response.status == 401


def test_tickets_and_cookies_end_in_time_and_are_bounded(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(tickets.time, "monotonic", lambda: now)
    passes = Passes("s")
    kept, late = passes.ticket("k"), passes.ticket("k")
    now += 59
    key_id, set_cookie = passes.redeem(kept) or ("", "")
    assert key_id == "k"
    value = set_cookie.partition(";")[0].partition("=")[2]
    now += 2
    assert passes.redeem(late) is None
    assert passes.opened_by(value) == "k"
    now += 90_000
    assert passes.opened_by(value) is None
    many = [passes.ticket("k") for _ in range(1000)]
    assert passes.redeem(many[-1]) is not None
    assert passes.redeem(many[0]) is None
    assert len(passes._tickets) <= 128
