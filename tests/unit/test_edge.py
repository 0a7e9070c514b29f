"""The edge: who is answered, what goes through, what is believed. Asked of nginx itself.

Where nginx cannot be had only what its configuration says is judged; tests/host asks a server's.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import edge_kit
import pytest
import yaml
from backend import application
from backend.settings import Model, Settings
from edge_kit import BURST, EDGES, NAME, OUTSIDE, PLAIN, STREAMS, TUNNEL, V4, V6, Edge, release_here
from fastapi import APIRouter, FastAPI
from starlette.routing import BaseRoute, Route
from test_templates import plan_for
from unit_kit import ROOT

needs_nginx = pytest.mark.skipif(
    not edge_kit.nginx_version(), reason="no nginx can be had here; tests/host asks a server's"
)
RELEASES = ("12", "13")


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory, playbook: Callable[..., Any]) -> Path:
    """Render nginx.conf for every edge."""
    return edge_kit.render(tmp_path_factory.mktemp("edges"), playbook, plan_for("trixie"))


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with certificates in it."""
    home = tmp_path_factory.mktemp("edge")
    edge_kit.make_certificates(home)
    return home


def conf(rendered: Path, edge: str, release: str = "12") -> str:
    """Return what was rendered."""
    return (rendered / f"{edge}-{release}.conf").read_text()


@pytest.fixture
def edge(request: pytest.FixtureRequest, rendered: Path, certificates: Path) -> Iterator[Edge]:
    """Run nginx as the edge that the test's parameter names."""
    with edge_kit.running(certificates, conf(rendered, request.param, release_here())) as running:
        yield running


def as_edge(*names: str) -> Callable[[Any], Any]:
    """Mark a test as one that asks nginx, as each of these edges."""

    def mark(test: Any) -> Any:
        return needs_nginx(pytest.mark.parametrize("edge", names, indirect=True)(test))

    return mark


# What it says ---------------------------------------------------------------------------------


