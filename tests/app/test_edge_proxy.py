"""The stand-in for Cloudflare's edge does what their documentation says, and each of its faults is
one that the stream check finds and names."""

from __future__ import annotations

import itertools
import json
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from backend_client import KEY
from conftest import APP, Files

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "fixtures"))
from confusion import check
from edge_proxy.certificates import Authority, Pair
from edge_proxy.running import RunningEdge
from engine_standin import EngineStandin


@dataclass(frozen=True)
class Origins:
    """Two servers that speak HTTP/2 with whoever has the right client certificate."""

    scripted: str
    backend: str
    ca: Path
    pull: Pair


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def origins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Origins]:
    folder = tmp_path_factory.mktemp("origins")
    authority = Authority(folder, "authority")
    own, pull = authority.sign("origin", "127.0.0.1"), authority.sign("pull")
    files = Files(folder)
    with EngineStandin(pace_ms=6) as engine:
        config = files.write_config(
            int(engine.url.rpartition(":")[2]), upstream_url=engine.url,
            models=[{"id": "standin"}], heartbeat_seconds=2,
        )  # fmt: skip
        environment = {
            "PYTHONPATH": f"{APP}:{Path(__file__).parent}", "PATH": "/usr/bin:/bin",
            "CREDENTIALS_DIRECTORY": str(folder / "credentials"),
            "MILLRACE_BACKEND_CONFIG": str(config), "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip
        running, urls = [], []
        for name in ("edge_origin:app", "backend.asgi:app"):
            port = free_port()
            command = [
                sys.executable, "-m", "hypercorn", "--bind", f"127.0.0.1:{port}",
                "--certfile", str(own.certificate), "--keyfile", str(own.key),
                "--ca-certs", str(authority.certificate), "--verify-mode", "CERT_REQUIRED",
                # None beside this process, which would outlive it.
                "--workers", "0", "--graceful-timeout", "0", name,
            ]  # fmt: skip
            log = (folder / name).open("wb")
            running.append(subprocess.Popen(command, env=environment, stderr=log, stdout=log))
            urls.append(f"127.0.0.1:{port}")
        for url in urls:
            _until(lambda url=url: _listens(url), 60)
        yield Origins(*urls, ca=authority.certificate, pull=pull)
        for process in running:
            process.kill()
            process.wait()


def _until(good: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not good():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _listens(url: str) -> bool:
    host, _, port = url.partition(":")
    with socket.socket() as wire:
        return wire.connect_ex((host, int(port))) == 0


def edge(origins: Origins, *switches: str, behind: str = "", **how: object) -> RunningEdge:
    told: dict = {"pull": origins.pull, "origin_ca": origins.ca, **how}
    return RunningEdge(behind or origins.scripted, *switches, port=free_port(), **told)


def visitor(running: RunningEdge, http2: bool = True) -> httpx.Client:
    context = ssl.create_default_context(cafile=str(running.ca))
    return httpx.Client(base_url=running.url, http2=http2, verify=context, timeout=20)


@pytest.fixture(scope="module")
def proper(origins: Origins) -> Iterator[RunningEdge]:
    """An edge as a zone for streams has it, but for a shorter patience."""
    with edge(origins, "--read-timeout-seconds=1") as running:
        yield running


@pytest.mark.parametrize("http2", [False, True])
def test_events_come_one_by_one(proper: RunningEdge, http2: bool) -> None:
    with (
        visitor(proper, http2) as client,
        client.stream("GET", "/events", headers={"accept-encoding": "gzip, br"}) as answer,
    ):
        arrived = [(time.monotonic(), piece) for piece in answer.iter_bytes()]
        assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
    assert b"".join(piece for _, piece in arrived).count(b"data: event") == 10
    gaps = [after - before for (before, _), (after, _) in itertools.pairwise(arrived)]
    assert len(arrived) >= 9
    assert sorted(gaps)[len(gaps) // 2] == pytest.approx(0.05, abs=0.03)


def test_the_origin_is_told_who_visits_and_no_more(proper: RunningEdge) -> None:
    forged = {
        "CF-Connecting-IP": "1.2.3.4", "X-Forwarded-For": "5.6.7.8", "CF-Ray": "mine",
        "CF-Visitor": "mine", "X-Forwarded-Proto": "http", "X-Own": "kept", "Host": "chat.example",
    }  # fmt: skip
    with visitor(proper) as client:
        told = client.get("/v1/told?a=b", headers=forged).json()
    said = dict(told["headers"])
    assert told["version"] == "2"
    assert said["cf-connecting-ip"] == "127.0.0.1"
    assert said["x-forwarded-for"] == "5.6.7.8, 127.0.0.1"
    assert said["cf-visitor"] == '{"scheme":"https"}'
    assert said["x-forwarded-proto"] == "https"
    assert said["accept-encoding"] == "br, gzip"
    assert said["x-own"] == "kept"
    assert said.get("host", said.get(":authority")) == "chat.example"
    assert said["cf-ray"] not in ("mine", "")


def test_many_visitors_share_one_connection(proper: RunningEdge) -> None:
    peers = set()
    for _ in range(4):
        with visitor(proper) as client:
            peers.add(tuple(client.get("/v1/told").json()["peer"]))
    assert len(peers) == 1


def test_a_silent_origin_is_524_and_a_stream_that_falls_silent_is_cut(proper: RunningEdge) -> None:
    with visitor(proper) as client:
        assert client.get("/silent").status_code == 524
        began = time.monotonic()
        with (
            pytest.raises(httpx.RemoteProtocolError),
            client.stream("GET", "/stops") as answer,
        ):
            for _ in answer.iter_bytes():
                pass
        assert time.monotonic() - began == pytest.approx(1, abs=0.7)


def test_who_leaves_is_gone_for_the_origin_too(proper: RunningEdge) -> None:
    with visitor(proper) as client, client.stream("GET", "/endless") as answer:
        next(answer.iter_bytes())

    def left() -> bool:
        with visitor(proper) as client:
            return "left" in client.get("/v1/told").json()["asked"]

    _until(left, 5)


def test_a_name_with_an_extension_is_kept_and_compressed(proper: RunningEdge) -> None:
    with visitor(proper) as client:
        first, second = (client.get("/app.js", headers={"accept-encoding": "br"}) for _ in "12")
        assert [a.headers["cf-cache-status"] for a in (first, second)] == ["MISS", "HIT"]
        assert first.text == second.text
        assert second.headers["content-encoding"] == "br"
        private = client.get("/private.js").headers["cf-cache-status"]
        dynamic = client.get("/v1/told").headers
        assert (private, dynamic["cf-cache-status"]) == ("BYPASS", "DYNAMIC")
        assert dynamic["content-encoding"] in ("br", "gzip")
        assert dynamic["server"] == "cloudflare"


def test_paths_that_are_not_let_through(origins: Origins) -> None:
    with (
        edge(origins, "--allowed-paths", "/v1/", "/assets/") as running,
        visitor(running) as client,
    ):
        assert client.get("/v1/told").status_code == 200
        assert client.get("/metrics").status_code == 403


def test_without_the_client_certificate_the_origin_gives_nothing(origins: Origins) -> None:
    with edge(origins, pull=None) as running, visitor(running) as client:
        assert client.get("/v1/told").status_code in (520, 525)


def test_an_origin_that_is_not_trusted_is_526_and_none_is_521(
    origins: Origins, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path, "stranger").certificate
    with edge(origins, origin_ca=stranger) as running, visitor(running) as client:
        assert client.get("/v1/told").status_code == 526
    nobody = f"127.0.0.1:{free_port()}"
    with edge(origins, behind=nobody) as running, visitor(running) as client:
        assert client.get("/v1/told").status_code == 521


FAULTS = {
    # The origin's no-transform protects its streams even from a rule that names their type.
    ("--compress-events",): None,
    ("--compress-events", "--drop-no-transform"): "compression_held",
    ("--buffer-answers",): "whole_response_held",
    ("--keep-everything",): "cached",
}


@pytest.mark.parametrize("switches", FAULTS, ids=" ".join)
def test_the_stream_check_names_what_a_zone_does_wrong(
    origins: Origins, switches: tuple[str, ...]
) -> None:
    with edge(origins, *switches, behind=origins.backend) as running:
        seen = check(running.url, "--silence=0", "--ca", str(running.ca), key=KEY)
    kind = FAULTS[switches]
    assert seen.said == (("broken", "public", kind) if kind else ("streams", None, None))
    if kind:
        assert re.search("Cloudflare|the edge", json.dumps(seen.report["remedy"]))
