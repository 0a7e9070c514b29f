"""Content codings, undone as the bytes arrive: what a browser could show at that moment."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import brotli
from backports import zstd

LARGEST_STEP_BYTES = 1 << 20
"""A few compressed bytes may stand for gigabytes: no step gives back more than this."""


class CodingError(Exception):
    """The body is not what its Content-Encoding says."""


def _inflate(window_bits: int) -> Callable[[bytes], bytes]:
    engine = zlib.decompressobj(window_bits)

    def step(data: bytes) -> bytes:
        out = engine.decompress(data, LARGEST_STEP_BYTES)
        if engine.unconsumed_tail:
            raise CodingError("the body grows beyond all measure when it is decompressed")
        return out

    return step


def _unbrotli() -> Callable[[bytes], bytes]:
    engine = brotli.Decompressor()

    def step(data: bytes) -> bytes:
        out: bytes = engine.process(data, output_buffer_limit=LARGEST_STEP_BYTES)
        if len(out) >= LARGEST_STEP_BYTES or not engine.can_accept_more_data():
            raise CodingError("the body grows beyond all measure when it is decompressed")
        return out

    return step


def _unzstd() -> Callable[[bytes], bytes]:
    engine = zstd.ZstdDecompressor()

    def step(data: bytes) -> bytes:
        out: bytes = engine.decompress(data, max_length=LARGEST_STEP_BYTES)
        if len(out) >= LARGEST_STEP_BYTES:
            raise CodingError("the body grows beyond all measure when it is decompressed")
        return out

    return step


def decoder(coding: str) -> Callable[[bytes], bytes]:
    """Return a function that takes the next bytes off the wire and gives what they decode to.

    `coding` is the value of Content-Encoding. The function raises CodingError. A coding that was
    not asked for raises CodingError at once.
    """
    known: dict[str, Callable[[], Callable[[bytes], bytes]]] = {
        "": lambda: lambda data: data,
        "identity": lambda: lambda data: data,
        "gzip": lambda: _inflate(31),
        "x-gzip": lambda: _inflate(31),
        "deflate": lambda: _inflate(15),
        "br": _unbrotli,
        "zstd": _unzstd,
    }
    make = known.get(coding.strip().lower())
    if make is None:
        raise CodingError(f"the answer is coded as {coding[:40]!r}, which nobody asked for")
    step = make()

    def guarded(data: bytes) -> bytes:
        try:
            return step(data)
        except CodingError:
            raise
        except (zlib.error, brotli.error, zstd.ZstdError, EOFError) as error:
            raise CodingError(f"the body is not {coding}: {error}") from None

    return guarded
