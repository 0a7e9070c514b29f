"""Where a card's memory goes: weights, activations, CUDA's own, graphs; the rest is KV cache.

The constants come from published start-up logs (tests/fixtures/kv_logs.jsonl);
tests/unit/test_planner_logs.py holds this model against them and docs/plan.md tells the error.
GiB are 2^30 bytes, per GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.kv_cache import Pool, pool
from planner.shape import Shape

GIB = 1 << 30

SAMPLER_BYTES = 14.2
"""Per sequence and entry of the vocabulary: logits in 16 and 32 bits and what sorts them."""
SAMPLER_GIB = 0.16
FORWARD_FLOOR_GIB = 0.35
ENCODER_GIB = 0.25
"""A multimodal model is profiled with a picture as well (Gemma 3: 0.23 to 0.28)."""

CONTEXT_GIB = 0.25
"""CUDA's context and libraries, one GPU."""
PARALLEL_CONTEXT_GIB = 2.08
"""The same with the buffers through which GPUs talk (NCCL, all-reduce)."""

GRAPH_SIZES = 51
"""Batch sizes that vLLM captures by default: 1, 2, 4, by 8 to 256, by 16 to 512."""


@dataclass(frozen=True)
class Load:
    """What is asked of one engine, in vLLM's words."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    gpu_memory_utilization: float = 0.92
    tensor_parallel_size: int = 1
    # Bytes of one number in the KV cache: 2, or 1 with --kv-cache-dtype fp8.
    kv_bytes: float = 2.0
    enforce_eager: bool = False
    kv_cache_memory_bytes: int = 0


@dataclass(frozen=True)
class Memory:
    """What one GPU's memory is used for, GiB, and what the KV cache holds."""

    total: float
    budget: float
    weights: float
    activations: float
    context: float
    graphs: float
    kv_cache: float
    pool: Pool
    max_model_len: int

    @property
    def blocks(self) -> int:
        """How many blocks the KV cache has."""
        return max(0, int(self.kv_cache * GIB // self.pool.block_bytes))

    @property
    def kv_cache_tokens(self) -> int:
        """What vLLM will say that it holds, tokens."""
        return self.pool.tokens(self.kv_cache * GIB, self.max_model_len)

    @property
    def longest_request(self) -> int:
        """The longest request that fits, tokens; below max_model_len vLLM does not start."""
        return self.pool.longest_request(self.kv_cache * GIB, self.max_model_len)

    def takes(self, tokens: int) -> bool:
        """Whether a request of so many tokens fits; of `max_model_len` it must, or vLLM stops."""
        return self.pool.fits(self.kv_cache * GIB, tokens)

    def holds(self, sequences: int, tokens: int) -> bool:
        """Whether so many requests of so many tokens fit beside each other."""
        return self.blocks >= sequences * self.pool.request_blocks(tokens)

    @property
    def used(self) -> float:
        """All of it."""
        return self.weights + self.activations + self.context + self.graphs + max(0, self.kv_cache)


def weight_bytes(shape: Shape, quantization: str, tensor_parallel_size: int) -> float:
    """Return the bytes of the weights on one GPU. `quantization`: as quant_of() names it."""
    linear, expert, wide = _bytes_each(shape, quantization)
    parts = shape.parameters
    divided = parts.linear * linear + parts.expert * expert + parts.embedding * wide
    # Fewer key and value heads than GPUs: their matrices are copied, which is little.
    return divided / tensor_parallel_size + parts.other * wide


def quant_of(shape: Shape, asked: str = "") -> str:
    """Return how the weights are held: `none`, `fp8`, `int8`, `int4`, `mxfp4`, `nvfp4`, `bnb4`.

    `asked`: vLLM's --quantization, where the checkpoint itself is in 16 bits.
    """
    method = str(shape.quantization.get("quant_method") or asked or "none").lower()
    bits = int(shape.quantization.get("bits") or 0)
    is_float = bool(shape.quantization.get("is_float"))
    for name in ("mxfp4", "nvfp4"):
        if name in method:
            return name
    if "bitsandbytes" in method or "bnb" in method:
        return "bnb4"
    if bits == 4:
        return "nvfp4" if is_float else "int4"
    if bits == 8:
        return "fp8" if is_float or "fp8" in method else "int8"
    if any(name in method for name in ("awq", "gptq", "auto-round", "autoround")):
        return "int4"
    if any(name in method for name in ("fp8", "compressed-tensors", "modelopt")):
        return "fp8"
    return "none"


def _bytes_each(shape: Shape, quantization: str) -> tuple[float, float, float]:
    """Return the bytes of a parameter of the linear layers, of the experts, of the rest."""
    wide = 4.0 if shape.dtype == "float32" else 2.0
    group = int(shape.quantization.get("group_size") or 128)
    group = group if group > 0 else shape.hidden_size
    # A scale in 16 bits and a zero point of 4 bits for each group.
    packed = 0.5 + 2.5 / group
    each = {
        "none": (wide, wide),
        "fp8": (1.0, 1.0),
        "int8": (1.0, 1.0),
        "int4": (packed, packed),
        "bnb4": (0.5 + 4 / 64, 0.5 + 4 / 64),
        # 4 bits and a scale of 8 bits for 16 of them.
        "nvfp4": (0.5 + 1 / 16, 0.5 + 1 / 16),
        # Only gpt-oss has it: its experts in 4 bits, a scale of 8 bits for 32, and their 2880
        # columns filled up to 3072; all else in 16 bits.
        "mxfp4": (wide, (0.5 + 1 / 32) * 3072 / 2880),
    }[quantization]
    return (*each, wide)


def activation_bytes(shape: Shape, quantization: str, load: Load) -> float:
    """Return the peak of a step: the forward pass of a full batch, or the sampler of all sequences.

    vLLM measures both with what it may be asked for at the most and keeps the larger one free; the
    workspace of the experts stays beside either.
    """
    tp, tokens = load.tensor_parallel_size, load.max_num_batched_tokens
    forward = 2.0 * tokens * (3 * shape.mlp_size / tp + 6 * shape.hidden_size)
    forward = max(forward, FORWARD_FLOOR_GIB * GIB)
    sequences = min(load.max_num_seqs, tokens)
    sampler = SAMPLER_BYTES * sequences * shape.vocab_size + SAMPLER_GIB * GIB
    # The fused kernels write every token once for each of its experts, twice (gpt-oss's do not).
    workspace = 0.0
    if shape.experts and quantization != "mxfp4":
        size = shape.expert_size / tp
        rows = max(2 * size, shape.hidden_size) + size
        workspace = 2.0 * tokens * shape.experts_per_token * rows
    encoder = ENCODER_GIB * GIB if shape.is_multimodal else 0.0
    return max(forward, sampler) + workspace + encoder


def graph_bytes(shape: Shape, load: Load) -> float:
    """Return what captured CUDA graphs take: with the layers, and with the batch sizes captured."""
    if load.enforce_eager:
        return 0.0
    most = min(512, 2 * load.max_num_seqs)
    sizes = 3 + min(most, 256) // 8 + max(0, most - 256) // 16
    whole = 0.45 + 0.0135 * len(shape.layers) + (0.35 if shape.experts else 0.0)
    if load.tensor_parallel_size > 1:
        whole *= 0.8
    return whole * GIB * (0.3 + 0.7 * min(1.0, sizes / GRAPH_SIZES))


def pool_of(shape: Shape, load: Load) -> Pool:
    """Return the KV cache's layout on one GPU."""
    return pool(shape, load.tensor_parallel_size, load.kv_bytes, load.max_num_batched_tokens)


def account(
    shape: Shape, total_gib: float, quantization: str, load: Load, blocks: Pool | None = None
) -> Memory:
    """Say where the memory of one GPU goes. `total_gib`: what CUDA sees of it; `blocks`: the
    cache's layout, where it is known already.
    """
    tp = load.tensor_parallel_size
    blocks = blocks or pool_of(shape, load)
    budget = total_gib * load.gpu_memory_utilization
    weights = weight_bytes(shape, quantization, tp) / GIB
    activations = activation_bytes(shape, quantization, load) / GIB
    context = CONTEXT_GIB if tp == 1 else PARALLEL_CONTEXT_GIB
    graphs = graph_bytes(shape, load) / GIB
    kv_cache = budget - weights - activations - context - graphs
    if load.kv_cache_memory_bytes:
        kv_cache = load.kv_cache_memory_bytes / GIB
    return Memory(
        total_gib, budget, weights, activations, context, graphs, kv_cache, blocks,
        load.max_model_len,
    )  # fmt: skip
