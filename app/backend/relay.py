"""The streaming relay: bytes from the engine to the client as they come, and honest endings."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import time

import aiohttp
from starlette.types import Receive, Scope, Send

from backend.admission import Permit
from backend.answer import SLACK_SECONDS, GuardedAnswer
from backend.api_request import ApiRequest
from backend.apis import Api
from backend.errors import ApiError
from backend.events import EventSplitter, is_terminal
from backend.exchange import Exchange
from backend.metrics import Metrics
from backend.outlet import Outlet
from backend.readiness import Readiness
from backend.settings import Settings
from backend.upstream import (
    UPSTREAM_ERRORS,
    Upstream,
    broken_off,
    gateway_error,
    read_some,
    translate,
)
from backend.usage import BYTES_PER_TOKEN, Usage, UsageTap, usage_of

log = logging.getLogger(__name__)

# A whole (not streamed) answer is held up to this size, so that an upstream that breaks in the
# middle of it is still a real 502; a longer one is passed on as it comes.
_WHOLE_ANSWER_BYTES = 1024 * 1024
_UPSTREAM_ERROR_BYTES = 256 * 1024
_NOTICE_SECONDS = 1.0
# Between two tries to reach an engine that restarts; spread, so that those who waited do not all
# come at once.
_RETRY_SECONDS = (0.5, 1.5)
# Who asked for a whole answer gets no heartbeats, and proxies on the way give up after 100 s.
_LONGEST_SILENT_WAIT_SECONDS = 60
_CODES_OF_NO_ENGINE = frozenset({"engine_unreachable"})


class Relay(GuardedAnswer):
    """Answers by asking the upstream and passing its bytes on.

    The pump reads from the upstream and writes to the client; the guard also keeps the time
    limits. Stopping the pump closes the upstream connection, which frees the engine.

    An upstream that fails in an event stream, or ends it politely but without `[DONE]`, makes it
    end with an error event. A half event is dropped, see EventSplitter. Only when an event is so
    long that part of it is out already does its reader see one broken event before the error
    event.

    An engine that restarts is waited for: as long as nothing of an answer has come, the request
    is sent again, and whoever waits for a stream gets heartbeats meanwhile. A request is never
    sent again once an engine has begun to answer it.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        upstream: Upstream,
        readiness: Readiness,
        exchange: Exchange,
        api: Api,
        request: ApiRequest,
        permit: Permit,
        metrics: Metrics,
    ) -> None:
        # Whether it is an event stream is known when the upstream has begun to answer; until then
        # it is taken to be what was asked for.
        super().__init__(settings=settings, exchange=exchange, as_events=request.stream)
        self._upstream = upstream
        self._readiness = readiness
        self._api = api
        self._ask = request.ask
        self._body = request.body
        self._permit = permit
        self._metrics = metrics
        # Counts this request among those that wait for an engine.
        self._restart = contextlib.ExitStack()
        self._tap = UsageTap(hide=request.hides_usage)
        # Pieces of the answer that were passed on: an event, or a few, each.
        self._pieces = 0
        self._terminal_seen = False
        # Since when the pump has been waiting for the upstream's next bytes.
        self._waiting_since = time.monotonic()
        self._seen_first_byte = False
        self._response: aiohttp.ClientResponse | None = None
        self._splitter = EventSplitter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request, and settle what it took, however it ends."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._restart.close()
            if self._exchange.usage is None:
                self._exchange.usage = self._tap.usage or self._seen_of_it()
            await self._permit.close(self._exchange.usage)

    def _seen_of_it(self) -> Usage | None:
        """Return what is known of an answer that was cut short: it took at least that."""
        if not self._pieces:
            return None
        return Usage(self._ask.prompt_bytes // BYTES_PER_TOKEN, self._pieces)

    @property
    def _is_complete(self) -> bool:
        """Nothing is missing then, however the upstream's connection ended, or did not."""
        if self._api.terminal is None:
            return self._splitter.is_done
        return self._terminal_seen and not self._splitter.mid_event and not self._splitter.rest()

    def _last_events(self, failure: ApiError) -> bytes:
        if self._api.terminal is None:
            return super()._last_events(failure)
        return failure.response_event()

    async def _look(self, outlet: Outlet) -> ApiError | None:
        now = time.monotonic()
        if now - self._waiting_since >= self._patience:
            return self._timeout()
        if self._lost_unnoticed(now):
            return broken_off()
        return await super()._look(outlet)

    @property
    def _patience(self) -> float:
        if self._seen_first_byte:
            return self._settings.idle_timeout_seconds
        return self._settings.first_byte_timeout_seconds

    def _seconds_to_next_look(self, outlet: Outlet) -> float:
        # The limit itself shortens when the first byte comes, so look again at least this often.
        often = min(self._settings.heartbeat_seconds, self._settings.idle_timeout_seconds)
        if outlet.busy:
            return often
        now = time.monotonic()
        due = min(self._waiting_since + self._patience, now + often)
        if self._may_beat(outlet):
            due = min(due, self._next_beat(outlet))
        return max(due - now, 0) + SLACK_SECONDS

    def _lost_unnoticed(self, now: float) -> bool:
        """Whether the pump waits on a connection that has gone.

        aiohttp closes the connection when the chunk framing is broken, but then leaves whoever
        reads from it waiting for ever (3.14). Any other loss wakes the pump at once.
        """
        connection = None if self._response is None else self._response.connection
        if connection is None or connection.protocol is None:
            return False
        return (
            not connection.protocol.is_connected() and now - self._waiting_since >= _NOTICE_SECONDS
        )

    def _timeout(self) -> ApiError:
        waited = f"{self._patience:g} seconds"
        message = (
            f"The model server was silent for {waited} in the middle of the answer."
            if self._seen_first_byte
            else f"The model server did not begin to answer within {waited}."
        )
        fault = "idle_timeout" if self._seen_first_byte else "first_byte_timeout"
        return gateway_error(504, message, ended="upstream_timeout", fault=fault)

    async def _pump(self, outlet: Outlet) -> None:
        """Ask the upstream and pass its answer on; raise ApiError when it fails."""
        await self._permit.place()
        patience = self._settings.restart_wait_seconds
        if not self._as_events:
            patience = min(patience, _LONGEST_SILENT_WAIT_SECONDS)
        gives_up = time.monotonic() + patience
        while True:
            self._waiting_since = time.monotonic()
            try:
                await self._ask_once(outlet)
                return
            except ApiError as failure:
                pause = random.uniform(*_RETRY_SECONDS)  # noqa: S311 - not a secret
                if not failure.not_reached or time.monotonic() + pause > gives_up:
                    raise
            if not self._exchange.resent:
                self._restart.enter_context(self._metrics.waiting("engine"))
            self._exchange.resent += 1
            await asyncio.sleep(pause)

    async def _ask_once(self, outlet: Outlet) -> None:
        async with self._upstream.post(
            self._api.path,
            self._body,
            request_id=self._exchange.request_id,
            accept="text/event-stream" if self._as_events else "application/json",
        ) as response:
            self._response = response
            if not 200 <= response.status < 300:
                raise await _refusal(response, self._api)
            self._restart.close()
            # Not needed any more: a stream may run for an hour and a prompt be megabytes long.
            self._body = b""
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise _odd("The model server compressed its answer unasked.")
            if response.content_type == "text/event-stream":
                self._as_events = True
                await self._pass_events(response, outlet)
            elif outlet.started:
                raise _odd("The model server did not answer with a stream.")
            else:
                self._as_events = False
                await self._pass_whole(response, outlet)

    async def _pass_events(self, response: aiohttp.ClientResponse, outlet: Outlet) -> None:
        splitter, tap = self._splitter, self._tap
        terminal = self._api.terminal
        read = response.content.readany
        readiness = self._readiness
        content_type = response.headers["Content-Type"].encode("latin-1")
        while True:
            self._waiting_since = time.monotonic()
            try:
                data = await read()
            except UPSTREAM_ERRORS as error:
                raise translate(error) from error
            if not data:
                break
            self._seen_first_byte = True
            ready = tap.look(splitter.feed(data))
            if not ready:
                continue
            if terminal is not None and terminal.search(ready):
                self._terminal_seen = True
            if not outlet.started:
                await outlet.start_events(content_type)
            await outlet.write(ready, between_events=not splitter.mid_event)
            self._pieces += 1
            if outlet.last_write >= readiness.wanted_from:
                readiness.look_at(ready)
        rest = splitter.rest()
        if terminal is None and is_terminal(rest):
            # [DONE] without its blank line: a strict parser would never hand it over.
            await outlet.finish(rest + b"\n\n")
        elif self._is_complete:
            await outlet.finish()
        else:
            raise gateway_error(
                502,
                "The model server ended the answer before it was complete.",
                fault="incomplete",
            )

    async def _pass_whole(self, response: aiohttp.ClientResponse, outlet: Outlet) -> None:
        content_type = response.headers.get("Content-Type", "application/json").encode("latin-1")
        headers = [(b"content-type", content_type)]
        held = bytearray()
        while data := await self._read_patiently(response):
            held += data
            if len(held) > _WHOLE_ANSWER_BYTES:
                break
        else:
            self._exchange.usage = usage_of(bytes(held))
            length = str(len(held)).encode("ascii")
            await outlet.start(response.status, [*headers, (b"content-length", length)])
            if held:
                await outlet.write(bytes(held))
            await outlet.finish()
            return
        await outlet.start(response.status, headers)
        await outlet.write(bytes(held))
        held.clear()
        while data := await self._read_patiently(response):
            await outlet.write(data)
        await outlet.finish()

    async def _read_patiently(self, response: aiohttp.ClientResponse) -> bytes:
        self._waiting_since = time.monotonic()
        data = await read_some(response)
        self._seen_first_byte = True
        return data


async def _refusal(response: aiohttp.ClientResponse, api: Api) -> ApiError:
    """Make the error to pass on from an upstream answer that is not a success."""
    status = response.status
    if status in {401, 403, 407}:
        # It is our key that was refused, not the client's.
        log.error("the upstream refused the backend's own key: status %d", status)
        return gateway_error(
            502, "The gateway is not allowed to use the model server.", fault="key_refused"
        )
    if status < 400:
        return _odd(f"The model server answered with status {status}.")
    body = bytearray()
    while len(body) <= _UPSTREAM_ERROR_BYTES and (data := await read_some(response)):
        body += data
    headers = {}
    if retry_after := response.headers.get("Retry-After"):
        headers["retry-after"] = retry_after
    payload, message, code = _read_error(bytes(body))
    if status == 404 and payload is None:
        # The engine's own 404 for a model has OpenAI's shape: this is one for the path.
        return ApiError(
            404,
            f"The model that serves here has no {api.path}.",
            code="unsupported_endpoint",
        )
    return ApiError(
        status,
        message or f"The model server answered with status {status}.",
        kind="server_error" if status >= 500 else "invalid_request_error",
        headers=headers,
        ended="upstream_error" if status >= 500 else "refused",
        payload=payload,
        not_reached=status == 503 and code in _CODES_OF_NO_ENGINE,
        fault=_fault_of(status, code),
    )


def _odd(message: str) -> ApiError:
    """Make the error for an answer that no engine should give."""
    return gateway_error(502, message, fault="odd_answer")


def _fault_of(status: int, code: object) -> str | None:
    """Say which fault a status is; a request that was refused for its own sake is none."""
    if status < 500:
        return "busy" if status == 429 else None
    return "unreachable" if code in _CODES_OF_NO_ENGINE else "engine_error"


def _read_error(body: bytes) -> tuple[bytes | None, str | None, object]:
    """Return `body` itself and its code if it has OpenAI's shape, else a message if it has one."""
    try:
        fields = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        return None, None, None
    if not isinstance(fields, dict):
        return None, None, None
    if isinstance(fields.get("error"), dict):
        return body, None, fields["error"].get("code")
    # FastAPI's own errors, and vLLM's older ones.
    message = fields.get("detail") or fields.get("message")
    return None, message if isinstance(message, str) else None, None
