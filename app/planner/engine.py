"""One engine on cards of one kind: how it is split, how long its context is, how many it serves.

Searches a few sizes, the most wanted first, with the memory model's word on each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from planner.cards import Card
from planner.kv_cache import Pool
from planner.memory import Load, Memory, account, pool_of, quant_of
from planner.models import Model
from planner.problem import TooLarge
from planner.shape import Shape

CONTEXTS = (262144, 131072, 65536, 32768, 16384, 8192, 4096, 2048)
SEQUENCES = (1024, 768, 512, 384, 256, 192, 128, 96, 64, 48, 32, 24, 16, 12, 8, 6, 4)
SEQUENCE_TOKENS = 2048
"""What a conversation holds on average; so many tokens of KV cache are there for each sequence."""
GOOD_CONTEXT = 32768
"""A long conversation; an engine that holds two of them needs no more cards."""

SMALL_BATCH = 2048
"""Tokens in one batch: vLLM's default on all but the largest cards."""
SPARE_SHARE = 0.05
SPARE_GIB = 0.6
"""Left outside vLLM's budget, for the allocator's gaps: the larger one."""
LARGE_GIB, LARGEST_GIB = 70, 160
"""From so much memory on vLLM takes larger batches and more sequences (arg_utils.py, 0.32)."""


@dataclass(frozen=True)
class Wish:
    """What the owner set, in vLLM's words; None: the planner's choice."""

    max_model_len: int | None = None
    gpu_memory_utilization: float | None = None
    tensor_parallel_size: int | None = None
    data_parallel_size: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    kv_cache_memory_bytes: int | None = None
    quantization: str | None = None
    kv_cache_dtype: str | None = None
    dtype: str | None = None
    enforce_eager: bool | None = None

    def problems(self) -> list[str]:
        """Say which of them can be no setting at all."""
        share = self.gpu_memory_utilization
        found = [
            f"{each.name} is {value}: it must be 1 or more"
            for each in fields(self)
            if type(value := getattr(self, each.name)) is int and value < 1
        ]
        if share is not None and not 0 < share <= 1:
            found.append(f"gpu_memory_utilization is {share}: it must lie between 0 and 1")
        return found


@dataclass(frozen=True)
class Fit:
    """An engine that fits."""

    load: Load
    memory: Memory
    quantization: str
    dtype: str
    kv_cache_dtype: str


def fit(model: Model, card: Card, tensor_parallel_size: int, wish: Wish) -> Fit:
    """Return the best engine of that split. Raises TooLarge with the numbers if none fits."""
    dtype = _dtype(model.shape, card, wish)
    shape = replace(model.shape, dtype=dtype)
    quantization = quant_of(shape, wish.quantization or "")
    closest = None
    tight = None
    layouts: dict[int, Pool] = {}
    accounts: dict[tuple[int, int], Memory] = {}
    for load in _loads(shape, card, tensor_parallel_size, wish):
        batch = load.max_num_batched_tokens
        layout = layouts.get(batch) or layouts.setdefault(batch, pool_of(shape, load))
        # Where the memory goes does not depend on the length of the context.
        size = (load.max_num_seqs, batch)
        if size not in accounts:
            accounts[size] = account(shape, card.cuda_memory_gib, quantization, load, layout)
        if not _starts(shape, accounts[size], load):
            closest = (load, accounts[size])
            continue
        memory = replace(accounts[size], max_model_len=load.max_model_len)
        found = Fit(load, memory, quantization, dtype, wish.kv_cache_dtype or "auto")
        if not _is_busy_enough(memory, load, wish):
            continue
        if wish.max_model_len is not None or memory.kv_cache_tokens >= 2 * load.max_model_len:
            return found
        tight = tight or found
    if tight:
        return tight
    assert closest is not None
    load, memory = closest
    memory = replace(memory, max_model_len=load.max_model_len)
    raise TooLarge(_too_small(model, card, quantization, load, memory))


def _starts(shape: Shape, memory: Memory, load: Load) -> bool:
    """Whether vLLM starts: one whole context fits, and each sequence's state has a block."""
    if memory.kv_cache <= 0 or not memory.takes(load.max_model_len):
        return False
    has_states = any(layer.kind == "state" for layer in shape.layers)
    return not has_states or memory.blocks >= load.max_num_seqs


def _is_busy_enough(memory: Memory, load: Load, wish: Wish) -> bool:
    """Whether the KV cache holds the sequences that are worked on at a time."""
    if wish.max_num_seqs is not None or load.max_num_seqs == SEQUENCES[-1]:
        return True
    return memory.holds(load.max_num_seqs, min(load.max_model_len, SEQUENCE_TOKENS))


def _too_small(model: Model, card: Card, quantization: str, load: Load, memory: Memory) -> str:
    tp = load.tensor_parallel_size
    held = "" if quantization == "none" else f" in {quantization}"
    where = card.name if tp == 1 else f"each of {tp} × {card.name}"
    fixed = memory.weights + memory.activations + memory.context + memory.graphs
    told = (
        f"{model.id}{held} does not fit on {where}: {memory.weights:.1f} GiB of weights and "
        f"{fixed - memory.weights:.1f} GiB for activations, CUDA and its graphs"
    )
    if memory.kv_cache <= 0:
        return f"{told}, of {memory.budget:.1f} GiB that vLLM may use"
    return (
        f"{told} leave {memory.kv_cache:.1f} GiB for the KV cache, which holds a request of "
        f"{memory.longest_request:,} tokens; max_model_len is {load.max_model_len:,}"
    )


