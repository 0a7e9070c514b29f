"""Who tells the backend of an answer that passes it by, and what it makes of silence."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from backend.admission import Ask
from backend.api_request import ApiRequest
from backend.apis import CHAT, RESPONSES
from backend.exchange import Exchange
from backend.express import handoffs as module
from backend.express.ends import EdgeEnd, EngineBegan, EngineEnd, read_end
from backend.express.handoffs import MOST_BODY_BYTES, Handoffs, Offer
from backend.metrics import Metrics
from backend.upstream import gateway_error
from backend.usage import Usage
from backend_upstream import eventually
from gateway.handed_off import HandedOff

ID = "0123456789abcdef"
OFFER = Offer(engines=frozenset({"main"}))
CHECKED = ApiRequest(
    body=b'{"model":"tiny"}', model="tiny", stream=True, hides_usage=True,
    ask=Ask(prompt_bytes=400, most_tokens=None, stream=True),
)  # fmt: skip


class Gateway:
    """In the place of Upstream."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] | None = {"engine": "main", "key": "secret"}
        self.asked: list[tuple[str, dict[str, object]]] = []

    async def ask_gateway(self, path: str, question: dict[str, object], _: float) -> Any:
        self.asked.append((path, question))
        return self.answer


class Permit:
    """In the place of the real one."""

    def __init__(self, free: bool = True) -> None:
        self.free = free
        self.closed: list[tuple[Usage | None, bool]] = []
        self.headers: list[Any] = []

    def place_at_once(self) -> bool:
        return self.free

    async def close(self, usage: Usage | None, *, is_known: bool = True) -> None:
        if not self.closed:
            self.closed.append((usage, is_known))


