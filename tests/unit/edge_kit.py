"""nginx as each kind of edge gets it: rendered by Ansible, and run here where it can be had."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from unit_kit import ROOT

from bench.parts import find_nginx, nginx_version

NGINX_CONF = ROOT / "templates/nginx/nginx.conf.j2"
NAME, V4, V6 = "chat.example.org", "203.0.113.10", "2001:db8::10"
OUTSIDE = "127.0.0.2"
"""Reaches the listener that visitors reach: only 127.0.0.1 is this server itself."""
PLAIN, TLS, TUNNEL = 18080, 18443, 18444
STREAMS = 3
BURST = 20

_DEBIAN = {"distribution": "Debian", "systemd": {"version": 252, "features": ""}}
_OWN_NAME = {"millrace_edge": "direct", "tls_domains": [NAME]}
EDGES: dict[str, dict[str, Any]] = {
    "direct": {"millrace_edge": "direct"},
    "named": _OWN_NAME,
    "strict": {**_OWN_NAME, "nginx_names_only": True, "tls_source": "acme"},
    "cloudflare": {"millrace_edge": "cloudflare", "tls_domains": [NAME]},
    "pulls": {
        "millrace_edge": "cloudflare",
        "tls_domains": [NAME],
        "nginx_client_ca": "/etc/millrace/tls/cloudflare-pull-ca.crt",
    },
    "tunnel": {"millrace_edge": "tunnel", "tls_domains": [NAME]},
    "pageless": {"millrace_edge": "direct", "millrace_page": False},
    "express": {"millrace_edge": "direct", "nginx_stream_path": "express"},
}
"""How an owner may have it: settings by name."""


def render(
    home: Path, playbook: Callable[..., Any], plan: dict[str, Any],
    edges: Mapping[str, dict[str, Any]] = EDGES, releases: Sequence[str] = ("12", "13"),
) -> Path:  # fmt: skip
    """Render nginx.conf for every edge on Debian 12 and 13: a file each, `EDGE-RELEASE.conf`."""
    hosts = {}
    for edge, settings in edges.items():
        for release in releases:
            facts = {
                **_DEBIAN,
                "distribution_major_version": release,
                "all_ipv4_addresses": [V4],
                "all_ipv6_addresses": [V6, "fe80::1"],
            }
            hosts[f"{edge}-{release}"] = {"ansible_host": V4, "facts": facts, **settings}
    inventory = home / "inventory.yml"
    inventory.write_text(yaml.safe_dump({"millrace": {"hosts": hosts}}))
    files = [ROOT / f"roles/nginx/{kind}/main.yml" for kind in ("defaults", "vars")]
    group = ROOT / "inventory/group_vars/millrace"
    settings = yaml.safe_load((group / "settings.yml").read_text())
    wiring = yaml.safe_load((group / "wiring.yml").read_text())
    needed = {k: v for k, v in wiring.items() if k.startswith("nginx_") or k == "millrace_http3"}
    # The hosts' own settings win over an owner's file, as they do in an inventory.
    (home / "group_vars").mkdir()
    (home / "group_vars/millrace.yml").write_text(yaml.safe_dump({**settings, **needed}))
    defaults = yaml.safe_load(files[0].read_text())
    (home / "group_vars/all.yml").write_text(yaml.safe_dump(defaults))
    play = {
        "hosts": "millrace",
        "gather_facts": False,
        "vars_files": [str(files[1])],
        "tasks": [
            {"fake_facts": {"facts": "{{ facts }}"}},
            {
                "keep_text": {
                    "content": f"{{{{ lookup('ansible.builtin.template', '{NGINX_CONF}') }}}}",
                    "dest": f"{home}/{{{{ inventory_hostname }}}}.conf",
                }
            },
        ],
    }
    book, given = home / "render.yml", home / "given.json"
    book.write_text(yaml.safe_dump([play], sort_keys=False))
    given.write_text(json.dumps({"millrace_plan": plan}))
    playbook("-i", str(inventory), "-f", "4", "-e", f"@{given}", str(book))
    return home


def release_here() -> str:
    """Return the Debian whose configuration the nginx here takes."""
    return "13" if nginx_version() >= (1, 25) else "12"


def make_certificates(home: Path) -> None:
    """Make the server's certificate, and two authorities with a visitor's certificate each."""
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    (home / "san").write_text(f"subjectAltName=DNS:{NAME},DNS:localhost,IP:{V4}\n")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=home, capture_output=True, check=True)

    openssl("req", "-x509", *curve, "-subj", "/CN=x", "-addext", (home / "san").read_text().strip(),
            "-keyout", "server.key", "-out", "server.crt")  # fmt: skip
    for authority in ("pull", "other"):
        openssl("req", "-x509", *curve, "-subj", f"/CN={authority}",
                "-keyout", f"{authority}-ca.key", "-out", f"{authority}-ca.crt")  # fmt: skip
        openssl("req", *curve, "-subj", "/CN=visitor", "-keyout", f"{authority}.key",
                "-out", f"{authority}.csr")  # fmt: skip
        openssl("x509", "-req", "-in", f"{authority}.csr", "-CA", f"{authority}-ca.crt",
                "-CAkey", f"{authority}-ca.key", "-CAcreateserial", "-days", "2",
                "-out", f"{authority}.crt")  # fmt: skip


def localised(text: str, home: Path) -> str:
    """Return a configuration with this machine's paths and ports, and small limits."""
    text = at_home(text, home)
    text = re.sub(r"limit_conn at_once \d+", f"limit_conn at_once {STREAMS}", text)
    text = re.sub(r"zone=requests burst=\d+", f"zone=requests burst={BURST}", text)
    text = re.sub(r"zone=logins burst=\d+", "zone=logins burst=2", text)
    text = re.sub(r"rate=\d+r/s", "rate=1r/s", text)
    return re.sub(r"(client_(?:header|body)_timeout) \d+s", r"\1 2s", text)


