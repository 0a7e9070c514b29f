"""The chains that are measured side by side.

A chain is a list of hops and a way to call the first (hops.py). To measure another one, write a
function that returns it and put it into CHAINS: nothing else knows what is in a chain.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.hops import Call, Chain, Hop, UnavailableError, free_port
from bench.parts import ROOT, environment, need_nginx, nginx_version, version_in
from bench.render import NAME, OUTSIDE, Ports, Rendered, place_nginx, render, write_nginx

NGINX_BARE = """\
worker_processes auto;
error_log {home}/error.log warn;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    server {{
        listen 127.0.0.1:{port} backlog=2048;
        location / {{
            proxy_pass http://127.0.0.1:{upstream};
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_read_timeout 3600s;
        }}
    }}
}}
"""
# Debian's own nginx.conf and site, with the one line that tutorials add.
NGINX_TUTORIAL = """\
worker_processes auto;
error_log {home}/error.log;
events {{ worker_connections 768; }}
http {{
    sendfile on;
    tcp_nopush on;
    access_log {home}/access.log;
    gzip on;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{upstream};
        }}
    }}
}}
"""


@dataclass(frozen=True)
class Engine:
    """What is behind every chain: the stand-in, or a real one."""

    port: int
    key: str = "bench"
    model: str = "bench"


@dataclass(frozen=True)
class Setting:
    """What chains are made from: a folder of their own, the engine, how many gateway workers."""

    home: Path
    engine: Engine
    workers: int = 0
    install: bool = False

    def logs(self, name: str) -> Path:
        """Return where a chain's hops write what they print."""
        folder = self.home / name
        folder.mkdir(exist_ok=True)
        return folder

    def folder(self, name: str) -> Path:
        """Return a new folder that nginx's workers may enter."""
        folder = self.home / name
        folder.mkdir(parents=True)
        return folder


def direct(setting: Setting) -> Chain:
    """Return the engine alone: what all others are compared with."""
    engine = setting.engine
    return Chain("direct", "the engine alone", (), Call(engine.port, headers=_key(engine.key),
                 model=engine.model))  # fmt: skip


def bare_nginx(setting: Setting) -> Chain:
    """Return nginx alone, unbuffered: the least that anything in between costs."""
    home, port = setting.folder("nginx"), free_port()
    hop = _nginx(home, NGINX_BARE, port, setting.engine.port)
    call = Call(port, headers=_key(setting.engine.key), model=setting.engine.model)
    return Chain("nginx", "nginx alone", (hop,), call, versions=_nginx_version())


def inline(setting: Setting) -> Chain:
    """Return Millrace as a server gets it: nginx, the backend, LiteLLM's pass-through."""
    return _millrace(setting, "inline", "Millrace, in-line")


def inline_tls(setting: Setting) -> Chain:
    """Return the same, asked over TLS (HTTP/1.1)."""
    return _millrace(setting, "inline-tls", "Millrace, in-line, over TLS", tls=True)


def express(setting: Setting) -> Chain:
    """Return Millrace on the express lane: nginx streams from the engine (docs/express.md)."""
    return _millrace(setting, "express", "Millrace, express", settings={
        "nginx_stream_path": "express"})  # fmt: skip


def backend(setting: Setting) -> Chain:
    """Return Millrace without the gateway: nginx and the backend."""
    return _millrace(setting, "backend", "Millrace without LiteLLM", gateway=False)


def tutorial(setting: Setting) -> Chain:
    """Return what tutorials build: nginx, FastAPI with httpx, LiteLLM's chat route, one worker."""
    home, port, app = setting.folder("tutorial"), free_port(), free_port()
    gateway = _litellm(setting, home)
    command = (sys.executable, "-m", "uvicorn", "bench.tutorial:app", "--port", str(app),
               "--log-level", "warning")  # fmt: skip
    hops = (
        _nginx(home, NGINX_TUTORIAL, port, app),
        Hop("backend", command, app, environment={
            "PYTHONPATH": str(ROOT), "UPSTREAM_URL": f"http://127.0.0.1:{gateway.port}",
            "UPSTREAM_KEY": _GATEWAY_KEY}),
        gateway,
    )  # fmt: skip
    note = "nginx's proxy_pass, FastAPI with httpx, LiteLLM's chat/completions, one worker each"
    return Chain("tutorial", "the tutorials' chain", hops, Call(port, model=setting.engine.model),
                 note, {**_nginx_version(), **_litellm_version(setting)})  # fmt: skip


def litellm(setting: Setting) -> Chain:
    """Return LiteLLM's proxy alone: chat/completions, one worker."""
    hop = _litellm(setting, setting.folder("litellm"))
    call = Call(hop.port, headers=_key(_GATEWAY_KEY), model=setting.engine.model)
    return Chain("litellm", "LiteLLM alone", (hop,), call, "chat/completions, one worker",
                 _litellm_version(setting))  # fmt: skip


def smg(setting: Setting) -> Chain:
    """Return Shepherd Model Gateway (once sglang-router), in Rust."""
    place = environment("bench", install=setting.install)
    port, metrics = free_port(), free_port()
    command = (str(place / "bin/smg"), "launch", "--host", "127.0.0.1", "--port", str(port),
               "--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics),
               "--log-level", "warn", "--max-concurrent-requests", "4096",
               "--worker-urls", _url(setting.engine.port))  # fmt: skip
    return _router(setting, "smg", command, port, version_in(place, "smg"))


