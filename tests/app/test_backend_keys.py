"""What a key may do, for how long, and the two files they come from."""

from __future__ import annotations

import asyncio
import time

import pytest
from backend.key_files import KeyFiles
from backend.keys import KeyRing
from backend_client import KEY, ask, becomes, chat
from conftest import key_entry, write_keys

CHAT = "/v1/chat/completions"
MODELS = [{"id": "tiny"}, {"id": "org/big"}]


def previous(key, expires):
    return {"sha256": key_entry("", key)["sha256"], "expires": expires}


def code_of(response):
    return response.status, response.json()["error"]["code"]


async def test_an_expired_key_says_so_and_not_that_it_is_wrong(port, files):
    end = int(time.time()) + 2
    write_keys(files.keys, key_entry("carol", "mr-carol", expires=end), alice=KEY)
    await becomes(port, "/v1/models", 200, key="mr-carol", seconds=1.5)
    response = await becomes(port, "/v1/models", 401, key="mr-carol", seconds=4)
    assert time.time() >= end
    assert code_of(response) == (401, "key_expired")
    assert response.headers["www-authenticate"] == 'Bearer error="invalid_token"'


async def test_a_rotated_key_has_two_texts_for_a_while(port, files):
    end = int(time.time()) + 2
    write_keys(files.keys, key_entry("alice", "mr-new", previous=previous(KEY, end)))
    await becomes(port, "/v1/models", 200, key="mr-new", seconds=1.5)
    assert (await ask(port, "GET", "/v1/models")).status == 200
    response = await becomes(port, "/v1/models", 401, seconds=4)
    assert code_of(response) == (401, "key_expired")
    assert (await ask(port, "GET", "/v1/models", key="mr-new")).status == 200


async def test_a_change_is_seen_within_a_second(port, files):
    for _ in range(3):
        write_keys(files.keys)
        await becomes(port, "/v1/models", 401, seconds=1)
        write_keys(files.keys, alice=KEY)
        await becomes(port, "/v1/models", 200, seconds=1)


async def test_only_the_models_of_the_key(start_backend, files, upstream):
    write_keys(files.keys, key_entry("bob", "mr-bob", models=["tiny"]), alice=KEY)
    port = start_backend(models=MODELS).port

    async def listed(key):
        models = (await ask(port, "GET", "/v1/models", key=key)).json()["data"]
        return [model["id"] for model in models]

    assert await listed("mr-bob") == ["tiny"]
    assert await listed(KEY) == ["tiny", "org/big"]
    response = await ask(port, "POST", CHAT, chat(model="org/big"), key="mr-bob")
    assert code_of(response) == (403, "model_not_allowed")
    assert response.json()["error"]["param"] == "model"
    assert not upstream.received
    assert (await ask(port, "POST", CHAT, chat(), key="mr-bob")).status == 200
    assert code_of(await ask(port, "POST", CHAT, chat(model="x"), key="mr-bob")) == (
        404,
        "model_not_found",
    )


async def test_keys_of_both_files_count(port, files):
    write_keys(files.issued_keys, bob="mr-bob")
    await becomes(port, "/v1/models", 200, key="mr-bob", seconds=1)
    assert (await ask(port, "GET", "/v1/models")).status == 200
    files.issued_keys.unlink()
    await becomes(port, "/v1/models", 401, key="mr-bob", seconds=1)
    assert (await ask(port, "GET", "/v1/models")).status == 200


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (key_entry("alice", "mr-other"), "the name alice is taken twice"),
        (key_entry("bob", KEY), "alice and bob have the same key"),
        (
            key_entry("bob", "x", previous=previous(KEY, 2**31)),
            "alice and bob have the same key",
        ),
    ],
)
async def test_a_name_or_a_text_that_is_taken_twice_is_refused(port, files, logs, entry, said):
    write_keys(files.issued_keys, entry)
    await asyncio.sleep(0.6)
    assert (await ask(port, "GET", "/v1/models")).status == 200
    assert [line for line in logs.lines if said in line and '"error"' in line]
    assert (await ask(port, "GET", "/v1/models", key="mr-other")).status == 401


def test_a_key_is_found_by_its_id(files):
    ring = KeyRing(KeyFiles(files.keys))
    key = ring.find(KEY)
    assert key is not None
    assert ring.by_id(key.id) == key
    for wrong in ("", key.id[:-2], key.id[:-1] + "g", "0" * 32, "é"):
        assert ring.by_id(wrong) is None