def at_home(text: str, home: Path) -> str:
    """Return a configuration with this machine's paths and ports."""
    text = text.replace("/etc/millrace/tls/server.", f"{home}/server.")
    text = text.replace("/etc/millrace/tls/cloudflare-pull-ca.crt", f"{home}/pull-ca.crt")
    text = text.replace("/etc/millrace/cloudflare/nginx-real-ip.conf", f"{home}/real-ip.conf")
    text = text.replace("/var/lib/millrace/acme", f"{home}/acme")
    text = text.replace("/opt/millrace/web/current", f"{home}/page")
    text = text.replace("/run/millrace-backend.sock", f"{home}/backend.sock")
    text = re.sub(r"/run/millrace-backend-([ab])/ends.sock", rf"{home}/ends-\1.sock", text)
    text = text.replace("pid /run/nginx.pid", f"pid {home}/nginx.pid")
    text = text.replace("include /etc/nginx/modules-enabled/*.conf;", "")
    types = "types { text/html html; text/css css; text/javascript js; }"
    text = text.replace("include /etc/nginx/mime.types;", types)
    user = "user root;" if os.geteuid() == 0 else ""
    text = text.replace("user www-data;", user).replace(
        "worker_processes auto", "worker_processes 1"
    )
    text = re.sub(r"worker_rlimit_nofile \d+;", "", text)
    text = re.sub(r"worker_connections \d+;", "worker_connections 400;", text)
    text = re.sub(r"error_log syslog:server=unix:/dev/log\S*", f"error_log {home}/error.log", text)
    text = re.sub(
        r"access_log syslog:server=unix:/dev/log\S*", f"access_log {home}/access.log", text
    )
    ports = {"80": PLAIN, "443": TLS, "8443": TUNNEL}
    text = re.sub(r"(listen (?:\[::1?\]:|127\.0\.0\.1:)?)(80|443|8443)\b",
                  lambda m: f"{m[1]}{ports[m[2]]}", text)  # fmt: skip
    if ssl.OPENSSL_VERSION_INFO < (3, 5):
        text = text.replace("X25519MLKEM768:", "")
    for name in ("body", "proxy", "fastcgi", "uwsgi", "scgi"):
        path = "client_body" if name == "body" else name
        text = text.replace("http {", f"http {{\n    {path}_temp_path {home}/{name};", 1)
    return text


