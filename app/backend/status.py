"""GET /v1/status: the chain as it is now, hop by hop, for people who look at the page."""

from __future__ import annotations

import asyncio
import time
from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from backend.last_check import CheckReport, LastCheck
from backend.openapi import answers
from backend.services import NO_STORE, Services

# However many look, the gateway is asked once in so long.
_ASK_AGAIN_SECONDS = 2.0
_GATEWAY_SECONDS = 2.0
_LONGEST_DETAIL = 500


class HopStatus(BaseModel):
    """One hop. `detail` says in plain words how that is known, or what is wrong."""

    name: Literal["nginx", "backend", "litellm", "vllm"]
    state: Literal["ok", "down", "unknown"]
    detail: str


class Status(BaseModel):
    """The chain, in the order that a request takes, and what the last stream check found."""

    ready: bool
    reason: str | None
    hops: list[HopStatus]
    streamcheck: CheckReport | None


class Gateway:
    """Whether LiteLLM answers, asked at most every few seconds whoever wants to know."""

    def __init__(self, services: Services) -> None:
        self._upstream = services.upstream
        self._turn = asyncio.Lock()
        self._asked = 0.0
        self._known = HopStatus(name="litellm", state="unknown", detail="not asked yet")

    async def status(self) -> HopStatus:
        """Return what is known, a few seconds old at most."""
        async with self._turn:
            if not self._asked or time.monotonic() - self._asked >= _ASK_AGAIN_SECONDS:
                failure = await self._upstream.gateway_failure(_GATEWAY_SECONDS)
                self._known = HopStatus(
                    name="litellm",
                    state="down" if failure else "ok",
                    detail=failure or "it answers its liveness check",
                )
                self._asked = time.monotonic()
            return self._known


def add_status_route(router: APIRouter, services: Services) -> None:
    """Add the route."""
    gateway = Gateway(services)
    last_check = LastCheck(services.settings.streamcheck_summary)

    @router.get("/v1/status", responses=answers({}))
    async def status(request: Request, response: Response) -> Status:
        """Tell how each hop is, and what the last stream check found."""
        response.headers.update(NO_STORE)
        ready, told = services.readiness.report()
        reason = told.get("reason")
        litellm = await gateway.status()
        return Status(
            ready=ready,
            reason=None if reason is None else str(reason),
            hops=[
                _nginx(request),
                HopStatus(name="backend", state="ok", detail=_own_detail(services)),
                litellm,
                _engine(ready, told, litellm),
            ],
            streamcheck=last_check.read(),
        )


def _nginx(request: Request) -> HopStatus:
    """Judge by the request itself: nobody but nginx says for whom it asks."""
    if "x-forwarded-for" in request.headers:
        return HopStatus(name="nginx", state="ok", detail="this request came through it")
    return HopStatus(name="nginx", state="unknown", detail="this request did not come through it")


def _own_detail(services: Services) -> str:
    streams = services.metrics.active_streams()
    return f"it answers; {streams} {'stream' if streams == 1 else 'streams'} in hand"


def _engine(ready: bool, told: dict[str, object], gateway: HopStatus) -> HopStatus:
    hardware = told.get("hardware")
    lines = [str(line) for line in hardware] if isinstance(hardware, list) else []
    if ready:
        lines.insert(0, f"a token came out of it {told['last_token_age_seconds']:.0f} s ago")
        return HopStatus(name="vllm", state="ok", detail=_detail(lines))
    lines.insert(0, str(told.get("reason", "no token")))
    if gateway.state == "down":
        lines.insert(0, "it cannot be asked while LiteLLM is down")
        return HopStatus(name="vllm", state="unknown", detail=_detail(lines))
    return HopStatus(name="vllm", state="down", detail=_detail(lines))


def _detail(lines: list[str]) -> str:
    return "; ".join(lines)[:_LONGEST_DETAIL]
