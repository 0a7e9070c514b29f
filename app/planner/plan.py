"""Hardware and settings in, one plan out. Its keys are documented in docs/plan.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner import advice, chain, driver, fleet
from planner.driver import DriverWish
from planner.engine import Wish
from planner.fleet import Placement
from planner.machine import Machine
from planner.memory import GIB
from planner.models import Model
from planner.problem import PlanError, TooLarge

CONTEXTS = (2048, 8192, 32768, 131072)

BANDWIDTH_SHARE = 0.85
"""Of a card's memory bandwidth that reading the weights reaches with one reader; this and the next
as measured on an H100 (docs/measurements.md)."""
LAYER_SECONDS = 30e-6
"""What a layer takes besides: a quick model is bound by its kernels' launches, not by memory."""
EXPERT_LAYER_SECONDS = 50e-6
"""The same of a layer with experts."""
CROWD = 40
"""The pace of all is so many times that of one, about; reached with 64 readers and more."""
EXPERT_CROWD = 16
"""The same with experts, of which a crowd wakes all: more weights are read for each step."""


def decide(
    machine: Machine,
    model: Model | None = None,
    wish: Wish | None = None,
    driver_wish: DriverWish | None = None,
) -> dict[str, Any]:
    """Return the plan. What cannot be is in `refusals`, with the reason and what would work; a plan
    with refusals has no engine that may be started.
    """
    wish = wish or Wish()
    reasons: list[str] = []
    refusals = _obstacles(machine, wish)
    placed: list[Placement] = []
    if not refusals:
        try:
            placed, notes = fleet.place(machine.gpus, model, wish)
            reasons += [text for place in placed for text in place.reasons] + notes
        except TooLarge as error:
            refusals.append(str(error) + (advice.told(machine, model, wish) if model else ""))
        except PlanError as error:
            refusals.append(str(error))
    drivers = driver.decide(machine, driver_wish)
    refusals += drivers.pop("refusals")
    reasons += [f"driver: {text}" for text in drivers.pop("reasons")]
    reasons += [f"left out: {text}" for text in machine.unusable]
    workers, warnings = _workers(machine, placed)
    engines = [_engine(place) for place in placed]
    memories = [_memory(place) for place in placed]
    return {
        "machine": _machine(machine),
        "driver": drivers,
        "engine": engines[0] if engines else None,
        "engines": engines,
        "memory": memories[0] if memories else None,
        "memories": memories,
        "workers": workers,
        "reasons": reasons,
        "warnings": warnings,
        "refusals": refusals,
    }


def _obstacles(machine: Machine, wish: Wish) -> list[str]:
    """Say what stands in the way of any engine."""
    found = wish.problems()
    if not machine.gpus:
        found.append(
            "there is no NVIDIA card here that could be planned for: set vllm_device to cpu, or "
            "look into the firmware's PCI settings (Above 4G decoding, Resizable BAR)"
        )
    found += [
        f"{gpu.name} ({gpu.card.name}) is cut up by MIG: turn MIG off (nvidia-smi -mig 0)"
        for gpu in machine.gpus
        if gpu.is_mig
    ]
    return found


def _machine(machine: Machine) -> dict[str, Any]:
    return {
        "gpus": [
            {
                "name": gpu.card.name, "uuid": gpu.uuid, "pci_address": gpu.pci_address,
                "memory_gib": round(gpu.card.cuda_memory_gib, 2),
                "compute_capability": gpu.card.capability,
            }
            for gpu in machine.gpus
        ],
        "cores": machine.cores,
        "memory_gib": round(machine.memory_gib, 1),
        "system": f"{machine.distribution} {machine.version}",
    }  # fmt: skip


def _engine(place: Placement) -> dict[str, Any]:
    load, parts = place.fit.load, place.model.shape.parameters
    return {
        "model": place.model.id,
        "licence": place.model.licence,
        "parameters": parts.total,
        "quantization": None if place.fit.quantization == "none" else place.fit.quantization,
        "dtype": place.fit.dtype,
        "kv_cache_dtype": place.fit.kv_cache_dtype,
        "tensor_parallel_size": place.tensor_parallel_size,
        "data_parallel_size": place.data_parallel_size,
        "gpus": [gpu.name for gpu in place.gpus],
        "max_model_len": load.max_model_len,
        "max_num_seqs": load.max_num_seqs,
        "max_num_batched_tokens": load.max_num_batched_tokens,
        "gpu_memory_utilization": load.gpu_memory_utilization,
        "kv_cache_memory_bytes": load.kv_cache_memory_bytes or None,
        "enforce_eager": load.enforce_eager,
        "tokens_per_second": {name: round(value) for name, value in _pace(place).items()},
    }


def _memory(place: Placement) -> dict[str, Any]:
    memory, load = place.fit.memory, place.fit.load
    contexts = sorted({c for c in CONTEXTS if c < load.max_model_len} | {load.max_model_len})
    rounded = {
        "card_gib": memory.total,
        "budget_gib": memory.budget,
        "weights_gib_per_gpu": memory.weights,
        "activations_gib_per_gpu": memory.activations,
        "cuda_context_gib_per_gpu": memory.context,
        "cuda_graphs_gib_per_gpu": memory.graphs,
        "kv_cache_gib_per_gpu": memory.kv_cache,
        "total_gib_per_gpu": memory.used,
    }
    return {
        **{name: round(value, 2) for name, value in rounded.items()},
        "kv_cache_tokens": memory.kv_cache_tokens,
        "users": [
            {
                "context_tokens": c,
                "users": memory.blocks // memory.pool.request_blocks(c) * place.data_parallel_size,
            }
            for c in contexts
        ],
    }


def _pace(place: Placement) -> dict[str, float]:
    """Return the tokens a second for one reader and for all, by the memory's bandwidth: each token
    reads the weights that work on it once.
    """
    bandwidth = place.gpus[0].card.bandwidth_gb_s * 1e9
    weights = place.fit.memory.weights * GIB
    total = place.model.shape.parameters.total
    active = place.model.active_parameters or total
    if not bandwidth or not total:
        return {"one": 0.0, "all": 0.0}
    layers = len(place.model.shape.layers)
    reading = weights * active / total / (BANDWIDTH_SHARE * bandwidth)
    has_experts = bool(place.model.shape.experts)
    one = 1 / (reading + (EXPERT_LAYER_SECONDS if has_experts else LAYER_SECONDS) * layers)
    crowd = EXPERT_CROWD if has_experts else CROWD
    many = min(crowd, place.fit.load.max_num_seqs) * place.data_parallel_size
    return {"one": one, "all": one * many}


def _workers(machine: Machine, placed: list[Placement]) -> tuple[Mapping[str, Any], list[str]]:
    """Return how many workers relay the tokens, how many streams each hop must take, and what is
    to be said of it.
    """
    tokens = sum(_pace(place)["all"] for place in placed)
    planned = chain.plan(placed, machine.cores, tokens)
    workers = {
        "tokens_per_second": planned.tokens_per_second,
        "chain_tokens_per_second": planned.most_tokens_per_second,
        "streams": planned.streams,
        "gateway": planned.gateway,
        "backend": chain.BACKEND_WORKERS,
        "nginx_connections": planned.connections,
    }
    return workers, [planned.problem] if planned.problem else []
