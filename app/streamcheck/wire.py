"""HTTP/1.1 and HTTP/2 over a plain socket, so that every read of it can be timed.

The usual client libraries read ahead and hand on what they gathered. Here h11 and h2 do the
protocol and nothing else: each piece carries the moment at which its read returned.
"""

from __future__ import annotations

import socket
import ssl
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h11

from streamcheck.model import HTTP2, CheckError, Target

READ_BYTES = 65536
H2_WINDOW_BYTES = 1 << 24
"""Large, so that our own flow control is never what holds a stream back."""


class NotOfferedError(Exception):
    """The other side does not speak the protocol that was asked for."""


@dataclass(frozen=True)
class Request:
    """What is sent. `path` includes the query."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes = b""


@dataclass
class Head:
    """The answer's beginning. `at`: `time.monotonic()` when it had come."""

    at: float
    status: int
    version: str
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Piece:
    """What one read brought of the body."""

    at: float
    data: bytes


@dataclass
class End:
    """The answer's end: `clean`, or why it is none (`reason`)."""

    at: float
    clean: bool
    reason: str = ""


class Wire:
    """One connection for one request. Close it to leave."""

    def __init__(
        self, target: Target, protocol: str, timeout_seconds: float, receive_buffer: int = 0
    ) -> None:
        """Connect. `receive_buffer`: the kernel's, bytes; 0: as it likes.

        Raises CheckError in words for people, NotOfferedError.
        """
        self._receive_buffer = receive_buffer
        self.target = target
        self.protocol = protocol
        parts = urllib.parse.urlsplit(target.url)
        self.tls = parts.scheme == "https"
        if protocol == HTTP2 and not self.tls:
            raise NotOfferedError("HTTP/2 needs TLS")
        self.host = parts.hostname or "localhost"
        self.authority = parts.netloc.rpartition("@")[2]
        self.port = parts.port or (443 if self.tls else 80)
        began = time.monotonic()
        self.sock = self._connect(timeout_seconds)
        self.connect_seconds = time.monotonic() - began
        self._timeout = timeout_seconds

    def _connect(self, timeout_seconds: float) -> socket.socket:
        place = self.target.connect
        where = f"{self.target.title} ({place or self.target.url})"
        try:
            if place.startswith("unix:"):
                raw = socket.socket(socket.AF_UNIX)
                raw.settimeout(timeout_seconds)
                raw.connect(place.removeprefix("unix:"))
            else:
                raw = self._tcp(place or self.host, timeout_seconds)
        except TimeoutError:
            raise CheckError(
                f"{where} does not answer: no connection within {timeout_seconds:g} s"
            ) from None
        except socket.gaierror:
            raise CheckError(f"{where} is unknown: no address for the name {self.host}") from None
        except OSError as error:
            raise CheckError(
                f"{where} cannot be reached: {error.strerror or error}; is it running?"
            ) from None
        return self._secure(raw, where) if self.tls else raw

    def _tcp(self, host: str, timeout_seconds: float) -> socket.socket:
        if self._receive_buffer:
            # It counts only when it is set before the connection is made.
            family, kind, number, _, address = socket.getaddrinfo(
                host, self.port, type=socket.SOCK_STREAM
            )[0]
            raw = socket.socket(family, kind, number)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
            raw.settimeout(timeout_seconds)
            raw.connect(address)
        else:
            raw = socket.create_connection((host, self.port), timeout=timeout_seconds)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return raw

    def _secure(self, raw: socket.socket, where: str) -> socket.socket:
        try:
            context = ssl.create_default_context()
            if self.target.ca:
                context.load_verify_locations(self.target.ca)
        except OSError as error:
            raw.close()
            raise CheckError(
                f"the certificate file {self.target.ca} cannot be read: {error.strerror or error}"
            ) from None
        context.set_alpn_protocols([self.protocol])
        try:
            secured = context.wrap_socket(raw, server_hostname=self.host)
        except ssl.SSLCertVerificationError as error:
            raw.close()
            raise CheckError(
                f"the certificate of {where} is not trusted ({error.verify_message}): "
                "mend it, or give the file of its authority with --ca"
            ) from None
        except TimeoutError:
            raw.close()
            raise CheckError(f"{where} does not answer: no TLS handshake in time") from None
        except OSError as error:
            raw.close()
            reason = getattr(error, "reason", None) or error.strerror or type(error).__name__
            if self.protocol == HTTP2 and "ALPN" in str(reason).upper():
                raise NotOfferedError(str(reason)) from None
            raise CheckError(f"{where} does not speak TLS: {reason}") from None
        if self.protocol == HTTP2 and secured.selected_alpn_protocol() != HTTP2:
            secured.close()
            raise NotOfferedError("HTTP/2 is not offered")
        return secured

    def close(self) -> None:
        """Leave."""
        self.sock.close()

    def exchange(self, request: Request, deadline: float) -> Iterator[Head | Piece | End]:
        """Send `request`; give its answer as it comes, ending with an End.

        `deadline`: `time.monotonic()` at which the End comes whatever happens. Raises CheckError
        when the other side speaks no HTTP.
        """
        talk = self._http2 if self.protocol == HTTP2 else self._http1
        try:
            yield from talk(request, deadline)
        except TimeoutError:
            yield End(time.monotonic(), False, "timeout")
        except (ConnectionError, ssl.SSLError, BrokenPipeError) as error:
            reason = error.strerror or type(error).__name__
            yield End(time.monotonic(), False, f"the connection was cut ({reason})")

    def _read(self, deadline: float) -> bytes:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.sock.settimeout(left)
        return self.sock.recv(READ_BYTES)

    def _send(self, data: bytes, deadline: float) -> None:
        self.sock.settimeout(max(deadline - time.monotonic(), 0.001))
        self.sock.sendall(data)

    # HTTP/1.1 -------------------------------------------------------------------------------

    def _http1(self, request: Request, deadline: float) -> Iterator[Head | Piece | End]:
        link = h11.Connection(h11.CLIENT)
        headers = [("Host", self.authority), *request.headers, ("Connection", "close")]
        if request.body or request.method == "POST":
            headers.append(("Content-Length", str(len(request.body))))
        start = link.send(h11.Request(method=request.method, target=request.path, headers=headers))
        body = link.send(h11.Data(data=request.body)) if request.body else b""
        end = link.send(h11.EndOfMessage())
        self._send((start or b"") + (body or b"") + (end or b""), deadline)
        started = begun = False
        at = time.monotonic()
        while True:
            block = b""
            try:
                while (event := link.next_event()) is not h11.NEED_DATA:
                    if isinstance(event, h11.Response):
                        started = True
                        version = event.http_version.decode()
                        yield Head(at, event.status_code, version, _headers(event.headers))
                    elif isinstance(event, h11.Data):
                        block += event.data
                    elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                        if block:
                            yield Piece(at, block)
                        yield End(at, True)
                        return
            except h11.RemoteProtocolError as error:
                if not started:
                    raise CheckError(self._no_http(str(error))) from None
                if block:
                    yield Piece(at, block)
                yield End(at, False, f"the body was cut: {error}")
                return
            if block:
                yield Piece(at, block)
            data = self._read(deadline)
            at = time.monotonic()
            if not data and not started:
                if begun:
                    raise CheckError(self._no_http("it hangs up"))
                yield End(at, False, "the connection was closed before an answer")
                return
            begun = begun or bool(data)
            link.receive_data(data)

    def _no_http(self, why: str) -> str:
        return f"{self.target.title} ({self.target.url}) answers, but not with HTTP: {why}"

    # HTTP/2 ---------------------------------------------------------------------------------

    def _http2(self, request: Request, deadline: float) -> Iterator[Head | Piece | End]:
        link = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        link.local_settings.initial_window_size = H2_WINDOW_BYTES
        link.initiate_connection()
        link.increment_flow_control_window(H2_WINDOW_BYTES)
        stream = link.get_next_available_stream_id()
        pseudo = [
            (":method", request.method),
            (":path", request.path),
            (":scheme", "https"),
            (":authority", self.authority),
        ]
        headers = [(name.lower(), value) for name, value in request.headers]
        link.send_headers(stream, pseudo + headers, end_stream=not request.body)
        unsent = request.body
        at = time.monotonic()
        while True:
            unsent = self._h2_send_body(link, stream, unsent)
            self._send(link.data_to_send(), deadline)
            data = self._read(deadline)
            at = time.monotonic()
            if not data:
                yield End(at, False, "the connection was closed in mid-stream")
                return
            block, ended = b"", None
            try:
                events = link.receive_data(data)
            except h2.exceptions.ProtocolError as error:
                raise CheckError(f"{self.target.title} breaks HTTP/2: {error}") from None
            for event in events:
                if isinstance(event, h2.events.ResponseReceived):
                    given = {str(k): str(v) for k, v in event.headers or []}
                    yield Head(at, int(given.pop(":status")), "2", given)
                elif isinstance(event, h2.events.DataReceived):
                    block += event.data or b""
                    link.acknowledge_received_data(event.flow_controlled_length or 0, stream)
                elif isinstance(event, h2.events.StreamReset):
                    ended = End(at, False, f"the stream was reset ({_h2_error(event.error_code)})")
                elif isinstance(event, h2.events.StreamEnded):
                    ended = End(at, True)
                elif isinstance(event, h2.events.ConnectionTerminated) and event.error_code:
                    ended = ended or End(at, False, "the other side ended the connection")
            if block:
                yield Piece(at, block)
            if ended:
                yield ended
                return

    @staticmethod
    def _h2_send_body(link: h2.connection.H2Connection, stream: int, body: bytes) -> bytes:
        """Queue as much of the body as the other side's window allows; return what is left."""
        while body:
            room = min(link.local_flow_control_window(stream), link.max_outbound_frame_size)
            if room <= 0:
                return body
            block, body = body[:room], body[room:]
            link.send_data(stream, block, end_stream=not body)
        return b""


def _h2_error(code: int | None) -> str:
    try:
        return h2.errors.ErrorCodes(code or 0).name
    except ValueError:
        return str(code)


def _headers(raw: object) -> dict[str, str]:
    """Return headers by lower-case name; of a repeated one the values joined by commas."""
    found: dict[str, str] = {}
    for name, value in raw:  # type: ignore[attr-defined]
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        found[key] = f"{found[key]}, {text}" if key in found else text
    return found
