"""The routes of chat streams."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import JSONResponse, Response

from backend.apis import CHAT
from backend.errors import ApiError
from backend.exchange import exchange_of, key_of
from backend.openapi import EVENTS, answers
from backend.services import NO_STORE, NoResponse, Services, body_of
from backend.streams.openapi import (
    CREATED,
    DESCRIPTION,
    POLLED,
    STOPPED,
    TICKET,
    create_body,
)
from backend.streams.reading import EventsAnswer, PollAnswer, events_gone
from backend.streams.registry import Streams
from backend.streams.start import StreamStart
from backend.streams.stream import ChatStream
from backend.streams.tickets import TICKET_SECONDS

ROOT = "/v1/chat/streams"
_ONE = ROOT + "/{stream_id}"
_LONGEST_POLL_SECONDS = 25
# A stop waits for a task that was told to end: this keeps a defect from hanging the request.
_STOP_SECONDS = 10.0
# At once of one stream: tabs, and connections whose loss was not noticed yet.
_MOST_READERS = 16
# Well within what every JSON and JavaScript number can hold.
_EVENT_ID = r"^[0-9]{1,15}$"

After = Annotated[str | None, Query(pattern=_EVENT_ID)]
LastEventId = Annotated[str | None, Header(alias="Last-Event-ID", pattern=_EVENT_ID)]
Ticket = Annotated[str | None, Query(description="in place of a key, once")]


def make_stream_router(services: Services, streams: Streams) -> APIRouter:
    """Return the routes; `streams` is what this process runs and keeps."""
    settings = services.settings
    router = APIRouter(redirect_slashes=False)

    async def find(request: Request, stream_id: str) -> ChatStream:
        return await streams.find(stream_id, exchange_of(request.scope).key_name)

    @router.post(
        ROOT,
        response_class=Response,
        status_code=201,
        responses=answers({201: CREATED}, 400, 403, 404, 413, 429, 502, 503, 504),
        openapi_extra=create_body(model.id for model in settings.models),
    )
    async def create(request: Request) -> Response:
        """Begin a chat whose answer lives on the server, to be read at `events`."""
        body = await body_of(request, settings)
        if body is None:
            return NoResponse()
        exchange, key = exchange_of(request.scope), key_of(request.scope)
        checked = services.parser.parse(body, CHAT, models=key.models, stream=True)
        relay = await services.answer(exchange, CHAT, checked)
        stream = streams.create(key.name, checked.model)
        return StreamStart(
            settings=settings,
            streams=streams,
            stream=stream,
            exchange=exchange,
            key_id=key.id,
            relay=relay,
        )

    @router.get(_ONE, responses=answers({200: DESCRIPTION}, 404))
    async def describe(request: Request, stream_id: str) -> JSONResponse:
        """Tell how far a stream is, and how it ended."""
        return JSONResponse((await find(request, stream_id)).describe(), headers=NO_STORE)

    @router.get(
        _ONE + "/events",
        response_class=Response,
        responses=answers({200: EVENTS, 204: _nothing_more()}, 400, 404, 410, 429),
    )
    async def events(
        request: Request,
        stream_id: str,
        after: After = None,
        last_event_id: LastEventId = None,
        ticket: Ticket = None,
    ) -> Response:
        """Send the events behind the last one known; the header counts more than `after`."""
        stream = await find(request, stream_id)
        known = int(last_event_id or after or 0)
        if stream.knows_all(known):
            return Response(status_code=204, headers=NO_STORE)
        known = stream.cursor(known)
        _check_reader(stream, known)
        exchange = exchange_of(request.scope)
        exchange.model = stream.model
        exchange.stream = True
        # The generation's own exchange notes when the engine's tokens come.
        exchange.pace = None
        if known:
            services.metrics.resumed()
        return EventsAnswer(
            settings=settings, exchange=exchange, streams=streams, stream=stream, after=known
        )

    @router.get(
        _ONE + "/poll",
        response_class=Response,
        responses=answers({200: POLLED}, 400, 404, 410, 429),
    )
    async def poll(
        request: Request,
        stream_id: str,
        after: After = None,
        wait: Annotated[float, Query(ge=0, le=_LONGEST_POLL_SECONDS, allow_inf_nan=False)] = 0,
        ticket: Ticket = None,
    ) -> Response:
        """Return the events behind `after`, waiting up to `wait` seconds for the first."""
        stream = await find(request, stream_id)
        known = stream.cursor(int(after or 0))
        _check_reader(stream, known)
        return PollAnswer(streams=streams, stream=stream, after=known, wait_seconds=wait)

    @router.post(_ONE + "/stop", responses=answers({200: STOPPED}, 403, 404))
    async def stop(request: Request, stream_id: str) -> JSONResponse:
        """End the generation and free the engine; what was made is kept for a while."""
        stream = await find(request, stream_id)
        stream.leave("stopped")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_SECONDS):
                await stream.over.wait()
        ended = stream.over.is_set()
        return JSONResponse({"id": stream.id, "ended": ended}, headers=NO_STORE)

    @router.post(_ONE + "/ticket", responses=answers({200: TICKET}, 403, 404))
    async def ticket(request: Request, stream_id: str) -> JSONResponse:
        """Give out a ticket, with which an EventSource may read this stream without a key."""
        passes = (await find(request, stream_id)).passes
        body = {
            "ticket": passes.ticket(key_of(request.scope).id),
            "ticket_expires_in": TICKET_SECONDS,
        }
        return JSONResponse(body, headers=NO_STORE)

    return router


def _check_reader(stream: ChatStream, known: int) -> None:
    """Refuse a reader whose next event is gone, one that knows more than there is, and too many."""
    if stream.readers >= _MOST_READERS:
        raise ApiError(
            429,
            f"This stream has {_MOST_READERS} readers already.",
            kind="rate_limit_error",
            code="too_many_readers",
            headers={"retry-after": "1"},
        )
    if known < stream.buffer.first_id - 1:
        raise events_gone()
    if known > stream.buffer.last_id:
        raise ApiError(
            400,
            f"This stream has no event {known}: its last one is {stream.buffer.last_id}.",
            code="unknown_event",
            param="after",
        )


def _nothing_more() -> dict[str, Any]:
    return {"description": "The stream has ended, and its last event is known to the reader."}