def _loads(shape: Shape, card: Card, tp: int, wish: Wish) -> Iterator[Load]:
    """Yield what may be asked of the engine, the most wanted first: long context, many readers."""
    most, batched = card_defaults(card)
    batched = wish.max_num_batched_tokens or batched
    share = wish.gpu_memory_utilization or utilization(card.cuda_memory_gib)
    kv_bytes = 4.0 if shape.dtype == "float32" else 2.0
    if (wish.kv_cache_dtype or "").startswith("fp8"):
        kv_bytes = 1.0
    contexts = [shape.context_tokens, *(c for c in CONTEXTS if c < shape.context_tokens)]
    many = [n for n in SEQUENCES if n <= most]
    # A smaller batch takes less for activations: where a larger one costs context, it is taken.
    batches = [batched] if wish.max_num_batched_tokens else sorted({batched, SMALL_BATCH})[::-1]
    for context in [wish.max_model_len] if wish.max_model_len else contexts:
        for sequences in [wish.max_num_seqs] if wish.max_num_seqs else many:
            for batch in batches:
                yield Load(
                    max_model_len=context,
                    max_num_seqs=sequences,
                    max_num_batched_tokens=batch,
                    gpu_memory_utilization=share,
                    tensor_parallel_size=tp,
                    kv_bytes=kv_bytes,
                    enforce_eager=bool(wish.enforce_eager),
                    kv_cache_memory_bytes=wish.kv_cache_memory_bytes or 0,
                )


def card_defaults(card: Card) -> tuple[int, int]:
    """Return vLLM's own defaults on that card: sequences, and tokens in one batch."""
    if card.cuda_memory_gib >= LARGEST_GIB:
        return 1024, 16384
    if card.cuda_memory_gib >= LARGE_GIB and "a100" not in card.name.lower():
        return 1024, 8192
    return 256, 2048


def utilization(cuda_memory_gib: float) -> float:
    """Return vLLM's share of the memory: all but a small reserve, in whole hundredths."""
    spare = max(SPARE_GIB, SPARE_SHARE * cuda_memory_gib)
    return max(0.5, int(100 * (1 - spare / cuda_memory_gib) + 1e-9) / 100)


# What may not be -----------------------------------------------------------------------------


def splits(shape: Shape, quantization: str, cards: int) -> list[int]:
    """Return the tensor-parallel sizes that divide the model, the smallest first."""
    return [n for n in range(1, cards + 1) if not split_problem(shape, quantization, n)]


def split_problem(shape: Shape, quantization: str, size: int) -> str:
    """Say why a model cannot be split over so many cards; empty where it can."""
    if size == 1:
        return ""
    if shape.heads % size:
        return f"{size} does not divide the {shape.heads} attention heads"
    if shape.kv_heads % size and size % shape.kv_heads:
        return f"{size} and the {shape.kv_heads} key-value heads do not divide each other"
    padded = -(-shape.vocab_size // 64) * 64
    if padded % size:
        return f"{size} does not divide the vocabulary of {padded}"
    for width, what in ((shape.mlp_size, "MLP's width"), (shape.expert_size, "experts' width")):
        if width % size:
            return f"{size} does not divide the {what} of {width}"
        # Packed weights come in groups that no cut may go through.
        group = _cut_group(shape, quantization)
        if width and group and (width // size) % group:
            return f"a cut in {size} goes through the {what}'s groups of {group}"
    return ""


def _cut_group(shape: Shape, quantization: str) -> int:
    if quantization == "int4":
        return max(0, int(shape.quantization.get("group_size") or 128))
    return int(shape.quantization.get("block_size") or 0) if quantization == "fp8" else 0


def card_problem(shape: Shape, quantization: str, card: Card, dtype: str | None) -> str:
    """Say why a card cannot run a model at all; empty where it can."""
    capability = card.compute_capability
    if quantization in ("fp8", "nvfp4", "mxfp4") and capability < (8, 0):
        return (
            f"{card.name} (compute capability {card.capability}) has no kernels for {quantization} "
            "weights, which begin with 8.0: take an AWQ or GPTQ model"
        )
    if dtype == "bfloat16" and capability < (8, 0):
        return f"{card.name} (compute capability {card.capability}) has no bfloat16: use float16"
    return ""


def _dtype(shape: Shape, card: Card, wish: Wish) -> str:
    if wish.dtype and wish.dtype != "auto":
        return wish.dtype
    if card.compute_capability < (8, 0):
        return "float16"
    return "bfloat16" if shape.dtype == "float32" else shape.dtype


def remarks(quantization: str, card: Card) -> list[str]:
    """Say how a card runs such weights, where it is not as one would think."""
    capability = card.compute_capability
    if quantization == "fp8" and (8, 0) <= capability < (8, 9):
        return [f"FP8 weights run on {card.name} through Marlin: they save memory, not arithmetic"]
    if quantization == "nvfp4" and capability < (10, 0):
        return [
            f"NVFP4 weights run on {card.name} through Marlin: they save memory, not arithmetic"
        ]
    return []
