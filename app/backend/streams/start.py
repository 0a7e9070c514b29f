"""The answer to the POST that makes a stream, and the generation behind it."""

from __future__ import annotations

import asyncio
import contextlib
import json

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from backend.exchange import Exchange
from backend.settings import Settings
from backend.streams.generation import Generation, Whole
from backend.streams.registry import Streams
from backend.streams.stream import ChatStream
from backend.streams.tickets import TICKET_SECONDS

# Refusals (limits, what the engine does not take) come within milliseconds and are real status
# codes; what comes later is an error event. A reader can connect only after this answer, and its
# way here is to run beside the prefill and not after it: so it is not a long time.
_REFUSAL_SECONDS = 0.3


class StreamStart(Response):
    """Runs a generation in the task of the request that asked for it, and answers meanwhile.

    The server counts the task as open work when the answer has gone, as it does with any
    background task: a restart waits for it within the drain time and then cancels it, which the
    relay turns into an honest ending. The request's line in the log is that of the generation.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        streams: Streams,
        stream: ChatStream,
        exchange: Exchange,
        key_id: str,
        relay: ASGIApp,
    ) -> None:
        super().__init__()
        self._streams = streams
        self._stream = stream
        self._exchange = exchange
        self._key_id = key_id
        self._relay = relay
        self._generation = Generation(stream, settings.stream_buffer_bytes // 2, self._finish)
        self._server_send = exchange.server_send

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request and run the generation to its end."""
        generation, exchange, stream = self._generation, self._exchange, self._stream
        # Where a relay writes the pieces of its answer.
        exchange.server_send = generation.send
        answering = asyncio.create_task(self._answer(send))
        try:
            await self._relay(scope, generation.receive, generation.send)
        except BaseException:
            exchange.ended = "server_error"
            raise
        finally:
            generation.settled.set()
            if stream.wanted_end is not None and exchange.ended == "client_left":
                exchange.ended = stream.wanted_end
            if generation.answer() is None:
                generation.end()
            else:
                self._streams.forget(stream)
            await answering

    def _finish(self) -> None:
        self._streams.finish(self._stream, self._exchange.ended)

    async def _answer(self, send: Send) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REFUSAL_SECONDS):
                await self._generation.settled.wait()
        answer = self._generation.answer() or self._created()
        await send(
            {
                "type": "http.response.start",
                "status": answer.status,
                "headers": answer.headers,
            }
        )
        # Not through `send`, which would take it for the first byte of the generation.
        await self._server_send({"type": "http.response.body", "body": answer.body})

    def _created(self) -> Whole:
        stream = self._stream
        body = json.dumps(
            {
                "id": stream.id,
                "object": "chat.stream",
                "created": stream.created,
                "model": stream.model,
                "events": f"/v1/chat/streams/{stream.id}/events",
                "ticket": stream.passes.ticket(self._key_id),
                "ticket_expires_in": TICKET_SECONDS,
            },
            separators=(",", ":"),
        ).encode("ascii")
        response = Response(
            body, 201, media_type="application/json", headers={"cache-control": "no-store"}
        )
        return Whole(response.status_code, response.raw_headers, body)
