"""Compression at the edge: what may be compressed, and a compressor that holds what it is given."""

from __future__ import annotations

import zlib

import brotli

from .behaviour import (
    COMPRESSED_STATUSES,
    COMPRESSED_TYPES,
    LEAST_COMPRESSED_BYTES,
    Behaviour,
)
from .headers import Headers, directives, value


class Gzip:
    """The gzip coding: gives what is ready, and flushes at the end, not before."""

    def __init__(self) -> None:
        self._zlib = zlib.compressobj(wbits=31)

    def feed(self, piece: bytes) -> bytes:
        """Take a piece; perhaps give something."""
        return self._zlib.compress(piece)

    def end(self) -> bytes:
        """Give all the rest."""
        return self._zlib.flush()


class Brotli:
    """The br coding, the same way."""

    def __init__(self) -> None:
        self._brotli = brotli.Compressor(quality=4)

    def feed(self, piece: bytes) -> bytes:
        """Take a piece; perhaps give something."""
        return bytes(self._brotli.process(piece))

    def end(self) -> bytes:
        """Give all the rest."""
        return bytes(self._brotli.finish())


CODINGS: dict[str, type[Gzip] | type[Brotli]] = {"br": Brotli, "gzip": Gzip}


def coding(accepted: str, status: int, headers: Headers, behaviour: Behaviour) -> str:
    """Return the coding that the edge puts on an answer; empty for none."""
    kind = value(headers, "content-type").partition(";")[0].strip().lower()
    types = COMPRESSED_TYPES | ({"text/event-stream"} if behaviour.compress_events else set())
    length = value(headers, "content-length")
    if (
        value(headers, "content-encoding")
        or (not behaviour.drop_no_transform and "no-transform" in directives(headers))
        or kind not in types
        or status not in COMPRESSED_STATUSES
        or (length and int(length) < LEAST_COMPRESSED_BYTES)
    ):
        return ""
    wanted = {part.partition(";")[0].strip().lower() for part in accepted.split(",")}
    return next((name for name in CODINGS if name in wanted), "")


class Decoder:
    """Undoes an origin's coding for a visitor who does not take it."""

    def __init__(self, name: str) -> None:
        self._gzip = zlib.decompressobj(wbits=47) if name == "gzip" else None
        self._brotli = brotli.Decompressor() if name == "br" else None

    def feed(self, piece: bytes) -> bytes:
        """Take a piece of the coded answer and give what it holds."""
        if self._gzip:
            return self._gzip.decompress(piece)
        return bytes(self._brotli.process(piece)) if self._brotli else piece
