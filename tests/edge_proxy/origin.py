"""The way to the origin: HTTP/2, one connection for many visitors' streams."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

from .headers import Headers

BLOCK = 65536
STREAM_WINDOW = 1 << 20
CONNECTION_WINDOW = 1 << 24


class OriginError(Exception):
    """The origin could not be reached, or broke off; `status` is what the visitor is told."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass
class Answer:
    """One stream of the connection: its head, and its body as it comes."""

    link: Link
    stream: int
    status: int = 0
    headers: Headers = field(default_factory=list)
    pieces: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue)
    head: asyncio.Event = field(default_factory=asyncio.Event)
    failed: str = ""

    async def body(self, silence_seconds: float) -> AsyncIterator[bytes]:
        """Yield what comes, piece by piece. Raises TimeoutError, OriginError."""
        while True:
            piece = await asyncio.wait_for(self.pieces.get(), silence_seconds)
            if piece is None:
                break
            self.link.consumed(self.stream, len(piece))
            yield piece
        if self.failed:
            raise OriginError(520, self.failed)


class Link:
    """One connection to the origin."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._h2 = h2.connection.H2Connection(
            config=h2.config.H2Configuration(header_encoding="utf-8")
        )
        self._answers: dict[int, Answer] = {}
        self._room = asyncio.Event()
        self.open = True
        self._h2.local_settings.update({
            h2.settings.SettingCodes.ENABLE_PUSH: 0,
            h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
        })  # fmt: skip
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(CONNECTION_WINDOW - 65535)
        self._flush()
        self._reading = asyncio.create_task(self._read())

    @property
    def has_room(self) -> bool:
        """Whether one more stream may be opened."""
        most: int = self._h2.remote_settings.max_concurrent_streams
        return self.open and len(self._answers) < most

    async def ask(self, headers: Headers, body: bytes) -> Answer:
        """Send a request; the answer's head may not be there yet."""
        stream = self._h2.get_next_available_stream_id()
        answer = self._answers[stream] = Answer(self, stream)
        self._h2.send_headers(stream, headers, end_stream=not body)
        self._flush()
        while body and stream in self._answers:
            most = min(self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size)
            if most <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            piece, body = body[:most], body[most:]
            self._h2.send_data(stream, piece, end_stream=not body)
            self._flush()
            await self._writer.drain()
        return answer

    def consumed(self, stream: int, count: int) -> None:
        """Give a stream its window back. The connection's is given back on arrival: a visitor who
        reads slowly must not stop the others."""
        if stream in self._answers and count:
            self._h2.increment_flow_control_window(count, stream)
            self._flush()

    def leave(self, answer: Answer) -> None:
        """The visitor has gone, or the end has come: the origin need not go on."""
        if self._answers.pop(answer.stream, None) and self.open:
            with contextlib.suppress(h2.exceptions.ProtocolError):
                self._h2.reset_stream(answer.stream, h2.errors.ErrorCodes.CANCEL)
            self._flush()

    async def close(self) -> None:
        """Close the connection."""
        self._reading.cancel()
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def _flush(self) -> None:
        self._writer.write(self._h2.data_to_send())

    async def _read(self) -> None:
        why = "the origin closed the connection"
        try:
            while data := await self._reader.read(BLOCK):
                for event in self._h2.receive_data(data):
                    self._take(event)
                self._flush()
        except (OSError, h2.exceptions.ProtocolError) as error:
            why = f"the connection to the origin broke: {error}"
        finally:
            self.open = False
            self._room.set()
            for answer in list(self._answers.values()):
                self._end(answer, why)
            self._writer.close()

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            self.open = False
        if isinstance(event, h2.events.WindowUpdated | h2.events.RemoteSettingsChanged):
            self._room.set()
        if isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
            self._h2.increment_flow_control_window(event.flow_controlled_length)
        answer = self._answers.get(getattr(event, "stream_id", None) or 0)
        if answer is None:
            return
        if isinstance(event, h2.events.ResponseReceived):
            told = [(str(name), str(text)) for name, text in event.headers or []]
            answer.status = int(dict(told)[":status"])
            answer.headers = [(name, text) for name, text in told if not name.startswith(":")]
            answer.head.set()
        elif isinstance(event, h2.events.DataReceived):
            answer.pieces.put_nowait(event.data or b"")
        elif isinstance(event, h2.events.StreamReset):
            self._end(answer, f"the origin reset the stream ({event.error_code})")
        elif isinstance(event, h2.events.StreamEnded):
            self._end(answer, "")

    def _end(self, answer: Answer, why: str) -> None:
        self._answers.pop(answer.stream, None)
        answer.failed = why
        answer.pieces.put_nowait(None)
        answer.head.set()


class Origin:
    """Connections to the origin; a second one only when the first is full or ending."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext, server_name: str) -> None:
        self.host, self.port = host, port
        self._context, self._name = context, server_name
        self._links: list[Link] = []
        self._opening = asyncio.Lock()
        self.opened = 0

    async def ask(self, headers: Headers, body: bytes) -> Answer:
        """Send a request. Raises OriginError: 521 refused, 522 late, 525 TLS, 526 not trusted."""
        async with self._opening:
            self._links = [link for link in self._links if link.open]
            link = next((link for link in self._links if link.has_room), None)
            if link is None:
                link = await self._connect()
                self._links.append(link)
        return await link.ask(headers, body)

    async def _connect(self) -> Link:
        try:
            reader, writer = await asyncio.wait_for(
                asyncio.open_connection(
                    self.host, self.port, ssl=self._context, server_hostname=self._name
                ),
                15,
            )
        except TimeoutError as error:
            raise OriginError(522, "the origin does not answer") from error
        except ssl.SSLCertVerificationError as error:
            raise OriginError(526, f"the origin's certificate: {error}") from error
        except ssl.SSLError as error:
            raise OriginError(525, f"TLS with the origin: {error}") from error
        except OSError as error:
            raise OriginError(521, f"the origin refuses: {error}") from error
        chosen = writer.get_extra_info("ssl_object").selected_alpn_protocol()
        if chosen != "h2":
            writer.close()
            raise OriginError(520, f"the origin speaks {chosen or 'HTTP/1.1'}, not HTTP/2")
        self.opened += 1
        return Link(reader, writer)

    async def close(self) -> None:
        """Close every connection."""
        for link in self._links:
            await link.close()
