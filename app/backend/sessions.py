"""Cookie sessions: what a browser has instead of a key.

The cookie says which key was shown, by that key's id, under a signature and with a date. Nothing
is kept here: a session lasts as long as its key does, and ends with it at once.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from itsdangerous import BadSignature, SignatureExpired, URLSafeTimedSerializer
from starlette.types import Scope

from backend.errors import ApiError
from backend.keys import Key, KeyRing

# The prefix makes browsers refuse it from any other host, from plain HTTP, and for a part of the
# site only.
COOKIE = "__Host-millrace"
_FLAGS = "Path=/; Secure; HttpOnly; SameSite=Strict"
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_SALT = "millrace.session"
_LONGEST_COOKIE_BYTES = 512


class Sessions:
    """Makes and reads the cookie. `lifetime_seconds` counts from the login."""

    def __init__(self, secret: str, lifetime_seconds: int, keys: KeyRing) -> None:
        self._signer = URLSafeTimedSerializer(secret, salt=_SALT)
        self._lifetime = lifetime_seconds
        self._keys = keys

    def begin(self, key: Key) -> str:
        """Return the Set-Cookie header for who has shown `key`."""
        token = self._signer.dumps(key.id)
        text = token if isinstance(token, str) else token.decode("ascii")
        return f"{COOKIE}={text}; Max-Age={self._lifetime}; {_FLAGS}"

    def end(self) -> str:
        """Return the Set-Cookie header that takes the cookie away."""
        return f"{COOKIE}=; Max-Age=0; {_FLAGS}"

    def find(self, scope: Scope) -> Key | None:
        """Return the key whose session the request is in; None when it has no cookie of ours.

        Raises ApiError: 401 for a session that is over or never was, 403 where another site made
        the browser send it.
        """
        token = _cookie(scope)
        if token is None:
            return None
        try:
            key_id = self._signer.loads(token, max_age=self._lifetime)
        except SignatureExpired:
            raise _over() from None
        except BadSignature:
            raise _over() from None
        key = self._keys.by_id(key_id) if isinstance(key_id, str) else None
        if key is None or key.expired:
            raise _over()
        if scope["method"] not in _SAFE_METHODS and not is_same_origin(scope):
            raise cross_site()
        return key


def is_same_origin(scope: Scope, *, unknown: bool = False) -> bool:
    """Whether our own page made the browser send this request; `unknown` where nothing tells.

    Browsers say it themselves in Sec-Fetch-Site, which no page can forge; older ones send at least
    the Origin of an unsafe request.
    """
    site = _header(scope, b"sec-fetch-site")
    if site is not None:
        # none: typed in or bookmarked, not sent by any site.
        return site in {b"same-origin", b"none"}
    origin = _header(scope, b"origin")
    if origin is None:
        return unknown
    host = _header(scope, b"host") or b""
    # Not the scheme: behind nginx ours is always http.
    return urlsplit(origin.decode("latin-1")).netloc.lower() == host.decode("latin-1").lower()


def cross_site() -> ApiError:
    """Make the 403 for a request that another site made the browser send."""
    return ApiError(
        403,
        "Another site sent this request in your name, so it was refused. Programs send a key: "
        "Authorization: Bearer YOUR_KEY",
        kind="permission_error",
        code="cross_site_request",
    )


def _over() -> ApiError:
    return ApiError(
        401,
        "Your session is over. Log in again with your key.",
        code="session_expired",
        headers={"www-authenticate": "Bearer"},
    )


def _cookie(scope: Scope) -> str | None:
    """Return the value of our cookie; None without one, and empty when it came more than once."""
    prefix = COOKIE.encode("ascii") + b"="
    found = [
        part.strip()[len(prefix) :]
        for name, value in scope["headers"]
        if name == b"cookie"
        for part in value.split(b";")
        if part.strip().startswith(prefix)
    ]
    if not found:
        return None
    if len(found) > 1 or len(found[0]) > _LONGEST_COOKIE_BYTES:
        return ""
    return str(found[0], "latin-1")


def _header(scope: Scope, wanted: bytes) -> bytes | None:
    """Return a header's value; something that matches nothing when it came more than once."""
    found = [value for name, value in scope["headers"] if name == wanted]
    if len(found) > 1:
        return b"several"
    return found[0].strip() if found else None
