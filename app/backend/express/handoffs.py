"""Answers that nginx fetches itself: who was let in for one, and until when it counts as theirs."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import Scope

from backend.admission import Permit
from backend.api_request import ApiRequest
from backend.apis import Api
from backend.exchange import Exchange, conclude
from backend.express.choice import Engine, choose_engine, tell_failure
from backend.express.ends import EdgeEnd, End, EndsListener, EngineBegan, EngineEnd
from backend.metrics import Metrics
from backend.readiness import Readiness
from backend.settings import Settings
from backend.upstream import Upstream, gateway_error
from backend.usage import BYTES_PER_TOKEN, Usage

log = logging.getLogger(__name__)

OFFER_HEADER = b"x-millrace-express"
"""Set by nginx alone: what it can do, or why a request that was handed off is back."""
MOST_BODY_BYTES = 96 * 1024
"""The body for the engine goes to nginx in a header, and its buffer for those has 128 KiB."""

_ENGINE_NAME = re.compile(r"[a-z0-9_]{1,32}")
# Before this nginx has asked the engine, or its client has gone and it never will.
_BEGIN_SECONDS = 30.0
# How long one witness of an end waits for the other. The engine's tells what was used; nginx's
# comes when a slow client has read the rest as well. The first that a worker of nginx sends to an
# instance that was started anew is lost: it still holds the socket of the one before.
_AFTER_EDGE_SECONDS = 2.0
_AFTER_ENGINE_SECONDS = 5.0
# An answer was cut short and nobody counted: a token's event has about so many bytes.
_BYTES_PER_EVENT = 220


@dataclass(frozen=True, slots=True)
class Offer:
    """What nginx says with a request: the engines it can fetch from, or how that ended."""

    engines: frozenset[str] = frozenset()
    failed_with: int | None = None

    @classmethod
    def of(cls, scope: Scope) -> Offer:
        """Read it from the headers; one that makes no sense is none."""
        said = [value for name, value in scope["headers"] if name == OFFER_HEADER]
        words = said[0].decode("latin-1").split() if len(said) == 1 else []
        if words[:1] == ["offer"] and not scope["query_string"]:
            return cls(engines=frozenset(words[1:]))
        if words[:1] == ["again"]:
            # One per upstream that was asked: the last is the engine.
            status = words[-1]
            return cls(failed_with=int(status) if status.isdecimal() and len(status) == 3 else 502)
        return cls()


NO_OFFER = Offer()


class HandOff(Response):
    """The answer that nginx takes for an order: to fetch the real one from an engine.

    What it needs for that is in headers, and never gets any further: the body as it was checked
    and written anew, the engine's key, and where to tell of the end.
    """

    def __init__(self, engine: Engine, request: ApiRequest, instance: str) -> None:
        super().__init__()
        headers = {
            "x-accel-redirect": f"@engine_{engine.name}",
            "x-millrace-body": request.body.decode("ascii"),
            "x-millrace-key": engine.key,
            "x-millrace-instance": instance,
        }
        if request.hides_usage:
            headers["x-millrace-hide-usage"] = "1"
        self.headers.update(headers)


class HandedOff:
    """One answer that is on its way past us."""

    __slots__ = (
        "began", "edge", "engine_end", "engine_name", "exchange", "permit", "prompt_bytes", "timer"
    )  # fmt: skip

    def __init__(
        self, exchange: Exchange, permit: Permit, prompt_bytes: int, engine_name: str
    ) -> None:
        self.exchange = exchange
        self.permit = permit
        self.prompt_bytes = prompt_bytes
        self.engine_name = engine_name
        # `time.monotonic()`, when the engine said that it has the request.
        self.began: float | None = None
        self.engine_end: EngineEnd | None = None
        self.edge: EdgeEnd | None = None
        self.timer: asyncio.TimerHandle | None = None


class Handoffs:
    """Hands answers off, keeps what each holds until it has ended, and then settles it.

    Two witnesses tell of an end, and either may fail to: the engine, which counts, and nginx,
    which knows whether the client got all of it. What a key holds, a slot and a place, is given
    back when the engine is through, as it is in line; the line in the log waits for nginx. Where
    neither tells anything, time does.
    """

    def __init__(
        self,
        settings: Settings,
        upstream: Upstream,
        readiness: Readiness,
        metrics: Metrics,
        instance: str,
    ) -> None:
        self._settings = settings
        self._upstream = upstream
        self._readiness = readiness
        self._metrics = metrics
        self._instance = instance
        self._listener: EndsListener | None = None
        self._away: dict[str, HandedOff] = {}
        self._closing: set[asyncio.Task[None]] = set()
        # Engines without our layer in them (handed_off.py): who would count?
        self._mute: set[str] = set()

    @property
    def count(self) -> int:
        """How many answers are on their way past us."""
        return len(self._away)

    async def open(self) -> None:
        """Begin to listen for ends. Where that cannot be, every answer goes in line."""
        path = self._settings.express_ends.get(self._instance)
        if path is None:
            return
        if self._settings.workers > 1:
            log.warning("no express lane: an end would reach one of several workers; set workers 1")
            return
        listener = EndsListener(self._heard)
        try:
            await listener.open(path)
        except OSError as error:
            log.error("no express lane: cannot listen at %s: %s", path, error.strerror)
            return
        self._listener = listener

    async def close(self) -> None:
        """Settle what is still away, as far as is known, and stop listening."""
        if self._listener is not None:
            self._listener.close()
        for handed in list(self._away.values()):
            handed.exchange.ended = "handed_on"
            self._settle(handed)
        if self._closing:
            await asyncio.wait(self._closing, timeout=2)

    async def hand_off(
        self, exchange: Exchange, api: Api, request: ApiRequest, permit: Permit, offer: Offer
    ) -> Response | None:
        """Return what tells nginx to fetch the answer itself; None where it must come in line.

        Whoever is handed off has a place, and nobody is made to wait for one here: a wait needs
        heartbeats, which the relay sends.
        """
        if (
            self._listener is None
            or not offer.engines
            or not (request.stream and api.has_stream_options)
            or len(request.body) > MOST_BODY_BYTES
            or exchange.request_id in self._away
            or not permit.place_at_once()
        ):
            return None
        engine = await choose_engine(self._upstream, request.model)
        if (
            engine is None
            or engine.name not in offer.engines
            or engine.name in self._mute
            or not _ENGINE_NAME.fullmatch(engine.name)
        ):
            return None
        handed = HandedOff(exchange, permit, request.ask.prompt_bytes, engine.name)
        exchange.handed_off = True
        self._away[exchange.request_id] = handed
        self._wait(handed, _BEGIN_SECONDS, self._never_began)
        return HandOff(engine, request, self._instance)

    async def take_back(self, exchange: Exchange, status: int) -> Permit | None:
        """Return what a request holds that nginx could not get answered; None if it is not ours.

        `exchange` goes on where the one that was handed off stopped. LiteLLM hears of the failure
        before it is asked again. Raises ApiError for what must not be asked twice: the engine may
        still be at it.
        """
        handed = self._away.pop(exchange.request_id, None)
        if handed is None:
            return None
        if handed.timer is not None:
            handed.timer.cancel()
        before = handed.exchange
        self._metrics.forget(before)
        exchange.started = before.started
        exchange.resent = before.resent + 1
        if status >= 500 or status == 429:
            await tell_failure(self._upstream, handed.engine_name, status)
        if status == 504:
            await handed.permit.close(None)
            raise gateway_error(
                504,
                "The model server did not begin to answer in time.",
                ended="upstream_timeout",
                fault="first_byte_timeout",
            )
        return handed.permit

    def _heard(self, end: End) -> None:
        handed = self._away.get(end.request_id)
        if handed is None:
            return
        if isinstance(end, EngineBegan):
            handed.began = time.monotonic()
            self._wait(handed, self._settings.longest_stream_seconds, self._unheard)
        elif isinstance(end, EngineEnd):
            handed.engine_end = end
            self._take_count(handed, end)
            self._give_back(handed)
            if handed.edge is not None:
                self._settle(handed)
            else:
                self._wait(handed, _AFTER_ENGINE_SECONDS, self._settle)
        else:
            handed.edge = end
            if handed.engine_end is not None:
                self._settle(handed)
            else:
                self._wait(handed, _AFTER_EDGE_SECONDS, self._settle)

    def _take_count(self, handed: HandedOff, end: EngineEnd) -> None:
        exchange = handed.exchange
        exchange.usage = end.usage
        if end.usage is None and end.pieces:
            exchange.usage = Usage(handed.prompt_bytes // BYTES_PER_TOKEN, end.pieces)
        if end.first_token_seconds is not None:
            began = exchange.started if handed.began is None else handed.began
            if exchange.pace is not None:
                exchange.pace.told(began + end.first_token_seconds)
            self._readiness.token_came(began + end.first_token_seconds)

    def _never_began(self, handed: HandedOff) -> None:
        handed.exchange.ended = "client_left"
        self._settle(handed)

    def _unheard(self, handed: HandedOff) -> None:
        log.error("nothing was heard of an answer's end: request %s", handed.exchange.request_id)
        handed.exchange.ended = "unheard"
        self._settle(handed)

    def _settle(self, handed: HandedOff) -> None:
        """Give back what it holds and write its line."""
        exchange = handed.exchange
        self._away.pop(exchange.request_id, None)
        if handed.timer is not None:
            handed.timer.cancel()
        edge, engine = handed.edge, handed.engine_end
        if edge is not None:
            # nginx counts the framing as well; of what was cut only it knows how much went out.
            exchange.status, exchange.body_bytes = edge.status, edge.bytes
            if engine is not None and edge.whole:
                exchange.body_bytes = engine.bytes
            if exchange.usage is None and edge.bytes:
                prompt = handed.prompt_bytes // BYTES_PER_TOKEN
                exchange.usage = Usage(prompt, edge.bytes // _BYTES_PER_EVENT)
            if engine is None and handed.began is None and edge.status == 200:
                self._note_mute(handed.engine_name)
        if edge is not None or engine is not None:
            exchange.ended, exchange.fault = _outcome(edge, engine)
        self._give_back(handed)
        conclude(exchange, self._metrics)

    def _note_mute(self, engine_name: str) -> None:
        if engine_name not in self._mute:
            log.error(
                "engine %s tells nothing of its answers, and they come in line from now on: its "
                "middleware must have gateway.engine_layers.EngineLayers",
                engine_name,
            )
        self._mute.add(engine_name)

    def _give_back(self, handed: HandedOff) -> None:
        # Again at the line's time, when it does nothing.
        exchange = handed.exchange
        is_known = exchange.usage is not None or exchange.ended not in {"handed_on", "unheard"}
        closing = asyncio.create_task(handed.permit.close(exchange.usage, is_known=is_known))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def _wait(self, handed: HandedOff, seconds: float, then: Callable[[HandedOff], None]) -> None:
        if handed.timer is not None:
            handed.timer.cancel()
        handed.timer = asyncio.get_running_loop().call_later(seconds, then, handed)


def _outcome(edge: EdgeEnd | None, engine: EngineEnd | None) -> tuple[str, str | None]:
    """Return the words for the log: how it ended, and what failed."""
    if engine is None:
        # For nginx an answer that broke off behind it is one it has dealt with.
        died = edge is not None and edge.whole
        return ("upstream_error", "broken_off") if died else ("client_left", None)
    if engine.left or (engine.whole and edge is not None and not edge.whole):
        return "client_left", None
    if not engine.whole:
        return "upstream_error", "broken_off"
    return ("complete", None) if engine.done else ("upstream_error", "incomplete")
