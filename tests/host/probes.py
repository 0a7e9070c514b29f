"""Requests that two programs could read in two ways, and what a server may answer to them.

Data and a raw client: no library would send what stands here.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
from dataclasses import dataclass

import h2.config
import h2.connection
import h2.events
import h2.exceptions

REFUSED = {400, 404, 405, 411, 413, 431, 501}
CANARY = "/smuggled-canary"
"""A path that is asked for in what is smuggled alone; an answer more means it was read as a request."""

_POST = "POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
_INNER = "GET " + CANARY + " HTTP/1.1\r\nHost: {host}\r\n\r\n"
_CHUNKED = "0\r\n\r\n" + _INNER

SMUGGLING = {
    "CL.TE": _POST + "Content-Length: 60\r\nTransfer-Encoding: chunked\r\n\r\n" + _CHUNKED,
    "TE.CL": _POST + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n" + _CHUNKED,
    "TE twice": _POST + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n" + _CHUNKED,
    "TE unknown": _POST + "Transfer-Encoding: xchunked\r\nContent-Length: 4\r\n\r\n" + _CHUNKED,
    "TE in a list": _POST + "Transfer-Encoding: chunked, identity\r\n\r\n" + _CHUNKED,
    "TE behind a space": _POST + "Transfer-Encoding : chunked\r\nContent-Length: 4\r\n\r\n" + _CHUNKED,
    "TE behind a tab": _POST + "Transfer-Encoding:\tchunked\r\nContent-Length: 4\r\n\r\n" + _CHUNKED,
    "TE with a vertical tab": _POST + "Transfer-Encoding: \x0bchunked\r\nContent-Length: 4\r\n\r\n" + _CHUNKED,
    "TE folded": _POST + "Transfer-Encoding:\r\n chunked\r\nContent-Length: 4\r\n\r\n" + _CHUNKED,
    "TE behind a bare LF": _POST + "X: y\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n" + _CHUNKED,
    "TE behind a bare CR": _POST + "X: y\rTransfer-Encoding: chunked\r\n\r\n" + _CHUNKED,
    "TE in HTTP/1.0": _POST.replace("HTTP/1.1", "HTTP/1.0") + "Transfer-Encoding: chunked\r\n\r\n" + _CHUNKED,
    "two lengths": _POST + "Content-Length: 4\r\nContent-Length: 60\r\n\r\n0000" + _INNER,
    "two lengths in one": _POST + "Content-Length: 4, 60\r\n\r\n0000" + _INNER,
    "a length with a sign": _POST + "Content-Length: +4\r\n\r\n0000" + _INNER,
    "a length below zero": _POST + "Content-Length: -1\r\n\r\n" + _INNER,
    "a length in hex": _POST + "Content-Length: 0x4\r\n\r\n0000" + _INNER,
    "a length with a space": _POST + "Content-Length: 4 0\r\n\r\n0000" + _INNER,
    "a chunk too large to count": _POST + "Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n" + _INNER,
    "a chunk that is none": _POST + "Transfer-Encoding: chunked\r\n\r\nxyz\r\n" + _INNER,
    "a zero byte in a header": _POST + "X-Zero: a\0b\r\n\r\n" + _INNER,
    "two hosts": "GET /healthz HTTP/1.1\r\nHost: {host}\r\nHost: evil.example\r\n\r\n",
    "no host": "GET /healthz HTTP/1.1\r\n\r\n",
    "a space in the target": "GET /healthz HTTP/1.1 x HTTP/1.1\r\nHost: {host}\r\n\r\n",
}  # fmt: skip
"""Each must be refused, or the connection closed, and what is smuggled never be answered."""

PATHS = (
    "/metrics", "//metrics", "/v1/../metrics", "/v1/..%2fmetrics", "/v1/%2e%2e/metrics",
    "/./metrics", "/%6detrics", "/metrics/", "/metrics%00", "/healthz/../metrics", "/vllm/v1/models",
    "/v1/../vllm/v1/models", "/v1/..%2fvllm%2fv1%2fmodels", "/key/generate", "/model/info", "/ui/",
    "/docs", "/openapi.json", "/redoc", "/config/yaml", "/v1/..;/metrics", "/v1/metrics",
    "/assets/../../../etc/passwd", "/assets/..%2f..%2f..%2fetc%2fpasswd", "/assets/%2e%2e/index.html",
    "/.git/config", "/.env", "/nginx_status", "/server-status", "/tokenize", "/invocations", "/pause",
    "/health", "/load", "/version", "http://127.0.0.1:9464/metrics",
)  # fmt: skip
"""None of them gives anything but a refusal."""

H2_WRONG: dict[str, list[tuple[str, str]]] = {
    "a line end in a value": [("x-a", "b\r\ntransfer-encoding: chunked")],
    "a request in a value": [("x-a", f"b\r\n\r\nGET {CANARY} HTTP/1.1\r\nhost: a")],
    "a line end in a name": [("x-a: b\r\nx-c", "d")],
    "a colon in a name": [("x-a: b", "c")],
    "capitals in a name": [("X-A", "b")],
    "transfer-encoding": [("transfer-encoding", "chunked")],
    "connection": [("connection", "keep-alive, x-a")],
    "a length that is not the body's": [("content-length", "60")],
    "another host beside the authority": [("host", "evil.example")],
}


@dataclass
class Said:
    """What a server said to a probe: the statuses of its answers, and whether it closed."""

    statuses: list[int]
    closed: bool
    text: str

    @property
    def refused(self) -> bool:
        """One refusal at most, and nothing more can come."""
        return len(self.statuses) <= 1 and set(self.statuses) <= REFUSED


def opened(address: str, port: int = 443, protocol: str = "http/1.1") -> ssl.SSLSocket:
    """Open a connection."""
    context = ssl._create_unverified_context()
    context.set_alpn_protocols([protocol])
    return context.wrap_socket(socket.create_connection((address, port), timeout=10))


def told(wire: socket.socket, request: bytes, seconds: float = 2) -> Said:
    """Send bytes as they are, and take in what comes until the end or a silence."""
    wire.settimeout(seconds)
    got, closed = b"", False
    try:
        wire.sendall(request)
        while data := wire.recv(65536):
            got += data
        closed = True
    except TimeoutError:
        pass
    except OSError:
        closed = True
    # nginx says that it closes, and then listens for a while to what is still on its way.
    closed = closed or b"\r\nConnection: close\r\n" in got
    statuses = [int(code) for code in re.findall(rb"HTTP/1\.[01] (\d{3})", got)]
    return Said(statuses, closed, got.decode("latin-1"))


def h1(address: str, request: str, seconds: float = 2) -> Said:
    """One raw exchange over TLS."""
    wire = opened(address)
    try:
        return told(wire, request.replace("{host}", address).encode("latin-1"), seconds)
    finally:
        wire.close()


def h2_exchange(address: str, key: str, wrong: list[tuple[str, str]]) -> tuple[list[int], int]:
    """A POST with wrong headers, then a good GET: the first's statuses, and the second's.

    0 for the second when the connection was closed.
    """
    wire = opened(address, protocol="h2")
    link = h2.connection.H2Connection(
        h2.config.H2Configuration(
            header_encoding=None, validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
    )  # fmt: skip
    base = [
        (":method", "POST"), (":scheme", "https"), (":authority", address),
        (":path", "/v1/chat/completions"), ("authorization", f"Bearer {key}"),
        ("content-type", "application/json"),
    ]  # fmt: skip
    good = [
        (":method", "GET"), (":scheme", "https"), (":authority", address), (":path", "/healthz"),
    ]  # fmt: skip
    answers: dict[int, list[int]] = {1: [], 3: []}
    inner = f"0\r\n\r\nGET {CANARY} HTTP/1.1\r\nHost: {address}\r\n\r\n".encode()
    try:
        link.initiate_connection()
        link.send_headers(1, base + wrong)
        link.send_data(1, inner, end_stream=True)
        wire.sendall(link.data_to_send())
        _until_ended(wire, link, 1, answers)
        link.send_headers(3, good, end_stream=True)
        wire.sendall(link.data_to_send())
        _until_ended(wire, link, 3, answers)
    except (OSError, h2.exceptions.ProtocolError):
        pass
    finally:
        wire.close()
    return answers[1], (answers[3] or [0])[0]


def _until_ended(
    wire: ssl.SSLSocket,
    link: h2.connection.H2Connection,
    stream: int,
    answers: dict[int, list[int]],
) -> None:
    wire.settimeout(5)
    while data := wire.recv(65536):
        for event in link.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                answers[event.stream_id].append(int(dict(event.headers)[b":status"]))
            ended = isinstance(event, h2.events.StreamEnded | h2.events.StreamReset)
            if ended and event.stream_id == stream:
                return
            if isinstance(event, h2.events.ConnectionTerminated):
                raise ConnectionError("closed")
        wire.sendall(link.data_to_send())
    raise ConnectionError("closed")


def rapid_resets(address: str, count: int) -> int:
    """Open and reset streams as fast as the wire takes them; how many until it was closed."""
    wire = opened(address, protocol="h2")
    link = h2.connection.H2Connection()
    link.initiate_connection()
    wire.sendall(link.data_to_send())
    headers = [
        (":method", "GET"), (":scheme", "https"), (":authority", address), (":path", "/healthz"),
    ]  # fmt: skip
    done = 0
    try:
        while done < count:
            for _ in range(50):
                stream = link.get_next_available_stream_id()
                link.send_headers(stream, headers, end_stream=True)
                link.reset_stream(stream)
                done += 1
            wire.sendall(link.data_to_send())
            wire.setblocking(False)
            with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):
                link.receive_data(wire.recv(65536))
            wire.settimeout(10)
    except (OSError, h2.exceptions.ProtocolError):
        pass
    finally:
        wire.close()
    return done