class _Backend(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


class _Echo(http.server.BaseHTTPRequestHandler):
    """Tell what came; `?hold` first holds the answer for two seconds, `?die` breaks it off."""

    protocol_version = "HTTP/1.1"

    def address_string(self) -> str:
        return "unix"

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        told = {"path": self.path, "method": self.command, "headers": self.headers.items()}
        data = json.dumps(told).encode()
        if "die" in self.path:
            self.close_connection = True
            return
        if "hold" in self.path:
            time.sleep(2)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_DELETE = _answer  # noqa: N815  # the names that the library calls

    def log_message(self, format: str, *args: Any) -> None:
        pass


@dataclass
class Answer:
    """What came back: `status` 0 stands for a connection that was closed without a word."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> Any:
        """Return the body, read."""
        return json.loads(self.body)

    def passed_on(self) -> dict[str, str]:
        """Return the headers that the backend got."""
        return {name.lower(): value for name, value in self.json()["headers"]}


@dataclass
class Edge:
    """A running nginx, and ways to ask it."""

    home: Path

    def raw(
        self, data: bytes, *, address: str = OUTSIDE, port: int = TLS, sni: str = "",
        certificate: str = "", wait: float = 10, tls: bool = True,
    ) -> bytes:  # fmt: skip
        """Send bytes and return all that comes. Raises ssl.SSLError where no greeting succeeds."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family) as link:
            link.settimeout(wait)
            # From where it goes to, or it would always be 127.0.0.1.
            link.bind((address, 0))
            link.connect((address, port))
            wire = self.greeting(certificate).wrap_socket(
                link, server_hostname=sni or None
            ) if tls else link  # fmt: skip
            wire.sendall(data)
            got = b""
            with contextlib.suppress(ConnectionError, ssl.SSLEOFError):
                while block := wire.recv(65536):
                    got += block
            return got

    def greeting(self, certificate: str = "") -> ssl.SSLContext:
        """Return a context that takes any certificate, and shows one."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if certificate:
            context.load_cert_chain(
                self.home / f"{certificate}.crt", self.home / f"{certificate}.key"
            )
        return context

    def ask(
        self, path: str = "/v1/models", method: str = "GET", host: str | None = V4,
        headers: tuple[str, ...] = (), body: bytes = b"", version: str = "1.1", **how: Any,
    ) -> Answer:  # fmt: skip
        """Send one request and read the answer."""
        lines = [f"{method} {path} HTTP/{version}"]
        lines += [f"Host: {host}"] if host is not None else []
        lines += [f"Content-Length: {len(body)}"] if body else []
        data = "\r\n".join([*lines, *headers, "Connection: close", "", ""]).encode() + body
        got = self.raw(data, **how)
        if not got:
            return Answer()
        head, _, rest = got.partition(b"\r\n\r\n")
        first, *more = head.decode("latin-1").split("\r\n")
        told = {k.lower(): v for k, _, v in (line.partition(": ") for line in more)}
        return Answer(int(first.split()[1]), told, rest)

    def log(self, name: str) -> str:
        """Return a log of nginx's, once it has had the time to write it."""
        time.sleep(0.2)
        return (self.home / f"{name}.log").read_text()


@contextlib.contextmanager
def running(home: Path, text: str) -> Iterator[Edge]:
    """Run nginx with a configuration and something behind it."""
    nginx = find_nginx()
    assert nginx is not None
    (home / "acme/.well-known/acme-challenge").mkdir(parents=True, exist_ok=True)
    (home / "acme/.well-known/acme-challenge/proof").write_text("it is me")
    (home / "page/assets").mkdir(parents=True, exist_ok=True)
    (home / "page/index.html").write_text("<p>page</p>")
    (home / "page/assets/app-1.js").write_text("1")
    (home / "real-ip.conf").write_text("set_real_ip_from 127.0.0.2;\n")
    for log in ("access", "error"):
        (home / f"{log}.log").write_text("")
    (home / "nginx.conf").write_text(localised(text, home))
    (home / "backend.sock").unlink(missing_ok=True)
    with _Backend(str(home / "backend.sock"), _Echo) as backend:
        threading.Thread(target=backend.serve_forever, daemon=True).start()
        process = subprocess.Popen(
            [nginx, "-c", str(home / "nginx.conf"), "-p", str(home), "-g", "daemon off;"],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            for _ in range(100):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", TLS)):
                    break
                assert process.poll() is None, process.stderr and process.stderr.read()
                time.sleep(0.05)
            yield Edge(home)
        finally:
            process.terminate()
            process.wait(10)
            backend.shutdown()
