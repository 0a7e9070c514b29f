"""A stand-in for Cloudflare's API: it keeps state, and refuses as the real one does.

    with Standin() as api:                                    # in a test
        zone = api.world.zone("example.com", plan="free")
        token = api.world.token("t" * 40)
        ... api.url ...

    python tests/cloudflare/cf_server.py --zone example.com --plan free --port 8787

Shapes and messages follow the public documentation and what people have seen of the real one.
"""

from __future__ import annotations

import argparse
import copy
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from cf_routes import ROUTES, RefusedError, Reply, Request
from cf_state import Call, World

PREFIX = "/client/v4"
PARTS = ["cf_zones", "cf_dns", "cf_rulesets", "cf_certificates", "cf_pulls", "cf_tunnels"]
"""Files that register routes."""

for part in PARTS:
    import_module(part)


class Standin:
    """A running stand-in; `url` is what cloudflare_api_url takes."""

    def __init__(self, port: int = 0) -> None:
        self.world = World()
        self.lock = threading.Lock()
        standin = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Head and body in one piece: apart, the second waits for the first one's receipt.
            wbufsize = -1

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                standin.serve(self, self.rfile.read(length))

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}{PREFIX}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def serve(self, http: BaseHTTPRequestHandler, data: bytes) -> None:
        """Answer one call and note it."""
        url = urlsplit(http.path)
        path = url.path.removeprefix(PREFIX)
        query = dict(parse_qsl(url.query))
        with self.lock:
            fault = next((f for f in self.world.faults if f.strikes(http.command, path)), None)
            headers = {}
            body: Any = None
            try:
                body = json.loads(data) if data else None
                if fault and not fault.done:
                    raise RefusedError(fault.status, 0, "fault")
                reply = self.reply(http, path, query, body)
                if fault:
                    raise RefusedError(fault.status, 0, "fault")
                status = reply.status
                told = {"success": True, "errors": [], "messages": [], "result": reply.result}
                if reply.result_info is not None:
                    told["result_info"] = reply.result_info
            except RefusedError as refusal:
                status = refusal.status
                errors = refusal.errors
                if fault:
                    code = 10429 if status == 429 else 10001
                    text = "Rate limited. Please wait and try again." if status == 429 else (
                        "Internal service error")  # fmt: skip
                    errors = [{"code": code, "message": text}]
                    if fault.retry_after:
                        headers["Retry-After"] = fault.retry_after
                told = {"success": False, "errors": errors, "messages": [], "result": None}
            self.world.calls.append(Call(http.command, path, status, body, query))
            sent = b"" if status == 204 else json.dumps(copy.deepcopy(told)).encode()
        http.send_response(status)
        for name, value in headers.items():
            http.send_header(name, value)
        if status != 204:
            http.send_header("Content-Type", "application/json")
            http.send_header("Content-Length", str(len(sent)))
        http.end_headers()
        http.wfile.write(sent)

    def reply(
        self, http: BaseHTTPRequestHandler, path: str, query: dict[str, str], body: Any
    ) -> Reply:
        """Find the token and the route, and let the route answer."""
        scheme, _, token = (http.headers.get("Authorization") or "").partition(" ")
        if scheme != "Bearer" or not token or " " in token:
            raise RefusedError(400, 6003, "Invalid request headers")
        if token not in self.world.tokens:
            raise RefusedError(403, 9109, "Invalid access token")
        for route in ROUTES:
            match = route.pattern.match(path)
            if not match or route.method != http.command:
                continue
            request = Request(
                self.world, http.command, path, query, body, self.world.tokens[token],
                match.groupdict(),
            )  # fmt: skip
            if "zone_id" in request.params and request.params["zone_id"] not in self.world.zones:
                raise RefusedError(
                    404, 7003,
                    f"Could not route to {path}, perhaps your object identifier is invalid?",
                )  # fmt: skip
            if route.needs:
                request.need(route.needs, code=route.code)
            return route.answer(request)
        raise RefusedError(404, 7000, "No route for that URI")


def main() -> None:
    """Serve until stopped, for trying things out by hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--zone", default="example.com")
    parser.add_argument("--plan", default="free")
    parser.add_argument("--port", type=int, default=8787)
    parser.add_argument("--token", default="stand-in-token")
    options = parser.parse_args()
    with Standin(options.port) as api:
        api.world.zone(options.zone, options.plan)
        api.world.token(options.token)
        print(f"cloudflare_api_url: {api.url}   token: {options.token}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
