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


Step = Callable[[bytes], bytes]


def _inflate(window_bits: int) -> Step:
    engine = zlib.decompressobj(window_bits)
    return _measured(
        lambda data: engine.decompress(data, LARGEST_STEP_BYTES),
        lambda: bool(engine.unconsumed_tail),
    )


def _unbrotli() -> Step:
    engine = brotli.Decompressor()
    return _measured(
        lambda data: engine.process(data, output_buffer_limit=LARGEST_STEP_BYTES),
        lambda: not engine.can_accept_more_data(),
    )


def _unzstd() -> Step:
    engine = zstd.ZstdDecompressor()
    return _measured(
        lambda data: engine.decompress(data, max_length=LARGEST_STEP_BYTES), lambda: False
    )


def _measured(step: Step, has_more: Callable[[], bool]) -> Step:
    def measured(data: bytes) -> bytes:
        out = step(data)
        if len(out) >= LARGEST_STEP_BYTES or has_more():
            raise CodingError("the body grows beyond all measure when it is decompressed")
        return out

    return measured


def decoder(coding: str) -> Step:
    """Return a function that takes the next bytes off the wire and gives what they decode to.

    `coding` is the value of Content-Encoding. The function raises CodingError. A coding that was
    not asked for raises CodingError at once.
    """
    known: dict[str, Callable[[], Step]] = {
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
