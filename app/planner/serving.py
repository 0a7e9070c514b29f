"""The whole plan of a server: what its hardware decides, and what every hop is told.

It is kept on the server as /etc/millrace/plan.json, so that anyone can read what was decided.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner import budget, driver, machine, models
from planner.chain import BACKEND_WORKERS
from planner.dialects import dialect_arguments
from planner.driver import DriverWish
from planner.engine import Wish
from planner.machine import Machine
from planner.memory import Load, pool_of
from planner.models import Model
from planner.plan import decide
from planner.problem import PlanError
from planner.source import RECITAL, model_source

PLAN_VERSION = 4

ENGINE_DIR = "/usr/local/lib/millrace/engine"
"""Where roles/vllm puts what vLLM loads of ours."""
RECITAL_DIR = "/usr/local/lib/millrace/recital"
RECITAL_STEP_MILLISECONDS = 12
"""About 80 tokens a second: a good model's pace on a good card, for one reader."""
RECITAL_CONFIG = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 512,
    "num_attention_heads": 2, "vocab_size": 704, "max_position_embeddings": 16384,
}  # fmt: skip
"""Its dimensions, which the plan needs before roles/vllm/files/recital/build.py has made it."""
RECITAL_ARGUMENTS = {
    # It has no mind to call a tool: it does when it is made to. And it would take the white space
    # that JSON allows for the beginning of its text, and never come to an end.
    "enable-auto-tool-choice": True,
    "tool-call-parser": "hermes",
    "structured-outputs-config": '{"backend": "xgrammar", "disable_any_whitespace": true}',
}
RECITAL_ENVIRONMENT = {
    "RECITAL_STEP_MILLISECONDS": str(RECITAL_STEP_MILLISECONDS),
    # Else a tool that must be called is held to its name alone, and may get null for arguments.
    "VLLM_ENFORCE_STRICT_TOOL_CALLING": "0",
}
CPU_SEQUENCES = 64
CPU_BATCHED_TOKENS = 4096
"""vLLM's default on a processor; only windows' layers ask."""

# The settings that a planner's choice yields to, as vLLM calls them.
WISHES: Mapping[str, type] = {
    "max-model-len": int, "max-num-seqs": int, "max-num-batched-tokens": int,
    "tensor-parallel-size": int, "data-parallel-size": int, "kv-cache-memory-bytes": int,
    "gpu-memory-utilization": float, "quantization": str, "kv-cache-dtype": str, "dtype": str,
    "enforce-eager": bool,
}  # fmt: skip


