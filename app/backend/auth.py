"""Who is at the door, as pure ASGI: nothing lies between the relay and the socket."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from backend.doors import Doors, address_of
from backend.errors import ApiError
from backend.exchange import exchange_of
from backend.keys import Key, KeyRing

# Exact paths; everything else needs a key, also what does not exist.
PUBLIC_PATHS = frozenset({"/healthz", "/readyz"})
# A login has its key in the body.
LOGIN = ("POST", "/v1/session")
_LONGEST_TOKEN_BYTES = 512

Way = Callable[[Scope], Key | None]
"""A way in beside the key itself: returns whose request it is, None when it is none of its
business, and raises ApiError when it is and is refused."""


class Authenticate:
    """Let a request through when it comes with a good key, or by another way in, and note whose
    it is.

    A key that is sent decides alone, whatever else is sent.
    """

    def __init__(
        self, app: ASGIApp, keys: KeyRing, doors: Doors, other_ways: Sequence[Way] = ()
    ) -> None:
        self._app = app
        self._keys = keys
        self._doors = doors
        self._other_ways = other_ways

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope; answer 401 in OpenAI's shape without a good key."""
        if scope["type"] == "http" and not _is_public(scope):
            try:
                exchange_of(scope).key = self._whose(scope)
            except ApiError as refusal:
                await refusal.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _whose(self, scope: Scope) -> Key:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if given:
            token = _bearer_token(given[0]) if len(given) == 1 else None
            return check_token(token, address_of(scope), self._keys, self._doors)
        for way in self._other_ways:
            key = way(scope)
            if key is not None:
                return key
        raise ApiError(
            401,
            "You didn't provide an API key. Send it as: Authorization: Bearer YOUR_KEY",
            code="missing_api_key",
            headers={"www-authenticate": "Bearer"},
        )


def check_token(token: str | None, address: str, keys: KeyRing, doors: Doors) -> Key:
    """Return the key whose text is `token`; raise ApiError 401, or 429 before looking at it."""
    doors.check(address)
    key = keys.find(token) if token and len(token) <= _LONGEST_TOKEN_BYTES else None
    if key is None:
        doors.wrong(address)
        raise _refusal("Incorrect API key provided.", "invalid_api_key")
    if key.expired:
        raise _refusal("This API key has expired. Ask whoever gave it to you.", "key_expired")
    return key


def _is_public(scope: Scope) -> bool:
    return scope["path"] in PUBLIC_PATHS or (scope["method"], scope["path"]) == LOGIN


def _bearer_token(header: bytes) -> str | None:
    scheme, _, token = header.partition(b" ")
    token = token.strip()
    if scheme.lower() != b"bearer" or not token:
        return None
    return token.decode("latin-1")


def _refusal(message: str, code: str) -> ApiError:
    return ApiError(
        401, message, code=code, headers={"www-authenticate": 'Bearer error="invalid_token"'}
    )
