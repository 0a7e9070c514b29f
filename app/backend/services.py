"""What the routes work with."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from backend.admission import Admission
from backend.api_request import ApiRequest, RequestParser, read_body
from backend.apis import Api
from backend.exchange import Exchange, exchange_of
from backend.express.handoffs import NO_OFFER, Handoffs, Offer
from backend.metrics import Metrics
from backend.readiness import Readiness
from backend.relay import Relay
from backend.settings import Settings
from backend.upstream import Upstream

NO_STORE = {"cache-control": "no-store"}


@dataclass(frozen=True, slots=True)
class Services:
    """Made once per process."""

    settings: Settings
    upstream: Upstream
    readiness: Readiness
    metrics: Metrics
    admission: Admission
    parser: RequestParser
    handoffs: Handoffs

    async def answer(
        self, exchange: Exchange, api: Api, request: ApiRequest, offer: Offer = NO_OFFER
    ) -> Response:
        """Let a checked request in and return what answers it.

        Every generation goes through here, whoever reads it. `offer` is nginx's, to fetch the
        answer itself. Raises ApiError 429, 503 and 504.
        """
        assert exchange.key is not None, "Authenticate lets nobody through without a key"
        exchange.model = request.model
        exchange.stream = request.stream
        permit = None
        if offer.failed_with is not None:
            permit = await self.handoffs.take_back(exchange, offer.failed_with)
        if permit is None:
            permit = await self.admission.admit(exchange.key, request.ask)
        exchange.headers += permit.headers
        try:
            handed_off = await self.handoffs.hand_off(exchange, api, request, permit, offer)
            if handed_off is not None:
                return handed_off
            return Relay(
                settings=self.settings,
                upstream=self.upstream,
                readiness=self.readiness,
                exchange=exchange,
                api=api,
                request=request,
                permit=permit,
                metrics=self.metrics,
            )
        except BaseException:
            await permit.close(None)
            raise


class NoResponse(Response):
    """The client has gone: there is nobody to answer."""

    async def __call__(self, *_: object) -> None:
        """Send nothing."""


async def body_of(
    request: Request, settings: Settings, *, limit_bytes: int | None = None
) -> bytes | None:
    """Return the whole body; None, and the log told, when the client leaves in the middle."""
    limit = settings.max_body_bytes if limit_bytes is None else limit_bytes
    try:
        return await read_body(request.scope, request.receive, limit)
    except ClientDisconnect:
        exchange_of(request.scope).ended = "client_left"
        return None