@needs_nginx
@pytest.mark.parametrize("name", EDGES)
def test_nginx_takes_every_edge(rendered: Path, certificates: Path, name: str) -> None:
    text = edge_kit.localised(conf(rendered, name, release_here()), certificates)
    (certificates / "real-ip.conf").write_text("set_real_ip_from 198.51.100.0/24;\n")
    (certificates / "try.conf").write_text(text)
    done = subprocess.run(
        [str(edge_kit.find_nginx()), "-t", "-c", certificates / "try.conf", "-p", certificates],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not [s for s in done.stderr.splitlines() if "[warn]" in s and "user" not in s]


GIXY = shutil.which("gixy")
GIXY_LEAVES = {
    "try_files_is_evil_too": "one look at one file, for whoever opens the page",
    "http2_misdirected_request": "who is refused in the greeting never gets to ask",
    "hsts_header": "the servers that only close have none; a test of ours holds the others to it",
    "ssl_ecdh_curve": "only Debian 13 is told of the group, and its OpenSSL has it",
}
"""What gixy may find, by the name of its check, and why it stays."""


@pytest.mark.skipif(not GIXY, reason="gixy-ng is not installed here")
@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", EDGES)
def test_gixy_has_nothing_to_say(rendered: Path, name: str, release: str) -> None:
    """An outside eye on the configuration; what it is told to leave is said with the reason."""
    assert gixy_findings(rendered / f"{name}-{release}.conf") == []


def gixy_findings(file: Path) -> list[str]:
    """Return what gixy says of a file."""
    done = subprocess.run(
        [str(GIXY), "-f", "json", "--skips", ",".join(GIXY_LEAVES), str(file)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return [f"{f['plugin']}: {f['summary']} {f.get('reason', '')}" for f in json.loads(done.stdout)]


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", EDGES)
def test_browsers_are_told_to_insist_only_where_they_trust(
    rendered: Path, name: str, release: str
) -> None:
    """Every block that has headers of its own says it again, or there is none in its answers."""
    text = conf(rendered, name, release)
    blocks = re.findall(r"(?:location [^{]+|server) \{((?:[^{}]|\{[^{}]*\}|'[^'\n]*')*)", text)
    told = [block for block in blocks if "add_header" in block]
    assert len(told) > 8
    for block in told:
        assert ("Strict-Transport-Security" in block) == (name not in SELF_SIGNED)


SELF_SIGNED = ("direct", "named", "pageless", "express")


def test_the_list_is_the_backends_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nginx lets through is what the backend has a route for, no more and no less."""
    found: list[BaseRoute] = []

    class Watched(FastAPI):
        def include_router(self, router: APIRouter, **options: Any) -> None:  # type: ignore[override]
            found.extend(router.routes)
            super().include_router(router, **options)

    monkeypatch.setattr(application, "FastAPI", Watched)
    (tmp_path / "keys.json").write_text('{"version": 2, "keys": []}')
    (tmp_path / "key").write_text("x" * 48)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    application.build(
        Settings(
            upstream_url="http://127.0.0.1:1", upstream_key_credential="key",
            keys_file=tmp_path / "keys.json", models=[Model(id="x")],
        )
    )  # fmt: skip
    routes: dict[str, set[str]] = {}
    for route in found:
        assert isinstance(route, Route)
        routes.setdefault(route.path, set()).update(route.methods or ())
    listed = yaml.safe_load((ROOT / "roles/nginx/vars/main.yml").read_text())["__nginx_routes"]
    used = set()
    for path, methods in routes.items():
        example = re.sub(r"\{[^}]*\}", "abc-1", path)
        (entry,) = [e for e in listed if matches(e["path"], example)]
        assert set(entry["methods"]) == methods, path
        used.add(entry["path"])
    assert used == {entry["path"] for entry in listed}


def matches(pattern: str, path: str) -> bool:
    """Whether nginx's `map` takes a path for a pattern."""
    if not pattern.startswith("~"):
        return pattern == path
    return bool(re.search(pattern[1:].replace(r"\z", r"\Z"), path))


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", EDGES)
def test_http3_is_where_nginx_has_it_and_visitors_come_directly(
    rendered: Path, name: str, release: str
) -> None:
    text = conf(rendered, name, release)
    wanted = release == "13" and EDGES[name]["millrace_edge"] == "direct"
    for sign in ("listen 443 quic", "listen [::]:443 quic", "Alt-Svc", "quic_retry on"):
        assert (sign in text) == wanted


# Who is answered ------------------------------------------------------------------------------


@as_edge("direct", "named", "cloudflare")
def test_by_name_and_by_address_it_answers_and_by_no_other(edge: Edge) -> None:
    assert edge.ask(host=V4).status == 200
    assert edge.ask(host=f"{V4}:443").status == 200
    assert edge.ask(host=f"[{V6}]").status == 200
    for host in ("evil.example", "localhost", "127.0.0.2", "_", "x" * 300):
        assert edge.ask(host=host).status == 0, host
    # HTTP/1.1 wants one, which nginx says itself.
    assert edge.ask(host=None).status == 400
    assert edge.ask(host=None, version="1.0").status == 0
    # The name in the greeting does not make up for the one in the request.
    with pytest.raises(ssl.SSLError):
        edge.ask(host=V4, sni="evil.example")


@as_edge("named", "strict", "cloudflare")
def test_a_name_of_its_own_is_known_in_the_greeting(edge: Edge) -> None:
    assert edge.ask(host=NAME, sni=NAME).status == 200
    assert edge.ask(host=NAME.upper(), sni=NAME).status == 200
    assert edge.ask(host="evil.example", sni=NAME).status == 0
    with pytest.raises(ssl.SSLError, match="unrecognized name"):
        edge.ask(host=NAME, sni="evil.example")


@as_edge("direct", "strict", "cloudflare", "pulls", "tunnel")
def test_http2_is_offered_to_whoever_is_let_in(edge: Edge) -> None:
    tunnel = tunnelled(edge)
    for sni in ("", NAME):
        context = edge.greeting("pull")
        context.set_alpn_protocols(["h2", "http/1.1"])
        where = ("127.0.0.1", TUNNEL) if tunnel else (OUTSIDE, edge_kit.TLS)
        with socket.create_connection(where, timeout=10) as link:
            try:
                wire = context.wrap_socket(link, server_hostname=sni or None)
            except ssl.SSLError:
                assert sni != NAME or f" {NAME}" not in (edge.home / "nginx.conf").read_text()
                continue
            assert wire.selected_alpn_protocol() == "h2", sni


@as_edge("strict")
def test_who_knows_no_name_sees_no_certificate(edge: Edge) -> None:
    with pytest.raises(ssl.SSLError, match="unrecognized name"):
        edge.ask(host=NAME)
    assert edge.ask(host=V4, sni=NAME).status == 0
    # This server itself asks by address.
    assert edge.ask(address="127.0.0.1", host=NAME).status == 200


@as_edge("named", "strict")
def test_plain_http_sends_known_names_on_and_shows_proofs(edge: Edge) -> None:
    plain = {"port": PLAIN, "tls": False}
    answer = edge.ask("/v1/models?a=b", host=NAME, **plain)
    assert (answer.status, answer.headers["location"]) == (308, f"https://{NAME}/v1/models?a=b")
    proof = "/.well-known/acme-challenge/proof"
    assert edge.ask(proof, host=NAME, **plain).body == b"it is me"
    assert edge.ask(f"{proof}/../../../page/index.html", host=NAME, **plain).status == 308
    for path in ("/", proof):
        assert edge.ask(path, host="evil.example", **plain).status == 0
        assert edge.ask(path, host=None, version="1.0", **plain).status == 0


@as_edge("tunnel")
def test_behind_a_tunnel_no_port_is_open(edge: Edge) -> None:
    for port in (edge_kit.PLAIN, edge_kit.TLS, TUNNEL):
        with socket.socket() as link, pytest.raises(ConnectionRefusedError):
            link.connect((OUTSIDE, port))
    assert edge.ask(address="127.0.0.1", host=NAME).status == 200
    assert edge.ask(address="127.0.0.1", port=TUNNEL, host=NAME, sni=NAME).status == 200


@as_edge("pulls")
def test_only_who_shows_cloudflares_certificate_is_answered(edge: Edge) -> None:
    good = {"host": NAME, "sni": NAME}
    assert edge.ask(certificate="pull", **good).status == 200
    for certificate in ("", "other"):
        answer = edge.ask(certificate=certificate, **good)
        assert (answer.status, answer.body) == (0, b""), certificate
        assert edge.ask("/", host=V4, certificate=certificate).status == 0
    assert edge.ask(host=V4, certificate="pull").status == 200
    # The stream check on this server has none and needs none.
    assert edge.ask("/healthz", address="127.0.0.1", host=NAME, sni=NAME).status == 200
    # A session that began there opens nothing here.
    assert resumed(edge, NAME) == b""


def resumed(edge: Edge, name: str) -> bytes:
    """Ask from outside in a session that was begun on loopback."""
    context = edge.greeting()
    request = f"GET /healthz HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode()

    def ask(address: str, session: ssl.SSLSession | None) -> tuple[bytes, ssl.SSLSession | None]:
        with socket.create_connection((address, edge_kit.TLS), timeout=10) as link:
            wire = context.wrap_socket(link, server_hostname=name, session=session)
            wire.sendall(request)
            got = b""
            try:
                while block := wire.recv(4096):
                    got += block
            except (ConnectionError, ssl.SSLEOFError):
                pass
            return got, wire.session

    answer, session = ask("127.0.0.1", None)
    assert answer
    return ask(OUTSIDE, session)[0]


# What goes through ----------------------------------------------------------------------------


@as_edge("direct", "tunnel")
def test_the_list_of_paths_and_methods_is_kept(edge: Edge) -> None:
    way = {"address": "127.0.0.1", "port": TUNNEL} if tunnelled(edge) else {}
    for path, method, status in (
        ("/v1/models", "GET", 200),
        ("/v1/models/some/name", "GET", 200),
        ("/v1/chat/completions", "POST", 200),
        ("/v1/chat/streams", "POST", 200),
        ("/v1/chat/streams/abc-1/events?after=1&ticket=x", "GET", 200),
        ("/v1/chat/streams/abc-1/stop", "POST", 200),
        ("/v1/session", "DELETE", 200),
        ("/healthz", "GET", 200),
        ("/readyz?x", "GET", 200),
        ("/v1/chat/completions", "GET", 405),
        ("/v1/chat/streams/abc-1/stop", "GET", 405),
        ("/v1/session", "PUT", 405),
        ("/v1/models", "OPTIONS", 405),
        ("/healthz", "POST", 405),
        ("/", "POST", 405),
        ("/", "DELETE", 405),
        ("/metrics", "GET", 404),
        ("/v1/metrics", "GET", 404),
        ("/v1/../metrics", "GET", 404),
        ("/healthz/../metrics", "GET", 404),
        ("/v1/%2e%2e/metrics", "GET", 404),
        ("/metrics/../v1/models", "GET", 404),
        ("//v1/models", "GET", 404),
        ("/v1//models", "GET", 404),
        ("/v1/chat/%63ompletions", "POST", 404),
        ("/v1/chat/completions/", "POST", 404),
        ("/v1/chat/streams/a/b/events", "GET", 404),
        ("/v1/load_lora_adapter", "POST", 404),
        ("/v1/unload_lora_adapter", "POST", 404),
        ("/v1/audio/transcriptions", "POST", 404),
        ("/openapi.json", "GET", 404),
        ("/docs", "GET", 404),
        # LiteLLM's own and the engine's.
        *((path, "POST", 404) for path in (
            "/key/generate", "/config/update", "/model/new", "/user/new", "/vllm/v1/models",
            "/ui/", "/sso/key/generate", "/spend/logs", "/health", "/health/liveliness", "/routes",
            "/tokenize", "/detokenize", "/invocations", "/pause", "/resume", "/update_weights",
            "/collective_rpc", "/sleep", "/wake_up", "/reset_prefix_cache", "/server_info",
            "/start_profile", "/inference/v1/generate", "/version", "/ping", "/v2/rerank",
        )),
    ):  # fmt: skip
        answer = edge.ask(path, method, host=NAME if tunnelled(edge) else V4, **way)
        assert answer.status == status, (path, method)
        if status >= 400:
            told = json.loads(answer.body)["error"]
            assert told["code"] == {404: "not_found", 405: "method_not_allowed"}[status]
            assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])
        if status == 405 and path.startswith("/v1"):
            assert method not in answer.headers["allow"].split(", ")
            assert answer.headers["allow"]
        time.sleep(0.03)


def tunnelled(edge: Edge) -> bool:
    """Whether visitors come through the tunnel's listener."""
    return str(TUNNEL) in (edge.home / "nginx.conf").read_text()


FORGED = (
    "X-Forwarded-For: 198.51.100.7",
    "CF-Connecting-IP: 198.51.100.7",
    "X-Real-IP: 198.51.100.7",
    "True-Client-IP: 198.51.100.7",
    "Forwarded: for=198.51.100.7",
    "X-Forwarded-Proto: gopher",
    "X-Forwarded-Host: evil.example",
    "X-Request-Id: forged",
    "X_Forwarded_For: 198.51.100.7",
)


@as_edge("direct", "named")
def test_what_a_visitor_says_of_itself_is_not_believed_nor_passed_on(edge: Edge) -> None:
    told = edge.ask(headers=FORGED).passed_on()
    assert told["x-forwarded-for"] == OUTSIDE
    assert told["x-forwarded-proto"] == "https"
    assert re.fullmatch(r"[0-9a-f]{32}", told["x-request-id"])
    assert "198.51.100.7" not in json.dumps(told)
    assert "evil" not in json.dumps(told)
    assert "198.51.100.7" not in edge.log("access")


@as_edge("cloudflare")
def test_cloudflare_is_believed_and_nobody_else(edge: Edge) -> None:
    """The list here has 127.0.0.2 alone, as if that were Cloudflare."""
    told = edge.ask(headers=FORGED).passed_on()
    assert told["x-forwarded-for"] == "198.51.100.7"
    assert "cf-connecting-ip" not in told
    assert "198.51.100.7 " in edge.log("access")
    told = edge.ask(headers=FORGED, address="127.0.0.3").passed_on()
    assert told["x-forwarded-for"] == "127.0.0.3"
    assert (
        edge.ask(headers=("CF-Connecting-IP: nonsense",)).passed_on()["x-forwarded-for"] == OUTSIDE
    )
    # Nor is this server itself.
    told = edge.ask(headers=FORGED, address="127.0.0.1").passed_on()
    assert told["x-forwarded-for"] == "127.0.0.1"


@as_edge("tunnel")
def test_the_tunnel_is_believed_at_its_own_end_alone(edge: Edge) -> None:
    way = {"address": "127.0.0.1", "host": NAME, "headers": FORGED}
    assert edge.ask(port=TUNNEL, **way).passed_on()["x-forwarded-for"] == "198.51.100.7"
    assert edge.ask(**way).passed_on()["x-forwarded-for"] == "127.0.0.1"


SMUGGLED = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: %s\r\nContent-Length: 4\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: %s\r\nContent-Length: 4\r\n"
    b"Content-Length: 5\r\n\r\nabcde",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: xchunked\r\n\r\n"
    b"0\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: identity\r\n\r\n",
    b"POST /v1/completions HTTP/1.0\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: %s\r\nContent-Length: +4\r\n\r\nabcd",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: %s\r\nHost: evil.example\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: %s\r\nHost : evil.example\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: evil.example@%s\r\n\r\n",
    b"CONNECT 127.0.0.1:4100 HTTP/1.1\r\nHost: %s\r\n\r\n",
    b"TRACE /v1/models HTTP/1.1\r\nHost: %s\r\n\r\n",
    b"GET http://127.0.0.1:4100/v1/models HTTP/1.1\r\nHost: %s\r\n\r\n",
)


