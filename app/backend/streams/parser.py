"""From the bytes of an event stream to the data of each event."""

from __future__ import annotations

import re

from backend.errors import server_error

_LINE_END = re.compile(rb"\r\n|\n|\r")
_FIELD = b"data: "
_END = b"\n\n"


class EventParser:
    r"""Takes bytes that may be cut anywhere and gives the data of the events that are complete.

    By the HTML standard: lines end with LF, CRLF or CR, several `data` lines make one text with
    `\n` between them, comments are nothing. Ids and retry times of the upstream are dropped,
    because the stream made of these events has its own.

    At most `limit` bytes of an unfinished event are held; a longer one is an ApiError 502.
    """

    __slots__ = ("_after_cr", "_data", "_held", "_limit", "_line")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._line = bytearray()
        self._data: list[bytes] = []
        self._held = 0
        self._after_cr = False

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the data of each event that `piece` completes."""
        # What an engine sends, nearly always: one event, one line, one piece.
        if (
            piece.startswith(_FIELD)
            and piece.endswith(_END)
            and not self._held
            and not self._after_cr
            and piece.find(b"\n") == len(piece) - 2
            and b"\r" not in piece
        ):
            return [piece[6:-2]]
        return self._feed_lines(piece)

    def _feed_lines(self, piece: bytes) -> list[bytes]:
        if self._after_cr and piece.startswith(b"\n"):
            piece = piece[1:]
            self._after_cr = False
        if not piece:
            return []
        self._after_cr = piece.endswith(b"\r")
        found: list[bytes] = []
        *lines, rest = _LINE_END.split(piece)
        for line in lines:
            if self._line:
                line = bytes(self._line) + line
                self._line.clear()
            self._take(line, found)
        self._line += rest
        self._held = len(self._line) + sum(map(len, self._data)) + len(self._data)
        if self._held > self._limit:
            self._line.clear()
            self._data.clear()
            self._held = 0
            raise server_error(
                f"The model server sent an event longer than {self._limit} bytes.",
                status=502,
                code="upstream_error",
            )
        return found

    def _take(self, line: bytes, found: list[bytes]) -> None:
        if not line:
            if self._data:
                found.append(b"\n".join(self._data))
                self._data.clear()
            return
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
