"""Server-sent events, taken apart as they arrive."""

from __future__ import annotations

from dataclasses import dataclass

LONGEST_EVENT_BYTES = 1 << 20


class TooLongError(Exception):
    """An event of more than a mebibyte: this is no stream of tokens."""


@dataclass(frozen=True)
class Block:
    """What stands between two blank lines. `data` is None in a comment."""

    raw: bytes
    data: str | None
    event: str = ""


class Parser:
    r"""Feed it bytes, cut anywhere; it gives the blocks that are complete.

    Lines end with LF or CRLF. (The standard's lone CR is used by nobody.) Memory stays under
    LONGEST_EVENT_BYTES and the size of one read.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._raw: list[bytes] = []
        self._data: list[str] = []
        self._event = ""
        self._size = 0

    def feed(self, data: bytes) -> list[Block]:
        """Return the blocks that end in `data`. Raises TooLongError."""
        blocks = []
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            self._raw.append(line + b"\n")
            self._size += len(line) + 1
            text = line.rstrip(b"\r")
            if not text:
                blocks.append(self._take())
            elif not text.startswith(b":"):
                name, _, value = text.partition(b":")
                value = value.removeprefix(b" ")
                if name == b"data":
                    self._data.append(value.decode("utf-8", "replace"))
                elif name == b"event":
                    self._event = value.decode("utf-8", "replace")
            if self._size > LONGEST_EVENT_BYTES:
                raise TooLongError
        if len(self._rest) > LONGEST_EVENT_BYTES:
            raise TooLongError
        return blocks

    @property
    def rest(self) -> bytes:
        """The beginning of a block whose end has not come."""
        return b"".join(self._raw) + self._rest

    def _take(self) -> Block:
        data = "\n".join(self._data) if self._data else None
        block = Block(b"".join(self._raw), data, self._event)
        self._raw, self._data, self._event, self._size = [], [], "", 0
        return block