@as_edge("direct")
def test_what_can_be_read_in_two_ways_is_refused(edge: Edge) -> None:
    for request in SMUGGLED:
        got = edge.raw(request % V4.encode(), wait=5)
        status = int(got.split()[1]) if got else 0
        assert status in (0, 400, 405, 501), (request, got)
        assert got.count(b"HTTP/1.1 ") <= 1, "two answers"
        time.sleep(0.05)


# How much -------------------------------------------------------------------------------------


def at_once(edge: Edge, number: int, **how: Any) -> list[Any]:
    """Ask in parallel for answers that take a while."""
    with concurrent.futures.ThreadPoolExecutor(number) as pool:
        return list(pool.map(lambda n: edge.ask(f"/v1/models?hold{n}", **how), range(number)))


@as_edge("direct")
def test_one_address_holds_so_many_streams_and_no_more(edge: Edge) -> None:
    answers = at_once(edge, STREAMS + 3)
    assert sorted(a.status for a in answers) == [200] * STREAMS + [429] * 3
    refused = next(a for a in answers if a.status == 429)
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert int(refused.headers["retry-after"]) > 0
    # This server itself is not counted.
    assert {a.status for a in at_once(edge, STREAMS + 3, address="127.0.0.1")} == {200}
    assert "hold" not in edge.log("error"), "a refusal is quoted, with its query"


