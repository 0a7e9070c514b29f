"""What lets a native EventSource in: a ticket once, and from then on a cookie."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable

from starlette.requests import cookie_parser

TICKET_SECONDS = 60
COOKIE = "__Secure-millrace-stream"
# Longer than any answer: it opens one stream, and ends with it.
_COOKIE_SECONDS = 86_400
# Of each kind for one stream: two tabs and a hundred lost connections.
_MOST = 128


class Passes:
    """The tickets of one stream, and the cookies that were given for them.

    A ticket may stand in an address, and addresses end up in histories and logs: so it works
    once, and for a minute. An EventSource that reconnects by itself uses the same address again;
    the cookie that it got for the ticket is what lets it in then. Either opens nothing but the
    events of its stream, and no longer than the key it was made with is good: it stands for the
    `id` of that key.
    """

    def __init__(self, stream_id: str) -> None:
        self._path = f"/v1/chat/streams/{stream_id}"
        self._tickets: dict[str, tuple[str, float]] = {}
        self._cookies: dict[str, tuple[str, float]] = {}

    def ticket(self, key_id: str) -> str:
        """Return a new ticket."""
        return _add(self._tickets, key_id, TICKET_SECONDS)

    def redeem(self, ticket: str) -> tuple[str, str] | None:
        """Take a ticket in; return the key's id and the Set-Cookie value it is worth, or None."""
        key_id = _good(self._tickets.pop(ticket, None))
        if key_id is None:
            return None
        value = _add(self._cookies, key_id, _COOKIE_SECONDS)
        return key_id, (
            f"{COOKIE}={value}; Path={self._path}; Max-Age={_COOKIE_SECONDS}; "
            "HttpOnly; Secure; SameSite=Strict"
        )

    def opened_by(self, cookie: str) -> str | None:
        """Return the id of the key that a cookie stands for, or None."""
        return _good(self._cookies.get(cookie))


def _add(passes: dict[str, tuple[str, float]], key_id: str, seconds: float) -> str:
    if len(passes) >= _MOST:
        # All of one kind last equally long: the oldest stands in front.
        del passes[next(iter(passes))]
    value = secrets.token_urlsafe(24)
    passes[value] = (key_id, time.monotonic() + seconds)
    return value


def _good(found: tuple[str, float] | None) -> str | None:
    return found[0] if found is not None and found[1] > time.monotonic() else None


def cookies_in(headers: Iterable[tuple[bytes, bytes]]) -> list[str]:
    """Return the values of the stream cookies that a request carries."""
    found = []
    for name, value in headers:
        if name == b"cookie":
            # As browsers write them: the standard library's parser gives up at others' odd ones.
            jar = cookie_parser(value.decode("latin-1"))
            if COOKIE in jar:
                found.append(jar[COOKIE])
    return found
