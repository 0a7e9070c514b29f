"""Who may read a stream without sending a key: who has a ticket or a cookie for it."""

from __future__ import annotations

import re
from urllib.parse import parse_qs

from starlette.types import Scope

from backend.exchange import exchange_of
from backend.keys import Key, KeyRing
from backend.streams.registry import Streams
from backend.streams.tickets import cookies_in

_READING = re.compile(r"/v1/chat/streams/([A-Za-z0-9_-]{1,128})/(?:events|poll)")


class StreamAccess:
    """A way in beside the key: good for GET on the events of one stream alone."""

    def __init__(self, streams: Streams, keys: KeyRing) -> None:
        self._streams = streams
        self._keys = keys

    def find(self, scope: Scope) -> Key | None:
        """Return the key that a ticket or cookie stands for, or None; a ticket is used up."""
        match = _READING.fullmatch(scope["path"]) if scope["method"] == "GET" else None
        stream = self._streams.get(match[1]) if match else None
        if stream is None:
            return None
        # The cookie first: an EventSource that reconnects sends its old ticket as well.
        for cookie in cookies_in(scope["headers"]):
            if key := self._in_force(stream.passes.opened_by(cookie)):
                return key
        try:
            query = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=16)
        except ValueError:
            return None
        for ticket in query.get("ticket", ()):
            key_id, set_cookie = stream.passes.redeem(ticket) or (None, "")
            if key := self._in_force(key_id):
                exchange_of(scope).headers.append((b"set-cookie", set_cookie.encode("ascii")))
                return key
        return None

    def _in_force(self, key_id: str | None) -> Key | None:
        key = None if key_id is None else self._keys.by_id(key_id)
        return None if key is None or key.expired else key