@as_edge("cloudflare")
def test_a_limit_is_the_visitors_not_cloudflares(edge: Edge) -> None:
    """And of IPv6 the /64's, since who has one address of it has all."""

    def statuses(addresses: list[str]) -> list[int]:
        with concurrent.futures.ThreadPoolExecutor(len(addresses)) as pool:
            return sorted(pool.map(
                lambda a: edge.ask("/v1/models?hold", headers=(f"CF-Connecting-IP: {a}",)).status,
                addresses,
            ))  # fmt: skip

    number = STREAMS + 2
    assert statuses([f"198.51.100.{n}" for n in range(number)]) == [200] * number
    assert statuses([f"2001:db8:0:{n}::1" for n in range(number)]) == [200] * number
    # 0x0a is a line's end to a regular expression, and 0x00 the text's to C.
    same = [f"2001:db8:a0a:a::{n:x}" for n in (0, 0xA, 0xA0A, 1, 0xFFFF)]
    assert statuses(same) == [200] * STREAMS + [429] * 2
    same = [f"2001:db8:0:ffff:{n}::" for n in range(number)]
    assert statuses(same) == [200] * STREAMS + [429] * 2


@as_edge("direct")
def test_one_address_asks_so_often_and_no_oftener(edge: Edge) -> None:
    statuses = [edge.ask().status for _ in range(BURST + 10)]
    assert statuses[:BURST] == [200] * BURST
    assert statuses.count(429) >= 5
    assert edge.ask(address="127.0.0.1").status == 200


