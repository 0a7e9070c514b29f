"""Decide: settings and facts in, one serving plan out.

Pure functions, run on the controller. Roles render what the plan says and compute nothing; the
plan is kept on the server as /etc/millrace/plan.json, so that anyone can read what was decided.
"""

from __future__ import annotations

import re
from typing import Any

from ansible.errors import AnsibleFilterError

PLAN_VERSION = 1

RECITAL = "recital"
"""The built-in model: trained on the server in a minute to recite a text of ours. No download."""

RECITAL_DIR = "/usr/local/lib/millrace/recital"
RECITAL_STEP_MILLISECONDS = 12
"""About 80 tokens a second: a good model's pace on a good card, for one reader."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

# One budget of timeouts and heartbeats for every hop, in seconds. The rule: each hop waits longer
# than the hop behind it, and each pool lets go of an idle connection before the server behind it
# does, or a request races the close and fails with a 502 that nobody can reproduce.
HEARTBEAT_SECONDS = 15  # Cloudflare gives up after 100 s without a byte; six beats fit in that
CONNECT_SECONDS = 5  # every upstream is on this server or next to it
FIRST_BYTE_SECONDS = 600  # a long prompt behind a full queue
IDLE_SECONDS = 300  # engine silent in mid-answer: it hangs
LONGEST_STREAM_SECONDS = 3600
DRAIN_SECONDS = 60  # open streams get this long when a service is told to stop
ENGINE_KEEPALIVE_SECONDS = 75  # vLLM closes idle connections after this (its default, 5, races)
GATEWAY_READ_SECONDS = 290  # under the backend's, so that the hop nearest to the fault names it
GATEWAY_POOL_SECONDS = 15  # LiteLLM's aiohttp pool lets go after this
GATEWAY_KEEPALIVE_SECONDS = 75
BACKEND_POOL_SECONDS = 15
BACKEND_KEEPALIVE_SECONDS = 80
NGINX_POOL_SECONDS = 60  # nginx to backend: under the backend's 80
CLIENT_KEEPALIVE_SECONDS = 910  # Cloudflare keeps idle origin connections for 900


def model_source(model: str, revision: str = "") -> dict[str, str]:
    """Say where a model comes from: `{source, id, revision, slug}`.

    `source` is `builtin`, `path` (an absolute path on the server) or `hub` (owner/name).
    Raises AnsibleFilterError for anything else.
    """
    if model == RECITAL:
        return {"source": "builtin", "id": model, "revision": "", "slug": model}
    if model.startswith("/"):
        slug = model.rstrip("/").rsplit("/", 1)[-1]
        return {"source": "path", "id": model.rstrip("/"), "revision": "", "slug": slug}
    if HUB_ID.fullmatch(model):
        slug = model.replace("/", "--")
        return {"source": "hub", "id": model, "revision": revision, "slug": slug}
    raise AnsibleFilterError(
        f"vllm_model is {model!r}: it must be 'recital' (built in), owner/name on the hub, "
        "or an absolute path on the server"
    )


def timeout_budget() -> dict[str, int]:
    """Return the one budget of timeouts and heartbeats, seconds, keyed by what they bound."""
    return {
        "heartbeat_seconds": HEARTBEAT_SECONDS,
        "connect_seconds": CONNECT_SECONDS,
        "first_byte_seconds": FIRST_BYTE_SECONDS,
        "idle_seconds": IDLE_SECONDS,
        "longest_stream_seconds": LONGEST_STREAM_SECONDS,
        "drain_seconds": DRAIN_SECONDS,
        "engine_keepalive_seconds": ENGINE_KEEPALIVE_SECONDS,
        "gateway_read_seconds": GATEWAY_READ_SECONDS,
        "gateway_pool_seconds": GATEWAY_POOL_SECONDS,
        "gateway_keepalive_seconds": GATEWAY_KEEPALIVE_SECONDS,
        "backend_pool_seconds": BACKEND_POOL_SECONDS,
        "backend_keepalive_seconds": BACKEND_KEEPALIVE_SECONDS,
        "nginx_pool_seconds": NGINX_POOL_SECONDS,
        "client_keepalive_seconds": CLIENT_KEEPALIVE_SECONDS,
    }


def serving_plan(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the serving plan for `settings`.

    `settings` keys: `device` (cuda|cpu), `model`, `model_revision`, `served_name` (may be empty),
    `max_model_len` (tokens, 0: the engine's choice), `max_num_seqs`, `kv_cache_mib` (CPU only),
    `engine_port`, `gateway_port`, `models_dir`, `engine_arguments` (vLLM flags that win over
    ours), `cores` (of the server).

    Raises AnsibleFilterError when the model's name makes no sense.
    """
    model = model_source(str(settings["model"]), str(settings.get("model_revision") or ""))
    device = settings["device"]
    served_name = settings.get("served_name") or model["slug"].split("--")[-1]
    path = model["id"] if model["source"] == "path" else f"{settings['models_dir']}/{model['slug']}"
    arguments: dict[str, Any] = {
        "model": path,
        "served-model-name": served_name,
        "host": "127.0.0.1",
        "port": int(settings["engine_port"]),
        "sse-keep-alive-interval": HEARTBEAT_SECONDS,
        "shutdown-timeout": DRAIN_SECONDS,
        "max-num-seqs": int(settings["max_num_seqs"]),
        "uvicorn-log-level": "warning",
        "disable-uvicorn-access-log": True,
        "disable-fastapi-docs": True,
    }
    if int(settings.get("max_model_len") or 0):
        arguments["max-model-len"] = int(settings["max_model_len"])
    environment: dict[str, str] = {
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": str(ENGINE_KEEPALIVE_SECONDS),
        # Else its processes talk, and listen, by whatever address the host's name stands for.
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
    }
    cores = max(int(settings["cores"]), 1)
    if device == "cpu":
        # Compiling for the CPU wants a C++ compiler on the server and minutes at every start.
        arguments["enforce-eager"] = True
        arguments["kv-cache-memory-bytes"] = int(settings["kv_cache_mib"]) * 1024 * 1024
    if model["source"] == "builtin":
        # The tiny model would be done before anyone saw it stream: recital_pace.py slows it down.
        arguments["logits-processors"] = ["recital_pace:Pace"]
        environment["RECITAL_STEP_MILLISECONDS"] = str(RECITAL_STEP_MILLISECONDS)
        environment["PYTHONPATH"] = RECITAL_DIR
    arguments.update(settings.get("engine_arguments") or {})
    return {
        "version": PLAN_VERSION,
        "engines": [
            {
                "name": "main",
                "device": device,
                "model": {**model, "path": path, "served_name": served_name},
                "port": int(settings["engine_port"]),
                "arguments": arguments,
                "environment": environment,
            }
        ],
        "gateway": {"port": int(settings["gateway_port"]), "workers": max(1, min(4, cores // 4))},
        "backend": {"workers": max(1, min(4, cores // 4))},
        "budget": timeout_budget(),
    }


class FilterModule:
    """Ansible's way to find the filters."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"serving_plan": serving_plan, "model_source": model_source}