class Lane:
    """What is handed off here, and what is told of it."""

    def __init__(self, ends: Path) -> None:
        self.gateway, self.metrics = Gateway(), Metrics()
        settings = SimpleNamespace(express_ends={"a": ends}, workers=1, longest_stream_seconds=9)
        readiness = SimpleNamespace(token_came=lambda moment: None)
        told: Any = (settings, self.gateway, readiness, self.metrics, "a")
        self.handoffs = Handoffs(*told)
        self.ends = ends

    async def hand_off(self, request: ApiRequest = CHECKED, **how: Any) -> Any:
        exchange = Exchange(
            request_id=how.get("request_id", ID), method="POST", path=CHAT.path,
            server_send=lambda _: asyncio.sleep(0), started=0.0, pace=self.metrics.pace(),
        )  # fmt: skip
        self.metrics.begin(exchange)
        permit = how.get("permit") or Permit()
        answer = await self.handoffs.hand_off(
            exchange, how.get("api", CHAT), request, permit, how.get("offer", OFFER)
        )
        return answer, exchange, permit

    async def tell(self, *ends: dict[str, Any] | bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wire:
            for end in ends:
                data = end if isinstance(end, bytes) else json.dumps(end).encode()
                wire.sendto(data, str(self.ends))
        await asyncio.sleep(0.05)


@pytest_asyncio.fixture
async def lane(tmp_path: Path) -> AsyncIterator[Lane]:
    made = Lane(tmp_path / "ends.sock")
    await made.handoffs.open()
    yield made
    await made.handoffs.close()


BEGIN = {"from": "engine", "what": "begin", "id": ID}
END = {
    "from": "engine", "what": "end", "id": ID, "status": 200, "whole": True, "left": False,
    "done": True, "pieces": 7, "bytes": 700, "first_token": 0.1, "usage": [11, 6],
}  # fmt: skip
EDGE = (
    b"<190>Nov 26 10:00:00 express: "
    b'{"from":"edge","id":"%s","status":"200","whole":"OK","bytes":"900"}' % ID.encode()
)
CUT = EDGE.replace(b'"OK"', b'""')


async def test_the_order_that_nginx_gets(lane: Lane) -> None:
    answer, exchange, _ = await lane.hand_off()
    told = dict(answer.headers)
    assert told == {
        "x-accel-redirect": "@engine_main", "x-millrace-body": '{"model":"tiny"}',
        "x-millrace-key": "secret", "x-millrace-instance": "a", "x-millrace-hide-usage": "1",
        "content-length": "0",
    }  # fmt: skip
    assert (exchange.handed_off, lane.handoffs.count) == (True, 1)
    assert lane.gateway.asked == [("/millrace/engines", {"model": "tiny"})]


async def test_who_comes_in_line(lane: Lane) -> None:
    assert (await lane.hand_off(offer=Offer()))[0] is None
    assert (await lane.hand_off(offer=Offer(engines=frozenset({"other"}))))[0] is None
    assert (await lane.hand_off(replace(CHECKED, stream=False)))[0] is None
    assert (await lane.hand_off(replace(CHECKED, body=b"x" * (MOST_BODY_BYTES + 1))))[0] is None
    assert (await lane.hand_off(api=RESPONSES))[0] is None
    assert (await lane.hand_off(permit=Permit(free=False)))[0] is None
    for told in (None, {}, {"engine": "main"}, {"engine": "main", "key": "a\r\nb"}, {"engine": 1}):
        lane.gateway.answer = told
        assert (await lane.hand_off())[0] is None
    assert lane.handoffs.count == 0


async def test_both_tell_and_it_is_settled(lane: Lane) -> None:
    _, exchange, permit = await lane.hand_off()
    await lane.tell(BEGIN, END)
    # The slot is free when the engine is through; the line waits for nginx.
    assert permit.closed == [(Usage(11, 6), True)]
    assert lane.handoffs.count == 1
    await lane.tell(EDGE)
    assert lane.handoffs.count == 0
    assert (exchange.ended, exchange.fault, exchange.status) == ("complete", None, 200)
    assert (exchange.body_bytes, exchange.usage) == (700, Usage(11, 6))
    assert lane.metrics.active_streams() == 0


ENDS: dict[str, tuple[list[Any], str, str | None]] = {
    "nginx's is lost": ([BEGIN, END], "complete", None),
    "the engine's is lost": ([BEGIN, EDGE], "upstream_error", "broken_off"),
    "both, nginx first": ([BEGIN, EDGE, END], "complete", None),
    "the client left": ([BEGIN, CUT, {**END, "whole": False, "left": True}], "client_left", None),
    "it left with the last byte": ([BEGIN, END, CUT], "client_left", None),
    "it left before the engine was asked": ([], "client_left", None),
    "a generation that broke": ([BEGIN, EDGE, {**END, "whole": False}], "upstream_error",
                                "broken_off"),
    "no [DONE]": ([BEGIN, EDGE, {**END, "done": False}], "upstream_error", "incomplete"),
    "nothing is ever heard": ([BEGIN], "unheard", None),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
async def test_silence_holds_nothing_for_long(
    lane: Lane, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("_BEGIN_SECONDS", "_AFTER_EDGE_SECONDS", "_AFTER_ENGINE_SECONDS"):
        monkeypatch.setattr(module, limit, 0.1)
    lane.handoffs._settings.longest_stream_seconds = 0.2  # type: ignore[misc]
    told, ended, fault = ENDS[name]
    _, exchange, permit = await lane.hand_off()
    await lane.tell(*told)
    await eventually(lambda: not lane.handoffs.count, 2)
    await asyncio.sleep(0)
    assert (exchange.ended, exchange.fault) == (ended, fault)
    assert len(permit.closed) == 1
    # Where nobody knows what was used, what was reserved stays taken.
    assert permit.closed[0][1] == (ended != "unheard")


async def test_an_engine_without_our_layer_is_asked_in_line(
    lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_AFTER_EDGE_SECONDS", 0.02)
    await lane.hand_off()
    await lane.tell(EDGE)
    assert (await lane.hand_off())[0] is None


async def test_what_makes_no_sense_changes_nothing(lane: Lane) -> None:
    await lane.hand_off()
    other = {**END, "id": "somebody-elses"}
    await lane.tell(b"", b"{}", b"[]", b"\xff{", b'{"from":"edge"}', {**END, "usage": 3}, other)
    assert lane.handoffs.count == 1


async def test_what_is_away_at_the_end_keeps_what_it_reserved(lane: Lane) -> None:
    _, exchange, permit = await lane.hand_off()
    await lane.tell(BEGIN)
    await lane.handoffs.close()
    assert exchange.ended == "handed_on"
    assert permit.closed == [(None, False)]


async def test_taken_back(lane: Lane) -> None:
    _, before, permit = await lane.hand_off()
    again = Exchange(
        request_id=ID, method="POST", path=CHAT.path,
        server_send=lambda _: asyncio.sleep(0), started=5.0,
    )  # fmt: skip
    assert await lane.handoffs.take_back(again, 502) is permit
    assert (again.started, again.resent) == (before.started, 1)
    assert lane.gateway.asked[-1] == (
        "/millrace/engines/failures", {"engine": "main", "status": 502})  # fmt: skip
    assert lane.handoffs.count == 0
    # Nobody's, by now: a request like any other.
    assert await lane.handoffs.take_back(again, 502) is None


def scope_with(*values: bytes, query: bytes = b"") -> dict[str, Any]:
    headers = [(b"x-millrace-express", value) for value in values]
    return {"headers": headers, "query_string": query}


def test_what_nginx_says_with_a_request() -> None:
    both = frozenset({"main", "engine2"})
    assert Offer.of(scope_with(b"offer main engine2")) == Offer(engines=both)
    assert Offer.of(scope_with(b"again 200 : 502")) == Offer(failed_with=502)
    assert Offer.of(scope_with(b"again -")) == Offer(failed_with=502)
    for nothing in ((), (b"",), (b"hello",), (b"offer main", b"offer main")):
        assert Offer.of(scope_with(*nothing)) == Offer()
    assert Offer.of(scope_with(b"offer main", query=b"a=b")) == Offer()


def test_datagrams() -> None:
    assert read_end(json.dumps(BEGIN).encode()) == EngineBegan(ID)
    assert read_end(EDGE) == EdgeEnd(ID, 200, True, 900)
    assert read_end(CUT) == EdgeEnd(ID, 200, False, 900)
    end = read_end(json.dumps(END).encode())
    assert isinstance(end, EngineEnd)
    assert end.usage == Usage(11, 6)


# The engine's side --------------------------------------------------------------------------

TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}\n\n'
DONE = b"data: [DONE]\n\n"


class Engine:
    """An application with the layer around it, and what was told of it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        monkeypatch.setenv("MILLRACE_ENDS", f"{folder}/{{}}.sock")
        self.wire = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.wire.bind(f"{folder}/a.sock")
        self.wire.setblocking(False)
        self.sent: list[bytes] = []

    async def run(
        self, *pieces: bytes, leaves: bool = False, fails: bool = False, **headers: str
    ) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            if leaves:
                assert (await receive())["type"] == "http.disconnect"
                return
            kind = [(b"content-type", b"text/event-stream; charset=utf-8")]
            await send({"type": "http.response.start", "status": 200, "headers": kind})
            for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            if fails:
                raise RuntimeError("the engine's core is gone")
            await send({"type": "http.response.body", "body": b""})

        async def receive() -> Any:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if body := message.get("body"):
                self.sent.append(body)

        told = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
        await HandedOff(app)({"type": "http", "headers": told}, receive, send)

    def told(self) -> list[dict[str, Any]]:
        found = []
        while True:
            try:
                found.append(json.loads(self.wire.recv(8192)))
            except BlockingIOError:
                return found


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    return Engine(tmp_path, monkeypatch)


MARK = {"x_millrace_ends": "a", "x_request_id": ID}


async def test_the_engine_counts_and_hides(engine: Engine) -> None:
    await engine.run(b": beat\n\n", TOKEN, USAGE, DONE, x_millrace_hide_usage="1", **MARK)
    assert engine.sent == [b": beat\n\n", TOKEN, DONE]
    begin, end = engine.told()
    assert begin == BEGIN
    assert end["first_token"] >= 0
    assert {k: end[k] for k in ("whole", "left", "done", "pieces", "usage")} == {
        "whole": True, "left": False, "done": True, "pieces": 2, "usage": [3, 1]}  # fmt: skip
    assert end["bytes"] == sum(map(len, engine.sent))


async def test_it_hides_nothing_that_was_asked_for(engine: Engine) -> None:
    await engine.run(TOKEN, USAGE, DONE, **MARK)
    assert engine.sent == [TOKEN, USAGE, DONE]
    assert engine.told()[1]["usage"] == [3, 1]


async def test_it_tells_who_left(engine: Engine) -> None:
    await engine.run(leaves=True, **MARK)
    end = engine.told()[1]
    assert (end["left"], end["whole"], end["usage"]) == (True, False, None)


BROKEN = gateway_error(
    502, "The model server ended the answer before it was complete.", fault="incomplete"
)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("half", [b"", b'data: {"choices"'])
async def test_a_generation_that_ends_too_early_is_told_to_its_reader(
    engine: Engine, half: bytes, fails: bool
) -> None:
    with contextlib.suppress(RuntimeError):
        await engine.run(TOKEN, *([half] if half else []), fails=fails, **MARK)
    close = b"\n\n" if half else b""
    assert b"".join(engine.sent) == TOKEN + half + close + BROKEN.event() + DONE
    end = engine.told()[1]
    assert (end["whole"], end["done"]) == (not fails, False)
    assert end["bytes"] == sum(map(len, engine.sent))


async def test_others_pass_untouched(engine: Engine) -> None:
    for headers in (
        {},
        {"x_millrace_hide_usage": "1"},
        {"x_millrace_ends": f"../{engine.folder.name}/a"},
    ):
        await engine.run(USAGE, **headers)
    assert engine.sent == [USAGE] * 3
    assert not engine.told()


async def test_nobody_listens_and_nobody_minds(engine: Engine) -> None:
    await engine.run(TOKEN, DONE, x_millrace_ends="b", x_request_id=ID)
    assert engine.sent == [TOKEN, DONE]
