"""What is kept of chat streams beyond the process that makes them."""

from __future__ import annotations

from backend.streams.stream import ChatStream


class StreamStore:
    """Keeps nothing: the streams of a process end with it. What a real store inherits.

    None of it may hold a stream up or fail one: a store that is away costs what it would have
    kept.
    """

    async def open(self) -> None:
        """Connect; needs the running loop."""

    async def close(self) -> None:
        """Write what is still to be written, and disconnect."""

    def keep(self, stream: ChatStream) -> None:
        """Begin to write down what a stream of this process makes, until it has ended."""

    def drop(self, stream: ChatStream) -> None:
        """Delete what was kept of a stream."""

    async def load(self, stream_id: str) -> ChatStream | None:
        """Return a stream that another process made, as far as it is kept, and follow it."""
        return None
