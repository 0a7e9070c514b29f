"""Where server-sent events begin and end, in bytes that may be cut anywhere."""

from __future__ import annotations

import re

# A blank line ends an event. A line ends with LF, CRLF or CR, in any mixture.
_USUAL_ENDINGS = (b"\n\n", b"\r\n\r\n")
_ENDS_DONE = re.compile(rb"(?:^|[\r\n])data: ?\[DONE\][\r\n]*\Z")
_DONE_TAIL_BYTES = 64


class EventSplitter:
    r"""Let whole events through as they come and hold back the beginning of a broken one.

    No client can use half an event, so holding it costs no time that anyone could notice (a read
    nearly always ends with an event). In return whatever was sent always ends between two
    events: a heartbeat may follow at any moment, even while the upstream stalls in mid-event, and
    when the upstream dies there the half event is dropped and a clean error event follows, instead
    of half a JSON text that the client's parser would choke on.

    No byte is changed: `b"".join(everything feed() gave) + rest() == b"".join(everything fed)`.

    An event longer than `limit` bytes is let through in pieces, so that memory stays bounded;
    `mid_event` says so, and no heartbeat may follow then.
    """

    __slots__ = ("_held", "_last", "_limit", "_tail", "mid_event")

    def __init__(self, limit: int = 256 * 1024) -> None:
        self._limit = limit
        self._held = bytearray()
        # The byte before the next one. At the very start a blank line ends an (empty) event.
        self._last = b"\n"
        self._tail = b""
        self.mid_event = False

    def feed(self, data: bytes) -> bytes:
        """Return what may be sent now that `data` (not empty) has come; it may be nothing."""
        if not self._held and data.endswith(_USUAL_ENDINGS):
            self._last = b"\n"
            self.mid_event = False
            self._remember(data)
            return data
        cut = self._last_boundary(data)
        self._last = data[-1:]
        if cut:
            ready = bytes(self._held) + data[:cut] if self._held else data[:cut]
            self._held = bytearray(data[cut:])
            self.mid_event = False
        elif self.mid_event:
            ready = data
        else:
            self._held += data
            ready = b""
        if len(self._held) > self._limit:
            ready += bytes(self._held)
            self._held.clear()
            self.mid_event = True
        if ready:
            self._remember(ready)
        return ready

    def rest(self) -> bytes:
        """Return the bytes held back: the beginning of an event whose end has not come."""
        return bytes(self._held)

    @property
    def is_done(self) -> bool:
        """Whether the last event let through was OpenAI's terminal `data: [DONE]`."""
        return _ENDS_DONE.search(self._tail) is not None

    def _remember(self, sent: bytes) -> None:
        if len(sent) >= _DONE_TAIL_BYTES:
            self._tail = sent[-_DONE_TAIL_BYTES:]
        else:
            self._tail = (self._tail + sent)[-_DONE_TAIL_BYTES:]

    def _last_boundary(self, data: bytes) -> int:
        """Return how many bytes of `data` belong to complete events; 0 if no event ends in it.

        A blank line is a line end right after another one. CR LF is one line end, so the pair
        may only start with an LF or with a CR that no LF follows: three pairs to look for, with
        one byte of the past in front. An LF that follows the second CR belongs to it.
        """
        seam = self._last + data
        end = seam.rfind(b"\n\n") + 2
        for pair in (b"\n\r", b"\r\r"):
            found = seam.rfind(pair) + 2
            if found > end:
                end = found + 1 if seam[found : found + 1] == b"\n" else found
        if end > 1:
            return end - 1
        # The LF of a CR LF that was cut in two, after an event that was complete at its CR.
        complete = not self._held and not self.mid_event
        return 1 if complete and seam.startswith(b"\r\n") else 0


def is_terminal(event: bytes) -> bool:
    """Whether `event`, perhaps without its last line ends, is `data: [DONE]`."""
    return _ENDS_DONE.fullmatch(event) is not None
