"""LiteLLM itself with our hooks, configured as the role does it, and a scripted engine behind it.

LiteLLM is not among the development requirements (it would pin half of them elsewhere). Name a
venv made from requirements/litellm.txt in MILLRACE_LITELLM to run these tests:

    MILLRACE_LITELLM=/opt/millrace/litellm/current/venv pytest tests/app/test_gateway_live.py
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from litellm_kit import VENV, running_litellm

pytestmark = pytest.mark.skipif(not VENV, reason="MILLRACE_LITELLM names no venv with LiteLLM")

ENGINE_KEY, GATEWAY_KEY = "engine-" + "e" * 32, "sk-" + "g" * 40
MODEL = "recital"
PATH = "/vllm/v1/chat/completions"


def free_port() -> int:
    """Return a port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@dataclass
class Engine:
    """A scripted engine: does what the request's last message says, and notes who left."""

    port: int
    left: list[float] = field(default_factory=list)
    asked: int = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer one completion."""
        self.asked += 1
        assert request.headers["Authorization"] == f"Bearer {ENGINE_KEY}"
        body = await request.json()
        script = body["messages"][-1]["content"]
        if script.isdigit():
            error = {"error": {"message": f"the engine says {script}", "code": int(script)}}
            return web.json_response(error, status=int(script), headers={"Retry-After": "1"})
        try:
            if script == "think":
                await asyncio.sleep(20)
            if not body.get("stream"):
                return web.json_response({"choices": [{"message": {"content": "plain"}}]})
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            for n in range(int(script.removeprefix("x"))):
                await response.write(b'data: {"choices": [{"delta": {"content": "%d"}}]}\n\n' % n)
                await asyncio.sleep(0.02)
            await response.write(b"data: [DONE]\n\n")
        except (asyncio.CancelledError, ConnectionError):
            self.left.append(time.monotonic())
            raise
        return response

    async def start(self) -> web.AppRunner:
        """Serve."""
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.answer)
        runner = web.AppRunner(app, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port).start()
        return runner


@pytest_asyncio.fixture
async def engines(ports: list[int]) -> AsyncIterator[list[Engine]]:
    """Start both engines."""
    found = [Engine(port) for port in ports[:2]]
    runners = [await engine.start() for engine in found]
    await asyncio.sleep(2.1)  # the one before may have left both resting
    yield found
    for runner in runners:
        await runner.cleanup()


@pytest.fixture(scope="module")
def ports() -> list[int]:
    """Reserve ports for two engines and the gateway."""
    return [free_port() for _ in range(3)]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, ports: list[int]) -> Iterator[Path]:
    """Run LiteLLM with the role's own template, rendered by Ansible; returns its log."""
    home = tmp_path_factory.mktemp("gateway")
    engines = {f"engine{n}": port for n, port in enumerate(ports[:2])}
    with running_litellm(
        home, ports[2], engines, model=MODEL, engine_key=ENGINE_KEY, key=GATEWAY_KEY
    ) as log:
        yield log


def printed(log: Path) -> str:
    """Return what LiteLLM has printed so far."""
    return log.read_text()


class Client:
    """Asks the gateway."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session, self.url = session, url

    async def ask(self, script: str, **more: Any) -> tuple[int, bytes, dict[str, str]]:
        """Ask and return status, body and headers."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": script}], **more}
        headers = {"Authorization": f"Bearer {GATEWAY_KEY}"}
        async with self.session.post(self.url, json=body, headers=headers) as answer:
            return answer.status, await answer.read(), dict(answer.headers)


@pytest_asyncio.fixture
async def client(gateway: Path, ports: list[int]) -> AsyncIterator[Client]:
    """Return a client of the gateway."""
    async with aiohttp.ClientSession() as session:
        yield Client(session, f"http://127.0.0.1:{ports[2]}{PATH}")


@pytest.mark.parametrize("stream", [True, False, None])
@pytest.mark.parametrize("status", [400, 404, 422, 429, 500, 503])
async def test_an_engines_refusal_passes_as_it_was(
    client: Client, engines: list[Engine], status: int, stream: bool | None
) -> None:
    more = {} if stream is None else {"stream": stream}
    got, body, headers = await client.ask(str(status), **more)
    assert got == status
    assert json.loads(body)["error"]["message"] == f"the engine says {status}"
    assert headers["Retry-After"] == "1"
    tries = sum(engine.asked for engine in engines)
    assert tries == (1 if status in (400, 404, 422) else 2)


async def test_plain_answers_and_streams(client: Client, engines: list[Engine]) -> None:
    for more in ({}, {"stream": False}):
        status, body, _ = await client.ask("hello", **more)
        assert (status, json.loads(body)["choices"][0]["message"]["content"]) == (200, "plain")
    status, body, _ = await client.ask("x5", stream=True)
    assert status == 200
    assert body.count(b"data: ") == 6
    assert body.endswith(b"data: [DONE]\n\n")


async def test_engines_that_all_rest_are_a_clear_503(client: Client, engines: list[Engine]) -> None:
    await client.ask("503", stream=True)
    status, body, headers = await client.ask("x1", stream=True)
    assert status == 503
    assert json.loads(body)["error"]["message"]
    assert int(headers["Retry-After"]) >= 1


async def test_no_engine_at_all_is_a_clear_503(client: Client) -> None:
    await asyncio.sleep(2.1)
    status, body, headers = await client.ask("x1", stream=True)
    assert status == 503
    assert json.loads(body)["error"]["code"] == "engine_unreachable"
    assert int(headers["Retry-After"]) >= 1


@pytest.mark.parametrize(("script", "stream"), [("think", True), ("think", False), ("x1000", True)])
async def test_who_leaves_stops_the_engine_and_nobody_else(
    client: Client, engines: list[Engine], gateway: Path, script: str, stream: bool
) -> None:
    before = printed(gateway)
    others = [asyncio.create_task(client.ask("x100", stream=True)) for _ in range(4)]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.ask(script, stream=stream), 0.7)
    gone = time.monotonic()
    while not any(engine.left for engine in engines):
        assert time.monotonic() - gone < 2, "the engine still works for nobody"
        await asyncio.sleep(0.02)
    for status, body, _ in await asyncio.gather(*others):
        assert (status, body.count(b"data: ")) == (200, 101)
    assert sum(len(engine.left) for engine in engines) == 1
    # A leave is no failure of the engine: both are asked on, and the log says nothing.
    asked = [engine.asked for engine in engines]
    for _ in range(16):
        assert (await client.ask("x1", stream=True))[0] == 200
    assert all(e.asked > n for e, n in zip(engines, asked, strict=True))
    assert printed(gateway)[len(before) :] == ""