def serving_plan(settings: Mapping[str, Any], hardware: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plan for `settings` on `hardware` (what `gpu_hardware_facts` returned, and
    `system`: the distribution and its version).

    `settings` keys: `device` (cuda|cpu), `model` (empty: the planner's choice), `model_revision`,
    `model_config` (its config.json, where the catalogue does not know it), `served_name` (may be
    empty), `max_model_len` (tokens, 0: the planner's choice), `max_num_seqs` (the same),
    `kv_cache_mib` (CPU only), `engine_port`, `gateway_port`, `metrics_port`, `models_dir`,
    `engine_arguments` (vLLM flags that win over ours), `driver` (`source`, `branch`, `flavour`),
    `cores`.

    `hardware` is what the plan was made for: each card, and the engine that it works for. Of an
    engine, `kv_cache_tokens` is what its cache will hold (None where nobody knows), and `weight`
    its share of the requests where there are several.
    `decided` is what the cards decide (docs/plan.md tells its keys; None on a CPU). What cannot be
    carried out is in `refusals`; what is wrong with the driver as it runs now, in `driver_problem`.
    Raises PlanError when the model's name makes no sense.
    """
    if settings["device"] == "cpu":
        return _on_cpu(settings, hardware)
    seen = machine.from_facts(hardware)
    decided = _decide(settings, seen)
    chosen = decided["engine"]["model"] if decided["engine"] else ""
    name = str(settings["model"]) or chosen
    planned = zip(decided["engines"], decided["memories"], strict=True)
    engines = [
        _engine(settings, name, number, engine, memory["kv_cache_tokens"])
        for number, (engine, memory) in enumerate(planned)
    ]
    if not engines and name:
        # Refused; what was asked for is shown all the same.
        engines = [_engine(settings, name, 0, None, None)]
    # Any other is the kit's to install, or to mend.
    owners_driver = decided["driver"]["source"] == "none"
    workers = decided["workers"]
    return {
        **_common(settings, workers["gateway"], workers["backend"], engines),
        "engines": engines,
        "hardware": {"cards": _cards(hardware, engines, decided["engines"])},
        "decided": decided,
        "refusals": decided["refusals"],
        "driver_problem": driver.running_problem(seen) if owners_driver else "",
    }


def _on_cpu(settings: Mapping[str, Any], hardware: Mapping[str, Any]) -> dict[str, Any]:
    cores = max(int(settings["cores"]), 1)
    workers = max(1, min(4, cores // 4))
    name = str(settings["model"]) or RECITAL
    engines = [_engine(settings, name, 0, None, _cpu_tokens(settings, name))]
    return {
        **_common(settings, workers, BACKEND_WORKERS, engines),
        "engines": engines,
        "hardware": {"cards": _cards(hardware, [], [])},
        "decided": None,
        "refusals": [],
        "driver_problem": "",
    }


def _cpu_tokens(settings: Mapping[str, Any], name: str) -> int | None:
    """Return the tokens that the KV cache will hold; None where the model's shape is not known."""
    try:
        model = _model({**settings, "model": name})
    except PlanError:
        return None
    if model is None:
        return None
    context = int(settings.get("max_model_len") or 0) or model.shape.context_tokens
    load = Load(context, CPU_SEQUENCES, CPU_BATCHED_TOKENS)
    return pool_of(model.shape, load).tokens(int(settings["kv_cache_mib"]) << 20, context)


def _cards(
    hardware: Mapping[str, Any], engines: list[dict[str, Any]], planned: list[dict[str, Any]]
) -> list[dict[str, str]]:
    """Return NVIDIA's cards that were there, each with the engine that it works for, for the guard
    that looks whether they still are.
    """
    used = {
        name: engine["name"]
        for engine, plan in zip(engines, planned, strict=False)
        for name in plan["gpus"]
    }
    found = []
    for gpu in hardware.get("gpus", []):
        if str(gpu["vendor"]).lower() != machine.NVIDIA:
            continue
        address, uuid = str(gpu.get("pci_address", "")), str(gpu.get("uuid") or "")
        card = machine.card_of(gpu)
        found.append(
            {
                "pci_address": address,
                "device": str(gpu["device"]).lower(),
                "uuid": uuid,
                "name": card.name if card else f"NVIDIA's {gpu['device']}",
                "engine": used.get(uuid) or used.get(address, ""),
            }
        )
    return found


def _streams(engines: list[dict[str, Any]]) -> int:
    """Return how many answers all engines work on at once; a further one would wait in vLLM, where
    nobody is told that it does.
    """
    arguments = [engine["arguments"] for engine in engines]
    return sum(
        int(given.get("max-num-seqs") or 0) * int(given.get("data-parallel-size") or 1)
        for given in arguments
    )


def _common(
    settings: Mapping[str, Any], gateway: int, backend: int, engines: list[dict[str, Any]]
) -> dict[str, Any]:
    metrics = int(settings["metrics_port"])
    return {
        "version": PLAN_VERSION,
        "gateway": {"port": int(settings["gateway_port"]), "workers": gateway},
        "backend": {
            "workers": backend,
            "streams": _streams(engines),
            # Two instances, of which one hands over to the other at a change.
            "metrics_ports": {"a": metrics, "b": metrics + 1},
        },
        "budget": budget.timeout_budget(),
    }


# The engine ----------------------------------------------------------------------------------


def _decide(settings: Mapping[str, Any], seen: Machine) -> dict[str, Any]:
    wish = _wish(settings)
    asked = settings.get("driver") or {}
    wanted = DriverWish(
        str(asked.get("source") or ""), int(asked.get("branch") or 0),
        str(asked.get("flavour") or ""),
    )  # fmt: skip
    problem = None
    model = None
    try:
        model = _model(settings)
    except PlanError as error:
        problem = str(error)
    decided = decide(seen, model, wish, wanted)
    if problem:
        decided.update(engine=None, engines=[], memories=[])
        decided["refusals"].insert(0, problem)
    return decided


def _model(settings: Mapping[str, Any]) -> Model | None:
    name = str(settings["model"])
    if not name:
        return None
    if name == RECITAL:
        return models.find(name, RECITAL_CONFIG)
    model_source(name)
    return models.find(name, settings.get("model_config") or None)


def _wish(settings: Mapping[str, Any]) -> Wish:
    """Return what the owner set: by name, or among the engine's arguments, which win."""
    given = {
        "max-model-len": int(settings.get("max_model_len") or 0) or None,
        "max-num-seqs": int(settings.get("max_num_seqs") or 0) or None,
        **(settings.get("engine_arguments") or {}),
    }
    return Wish(
        **{
            name.replace("-", "_"): kind(given[name])
            for name, kind in WISHES.items()
            if given.get(name) is not None
        }
    )


def _engine(
    settings: Mapping[str, Any], name: str, number: int, planned: Mapping[str, Any] | None,
    kv_cache_tokens: int | None,
) -> dict[str, Any]:  # fmt: skip
    model = model_source(name, str(settings.get("model_revision") or ""))
    served_name = settings.get("served_name") or model["slug"].split("--")[-1]
    path = model["id"] if model["source"] == "path" else f"{settings['models_dir']}/{model['slug']}"
    port = int(settings["engine_port"]) + number
    arguments: dict[str, Any] = {
        "model": path,
        "served-model-name": served_name,
        "host": "127.0.0.1",
        "port": port,
        "sse-keep-alive-interval": budget.HEARTBEAT_SECONDS,
        "shutdown-timeout": budget.DRAIN_SECONDS,
        "uvicorn-log-level": "warning",
        "disable-uvicorn-access-log": True,
        "disable-fastapi-docs": True,
        # Its own access log knows no request ids, and its request log writes what people sent.
        # And what tells of answers that pass the backend by.
        "middleware": ["gateway.engine_layers.EngineLayers"],
    }
    environment: dict[str, str] = {
        "PYTHONPATH": ENGINE_DIR,
        # Without those of its loggers that write what people sent or were told.
        "VLLM_LOGGING_CONFIG_PATH": f"{ENGINE_DIR}/logging.json",
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": str(budget.ENGINE_KEEPALIVE_SECONDS),
        # Else its processes talk, and listen, by whatever address the host's name stands for.
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
    }
    if planned:
        _on_cards(arguments, environment, planned)
    elif settings["device"] == "cpu":
        # Compiling for the CPU wants a C++ compiler on the server and minutes at every start.
        arguments["enforce-eager"] = True
        # Being eager, vLLM still compiles parts of its sampler at their first use: without a
        # compiler one request for log probabilities would end the engine.
        environment["TORCHDYNAMO_DISABLE"] = "1"
        arguments["kv-cache-memory-bytes"] = int(settings["kv_cache_mib"]) * 1024 * 1024
        arguments["max-num-seqs"] = int(settings.get("max_num_seqs") or 0) or CPU_SEQUENCES
        if int(settings.get("max_model_len") or 0):
            arguments["max-model-len"] = int(settings["max_model_len"])
    if model["source"] == "builtin":
        # The tiny model would be done before anyone saw it stream: recital_pace.py slows it down.
        arguments["logits-processors"] = ["recital_pace:Pace"]
        environment["PYTHONPATH"] = f"{ENGINE_DIR}:{RECITAL_DIR}"
        environment.update(RECITAL_ENVIRONMENT)
        arguments.update(RECITAL_ARGUMENTS)
    else:
        arguments.update(dialect_arguments(model["id"]))
    arguments.update(settings.get("engine_arguments") or {})
    return {
        "name": f"engine{number + 1}" if number else "main",
        "device": settings["device"],
        "model": {**model, "path": path, "served_name": served_name},
        "port": port,
        "weight": max(1, planned["tokens_per_second"]["all"]) if planned else 1,
        "kv_cache_tokens": kv_cache_tokens,
        "arguments": arguments,
        "environment": environment,
    }


def _on_cards(
    arguments: dict[str, Any], environment: dict[str, str], planned: Mapping[str, Any]
) -> None:
    """Tell vLLM what was planned, so that it decides nothing by itself."""
    for key in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "dtype"):
        arguments[key.replace("_", "-")] = planned[key]
    if planned["kv_cache_memory_bytes"]:
        arguments["kv-cache-memory-bytes"] = planned["kv_cache_memory_bytes"]
    else:
        arguments["gpu-memory-utilization"] = planned["gpu_memory_utilization"]
    for key in ("tensor_parallel_size", "data_parallel_size"):
        if planned[key] > 1:
            arguments[key.replace("_", "-")] = planned[key]
    if planned["kv_cache_dtype"] != "auto":
        arguments["kv-cache-dtype"] = planned["kv_cache_dtype"]
    if planned["enforce_eager"]:
        arguments["enforce-eager"] = True
    # CUDA numbers the cards by their speed otherwise, and nvidia-smi by their place.
    environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    # FlashInfer's sampler is compiled at the first start, with nvcc and ninja, which no server has:
    # the engine would end there (seen with 0.33). vLLM's own in Triton needs neither.
    environment["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
    uuids = [name for name in planned["gpus"] if name.startswith("GPU-")]
    if len(uuids) == len(planned["gpus"]):
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(uuids)
