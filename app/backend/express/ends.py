"""What nginx and the engine tell of answers that were handed off: a datagram each."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.usage import Usage

log = logging.getLogger(__name__)

_MOST_BYTES = 8192
_RECEIVE_BUFFER_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class EngineBegan:
    """The request has come to the engine."""

    request_id: str


@dataclass(frozen=True, slots=True)
class EngineEnd:
    """How the answer ended, as the engine saw it. `first_token_seconds` is since it began there."""

    request_id: str
    status: int
    whole: bool
    left: bool
    done: bool
    pieces: int
    bytes: int
    first_token_seconds: float | None
    usage: Usage | None


@dataclass(frozen=True, slots=True)
class EdgeEnd:
    """How it ended, as nginx saw it. `whole`: the client was sent all that came from the engine."""

    request_id: str
    status: int
    whole: bool
    bytes: int


End = EngineBegan | EngineEnd | EdgeEnd


def read_end(datagram: bytes) -> End | None:
    """Return what a datagram tells, or None for one that makes no sense.

    nginx writes its own as a line of syslog: the JSON begins behind a head of the protocol's.
    """
    try:
        told = json.loads(datagram[datagram.index(b"{") :])
        if told["from"] == "edge":
            return EdgeEnd(
                str(told["id"]), int(told["status"]), told["whole"] == "OK", int(told["bytes"])
            )
        if told["what"] == "begin":
            return EngineBegan(str(told["id"]))
        return EngineEnd(
            request_id=str(told["id"]),
            status=int(told["status"]),
            whole=told["whole"] is True,
            left=told["left"] is True,
            done=told["done"] is True,
            pieces=int(told["pieces"]),
            bytes=int(told["bytes"]),
            first_token_seconds=_seconds(told["first_token"]),
            usage=None if told["usage"] is None else Usage(*map(int, told["usage"])),
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _seconds(value: Any) -> float | None:
    return None if value is None else max(float(value), 0.0)


class EndsListener(asyncio.DatagramProtocol):
    """Listens at a socket of this instance's own and passes on what is told there."""

    def __init__(self, heard: Callable[[End], None]) -> None:
        self._heard = heard
        self._transport: asyncio.BaseTransport | None = None
        self._path: Path | None = None

    async def open(self, path: Path) -> None:
        """Begin to listen; raise OSError where that cannot be.

        Anybody on this machine may write to it, for nginx and the engine are other users. Who does
        must know the id of a request that is under way to have any effect.
        """
        ends = _bind(path)
        loop = asyncio.get_running_loop()
        try:
            self._transport, _ = await loop.create_datagram_endpoint(lambda: self, sock=ends)
        except BaseException:
            ends.close()
            raise
        self._path = path

    def datagram_received(self, data: bytes, addr: object) -> None:
        """Take one in."""
        end = read_end(data) if len(data) <= _MOST_BYTES else None
        if end is None:
            log.warning("a datagram about an answer's end makes no sense")
        else:
            self._heard(end)

    def close(self) -> None:
        """Stop listening."""
        if self._transport is not None:
            self._transport.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _bind(path: Path) -> socket.socket:
    """Return a socket at `path`; one that was left there is replaced."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    ends = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        ends.setblocking(False)
        ends.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        ends.bind(str(path))
        path.chmod(0o666)
    except BaseException:
        ends.close()
        raise
    return ends