@as_edge("direct")
def test_logins_are_counted_apart(edge: Edge) -> None:
    body = b'{"key": "x"}'
    statuses = [edge.ask("/v1/session", "POST", body=body).status for _ in range(6)]
    assert statuses == [200] * 3 + [429] * 3
    assert edge.ask("/v1/session").status == 200, "looking is no login"
    assert edge.ask().status == 200


@as_edge("direct")
def test_who_is_slow_to_ask_is_let_go(edge: Edge) -> None:
    """Two seconds here; meanwhile others are answered, with most of the connections taken."""
    with contextlib.ExitStack() as stack:
        slow = []
        for number in range(250):
            link = stack.enter_context(
                socket.create_connection((OUTSIDE, edge_kit.TLS), timeout=10)
            )
            wire = edge.greeting().wrap_socket(link) if number < 20 else link
            wire.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-a:" if number < 20 else b"\x16")
            slow.append(wire)
        assert edge.ask(address="127.0.0.1").status == 200
        assert edge.ask().status == 200
        time.sleep(3)
        for wire in slow[:25]:
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                assert not wire.recv(1) or wire.recv(10) == b"TTP/1.1 40"[:10]


# What is written ------------------------------------------------------------------------------


@as_edge("direct")
def test_no_log_has_a_ticket(edge: Edge) -> None:
    events = "/v1/chat/streams/abc/events?ticket=SECRET"
    assert edge.ask(events).status == 200
    assert edge.ask(f"{events}&die").status == 503
    assert edge.ask("/v1/chat/streams/abc/poll?ticket=SECRET", "PUT").status == 405
    assert edge.ask(events, "POST", body=b"x", headers=("Content-Length: 99999999",)).status in (
        400,
        413,
    )
    at_once(edge, STREAMS + 2, headers=("X: y",))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: edge.ask(f"{events}&hold"), range(8)))
    edge.ask(f"{events}", "GET", host="evil.example")
    for log in ("access", "error"):
        assert "SECRET" not in edge.log(log)
    assert "/v1/chat/streams/abc/events HTTP/1.1" in edge.log("access")
    # What goes wrong elsewhere is still told of.
    assert edge.ask("/v1/models?die").status == 503
    assert "upstream prematurely closed" in edge.log("error")


@as_edge("strict", "cloudflare", "pageless")
def test_every_answer_has_the_headers_that_it_should(edge: Edge) -> None:
    trusted = "max-age" in (edge.home / "nginx.conf").read_text()
    paths = ["/v1/models", "/nothing", "/v1/session?die"]
    paths += ["/", "/assets/app-1.js"] if "assets" in (edge.home / "nginx.conf").read_text() else []
    named = {"host": NAME, "sni": NAME} if trusted else {}
    for path in paths:
        headers = edge.ask(path, **named).headers
        assert headers["x-content-type-options"] == "nosniff", path
        assert ("strict-transport-security" in headers) == trusted, path
        assert headers["server"] == "nginx"
        assert ("alt-svc" in headers) == ("quic" in (edge.home / "nginx.conf").read_text())
