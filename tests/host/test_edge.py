"""The edge of a real server: who is answered, what goes through, what is believed, how much.

tests/unit/test_edge.py asks every kind of edge more closely, where nginx is installed.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import re
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from breaking import NGINX, keep, restore
from nginx_config import holding_back
from servers import Server

FORGED = "198.51.100.77"


def send(
    server: Server, request: str, sni: str = "", port: int = 443, pair: Sequence[Path] = ()
) -> tuple[int, str]:
    """Send a request as it is; return the status, 0 where nothing came, and all that came.

    `pair` is what the visitor shows: files of a certificate and its key, or one that holds both.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if pair:
        context.load_cert_chain(*pair)
    with socket.create_connection((server.address, port), timeout=20) as raw:
        wire = context.wrap_socket(raw, server_hostname=sni or None) if port == 443 else raw
        wire.sendall(request.encode())
        got = b""
        with contextlib.suppress(ConnectionError, ssl.SSLEOFError):
            while block := wire.recv(65536):
                got += block
    return (int(got.split()[1]) if got else 0), got.decode("utf-8", "replace")


def ask(server: Server, path: str, host: str = "", method: str = "GET", *lines: str) -> str:
    """Return a request."""
    head = [f"{method} {path} HTTP/1.1", f"Host: {host or server.address}", "Connection: close"]
    return "\r\n".join([*head, *lines, "", ""])


def test_other_names_are_closed_on_without_a_word(server: Server) -> None:
    assert send(server, ask(server, "/healthz"))[0] == 200
    for host in ("evil.example", "localhost", "127.0.0.1"):
        assert send(server, ask(server, "/healthz", host)) == (0, "")
        assert send(server, ask(server, "/healthz", host), port=80) == (0, "")
    assert send(server, "GET /healthz HTTP/1.0\r\n\r\n") == (0, "")
    with pytest.raises(ssl.SSLError):
        send(server, ask(server, "/healthz"), sni="evil.example")


def test_nothing_is_held_back_as_nginx_has_it(server: Server) -> None:
    """On every path: what is streamed through it elsewhere may be short enough to pass anyhow."""
    places, wrong = holding_back(server)
    assert {"/v1/", "/v1/chat/streams"} <= places
    assert wrong == set()


def test_methods_and_spellings_that_are_not_on_the_list(server: Server) -> None:
    for method, path, code in (
        ("GET", "/v1/chat/completions", 405),
        ("PUT", "/v1/session", 405),
        ("OPTIONS", "/v1/models", 405),
        ("POST", "/", 405),
        ("TRACE", "/v1/models", 405),
        ("POST", "/v1/load_lora_adapter", 404),
        ("POST", "/v1/chat/%63ompletions", 404),
        ("GET", "/v1/%2e%2e/metrics", 404),
        ("GET", "//v1/models", 404),
        ("POST", "/key/generate", 404),
        ("POST", "/pause", 404),
    ):
        status, told = send(server, ask(server, path, "", method))
        assert status == code, (method, path)
        if method != "TRACE":
            assert json.loads(told.partition("\r\n\r\n")[2])["error"]["code"]


def test_what_can_be_read_in_two_ways_is_refused(server: Server) -> None:
    host = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {server.address}\r\n"
    for lines in (
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /metrics HTTP/1.1\r\n",
        "Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
        "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    ):
        status, told = send(server, host + lines)
        assert status in (400, 501), lines
        assert told.count("HTTP/1.1 ") == 1


def test_nobody_is_believed_about_his_address(server: Server) -> None:
    names = ("X-Forwarded-For", "CF-Connecting-IP", "X-Real-IP", "True-Client-IP")
    path = f"/v1/models?{time.time_ns()}"
    status, told = send(server, ask(server, path, "", "GET", *(f"{n}: {FORGED}" for n in names)))
    assert status == 401
    found = re.search(r"x-request-id: ([0-9a-f]{32})", told, re.I)
    assert found is not None
    time.sleep(1)
    lines = server.run(f"journalctl --no-pager -o cat -t nginx -n 500 | grep {found[1]}")
    assert FORGED not in lines
    assert path.partition("?")[2] not in lines, "a query is in the log"


@contextlib.contextmanager
def small_limits(server: Server) -> Iterator[None]:
    """Two requests at once, and few in a second; what came before is not counted."""
    edits = (
        "-e 's/limit_conn at_once [0-9]*/limit_conn at_once 2/' "
        "-e 's/rate=[0-9]*r.s/rate=1r\\/s/' "
        "-e 's/zone=requests burst=[0-9]*/zone=requests burst=6/'"
    )
    again = "nginx -t -q && systemctl reload nginx; sleep 1"
    # A reload keeps the counts, and at a rate this small those of a busy minute would last.
    fresh = "nginx -t -q && systemctl restart nginx; sleep 1"
    server.run(f"{keep(NGINX)}; sed -i {edits} {NGINX}; {fresh}")
    try:
        yield
    finally:
        server.run(f"{restore(NGINX)}; {again}")


@pytest.mark.breaks
def test_one_address_gets_so_much_and_this_server_all(server: Server) -> None:
    key = f"Authorization: Bearer {server.key}"
    stream = ask(server, "/v1/streamcheck?events=3&silence_seconds=2", "", "GET", key)
    with small_limits(server), concurrent.futures.ThreadPoolExecutor(5) as pool:
        seen = list(pool.map(lambda _: send(server, stream), range(5)))
        assert sorted(status for status, _ in seen) == [200, 200, 429, 429, 429]
        refused = next(told for status, told in seen if status == 429)
        assert re.search(r"^Retry-After: [1-9]", refused, re.M)
        assert '"rate_limit_error"' in refused
        seen = [send(server, ask(server, "/healthz")) for _ in range(12)]
        assert 429 in {status for status, _ in seen}
        request = "GET /healthz HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n"
        inside = server.run(
            f"for n in 1 2 3 4 5 6 7 8 9 10 11 12; do printf '{request}' | "
            "openssl s_client -quiet -connect 127.0.0.1:443 2>/dev/null | head -n 1; done"
        )
        assert inside.count(" 200 ") == 12
