"""The gateway's middleware alone, without LiteLLM: who leaves is not worked for any longer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from typing import Any

import httpx
import pytest
from gateway.hooks import CancelWhenLeft, NoCollector, engine_answered

Message = MutableMapping[str, Any]
LEFT: Message = {"type": "http.disconnect"}


def scope(path: str = "/vllm/v1/chat/completions", kind: str = "http") -> dict[str, Any]:
    """Return a request's scope."""
    return {"type": kind, "path": path, "method": "POST", "headers": []}


def body(text: bytes = b"", more: bool = False) -> Message:
    """Return a piece of a request's body."""
    return {"type": "http.request", "body": text, "more_body": more}


class Caller:
    """The server's side of a request: what comes in, and when the caller leaves."""

    def __init__(self, *messages: Message) -> None:
        self.incoming: asyncio.Queue[Message] = asyncio.Queue()
        for message in messages:
            self.incoming.put_nowait(message)
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        return await self.incoming.get()

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        # uvicorn says that the caller is gone once the answer is complete.
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.incoming.put_nowait(LEFT)

    def leave(self) -> None:
        self.incoming.put_nowait(LEFT)

    async def run(self, app: Any, **more: Any) -> None:
        """Run the middleware with `app` inside; a request that hangs fails the test."""
        await asyncio.wait_for(CancelWhenLeft(app)(scope(**more), self.receive, self.send), 5)


async def start(send: Any) -> None:
    """Send an answer's headers."""
    await send({"type": "http.response.start", "status": 200, "headers": []})


async def test_an_answer_goes_through_unchanged() -> None:
    caller = Caller(body(b"one", more=True), body(b"two"))
    seen: list[Message] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend([await receive(), await receive()])
        await start(send)
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await send({"type": "http.response.body", "body": b"b"})

    await caller.run(app)
    assert seen == [body(b"one", more=True), body(b"two")]
    assert [m.get("body") for m in caller.sent] == [None, b"a", b"b"]


def endless(started: asyncio.Event, ended: list[str], *, headers: bool) -> Any:
    """Return an app that works until it is stopped."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if headers:
            await start(send)
        started.set()
        try:
            while True:
                if headers:
                    await send({"type": "http.response.body", "body": b"x", "more_body": True})
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            ended.append("stopped")
            raise

    return app


@pytest.mark.parametrize("headers", [False, True], ids=["before headers", "in mid-stream"])
async def test_who_leaves_ends_the_work_at_once(headers: bool) -> None:
    caller, started, ended = Caller(body()), asyncio.Event(), []
    running = asyncio.create_task(caller.run(endless(started, ended, headers=headers)))
    await started.wait()
    assert not running.done()
    caller.leave()
    await asyncio.wait_for(running, 1)  # and no error reaches the server, which would log it
    assert ended == ["stopped"]


async def test_the_others_go_on() -> None:
    callers = [Caller(body()) for _ in range(3)]
    started = [asyncio.Event() for _ in callers]
    ended: list[list[str]] = [[] for _ in callers]
    running = [
        asyncio.create_task(caller.run(endless(s, e, headers=True)))
        for caller, s, e in zip(callers, started, ended, strict=True)
    ]
    await asyncio.gather(*(s.wait() for s in started))
    callers[1].leave()
    await asyncio.wait_for(running[1], 1)
    sent = len(callers[0].sent)
    await asyncio.sleep(0.1)
    assert len(callers[0].sent) > sent
    assert [task.done() for task in running] == [False, True, False]
    for caller in callers:
        caller.leave()
    await asyncio.gather(*running)
    assert ended == [["stopped"]] * 3


async def test_an_app_that_waits_for_the_caller_to_leave_hears_of_it() -> None:
    caller = Caller(body())
    heard: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        caller.leave()
        heard.append((await receive())["type"])

    await caller.run(app)
    assert heard in (["http.disconnect"], [])  # or it was stopped while it waited


async def test_what_follows_a_whole_answer_is_not_cut_short() -> None:
    """Giving the engine's connection back and counting, which LiteLLM does after the last byte."""
    caller, done = Caller(body()), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await start(send)
        await send({"type": "http.response.body", "body": b"all"})
        await asyncio.sleep(0.05)
        done.append("tidied up")

    await caller.run(app)
    assert done == ["tidied up"]


async def test_an_error_of_the_app_reaches_the_server() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise LookupError("no such engine")

    with pytest.raises(LookupError, match="no such engine"):
        await Caller(body()).run(app)


async def test_a_server_that_stops_stops_the_work() -> None:
    caller, started, ended = Caller(body()), asyncio.Event(), []
    running = asyncio.create_task(caller.run(endless(started, ended, headers=True)))
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.sleep(0)
    assert ended == ["stopped"]


async def test_nothing_is_left_running() -> None:
    before = asyncio.all_tasks()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    await Caller(body()).run(app)
    await asyncio.sleep(0.01)
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize(
    "other", [{"path": "/health/liveliness"}, {"path": "/v1/models"}, {"kind": "lifespan"},
              {"kind": "websocket"}],
)  # fmt: skip
async def test_what_is_not_for_the_engine_is_left_alone(other: dict[str, str]) -> None:
    caller, given = Caller(body()), []

    async def app(scope: Any, receive: Callable[..., Any], send: Any) -> None:
        given.append((receive, send))

    await caller.run(app, **other)
    assert given == [(caller.receive, caller.send)]


def test_a_stream_is_not_gathered() -> None:
    collector = NoCollector()
    collector.add(b"data: x\n\n")
    assert vars(collector) == {}
    assert collector.build_logged_response(None) is None


@pytest.mark.parametrize(
    ("status", "message", "passed_on"),
    [
        (400, "no such field", 400),
        (500, "something broke", 500),
        # Not run, and whoever waits for a restart sends it again.
        (500, "cannot schedule new futures after shutdown", 503),
        (400, "cannot schedule new futures after shutdown", 400),
    ],
)
async def test_what_an_engine_says(status: int, message: str, passed_on: int) -> None:
    request = httpx.Request("POST", "http://engine/v1/chat/completions")
    said = {"error": {"message": message, "code": status}}
    response = httpx.Response(status, json=said, headers={"server": "uvicorn"}, request=request)
    error = httpx.HTTPStatusError("refused", request=request, response=response)
    answer = await engine_answered(None, error)
    assert answer.status_code == passed_on
    assert (b"engine_unreachable" in answer.body) == (passed_on == 503)
    if passed_on != 503:
        assert answer.body == response.content
        assert "server" not in answer.headers
