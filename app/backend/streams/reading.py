"""Answers to those who read a stream: events as they come, or a long poll."""

from __future__ import annotations

import asyncio
import contextlib
import json

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from backend.answer import GuardedAnswer
from backend.errors import ApiError
from backend.exchange import Exchange
from backend.outlet import Outlet
from backend.settings import Settings
from backend.streams.buffer import EventsGoneError, data_of, id_of
from backend.streams.registry import Streams
from backend.streams.stream import ChatStream

# An EventSource waits three seconds by default before it comes back.
_RETRY = b"retry: 1000\n\n"
_CONTENT_TYPE = b"text/event-stream; charset=utf-8"
# In one write, when a reader has to catch up.
_WRITE_BYTES = 64 * 1024
_POLL_BYTES = 256 * 1024
# The generation is ended in the same moment as its readers: how long to wait for its last words.
_TAIL_SECONDS = 1.0


class EventsAnswer(GuardedAnswer):
    """The events of a stream behind the one the reader knows, with heartbeats in between.

    Ends after the last event. A reader that falls so far behind others that its next event has
    been dropped gets an error event and `[DONE]`, without ids.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        exchange: Exchange,
        streams: Streams,
        stream: ChatStream,
        after: int,
    ) -> None:
        super().__init__(settings=settings, exchange=exchange, as_events=True)
        self._streams = streams
        self._stream = stream
        self._after = after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request."""
        with self._streams.reading(self._stream):
            await super().__call__(scope, receive, send)

    async def _pump(self, outlet: Outlet) -> None:
        # Before the first event comes a reader must know that it is connected.
        await outlet.start_events(_CONTENT_TYPE)
        await outlet.write(_RETRY, between_events=True)
        await self._pass_events(outlet)
        await outlet.finish(b"".join(self._stream.last_words()))

    async def _pass_events(self, outlet: Outlet) -> None:
        buffer = self._stream.buffer
        while True:
            try:
                frames = buffer.read(self._after, _WRITE_BYTES)
            except EventsGoneError:
                raise events_gone() from None
            if frames:
                data = frames[0] if len(frames) == 1 else b"".join(frames)
                await outlet.write(data, between_events=True)
                self._after += len(frames)
            elif buffer.ended:
                return
            else:
                await buffer.news(self._after)

    async def _end_badly(
        self, outlet: Outlet, failure: ApiError, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if failure.ended == "server_stopping" and outlet.between_events:
            # The generation is being ended as well, and says so in an event with an id.
            with contextlib.suppress(TimeoutError, ApiError):
                async with asyncio.timeout(_TAIL_SECONDS):
                    await self._pass_events(outlet)
                    await outlet.finish()
                    return
        await super()._end_badly(outlet, failure, scope, receive, send)


class PollAnswer(Response):
    """What there is behind an event, as JSON; waits a while when there is nothing yet."""

    media_type = "application/json"

    def __init__(
        self, *, streams: Streams, stream: ChatStream, after: int, wait_seconds: float
    ) -> None:
        super().__init__(headers={"cache-control": "no-store"})
        self._streams = streams
        self._stream = stream
        self._after = after
        self._wait_seconds = wait_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request; a client that leaves is noticed at the end of the wait."""
        buffer = self._stream.buffer
        with self._streams.reading(self._stream):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._wait_seconds):
                    await buffer.news(self._after)
            try:
                frames = buffer.read(self._after, _POLL_BYTES)
            except EventsGoneError:
                await events_gone().response()(scope, receive, send)
                return
            ended = buffer.ended and self._after + len(frames) >= buffer.last_id
            if ended:
                frames = frames + self._stream.last_words()
            body = {
                "events": [
                    # As an EventSource decodes it.
                    {"id": id_of(frame), "data": data_of(frame).decode("utf-8", "replace")}
                    for frame in frames
                ],
                "ended": ended,
            }
            answer = Response(
                json.dumps(body, separators=(",", ":")),
                media_type=self.media_type,
                headers={"cache-control": "no-store"},
            )
            await answer(scope, receive, send)


def events_gone() -> ApiError:
    """Make the error for events that the bounded buffer had to drop."""
    return ApiError(
        410,
        "The events behind this one are no longer kept. What was generated before is lost to this "
        "reader: send the request again.",
        code="events_gone",
    )
