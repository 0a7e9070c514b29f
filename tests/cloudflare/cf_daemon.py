#!/usr/bin/python3
"""A stand-in for cloudflared where Cloudflare is out of reach: the commands that our unit uses.

    cloudflared --config FILE tunnel ingress validate    exit status 0, or 1 and what is wrong
    cloudflared --config FILE tunnel run                 says that it is ready, until SIGTERM

Like the real one it takes its settings from the file alone, will not start with credentials of
another tunnel, and hands a visitor on to the rule of his name: here visitors come by loopback, at
the port of the metrics. Standard library and Debian's python3-yaml.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import yaml

KNOWN = {"tunnel", "credentials-file", "no-autoupdate", "management-diagnostics", "metrics",
         "loglevel", "grace-period", "originRequest", "ingress"}  # fmt: skip
ORIGIN = {"connectTimeout", "tlsTimeout", "tcpKeepAlive", "keepAliveConnections",
          "keepAliveTimeout", "http2Origin", "disableChunkedEncoding", "noTLSVerify",
          "originServerName", "caPool"}  # fmt: skip


def stop(why: str) -> None:
    """End as the real one does where it cannot begin."""
    print(f"ERR {why}", file=sys.stderr, flush=True)
    raise SystemExit(1)


def read(file: str) -> dict[str, Any]:
    """Return the settings; ends where the real one would."""
    settings: dict[str, Any] = yaml.safe_load(Path(file).read_text())
    if unknown := (set(settings) - KNOWN) | (set(settings.get("originRequest", {})) - ORIGIN):
        stop(f"unknown settings {sorted(unknown)}")
    rules = settings.get("ingress") or []
    if not rules or "hostname" in rules[-1] or "path" in rules[-1]:
        stop("the last ingress rule must match all URLs")
    for rule in rules:
        service = str(rule.get("service", ""))
        if not service.startswith("http_status:") and not urlsplit(service).hostname:
            stop(f"{service} is an invalid address: it needs a scheme and a hostname")
    return settings


def origin_trust(settings: dict[str, Any]) -> ssl.SSLContext:
    """Return what the origin's certificate is checked with."""
    trust = ssl.create_default_context()
    if pool := settings["originRequest"].get("caPool"):
        trust.load_verify_locations(pool)
    return trust


def serve(settings: dict[str, Any]) -> ThreadingHTTPServer:
    """Return the server of metrics and visitors."""
    rules, options = settings["ingress"], settings["originRequest"]
    trust = origin_trust(settings)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Say nothing."""

        def reply(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            name = str(self.headers["Host"])
            if self.path == "/ready" and name.startswith("127."):
                return self.reply(200, b'{"status":200,"readyConnections":4}')
            rule = next(r for r in rules if r.get("hostname", name) == name)
            where = urlsplit(rule["service"])
            if where.scheme == "http_status":
                return self.reply(int(where.path), b"")
            # The name in the greeting is the setting's, not that of the address.
            link = http.client.HTTPSConnection(where.netloc, timeout=10, context=trust)
            raw = socket.create_connection((where.hostname, where.port), timeout=10)
            link.sock = trust.wrap_socket(raw, server_hostname=options["originServerName"])
            link.request("GET", self.path, headers=dict(self.headers))
            answer = link.getresponse()
            return self.reply(answer.status, answer.read())

    host, _, port = settings["metrics"].rpartition(":")
    return ThreadingHTTPServer((host, int(port)), Handler)


def say_ready() -> None:
    """Tell systemd."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wire:
            wire.sendto(b"READY=1", address.replace("@", "\0", 1))


def run(settings: dict[str, Any]) -> None:
    """Run until SIGTERM."""
    credentials = json.loads(Path(settings["credentials-file"]).read_text())
    if credentials["TunnelID"] != settings["tunnel"] or not credentials["TunnelSecret"]:
        stop("the credentials are those of another tunnel")
    server = serve(settings)

    def end(_: int, __: FrameType | None) -> None:
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, end)
    say_ready()
    server.serve_forever(0.05)


def main(arguments: list[str]) -> None:
    """Do what was asked."""
    words = [word for word in arguments if word != "--no-autoupdate"]
    match words:
        case ["--config", file, "tunnel", "ingress", "validate"]:
            print(f"Validating rules from {file}")
            read(file)
            print("OK")
        case ["--config", file, "tunnel", "run"]:
            run(read(file))
        case _:
            stop(f"this stand-in does not know {arguments}")


if __name__ == "__main__":
    main(sys.argv[1:])
