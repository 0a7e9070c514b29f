"""Keys, request checks, and the shape of every error."""

from __future__ import annotations

import asyncio
import json

import pytest
from backend.apis import APIS
from backend_client import KEY, Connection, ask, becomes, chat
from backend_upstream import eventually
from conftest import write_keys

CHAT = "/v1/chat/completions"
ENTRY = b'{"name": "x", "sha256": "%b"}' % (b"0" * 64)


def error(response, status):
    assert response.status == status, response.body
    assert response.headers["content-type"] == "application/json"
    assert "x-request-id" in response.headers
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert isinstance(body["error"]["message"], str)
    return body["error"]


async def test_alive_without_a_key(port):
    response = await ask(port, "GET", "/healthz", key=None)
    assert (response.status, response.json()) == (200, {"alive": True})


async def test_models(start_backend):
    backend = start_backend(models=[{"id": "tiny", "created": 7}, {"id": "org/big"}])
    response = await ask(backend.port, "GET", "/v1/models")
    assert response.json() == {
        "object": "list",
        "data": [
            {"id": "tiny", "object": "model", "created": 7, "owned_by": "millrace"},
            {"id": "org/big", "object": "model", "created": 0, "owned_by": "millrace"},
        ],
    }


@pytest.mark.parametrize(
    "path", ["/v1/models", CHAT, "/openapi.json", "/docs", "/nowhere", "/healthz/", "//healthz"]
)
async def test_everything_else_needs_a_key(port, upstream, path):
    response = await ask(port, "POST" if path == CHAT else "GET", path, chat(), key=None)
    assert error(response, 401)["code"] == "missing_api_key"
    assert response.headers["www-authenticate"] == "Bearer"
    assert not upstream.received


@pytest.mark.parametrize(
    "header",
    [
        "Bearer wrong",
        f"Bearer {KEY[:-1]}",
        f"Bearer {KEY}x",
        f"Basic {KEY}",
        KEY,
        "Bearer",
        "Bearer ",
        "Bearer " + "x" * 5000,
        f"Bearer {KEY}, Bearer {KEY}",
        "Bearer \xff\xfe",
    ],
)
async def test_a_wrong_key(port, upstream, logs, header):
    connection = await Connection.open(port)
    request = f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: {header}\r\n\r\n"
    await asyncio.get_running_loop().sock_sendall(connection.sock, request.encode("latin-1"))
    assert await connection.head() == 401
    assert json.loads(await connection.rest())["error"]["code"] == "invalid_api_key"
    assert connection.headers["www-authenticate"].startswith("Bearer ")
    assert KEY not in "".join(logs.lines)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_a_good_key(port, logs, scheme):
    headers = {"Authorization": f"{scheme} {KEY}"}
    assert (await ask(port, "GET", "/v1/models", key=None, headers=headers)).status == 200
    assert (await logs.next_request())["key"] == "alice"


async def test_two_authorization_headers_are_refused(port):
    headers = {"authorization": f"Bearer {KEY}"}
    assert (await ask(port, "GET", "/v1/models", headers=headers)).status == 401


async def test_keys_come_and_go_without_a_restart(port, files):
    write_keys(files.keys, alice=KEY, bob="mr-bob")
    await becomes(port, "/v1/models", 200, key="mr-bob", seconds=3)
    write_keys(files.keys, bob="mr-bob")
    await becomes(port, "/v1/models", 401, key=KEY, seconds=3)
    assert (await ask(port, "GET", "/v1/models", key="mr-bob")).status == 200


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"{",
        b"[]",
        b'{"version": 2, "keys": [{"name": "x"}]}',
        b'{"version": 2, "keys": [{"name": "x", "sha256": "abc"}]}',
        b'{"version": 2, "keys": [{"name": "x\\n", "sha256": "%b"}]}' % (b"0" * 64),
        b'{"version": 2, "keys": [{"name": "x", "sha256": "%b", "expires": 1}]}' % (b"0" * 64),
        b'{"version": 2, "keys": [{"name": "x", "sha256": "%b", "new": 1}]}' % (b"0" * 64),
        b'{"version": 2, "keys": [%b, %b]}' % ((ENTRY,) * 2),
        b'{"version": 3, "keys": [%b]}' % ENTRY,
        b'{"keys": [%b]}' % ENTRY,
        None,
    ],
)
async def test_a_broken_keys_file_leaves_the_last_good_one(port, files, logs, monkeypatch, broken):
    monkeypatch.setattr("backend.keys._CHECK_SECONDS", 0.05)
    if broken is None:
        files.keys.unlink()
    else:
        files.keys.write_bytes(broken)
    for _ in range(4):
        await asyncio.sleep(0.06)
        assert (await ask(port, "GET", "/v1/models")).status == 200
    complaints = [line for line in logs.lines if "keys file refused" in line]
    assert len(complaints) == 1
    assert json.loads(complaints[0])["level"] == "error"
    write_keys(files.keys, bob="mr-bob")
    await becomes(port, "/v1/models", 200, key="mr-bob", seconds=3)
    assert (await ask(port, "GET", "/v1/models")).status == 401


