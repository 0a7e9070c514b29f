"""How vLLM lays its KV cache out: how many tokens so many bytes hold.

Rebuilds what vllm/v1/core/kv_cache_utils.py decides (read at 0.32): blocks of a fixed count of
tokens, one pool of blocks for all layers, layers of one kind in groups of the same number of
layers. Hybrid models need no block for what lies outside a window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

from planner.layers import Layer
from planner.shape import Shape

BLOCK_TOKENS = 16
CONCURRENT_BATCHES = 2
"""Asynchronous scheduling prepares a batch while one runs; windows keep both (0.32)."""
STATES_PER_SEQUENCE = 2
"""Of linear attention and Mamba: with prefix caching a second one is filled (mode `align`)."""


@dataclass(frozen=True)
class Group:
    """Layers that share a table of blocks. `tokens`: per block; 0 where the state has one size."""

    layer: Layer
    tokens: int


@dataclass(frozen=True)
class Pool:
    """The pool of blocks on one GPU."""

    groups: tuple[Group, ...]
    # One block of the pool: so many layers' pages, bytes.
    block_bytes: int
    batched_tokens: int

    def request_blocks(self, tokens: int) -> int:
        """Return the blocks that one request of `tokens` needs at the most."""
        return sum(_blocks(group, tokens, self.batched_tokens) for group in self.groups)

    def request_bytes(self, tokens: int) -> int:
        """Return the bytes that one request of `tokens` needs at the most."""
        return self.request_blocks(tokens) * self.block_bytes

    def tokens(self, size_bytes: float, request_tokens: int) -> int:
        """Return the tokens that vLLM will say it holds, for requests of `request_tokens`.

        It counts how many requests of the full context fit, and multiplies.
        """
        blocks = int(size_bytes // self.block_bytes) if size_bytes > 0 else 0
        return int(blocks / self.request_blocks(request_tokens) * request_tokens)

    def fits(self, size_bytes: float, tokens: int) -> bool:
        """Whether one request of `tokens` fits."""
        # vLLM keeps one block back for itself.
        return self.request_bytes(tokens) <= int(size_bytes) - self.block_bytes

    def longest_request(self, size_bytes: float, most_tokens: int) -> int:
        """Return the longest request that fits, tokens, at most `most_tokens`; 0 if none does."""
        low, high = 0, most_tokens
        while low < high:
            middle = (low + high + 1) // 2
            if self.fits(size_bytes, middle):
                low = middle
            else:
                high = middle - 1
        return low


def _blocks(group: Group, tokens: int, batched_tokens: int) -> int:
    layer = group.layer
    if layer.kind == "state":
        return STATES_PER_SEQUENCE
    in_flight = CONCURRENT_BATCHES * batched_tokens
    if layer.kind == "sliding":
        return ceil(min(layer.window_tokens - 1 + in_flight, tokens) / group.tokens) + 1
    if layer.kind == "chunked":
        return ceil(min(layer.window_tokens + in_flight, tokens) / group.tokens)
    return ceil(tokens / group.tokens)


def token_bytes(layer: Layer, tensor_parallel_size: int, bytes_each: float) -> int:
    """Return the bytes of one token in one layer's cache on one GPU.

    Fewer key and value heads than GPUs: each keeps a copy of one. A latent vector is on every GPU.
    """
    if layer.kind == "state":
        return 0
    if layer.kind == "latent":
        return int(layer.head_size * bytes_each)
    heads = max(1, layer.kv_heads // tensor_parallel_size)
    return int(2 * heads * layer.head_size * bytes_each)


def pool(shape: Shape, tensor_parallel_size: int, bytes_each: float, batched_tokens: int) -> Pool:
    """Return the pool for a model. `bytes_each`: of one number in the cache."""
    sizes = {
        layer: token_bytes(layer, tensor_parallel_size, bytes_each) for layer in set(shape.layers)
    }
    states = [layer.state_bytes // tensor_parallel_size for layer in sizes if layer.kind == "state"]
    widest = max(sizes.values(), default=0)
    # A block of attention must be as large as a whole state: it takes more tokens then.
    block_tokens = BLOCK_TOKENS
    if states and widest:
        block_tokens = BLOCK_TOKENS * ceil(max(states) / (widest * BLOCK_TOKENS))
    page = max(block_tokens * widest, max(states, default=0))
    counts = Counter(shape.layers)
    size = _group_size(counts.values())
    groups = []
    for layer, count in counts.items():
        # Smaller pages hold more tokens where they fit in exactly; else the rest stays empty.
        own = sizes[layer]
        tokens = 0
        if own:
            tokens = block_tokens * (widest // own if widest % own == 0 else 1)
        groups += [Group(layer, tokens)] * ceil(count / size)
    return Pool(tuple(groups), size * page, batched_tokens)


def _group_size(counts: Iterable[int]) -> int:
    """Return how many layers share a table: as many as the rarest kind has, or the most frequent
    one if that is hardly more.
    """
    found = list(counts)
    return max(found) if max(found) < 1.5 * min(found) else min(found)