def vllm_router(setting: Setting) -> Chain:
    """Return vLLM's own router, in Rust."""
    place = environment("bench", install=setting.install)
    port, metrics = free_port(), free_port()
    command = (str(place / "bin/python"), "-m", "vllm_router.launch_router",
               "--host", "127.0.0.1", "--port", str(port), "--prometheus-host", "127.0.0.1",
               "--prometheus-port", str(metrics), "--log-level", "warning",
               "--worker-urls", _url(setting.engine.port))  # fmt: skip
    return _router(setting, "vllm-router", command, port, version_in(place, "vllm-router"))


CHAINS: dict[str, Callable[[Setting], Chain]] = {
    "direct": direct,
    "nginx": bare_nginx,
    "inline": inline,
    "inline-tls": inline_tls,
    "express": express,
    "backend": backend,
    "tutorial": tutorial,
    "litellm": litellm,
    "smg": smg,
    "vllm-router": vllm_router,
}

_GATEWAY_KEY = "sk-bench"


def _key(key: str) -> dict[str, str]:
    return {"Host": "localhost", "Authorization": f"Bearer {key}"}


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def _nginx(home: Path, text: str, port: int, upstream: int) -> Hop:
    path = write_nginx(home, text.format(home=home, port=port, upstream=upstream))
    return Hop("nginx", (need_nginx(), "-c", str(path), "-p", str(home)), port)


def _nginx_version() -> dict[str, str]:
    return {"nginx": ".".join(map(str, nginx_version()))}


def _litellm(setting: Setting, home: Path) -> Hop:
    """Return LiteLLM as its documentation sets it up for production, with one worker."""
    place, port, engine = (
        environment("litellm", install=setting.install),
        free_port(),
        setting.engine,
    )
    parameters = {"model": f"hosted_vllm/{engine.model}", "api_base": f"{_url(engine.port)}/v1",
                  "api_key": engine.key}  # fmt: skip
    told = {
        "model_list": [{"model_name": engine.model, "litellm_params": parameters}],
        "general_settings": {"master_key": _GATEWAY_KEY},
    }
    # JSON is YAML as well.
    (home / "litellm.yaml").write_text(json.dumps(told))
    offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY_DISABLED": "true",
               "LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR"}  # fmt: skip
    command = (str(place / "bin/litellm"), "--config", str(home / "litellm.yaml"),
               "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1")  # fmt: skip
    return Hop("litellm", command, port, health="/health/liveliness", environment=offline)


def _litellm_version(setting: Setting) -> dict[str, str]:
    return {"litellm": version_in(environment("litellm", install=setting.install), "litellm")}


def _router(
    setting: Setting, name: str, command: tuple[str, ...], port: int, version: str
) -> Chain:
    setting.folder(name)
    hop = Hop(name, command, port, health="/health")
    call = Call(port, headers=_key(setting.engine.key), model=setting.engine.model)
    return Chain(name, f"{name} alone", (hop,), call, versions={name: version})


def _millrace(
    setting: Setting, name: str, title: str, *, gateway: bool = True, tls: bool = False,
    settings: Mapping[str, object] | None = None,
) -> Chain:  # fmt: skip
    """Return our own chain; `settings` are what an owner would set besides."""
    ports = Ports(setting.engine.port, *(free_port() for _ in range(4)))
    venvs = {"backend": Path(sys.prefix)}
    if gateway:
        venvs["litellm"] = environment("litellm", install=setting.install)
    need_nginx()
    home = setting.folder(name)
    rendered = render(
        home, ports, venvs, engine_key=setting.engine.key, model=setting.engine.model,
        workers=setting.workers, settings=settings,
    )  # fmt: skip
    if not gateway:
        _without_gateway(rendered, setting.engine)
    config = place_nginx(rendered, tls=tls)
    hops = [
        Hop("nginx", (need_nginx(), "-c", str(config), "-p", str(home)), ports.https, OUTSIDE),
        _service(rendered, "backend", socket=home / "run/millrace-backend.sock", health="/healthz"),
    ]
    if gateway:
        hops.append(_service(rendered, "litellm", port=ports.gateway, health="/health/liveliness"))
    call = Call(ports.https, OUTSIDE, model=setting.engine.model, tls=tls, headers={
        "Host": NAME, "Authorization": f"Bearer {rendered.client_key}"})  # fmt: skip
    versions = {**_nginx_version(), "millrace": _commit()}
    if gateway:
        versions |= _litellm_version(setting)
    workers = rendered.plan["gateway"]["workers"]
    note = f"{rendered.plan['backend']['workers']} backend worker"
    if gateway:
        note += f", LiteLLM's pass-through with {workers} worker{'s' if workers > 1 else ''}"
    return Chain(name, title, tuple(hops), call, note, versions)


def _service(
    rendered: Rendered, name: str, *, port: int = 0, health: str = "", socket: Path | None = None
) -> Hop:
    unit = rendered.unit(name)
    return Hop(name, unit.command, port, health=health, environment=unit.environment, socket=socket)


def _without_gateway(rendered: Rendered, engine: Engine) -> None:
    path = rendered.home / "etc/backend/settings.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "upstream_url": _url(engine.port)}))


def _commit() -> str:
    """Return which state of the repository this is."""
    told = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(told, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise UnavailableError(f"git does not say what this is: {error}") from None
