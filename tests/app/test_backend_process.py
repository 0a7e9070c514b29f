"""The backend as a process: started as systemd starts it, stopped as systemd stops it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time

import pytest
from backend.__main__ import EX_CONFIG, main
from backend.settings import ConfigError, load_settings, read_credential
from backend_client import KEY, PROMPT, Connection, ask, becomes, chat, error_of
from backend_upstream import DONE, send_pieces, token
from conftest import APP, UPSTREAM_KEY

CHAT = "/v1/chat/completions"


async def up(backend):
    async with asyncio.timeout(20):
        return await ask(backend.port, "GET", "/healthz", key=None)


async def refused(port):
    try:
        (await Connection.open(port)).close()
    except ConnectionRefusedError:
        return True
    return False


async def test_stopping_lets_streams_finish_and_refuses_new_ones(start_process, upstream):
    pieces = [*(token(str(number)) for number in range(30)), DONE]
    upstream.script = send_pieces(pieces, pause=0.05)
    backend = start_process(drain_seconds=10)
    await up(backend)
    connection = await Connection.open(backend.port)
    await connection.send("POST", CHAT, chat())
    await connection.head()
    seen = await connection.until(token("3"))
    backend.terminate()
    await asyncio.sleep(0.4)
    assert await refused(backend.port)
    assert backend.process.poll() is None
    body = seen + await connection.rest()
    assert body == b"".join(token(str(number)) for number in range(30)) + DONE
    await backend.wait(3)


async def test_what_outlives_the_drain_time_is_ended_honestly(start_process, upstream):
    async def endless(request, answer):
        await answer.head()
        while not request.gone.is_set():
            await answer.chunk(token("again"))
            await asyncio.sleep(0.02)

    async def never(request, answer):
        await request.gone.wait()

    async def script(request, answer):
        await (endless if json.loads(request.body)["stream"] else never)(request, answer)

    upstream.script = script
    backend = start_process(drain_seconds=1)
    await up(backend)
    stream, whole = await Connection.open(backend.port), await Connection.open(backend.port)
    await stream.send("POST", CHAT, chat())
    await whole.send("POST", CHAT, chat(stream=False))
    await stream.head()
    await stream.until(b"again")
    stopped = time.monotonic()
    backend.terminate()
    assert "restarting" in error_of(await stream.rest())["message"]
    assert await whole.head() == 503
    assert "retry-after" in whole.headers
    await backend.wait(5)
    assert 0.9 < time.monotonic() - stopped < 5
    ended = [line["ended"] for line in request_lines(backend) if line["path"] == CHAT]
    assert ended == ["server_stopping", "server_stopping"]
    assert "Exception in ASGI" not in backend.log


@pytest.mark.parametrize("reads_on", [True, False])
async def test_a_client_that_does_not_read_at_the_end(start_process, upstream, reads_on):
    async def flood(request, answer):
        await answer.head()
        while not request.gone.is_set():
            await answer.chunk(token("w" * 8000))

    upstream.script = flood
    backend = start_process(drain_seconds=0)
    await up(backend)
    connection = await Connection.open(backend.port, receive_buffer=8192)
    await connection.send("POST", CHAT, chat())
    await connection.head()
    await asyncio.sleep(0.3)
    backend.terminate()
    await asyncio.sleep(0.7)
    if reads_on:
        assert "restarting" in error_of(await connection.rest())["message"]
    await backend.wait(5)
    assert [line["ended"] for line in request_lines(backend)][-1] == "server_stopping"
    connection.close()


def request_lines(backend):
    lines = [json.loads(line) for line in backend.log.splitlines()]
    return [line for line in lines if line.get("event") == "request"]


async def test_the_log_is_json_without_prompts_answers_or_keys(start_process, upstream):
    answer_text = "vermilionade"

    async def script(request, answer):
        await answer.head()
        await answer.chunk(token(answer_text))
        await asyncio.sleep(0.05)
        await answer.raw(answer_text.encode() + b"\r\n")

    backend = start_process(heartbeat_seconds=0.5)
    await up(backend)
    await ask(backend.port, "POST", CHAT, chat())
    upstream.script = script
    connection = await Connection.open(backend.port)
    await connection.send("POST", CHAT, chat())
    await connection.head()
    error_of(await connection.rest())
    await ask(backend.port, "POST", CHAT, chat(), key="mr-wrong-key")
    backend.terminate()
    await backend.wait(5)
    endings = [(line["status"], line["ended"], line["key"]) for line in request_lines(backend)]
    assert endings == [
        (200, "complete", "alice"),
        (200, "upstream_error", "alice"),
        (401, "refused", None),
    ]
    for secret in (PROMPT, "zanzibarine", answer_text, KEY, "mr-wrong-key", UPSTREAM_KEY):
        assert secret not in backend.log


async def test_several_workers_on_one_inherited_socket(start_process, upstream):
    backend = start_process(workers=2, ready_probe_interval_seconds=0.3)
    await up(backend)
    whole = [ask(backend.port, "POST", CHAT, chat()) for _ in range(40)]
    assert {response.status for response in await asyncio.gather(*whole)} == {200}
    await becomes(backend.port, "/readyz", 200, key=None)
    backend.terminate()
    assert await backend.wait(10) == 0
    started = [line for line in backend.log.splitlines() if "Started server process" in line]
    assert len(started) == 2
    assert not [line for line in backend.log.splitlines() if not line.startswith("{")]


def run(files, config, *options):
    command = [sys.executable, "-m", "backend", "--config", str(config), *options]
    environment = {"PYTHONPATH": str(APP), "CREDENTIALS_DIRECTORY": str(files.folder)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20)


def test_a_bad_start_is_one_plain_message(files):
    result = run(files, files.write_config(1), "--fd", "0")
    assert result.returncode == EX_CONFIG
    assert "cannot read credential" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heartbeat_second": 3}, "heartbeat_second: Extra inputs"),
        ({"heartbeat_seconds": "15"}, "heartbeat_seconds: Input should be a valid number"),
        ({"heartbeat_seconds": 0}, "heartbeat_seconds: Input should be greater than 0"),
        ({"idle_timeout_seconds": True}, "idle_timeout_seconds: Input should be a valid number"),
        ({"models": []}, "models: List should have at least 1"),
        ({"models": [{"id": "a"}, {"id": "a"}]}, "models: Value error, two models"),
        ({"upstream_url": "ftp://x"}, "upstream_url: String should match"),
        ({"upstream_url": "http://user:pw@x/"}, "upstream_url: String should match"),
        ({"upstream_key_credential": "../etc/shadow"}, "upstream_key_credential: String should"),
        ({"max_body_bytes": 1.5}, "max_body_bytes: Input should be a valid integer"),
        ({"workers": 0}, "workers: Input should be greater"),
    ],
)
def test_bad_settings_are_named(files, capsys, monkeypatch, changes, message):
    monkeypatch.delenv("MILLRACE_BACKEND_CONFIG", raising=False)
    monkeypatch.setenv("MILLRACE_BACKEND_CONFIG", "restored afterwards")
    assert main(["--check", "--config", str(files.write_config(1, **changes))]) == EX_CONFIG
    assert message in capsys.readouterr().err


def test_good_settings_pass_the_check(files, monkeypatch):
    monkeypatch.setenv("MILLRACE_BACKEND_CONFIG", "restored afterwards")
    assert main(["--check", "--config", str(files.write_config(1))]) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot read"), (b"", "Invalid JSON"), (b"{}", "upstream_url: Field required")],
)
def test_a_bad_settings_file_is_named(tmp_path, content, message):
    path = tmp_path / "c.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_settings(path)


def test_settings_are_frozen(files):
    settings = load_settings(files.write_config(1, upstream_url="http://127.0.0.1:4000/vllm/"))
    assert settings.upstream_url == "http://127.0.0.1:4000/vllm"
    with pytest.raises(ValueError, match="frozen"):
        settings.workers = 2


@pytest.mark.parametrize("content", [b"", b"\n", b"two words\n", b"a\nb\n", b"\xff\xfe"])
def test_a_bad_credential_is_named_but_not_shown(files, content):
    (files.folder / "credentials" / "odd").write_bytes(content)
    with pytest.raises(ConfigError, match="odd") as raised:
        read_credential("odd")
    assert "two words" not in str(raised.value)
