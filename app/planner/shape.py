"""What of a model decides memory and parallelism, read from its own config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from planner import layers, parameters
from planner.config import Config, first, number, text_of
from planner.layers import Layer
from planner.parameters import Parameters
from planner.problem import PlanError

NEEDED = ("num_hidden_layers", "hidden_size", "vocab_size")


@dataclass(frozen=True)
class Shape:
    """A model, as far as memory and parallelism go. Widths in numbers, context in tokens."""

    layers: tuple[Layer, ...]
    parameters: Parameters
    hidden_size: int
    heads: int
    kv_heads: int
    vocab_size: int
    # Width of the MLP that every token goes through; of one expert.
    mlp_size: int
    expert_size: int
    experts: int
    experts_per_token: int
    context_tokens: int
    dtype: str
    # Of the checkpoint: quant_method, bits, group_size, block_size; empty where it has 16 bits.
    quantization: Mapping[str, Any] = field(default_factory=dict)
    # It sees or hears as well.
    is_multimodal: bool = False


def from_config(config: Config, total: int = 0) -> Shape:
    """Read a config.json as Hugging Face writes it. `total`: its parameters, where they are known.

    What the total has more than the text model's matrices is taken for a vision tower.
    Raises PlanError for what is missing.
    """
    text = text_of(config)
    missing = [key for key in NEEDED if number(text, key) < 1]
    if missing:
        raise PlanError(
            f"the model's config.json has no {', '.join(missing)}: it is no text model "
            "whose memory could be planned"
        )
    hidden, heads = text["hidden_size"], number(text, "num_attention_heads", "n_head") or 1
    kv_heads = number(text, "num_key_value_heads") or heads
    head_size = number(text, "head_dim") or hidden // heads
    kept = tuple(layers.read(text, kv_heads, head_size))
    counted = parameters.count(config, text, kept, heads)
    spare = max(0, total - counted.total)
    return Shape(
        layers=kept,
        parameters=replace(counted, other=counted.other + spare),
        hidden_size=hidden,
        heads=heads,
        kv_heads=kv_heads,
        vocab_size=text["vocab_size"],
        mlp_size=parameters.dense_size(text),
        expert_size=parameters.expert_size(text),
        experts=parameters.experts(text),
        experts_per_token=number(text, "num_experts_per_tok", "moe_top_k", "top_k_experts") or 1,
        context_tokens=_context(text),
        dtype=_dtype(text),
        quantization=_quantization(text),
        is_multimodal="vision_config" in config or "audio_config" in config,
    )


def _dtype(text: Config) -> str:
    return str(first(text, "dtype", "torch_dtype") or "bfloat16").removeprefix("torch.")


def _context(text: Config) -> int:
    found = number(text, "max_position_embeddings", "model_max_length", "seq_length", "n_positions")
    scaling = first(text, "rope_scaling", "rope_parameters")
    if not isinstance(scaling, Mapping):
        return found or 4096
    # YaRN says how far a model was stretched, where its file still names the length before.
    original = number(scaling, "original_max_position_embeddings")
    stretched = int(original * float(scaling.get("factor") or 1))
    is_yarn = first(scaling, "rope_type", "type") == "yarn"
    return max(found, stretched if is_yarn else 0) or 4096


def _quantization(text: Config) -> Mapping[str, Any]:
    found = text.get("quantization_config")
    if not isinstance(found, Mapping):
        return {}
    groups = found.get("config_groups")
    group: Any = next(iter(groups.values()), {}) if isinstance(groups, Mapping) else {}
    weights = group.get("weights") if isinstance(group, Mapping) else {}
    weights = weights if isinstance(weights, Mapping) else {}
    block = found.get("weight_block_size")
    named = (found.get(key) for key in ("quant_method", "quant_algo", "format"))
    return {
        "quant_method": " ".join(str(name) for name in named if name).lower(),
        "bits": number(found, "bits", "w_bit") or number(weights, "num_bits"),
        "group_size": number(found, "group_size", "q_group_size") or number(weights, "group_size"),
        "block_size": block[0] if isinstance(block, list) and block else 0,
        "is_float": weights.get("type") == "float",
    }
