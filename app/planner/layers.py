"""A model's layers, by what each keeps of the tokens that it has seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from planner.config import Config, family, first, number

Kind = Literal["full", "sliding", "chunked", "latent", "state"]


@dataclass(frozen=True)
class Layer:
    """One layer's cache.

    `full`, `sliding` and `chunked`: keys and values, `kv_heads` of `head_size` each. `latent`: one
    vector of `head_size` for all heads (multi-head latent attention). `state`: nothing that grows,
    but `state_bytes` a sequence (linear attention, Mamba, short convolutions).
    """

    kind: Kind
    kv_heads: int = 0
    head_size: int = 0
    window_tokens: int = 0
    state_bytes: int = 0


KIND_NAMES = {
    "full_attention": "full",
    "attention": "full",
    "sliding_attention": "sliding",
    "chunked_attention": "chunked",
    "linear_attention": "linear",
    "mamba": "mamba",
    "mamba2": "mamba",
    "conv": "conv",
    # Nemotron-H: one letter a layer; MLPs and experts are layers of their own and keep nothing.
    "*": "full",
    "M": "mamba",
    "-": "none",
    "E": "none",
    "moe": "none",
    "mlp": "none",
}
PAIRS = ("gemma2", "gpt_oss")
"""Families in which every other layer has a window, where the file does not say it."""


def read(text: Config, kv_heads: int, head_size: int) -> Iterator[Layer]:
    """Yield the layers that keep something."""
    window = number(text, "sliding_window", "sliding_window_size")
    chunk = number(text, "attention_chunk_size")
    rank = number(text, "kv_lora_rank")
    # Gemma 4 gives its global layers other heads.
    wide = number(text, "global_head_dim") or head_size
    few = number(text, "num_global_key_value_heads") or kv_heads
    for kind in _kinds(text):
        if kind in STATES:
            yield Layer("state", state_bytes=STATES[kind](text))
        elif kind == "none":
            continue
        elif rank:
            yield Layer("latent", 1, rank + number(text, "qk_rope_head_dim"))
        elif kind == "sliding" and window:
            yield Layer("sliding", kv_heads, head_size, window)
        elif kind == "chunked" and chunk:
            yield Layer("chunked", kv_heads, head_size, chunk)
        else:
            yield Layer("full", few, wide)


def _kinds(text: Config) -> list[str]:
    """Say of each layer how it caches."""
    count = text["num_hidden_layers"]
    if named := first(text, "layer_types", "layers_block_type", "hybrid_override_pattern"):
        return [KIND_NAMES.get(str(name), "full") for name in named][:count]
    if every := number(text, "full_attention_interval"):
        return ["linear" if (n + 1) % every else "full" for n in range(count)]
    name = family(text)
    if name in PAIRS:
        return ["full" if n % 2 else "sliding" for n in range(count)]
    if name.startswith("gemma3"):
        every = number(text, "sliding_window_pattern") or 6
        return ["sliding" if (n + 1) % every else "full" for n in range(count)]
    if name.startswith("llama4"):
        return ["chunked" if (n + 1) % 4 else "full" for n in range(count)]
    if number(text, "sliding_window") and text.get("use_sliding_window", True):
        return ["sliding"] * count
    return ["full"] * count


# States: the last inputs of a convolution, in 16 bits, and a recurrent matrix. ----------------


def _linear(text: Config) -> int:
    keys, values = (number(text, f"linear_num_{k}_heads") for k in ("key", "value"))
    key, value = (number(text, f"linear_{k}_head_dim") for k in ("key", "value"))
    kernel = number(text, "linear_conv_kernel_dim") or 4
    wide = 4 if text.get("mamba_ssm_dtype") == "float32" else 2
    return 2 * (2 * keys * key + values * value) * (kernel - 1) + wide * values * key * value


def _mamba(text: Config) -> int:
    inner, groups, size = mamba_sizes(text)
    kernel = number(text, "conv_kernel", "mamba_d_conv") or 4
    wide = 2 if text.get("mamba_ssm_cache_dtype") in ("float16", "bfloat16") else 4
    return 2 * (inner + 2 * groups * size) * (kernel - 1) + wide * inner * size


def _convolution(text: Config) -> int:
    hidden: int = text["hidden_size"]
    return 2 * hidden * (number(text, "conv_L_cache") or 3)


STATES = {"linear": _linear, "mamba": _mamba, "conv": _convolution}


def mamba_sizes(text: Config) -> tuple[int, int, int]:
    """Return a Mamba layer's inner width, its groups, and the size of a state."""
    heads = number(text, "mamba_num_heads", "mamba_n_heads")
    inner = heads * number(text, "mamba_head_dim", "mamba_d_head")
    return inner, number(text, "n_groups", "mamba_n_groups") or 1, (
        number(text, "ssm_state_size", "mamba_d_state") or 128
    )  # fmt: skip
