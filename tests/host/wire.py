"""An HTTP client that sees every read from the socket, over HTTP/1.1 or HTTP/2.

The libraries one would use hide what matters here: how many events each read of the wire brought.
"""

from __future__ import annotations

import itertools
import json
import socket
import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events

READ_BYTES = 65536
GOAWAY = 7
"""The type of HTTP/2's frame."""


@dataclass
class Reads:
    """What came off the wire: (seconds since the request, bytes of the body) per read."""

    status: int = 0
    protocol: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    reads: list[tuple[float, bytes]] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        """All of it."""
        return b"".join(block for _, block in self.reads)

    @property
    def events(self) -> list[bytes]:
        """The data of each event."""
        parts = self.body.split(b"\n\n")
        return [part[6:] for part in parts if part.startswith(b"data: ")]

    @property
    def text(self) -> str:
        """The answer."""
        pieces = [json.loads(event) for event in self.events if event != b"[DONE]"]
        deltas = [piece["choices"][0]["delta"] for piece in pieces if piece.get("choices")]
        return "".join(delta.get("content") or "" for delta in deltas)

    @property
    def ended(self) -> bool:
        """Whether the last event is the terminal one."""
        return bool(self.events) and self.events[-1] == b"[DONE]"

    def events_per_read(self) -> float:
        """Events with content divided by the reads that brought them."""
        counts = [block.count(b'"content":"') for _, block in self.reads]
        bringing = [count for count in counts if count]
        return sum(bringing) / len(bringing)

    def times(self) -> list[float]:
        """When each read came that brought content, seconds since the request."""
        return [at for at, block in self.reads if b'"content":"' in block]

    def first_token(self) -> float:
        """Seconds from the request to the first read that brought content."""
        return self.times()[0]

    def gaps(self) -> list[float]:
        """Seconds between reads that brought content, sorted."""
        return sorted(after - before for before, after in itertools.pairwise(self.times()))


def connect(address: str, ca: Path, protocol: str) -> ssl.SSLSocket:
    """Open a TLS connection that speaks `protocol` (http/1.1 or h2)."""
    context = ssl.create_default_context(cafile=str(ca))
    context.set_alpn_protocols([protocol])
    raw = socket.create_connection((address, 443), timeout=60)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    wire = context.wrap_socket(raw, server_hostname=address)
    assert wire.selected_alpn_protocol() == protocol
    return wire


def post(
    address: str, ca: Path, key: str, body: dict[str, Any], protocol: str = "http/1.1",
    path: str = "/v1/chat/completions", leave_after: int | None = None,
) -> Reads:  # fmt: skip
    """POST and read to the end, or leave after that many reads of the body."""
    wire = connect(address, ca, protocol)
    try:
        seen = Reads(protocol=protocol)
        run = _h2 if protocol == "h2" else _http1
        run(wire, address, path, key, json.dumps(body).encode(), seen, leave_after)
        return seen
    finally:
        wire.close()


def _http1(
    wire: ssl.SSLSocket, address: str, path: str, key: str, body: bytes, seen: Reads,
    leave_after: int | None,
) -> None:  # fmt: skip
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        "Accept-Encoding: identity\r\nConnection: close\r\n\r\n"
    )
    began = time.monotonic()
    wire.sendall(head.encode() + body)
    rest = b""
    while b"\r\n\r\n" not in rest:
        block = wire.recv(READ_BYTES)
        assert block, "the connection was closed before the headers"
        rest += block
    lines, rest = rest.split(b"\r\n\r\n", 1)
    status, *headers = lines.decode().split("\r\n")
    seen.status = int(status.split()[1])
    seen.headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in headers)}
    chunked = seen.headers.get("transfer-encoding") == "chunked"
    while True:
        now = time.monotonic() - began
        if chunked:
            block, rest, done = _chunks(rest)
        else:
            block, rest, done = rest, b"", False
        if block:
            seen.reads.append((now, block))
        if done or (leave_after is not None and len(seen.reads) >= leave_after):
            return
        more = wire.recv(READ_BYTES)
        if not more:
            assert not chunked, "the body was cut before its last chunk"
            return
        rest += more


def _chunks(raw: bytes) -> tuple[bytes, bytes, bool]:
    """Take the whole chunks off `raw`: their bytes, what is left, and whether it was the last."""
    out = b""
    while b"\r\n" in raw:
        size_line, tail = raw.split(b"\r\n", 1)
        size = int(size_line, 16)
        if size == 0:
            return out, b"", True
        if len(tail) < size + 2:
            break
        out += tail[:size]
        raw = tail[size + 2 :]
    return out, raw, False


def _h2(
    wire: ssl.SSLSocket, address: str, path: str, key: str, body: bytes, seen: Reads,
    leave_after: int | None,
) -> None:  # fmt: skip
    link = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    link.initiate_connection()
    stream = link.get_next_available_stream_id()
    began = time.monotonic()
    link.send_headers(
        stream,
        [
            (":method", "POST"), (":path", path), (":scheme", "https"), (":authority", address),
            ("authorization", f"Bearer {key}"), ("content-type", "application/json"),
            ("accept-encoding", "identity"),
        ],
    )  # fmt: skip
    link.send_data(stream, body, end_stream=True)
    wire.sendall(link.data_to_send())
    rest = b""
    while True:
        raw = wire.recv(READ_BYTES)
        assert raw, "the connection was closed before the stream's end"
        now, block, done = time.monotonic() - began, b"", False
        frames, rest = _frames(rest + raw, stream)
        for event in link.receive_data(frames):
            if isinstance(event, h2.events.ResponseReceived):
                seen.headers = {str(k): str(v) for k, v in event.headers}
                seen.status = int(seen.headers[":status"])
            elif isinstance(event, h2.events.DataReceived):
                block += event.data
                link.acknowledge_received_data(event.flow_controlled_length, stream)
            elif isinstance(event, h2.events.StreamReset):
                raise AssertionError(f"the stream was reset: {event.error_code}")
            elif isinstance(event, h2.events.StreamEnded):
                done = True
        if block:
            seen.reads.append((now, block))
        wire.sendall(link.data_to_send())
        if done or (leave_after is not None and len(seen.reads) >= leave_after):
            return


def _frames(raw: bytes, stream: int) -> tuple[bytes, bytes]:
    """Take the whole frames off `raw` but those that say goodbye: the others, and what is left.

    A server that ends says that it takes no further streams, and finishes ours (RFC 9113, 6.8);
    the h2 library takes nothing more from it at all.
    """
    out = b""
    while len(raw) >= 9 and len(raw) >= (size := 9 + int.from_bytes(raw[:3])):
        frame, raw = raw[:size], raw[size:]
        if frame[3] == GOAWAY:
            last, error = int.from_bytes(frame[9:13]), int.from_bytes(frame[13:17])
            assert error == 0, f"the server gave the connection up: {error}"
            assert last >= stream, "the server did not take the stream"
        else:
            out += frame
    return out, raw
