"""How many parameters a model has, by what becomes of them on a card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from planner.config import Config, family, number
from planner.layers import Layer, mamba_sizes

TWO_MATRICES = {"phi", "gpt2", "gpt_neox", "falcon", "starcoder2", "opt", "nemotron", "nemotron_h"}
"""Families whose MLP has no gate: two matrices where the others have three."""


@dataclass(frozen=True)
class Parameters:
    """Counts of the whole model."""

    # Matrices that quantisation packs and that tensor parallelism divides, experts left out.
    linear: int
    expert: int
    # Input embedding and output head: kept in 16 bits, divided by tensor parallelism.
    embedding: int
    # Norms, a vision tower: kept in 16 bits, on every card.
    other: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.linear + self.expert + self.embedding + self.other


def count(config: Config, text: Config, layers: Sequence[Layer], heads: int) -> Parameters:
    """Count them from a model's dimensions. `text`: the text model's part of `config`."""
    hidden, depth = text["hidden_size"], text["num_hidden_layers"]
    tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))
    mlp, expert = _mlps(text)
    return Parameters(
        linear=mlp + sum(_mixer(text, layer, heads) for layer in layers),
        expert=expert,
        embedding=text["vocab_size"] * hidden * (1 if tied else 2),
        other=2 * depth * hidden + _vision(config),
    )


def experts(text: Config) -> int:
    """Return how many experts a layer has; 0 for none."""
    return number(text, "num_experts", "num_local_experts", "n_routed_experts")


def expert_size(text: Config) -> int:
    """Return the width of one expert."""
    if not experts(text):
        return 0
    return number(text, "moe_intermediate_size", "expert_intermediate_size", "intermediate_size")


def dense_size(text: Config) -> int:
    """Return the width of an MLP that every token goes through; 0 where there is none."""
    own = number(text, "intermediate_size", "n_inner", "ffn_hidden_size")
    if not experts(text):
        return own or 4 * int(text["hidden_size"])
    return max(_shared_size(text), own if _dense_layers(text) else 0)


def _shared_size(text: Config) -> int:
    """Return the width of the experts that every token goes to."""
    if family(text).startswith("llama4"):
        return number(text, "intermediate_size")
    named = number(
        text, "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size",
        "shared_intermediate_size",
    )  # fmt: skip
    return named or number(text, "n_shared_experts", "num_shared_experts") * expert_size(text)


def _dense_layers(text: Config) -> int:
    """Return how many layers of a model with experts have an MLP in their place."""
    pattern = str(text.get("hybrid_override_pattern") or "")
    return pattern.count("-") or number(text, "first_k_dense_replace", "num_dense_layers")


def _mlps(text: Config) -> tuple[int, int]:
    """Return the parameters of the MLPs that every token goes through, and of the experts."""
    hidden, depth = text["hidden_size"], text["num_hidden_layers"]
    matrices = 2 if family(text) in TWO_MATRICES else 3
    own = number(text, "intermediate_size", "n_inner", "ffn_hidden_size") or 4 * hidden
    pattern = str(text.get("hybrid_override_pattern") or "")
    if not experts(text):
        return matrices * hidden * own * (pattern.count("-") if pattern else depth), 0
    dense = _dense_layers(text)
    sparse = pattern.count("E") if pattern else depth - dense
    router = hidden * experts(text)
    return (
        dense * matrices * hidden * own
        + sparse * (matrices * hidden * _shared_size(text) + router),
        sparse * experts(text) * matrices * hidden * expert_size(text),
    )


def _mixer(text: Config, layer: Layer, heads: int) -> int:
    """Return the parameters of what mixes the tokens in one layer."""
    hidden: int = text["hidden_size"]
    if layer.kind == "state":
        return _state_mixer(text)
    if layer.kind == "latent":
        return _latent_mixer(text, heads)
    gate = 2 if text.get("attn_output_gate") else 1
    size = layer.head_size
    return hidden * size * (gate * heads + 2 * layer.kv_heads) + heads * size * hidden


def _state_mixer(text: Config) -> int:
    hidden: int = text["hidden_size"]
    if values := number(text, "linear_num_value_heads"):
        key = number(text, "linear_num_key_heads") * number(text, "linear_key_head_dim")
        value = values * number(text, "linear_value_head_dim")
        return hidden * (2 * key + 2 * value + 2 * values) + value * hidden
    if number(text, "conv_L_cache"):
        return 4 * hidden * hidden
    inner, groups, size = mamba_sizes(text)
    return hidden * (2 * inner + 2 * groups * size) + inner * hidden


def _latent_mixer(text: Config, heads: int) -> int:
    hidden: int = text["hidden_size"]
    rank, rope = number(text, "kv_lora_rank"), number(text, "qk_rope_head_dim")
    nope, value = (number(text, name) or 128 for name in ("qk_nope_head_dim", "v_head_dim"))
    query = heads * (nope + rope)
    squeezed = number(text, "q_lora_rank")
    return (
        (hidden * squeezed + squeezed * query if squeezed else hidden * query)
        + hidden * (rank + rope)
        + rank * heads * (nope + value)
        + heads * value * hidden
    )


def _vision(config: Config) -> int:
    """Return a vision tower's parameters, from its own dimensions."""
    vision = config.get("vision_config")
    if not isinstance(vision, Mapping):
        return 0
    depth = number(vision, "num_hidden_layers", "depth")
    size = number(vision, "hidden_size", "embed_dim")
    mlp = number(vision, "intermediate_size") or 4 * size
    return depth * (4 * size * size + 2 * size * mlp)
