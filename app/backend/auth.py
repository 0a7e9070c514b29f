"""Bearer keys at the door, as pure ASGI: nothing lies between the relay and the socket."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from backend.errors import ApiError
from backend.exchange import exchange_of
from backend.keys import KeyRing

# Exact paths; everything else needs a key, also what does not exist.
PUBLIC_PATHS = frozenset({"/healthz", "/readyz"})
_LONGEST_TOKEN_BYTES = 512


class Authenticate:
    """Let a request through when it carries a good key, and note the key's name."""

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope; answer 401 in OpenAI's shape without a good key."""
        if scope["type"] == "http" and scope["path"] not in PUBLIC_PATHS:
            refusal = self._check(scope)
            if refusal is not None:
                await refusal.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> ApiError | None:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if not given:
            return _refusal(
                "You didn't provide an API key. Send it as: Authorization: Bearer YOUR_KEY",
                "missing_api_key",
                "Bearer",
            )
        token = _bearer_token(given[0]) if len(given) == 1 else None
        key = self._keys.find(token) if token else None
        if key is None:
            return _refusal(
                "Incorrect API key provided.", "invalid_api_key", 'Bearer error="invalid_token"'
            )
        exchange_of(scope).key = key
        return None


def _bearer_token(header: bytes) -> str | None:
    scheme, _, token = header.partition(b" ")
    token = token.strip()
    if scheme.lower() != b"bearer" or not 0 < len(token) <= _LONGEST_TOKEN_BYTES:
        return None
    return token.decode("latin-1")


def _refusal(message: str, code: str, challenge: str) -> ApiError:
    return ApiError(401, message, code=code, headers={"www-authenticate": challenge})
