"""The way to the engine: one aiohttp session per process, to LiteLLM's pass-through."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urljoin

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from backend.errors import ApiError
from backend.settings import Settings

# What may come out of aiohttp when the other side fails. HttpProcessingError (bytes that are not
# HTTP) is no ClientError, and a read on a connection that has just gone is a bare RuntimeError.
UPSTREAM_ERRORS = (aiohttp.ClientError, HttpProcessingError, OSError, RuntimeError)

# aiohttp stops reading from the socket at twice this: what a slow client can make us hold.
_READ_BUFFER_BYTES = 64 * 1024
_LIVENESS_PATH = "/health/liveliness"
_RETRY_AFTER_SECONDS = "5"


class Upstream:
    """Sends requests on and gives back the open response; times out nothing but connecting.

    Waiting for bytes is the relay's affair: a timer per read costs more than the read.
    """

    def __init__(self, settings: Settings, key: str) -> None:
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None
        self._headers = {
            "Authorization": f"Bearer {key}",
            "Content-Type": "application/json",
            # Bytes are passed on unread, so nothing here could undo a compression.
            "Accept-Encoding": "identity",
        }

    async def open(self) -> None:
        """Make the session; needs the running loop."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,
                keepalive_timeout=self._settings.upstream_keepalive_seconds,
            ),
            timeout=aiohttp.ClientTimeout(
                total=None, connect=self._settings.connect_timeout_seconds
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=_READ_BUFFER_BYTES,
            skip_auto_headers=("User-Agent",),
        )

    async def close(self) -> None:
        """Close the session and every connection of it."""
        if self._session is not None:
            await self._session.close()

    async def gateway_failure(self, timeout_seconds: float) -> str | None:
        """Ask whether LiteLLM lives; return None if it does, else why not, in plain words."""
        assert self._session is not None, "open() comes first"
        url = urljoin(self._settings.upstream_url, _LIVENESS_PATH)
        try:
            async with (
                asyncio.timeout(timeout_seconds),
                self._session.get(url, allow_redirects=False) as response,
            ):
                return None if response.status == 200 else f"it answers {response.status}"
        except TimeoutError:
            return f"it gave no answer within {timeout_seconds:g} seconds"
        except UPSTREAM_ERRORS:
            return "it cannot be reached"

    async def ask_gateway(
        self, path: str, question: dict[str, object], timeout_seconds: float
    ) -> dict[str, object] | None:
        """Ask LiteLLM's side of the express lane; return its answer, None when there is none."""
        assert self._session is not None, "open() comes first"
        url = urljoin(self._settings.upstream_url, path)
        try:
            async with (
                asyncio.timeout(timeout_seconds),
                self._session.post(
                    url, json=question, headers=self._headers, allow_redirects=False
                ) as response,
            ):
                told = await response.json() if response.status == 200 else None
        except (TimeoutError, ValueError, *UPSTREAM_ERRORS):
            return None
        return told if isinstance(told, dict) else None

    @asynccontextmanager
    async def post(
        self, path: str, body: bytes, *, request_id: str, accept: str
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """POST `body` to `path` and give the response once its status and headers are here.

        Of the client's own headers none is sent on: not its key, and none of those by which
        LiteLLM takes orders. Leaving the block before the body has ended closes the connection,
        which is what stops the generation. Raises ApiError when no response comes; a read in the
        block raises UPSTREAM_ERRORS, for translate().
        """
        assert self._session is not None, "open() comes first"
        headers = {
            **self._headers,
            "Accept": accept,
            "X-Request-Id": request_id,
            # LiteLLM's pass-through hands on no header but those with this prefix, stripped of it.
            "x-pass-x-request-id": request_id,
        }
        try:
            response = await self._session.post(
                self._settings.upstream_url + path,
                data=body,
                headers=headers,
                allow_redirects=False,
            )
        except UPSTREAM_ERRORS as error:
            raise translate(error) from error
        del body  # Sent; held here it would stay for as long as the answer takes.
        async with response:
            yield response


async def read_some(response: aiohttp.ClientResponse) -> bytes:
    """Return the next bytes of the body, or nothing at its end; raise ApiError if it breaks."""
    try:
        return await response.content.readany()
    except UPSTREAM_ERRORS as error:
        raise translate(error) from error


def translate(error: Exception) -> ApiError:
    """Say in plain words, without addresses, what became of the upstream."""
    if isinstance(error, aiohttp.ServerTimeoutError):
        return gateway_error(
            504,
            "The model server did not accept the connection in time.",
            ended="upstream_timeout",
            not_reached=True,
            fault="connect_timeout",
        )
    if isinstance(error, aiohttp.ClientConnectorError):
        return unavailable(
            "The model server cannot be reached. Try again in a few seconds.",
            not_reached=True,
            fault="unreachable",
        )
    return broken_off()


def broken_off() -> ApiError:
    """Make the error for a connection that ended too early."""
    return gateway_error(
        502,
        "The connection to the model server broke before the answer was complete.",
        fault="broken_off",
    )


def gateway_error(
    status: int,
    message: str,
    *,
    fault: str,
    ended: str = "upstream_error",
    not_reached: bool = False,
) -> ApiError:
    """Make the error for an upstream that failed us; `fault` says how, in one word."""
    return ApiError(
        status,
        message,
        kind="server_error",
        code="upstream_timeout" if ended == "upstream_timeout" else "upstream_error",
        ended=ended,
        not_reached=not_reached,
        fault=fault,
    )


def unavailable(
    message: str,
    *,
    ended: str = "upstream_error",
    not_reached: bool = False,
    fault: str | None = None,
) -> ApiError:
    """Make the 503 that asks the client to come back shortly."""
    return ApiError(
        503,
        message,
        kind="server_error",
        code="service_unavailable",
        headers={"retry-after": _RETRY_AFTER_SECONDS},
        ended=ended,
        not_reached=not_reached,
        fault=fault,
    )