async def test_unknown_paths_and_methods(port):
    assert error(await ask(port, "GET", "/v1/nothing"), 404)["code"] == "unknown_url"
    response = await ask(port, "GET", CHAT)
    assert error(response, 405)["code"] == "method_not_allowed"
    assert response.headers["allow"] == "POST"
    assert error(await ask(port, "GET", "/v1/models/"), 404)
    for path in ("/docs", "/redoc"):
        assert error(await ask(port, "GET", path), 404)


async def test_the_openapi_document_is_there_for_those_with_a_key(port):
    document = (await ask(port, "GET", "/openapi.json")).json()
    assert set(document["paths"]) == {
        *(api.path for api in APIS),
        "/v1/models",
        "/v1/models/{model_id}",
        "/v1/session",
        "/v1/status",
        "/v1/streamcheck",
        "/v1/chat/streams",
        "/v1/chat/streams/{stream_id}",
        *(f"/v1/chat/streams/{{stream_id}}/{end}" for end in ("events", "poll", "stop", "ticket")),
    }


async def test_an_unknown_model(port, upstream):
    wrong = error(await ask(port, "POST", CHAT, chat(model="gpt-9")), 404)
    assert wrong["code"] == "model_not_found"
    assert "gpt-9" in wrong["message"]
    assert not upstream.received


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        b"[]",
        b"null",
        b'"x"',
        b"{",
        chat()[:-1],
        chat() + b"x",
        chat().decode().encode("utf-16"),
        b"\xef\xbb\xbf" + chat(),
        b'{"model": "tiny", "messages": [], "x": "\xff"}',
        b'{"model": "tiny", "x": ' + b"[" * 200_000,
        b'{"model": "tiny", "messages": [], "x": ' + b"9" * 5000 + b"}",
        b"{}",
        b'{"model": "tiny"}',
        b'{"messages": []}',
        b'{"model": 7, "messages": []}',
        b'{"model": "", "messages": []}',
        b'{"model": "tiny", "messages": "hi"}',
        b'{"model": "tiny", "messages": [], "stream": "true"}',
        b'{"model": "tiny", "messages": [], "stream": 1}',
    ],
)
async def test_a_bad_body(port, upstream, body):
    error(await ask(port, "POST", CHAT, body), 400)
    assert not upstream.received


async def test_null_is_as_good_as_nothing(port, upstream):
    body = b'{"model": "tiny", "messages": [], "stream": null, "new_in_2027": null}'
    assert (await ask(port, "POST", CHAT, body)).status == 200
    sent = json.loads((await upstream.next_request()).body)
    assert sent == {"model": "tiny", "messages": [], "stream": None}


async def test_the_body_limit(start_backend, upstream):
    port = start_backend(max_body_bytes=2000).port
    just = chat(user="")
    just = chat(user="x" * (2000 - len(just)))
    assert len(just) == 2000
    assert (await ask(port, "POST", CHAT, just)).status == 200
    over = chat(user="x" * 2000)
    assert error(await ask(port, "POST", CHAT, over), 413)["code"] == "request_too_large"
    assert len(upstream.received) == 1


async def test_the_body_limit_without_a_length(start_backend, upstream):
    port = start_backend(max_body_bytes=2000).port
    connection = await Connection.open(port)
    loop = asyncio.get_running_loop()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    await loop.sock_sendall(connection.sock, f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
    for _ in range(5):
        await loop.sock_sendall(connection.sock, b"200\r\n" + b"x" * 512 + b"\r\n")
    assert await asyncio.wait_for(connection.head(), 5) == 413
    assert not upstream.received


async def test_too_much_is_refused_before_it_is_sent(start_backend):
    port = start_backend(max_body_bytes=2000).port
    connection = await Connection.open(port)
    headers = {"Content-Length": "5000000", "Expect": "100-continue"}
    await connection.send("POST", CHAT, headers=headers)
    assert await asyncio.wait_for(connection.head(), 5) == 413


async def test_a_crash_in_a_route_is_a_500_in_the_same_shape(port, monkeypatch, logs):
    def crash(*_, **__):
        raise KeyError("zanzibarine")

    monkeypatch.setattr("backend.api_request.RequestParser.parse", crash)
    error(await ask(port, "POST", CHAT, chat()), 500)
    await eventually(lambda: any("KeyError" in line for line in logs.lines))
    text = "\n".join(logs.lines)
    assert "openai_routes.py" in text
    assert "zanzibarine" not in text
    assert logs.requests()[-1]["ended"] == "server_error"


async def test_the_log_line_of_a_request(port, upstream, logs):
    await ask(port, "POST", CHAT, chat(), headers={"X-Request-Id": "abcd-1234"})
    line = await logs.next_request()
    assert line.pop("duration_seconds") >= line.pop("first_token_seconds") > 0
    assert line.pop("first_byte_seconds") > 0
    assert line.pop("body_bytes") > 100
    # The upstream counted nothing: an estimate of the prompt, and the pieces that passed.
    assert line.pop("prompt_tokens") == len(chat()) // 4
    assert 1 <= line.pop("completion_tokens") <= 3
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info",
        "logger": "backend.request",
        "message": "request",
        "event": "request",
        "request_id": "abcd-1234",
        "key": "alice",
        "method": "POST",
        "path": CHAT,
        "model": "tiny",
        "stream": True,
        "status": 200,
        "heartbeats": 0,
        "resent": 0,
        "ended": "complete",
        "fault": None,
        "express": False,
    }
