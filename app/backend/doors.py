"""How often one address may show a wrong key.

Keys cannot be guessed; what this spares us is the work and the noise of those who try.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.types import Scope

from backend.errors import ApiError

_WINDOW_SECONDS = 60.0
# Some 200 bytes each. Whoever has more addresses than this at hand pushes out the oldest.
_MOST_ADDRESSES = 4096


class Doors:
    """Counts wrong keys by address, a minute from the first one on. Memory is bounded.

    One process's own count: with several workers an address gets as many tries from each.
    """

    def __init__(self, most_a_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most_a_minute
        self._clock = clock
        # address -> (wrong keys, end of its minute), oldest minute first.
        self._tries: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def check(self, address: str) -> None:
        """Raise ApiError 429 for an address that has shown too many wrong keys lately."""
        count, end = self._tries.get(address, (0, 0.0))
        left = end - self._clock()
        if count < self._most or left <= 0:
            return
        raise ApiError(
            429,
            "Too many wrong keys came from your address. Wait a minute and check the key.",
            kind="rate_limit_error",
            code="too_many_wrong_keys",
            headers={"retry-after": str(math.ceil(left))},
        )

    def wrong(self, address: str) -> None:
        """Note a wrong key."""
        now = self._clock()
        count, end = self._tries.get(address, (0, 0.0))
        if end <= now:
            self._tries.pop(address, None)
            count, end = 0, now + _WINDOW_SECONDS
        self._tries[address] = (count + 1, end)
        while len(self._tries) > _MOST_ADDRESSES:
            self._tries.popitem(last=False)

    def __len__(self) -> int:
        """Tell how many addresses are remembered."""
        return len(self._tries)


def address_of(scope: Scope) -> str:
    """Return whose request this is: an IPv4 address, or the /64 that an IPv6 address is in.

    A connection over a Unix socket is nginx's, which says whom it speaks for in X-Forwarded-For;
    whoever comes by TCP is believed nothing.
    """
    client = scope.get("client")
    if client:
        return _network(client[0])
    forwarded = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
    last = forwarded[-1].rpartition(b",")[2] if forwarded else b""
    return _network(last.strip().decode("latin-1"))


def _network(text: str) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        # Who has one address of it has all of it.
        return str(ipaddress.IPv6Network((int(address) & ~((1 << 64) - 1), 64)))
    return str(address)
