"""Logging in with a browser: the cookie, who may send it, and how it ends."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from backend.doors import Doors, address_of
from backend.errors import ApiError
from backend_client import KEY, ask, chat
from conftest import SESSION_SECRET, key_entry, write_keys
from itsdangerous import URLSafeTimedSerializer

CHAT = "/v1/chat/completions"
SEEN_SECONDS = 0.6
OURS = {"Sec-Fetch-Site": "same-origin"}


def code_of(response):
    return response.status, response.json()["error"]["code"]


async def log_in(port, key=KEY, **headers):
    return await ask(
        port, "POST", "/v1/session", json.dumps({"key": key}).encode(), key=None, headers=headers
    )


async def cookie_of(port, key=KEY):
    response = await log_in(port, key)
    assert response.status == 204, response.body
    return response.headers["set-cookie"].partition(";")[0]


async def with_cookie(port, cookie, method="GET", path="/v1/session", body=b"", **headers):
    given = {"Cookie": cookie, **headers}
    return await ask(port, method, path, body, key=None, headers=given)


async def test_the_cookie_has_every_flag_and_not_the_key(port, logs):
    response = await log_in(port)
    assert response.status == 204
    assert response.headers["cache-control"] == "no-store"
    value, *flags = response.headers["set-cookie"].split("; ")
    assert value.startswith("__Host-millrace=")
    assert sorted(flags) == [
        "HttpOnly", "Max-Age=2592000", "Path=/", "SameSite=Strict", "Secure",
    ]  # fmt: skip
    assert KEY not in value
    assert key_entry("", KEY)["sha256"] not in value
    line = await logs.next_request()
    assert line["key"] == "alice"
    assert value.partition("=")[2] not in "".join(logs.lines)
    assert KEY not in "".join(logs.lines)


async def test_a_session_is_as_good_as_its_key(port, files, logs):
    more = {"expires": 2**31, "models": ["tiny"], "limits": {"concurrent_streams": 2}}
    write_keys(files.keys, key_entry("bob", "mr-bob", **more))
    await asyncio.sleep(SEEN_SECONDS)
    cookie = await cookie_of(port, "mr-bob")
    told = await with_cookie(port, f"a=1; {cookie}; b=2")
    assert told.json() == {
        "key": "bob", "expires": 2**31, "models": ["tiny"], "limits": {"concurrent_streams": 2},
    }  # fmt: skip
    response = await with_cookie(port, cookie, "POST", CHAT, chat(), **OURS)
    assert response.status == 200
    assert (await logs.next_request())["key"] == "bob"


async def test_with_a_bearer_key_it_tells_the_same(port):
    told = await ask(port, "GET", "/v1/session")
    assert told.json() == {"key": "alice", "expires": None, "models": None, "limits": {}}


async def test_logging_out_takes_the_cookie_away(port):
    cookie = await cookie_of(port)
    response = await with_cookie(port, cookie, "DELETE", **OURS)
    assert response.status == 204
    assert response.headers["set-cookie"].startswith("__Host-millrace=; Max-Age=0; Path=/; Secure")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"x", b"[]", b"{}", b'{"key": 1}', b'{"key": ""}', b'{"key": "a", "b": 1}',
    ],
)  # fmt: skip
async def test_a_malformed_login(port, body):
    response = await ask(port, "POST", "/v1/session", body, key=None)
    assert code_of(response) == (400, None)


async def test_a_login_with_a_wrong_or_expired_key(port, files):
    response = await log_in(port, "mr-wrong")
    assert code_of(response) == (401, "invalid_api_key")
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert "set-cookie" not in response.headers
    write_keys(files.keys, key_entry("alice", KEY, expires=1_000_000_000))
    await asyncio.sleep(SEEN_SECONDS)
    assert code_of(await log_in(port)) == (401, "key_expired")
    assert (await log_in(port, "x" * 5000)).status == 413


async def test_revoking_the_key_ends_the_session_at_once(port, files):
    cookie = await cookie_of(port)
    assert (await with_cookie(port, cookie)).status == 200
    write_keys(files.keys, bob="mr-bob")
    await asyncio.sleep(SEEN_SECONDS)
    response = await with_cookie(port, cookie)
    assert code_of(response) == (401, "session_expired")
    assert response.headers["www-authenticate"] == "Bearer"


async def test_a_key_that_expires_or_is_rotated_ends_the_session(port, files):
    cookie = await cookie_of(port)
    write_keys(files.keys, key_entry("alice", KEY, expires=1_000_000_000))
    await asyncio.sleep(SEEN_SECONDS)
    assert code_of(await with_cookie(port, cookie)) == (401, "session_expired")
    write_keys(files.keys, alice="mr-new")
    await asyncio.sleep(SEEN_SECONDS)
    assert code_of(await with_cookie(port, cookie)) == (401, "session_expired")


async def test_a_session_has_its_time(start_backend, monkeypatch):
    port = start_backend(session_seconds=60).port
    cookie = await cookie_of(port)
    assert (await with_cookie(port, cookie)).status == 200
    monkeypatch.setattr(
        "itsdangerous.TimestampSigner.get_timestamp", lambda _: int(time.time()) + 61
    )
    assert code_of(await with_cookie(port, cookie)) == (401, "session_expired")


async def test_a_cookie_that_was_tampered_with(port, files):
    cookie = await cookie_of(port)
    name, _, token = cookie.partition("=")
    payload, stamp, signature = token.split(".")
    forged = URLSafeTimedSerializer("guess" * 8, salt="millrace.session")
    other = URLSafeTimedSerializer(SESSION_SECRET, salt="another.purpose")
    key_id = key_entry("", KEY)["sha256"][:32]
    swapped = signature[:-1] + ("A" if signature[-1] != "A" else "Q")
    for wrong in (
        "", "x", "..", f"{payload}.{stamp}", f"{payload}.{stamp}.", f"{payload}.{stamp}.{swapped}",
        f"{payload}x.{stamp}.{signature}", token + "x" * 600, forged.dumps(key_id),
        other.dumps(key_id),
    ):  # fmt: skip
        response = await with_cookie(port, f"{name}={wrong}")
        assert code_of(response) == (401, "session_expired"), wrong
    assert (await with_cookie(port, f"{cookie}; {cookie}")).status == 401, "which one is it?"
    assert (await with_cookie(port, cookie)).status == 200
    right = URLSafeTimedSerializer(SESSION_SECRET, salt="millrace.session")
    for value in (1, None, [key_id], {"k": key_id}, key_id[:8]):
        assert (await with_cookie(port, f"{name}={right.dumps(value)}")).status == 401


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "https://x"},
        {"Sec-Fetch-Site": ""},
        {"Origin": "https://evil.example"},
        {"Origin": "https://x.evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
    ],
)
async def test_another_site_cannot_use_the_cookie(port, upstream, headers):
    cookie = await cookie_of(port)
    for method, path in (("POST", CHAT), ("DELETE", "/v1/session"), ("PUT", "/v1/nothing")):
        response = await with_cookie(port, cookie, method, path, chat(), **headers)
        assert code_of(response) == (403, "cross_site_request"), method
    assert not upstream.received
    assert (await with_cookie(port, cookie, **headers)).status == 200, "reading changes nothing"


@pytest.mark.parametrize("headers", [OURS, {"Origin": "https://x"}, {"Origin": "https://X"}])
async def test_our_own_page_can(port, headers):
    cookie = await cookie_of(port)
    assert (await with_cookie(port, cookie, "POST", CHAT, chat(), **headers)).status == 200


async def test_another_site_cannot_log_somebody_in(port):
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}):
        assert code_of(await log_in(port, **headers)) == (403, "cross_site_request")


async def test_a_bearer_key_needs_no_origin_and_decides_alone(port):
    cookie = await cookie_of(port)
    elsewhere = {"Cookie": cookie, "Sec-Fetch-Site": "cross-site"}
    assert (await ask(port, "POST", CHAT, chat(), headers=elsewhere)).status == 200
    response = await ask(port, "GET", "/v1/session", key="mr-wrong", headers={"Cookie": cookie})
    assert code_of(response) == (401, "invalid_api_key")


async def test_without_a_secret_a_session_ends_with_the_process(start_backend):
    first = start_backend(session_secret_credential=None).port
    second = start_backend(session_secret_credential=None).port
    cookie = await cookie_of(first)
    assert (await with_cookie(first, cookie)).status == 200
    assert (await with_cookie(second, cookie)).status == 401


async def test_with_one_every_instance_knows_it(start_backend):
    cookie = await cookie_of(start_backend().port)
    assert (await with_cookie(start_backend().port, cookie)).status == 200


# Wrong keys -----------------------------------------------------------------------------------


async def test_too_many_wrong_keys_are_not_even_looked_at(start_backend, monkeypatch):
    port = start_backend(wrong_keys_per_minute=3).port
    cookie = await cookie_of(port)
    for _ in range(2):
        assert (await ask(port, "GET", "/v1/models", key="mr-wrong")).status == 401
    assert (await log_in(port, "mr-wrong")).status == 401
    looked = []
    monkeypatch.setattr("backend.keys.KeyRing.find", lambda *given: looked.append(given))
    for response in (await ask(port, "GET", "/v1/models"), await log_in(port)):
        assert code_of(response) == (429, "too_many_wrong_keys")
        assert 1 <= int(response.headers["retry-after"]) <= 60
    assert not looked
    assert (await with_cookie(port, cookie)).status == 200, "a session shows no key"


def scope(client=None, *forwarded):
    return {"client": client, "headers": [(b"x-forwarded-for", value) for value in forwarded]}


@pytest.mark.parametrize(
    ("given", "address"),
    [
        (scope(("10.0.0.1", 1)), "10.0.0.1"),
        (scope(("10.0.0.1", 1), b"192.0.2.9"), "10.0.0.1"),
        (scope(None, b"192.0.2.9"), "192.0.2.9"),
        (scope(None, b"198.51.100.1, 192.0.2.9"), "192.0.2.9"),
        (scope(None, b"198.51.100.1", b"192.0.2.9"), "192.0.2.9"),
        (scope(None, b"2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64"),
        (scope(None, b"2001:db8:1:2:ffff::1"), "2001:db8:1:2::/64"),
        (scope(None, b"::ffff:192.0.2.9"), "192.0.2.9"),
        (scope(None, b"nonsense"), ""),
        (scope(None), ""),
    ],
)
def test_whose_address_it_is(given, address):
    assert address_of(given) == address


def test_an_address_is_heard_again_after_its_minute():
    now = [0.0]
    doors = Doors(2, clock=lambda: now[0])
    doors.wrong("a")
    now[0] = 59
    doors.wrong("a")
    with pytest.raises(ApiError) as refused:
        doors.check("a")
    assert refused.value.headers == {"retry-after": "1"}
    doors.check("b")
    now[0] = 60
    doors.check("a")
    doors.wrong("a")
    doors.check("a")


def test_ten_thousand_addresses_a_minute_take_bounded_memory():
    now = [0.0]
    doors = Doors(2, clock=lambda: now[0])
    for number in range(30_000):
        now[0] += 0.006
        doors.wrong(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
        assert len(doors) <= 4096
    # Who comes again and again is remembered among them.
    for _ in range(2):
        doors.wrong("192.0.2.9")
    for number in range(4000):
        doors.wrong(f"10.9.{number >> 8}.{number & 255}")
    with pytest.raises(ApiError):
        doors.check("192.0.2.9")
