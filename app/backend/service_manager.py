"""Tell systemd how the process is: sd_notify(3) in a few lines, for it is one datagram.

The packages for it are either bindings that need a compiler or have had no release in years.
"""

from __future__ import annotations

import contextlib
import os
import socket

NOTIFY_VARIABLE = "NOTIFY_SOCKET"


def managed() -> bool:
    """Return whether a service manager waits for our word."""
    return bool(os.environ.get(NOTIFY_VARIABLE))


def notify(*lines: str, patience_seconds: float = 0) -> None:
    """Send lines such as `READY=1` or `STATUS=…`; nothing happens where nobody listens.

    A manager that cannot be reached, or has not read for longer than `patience_seconds`, is no
    reason to stop serving: errors are swallowed.
    """
    address = os.environ.get(NOTIFY_VARIABLE)
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as link,
    ):
        link.settimeout(patience_seconds)
        link.sendto("\n".join(lines).encode(), address)
