#!/usr/bin/env python3
"""Add a model to the catalogue, or refresh one, from its own config.json; check the catalogue.

The catalogue is data, so that a new model is one entry and no code. Its entries keep what decides
memory and parallelism, with Hugging Face's own names: the planner then reads an entry, and the
config.json of a model that it never saw, with the same code.

    python app/planner/data/build_models.py Qwen/Qwen3-8B config.json --licence Apache-2.0 \
        --source https://huggingface.co/Qwen/Qwen3-8B/blob/main/config.json
    python app/planner/data/build_models.py --check
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

CATALOGUE = Path(__file__).parent / "models.json"

UNCHECKED = "unchecked"
"""What a source says where a value was written from memory, or copied from a relative."""

KEPT = (
    "architectures", "model_type", "num_hidden_layers", "hidden_size", "intermediate_size",
    "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
    "max_position_embeddings", "tie_word_embeddings", "torch_dtype", "dtype",
    # Which layers keep what.
    "sliding_window", "use_sliding_window", "sliding_window_pattern", "attention_chunk_size",
    "layer_types", "layers_block_type", "hybrid_override_pattern", "full_attention_interval",
    "global_head_dim", "num_global_key_value_heads", "attention_k_eq_v", "num_kv_shared_layers",
    "attn_output_gate", "compress_ratios", "no_rope_layer_interval",
    # Experts.
    "num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok", "top_k_experts",
    "moe_intermediate_size", "shared_expert_intermediate_size", "n_shared_experts",
    "shared_intermediate_size", "moe_shared_expert_intermediate_size", "num_dense_layers",
    "first_k_dense_replace", "moe_layer_freq", "intermediate_size_mlp", "interleave_moe_layer_step",
    "mlp_only_layers", "decoder_sparse_step", "enable_moe_block", "moe_latent_size",
    "expert_dtype", "share_expert_dim", "moe_num_experts", "moe_k", "moe_num_shared_experts",
    # Multi-head latent attention, and the index that picks what it reads.
    "kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim",
    "index_head_dim", "index_n_heads", "index_topk", "o_lora_rank", "o_groups",
    # States that do not grow.
    "linear_conv_kernel_dim", "linear_key_head_dim", "linear_value_head_dim",
    "linear_num_key_heads", "linear_num_value_heads", "mamba_num_heads", "mamba_head_dim",
    "mamba_n_heads", "mamba_d_head", "mamba_d_state", "mamba_d_conv", "mamba_n_groups",
    "mamba_expand", "mamba_ssm_dtype", "mamba_ssm_cache_dtype", "ssm_state_size", "conv_kernel",
    "n_groups", "conv_L_cache",
    # More than the text's layers: per-layer embeddings, heads that draft tokens.
    "hidden_size_per_layer_input", "vocab_size_per_layer_input", "mtp_num_hidden_layers",
    "num_nextn_predict_layers",
)  # fmt: skip
"""The keys of the model itself, or of its text_config."""

NESTED = ("text_config", "llm_config", "language_config", "thinker_config")
"""How multimodal families call the part that answers."""

KEPT_OF_ROPE = ("rope_type", "type", "factor", "original_max_position_embeddings")
"""A stretched context; nothing else of it touches memory."""

KEPT_OF_VISION = (
    "model_type", "num_hidden_layers", "depth", "hidden_size", "intermediate_size",
    "num_attention_heads", "num_heads", "patch_size", "out_hidden_size",
)  # fmt: skip

KEPT_OF_QUANTIZATION = (
    "quant_method", "quant_algo", "format", "bits", "w_bit", "group_size", "q_group_size",
    "zero_point", "sym", "desc_act", "version", "fmt", "activation_scheme", "weight_block_size",
    "kv_cache_scheme",
)  # fmt: skip
"""Not the lists of layers that it leaves out: they are long, and planned by their kind."""

FIELDS = (
    "id", "config", "parameters", "active_parameters", "checkpoint_gib", "licence",
    "licence_permissive", "gated", "released", "sources", "notes",
)  # fmt: skip
SOURCED = ("config", "parameters", "licence", "gated")
PERMISSIVE = {"Apache-2.0", "MIT", "BSD-3-Clause"}

NEEDED = ("model_type", "num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
"""Without these nothing can be planned; test_planner_models.py asks more of some families."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a command; returns its exit status."""
    asked = _parser().parse_args(arguments)
    catalogue = read(asked.catalogue)
    if asked.check:
        found = list(problems(catalogue))
        print("\n".join(found) or f"{len(catalogue['models'])} models, nothing amiss")
        return 1 if found else 0
    if not (asked.id and asked.config and asked.licence and asked.source):
        print("an entry needs ID, CONFIG.json, --licence and --source", file=sys.stderr)
        return 2
    config = json.loads(asked.config.read_bytes())
    put(catalogue, entry(asked.id, config, asked))
    asked.catalogue.write_text(written(catalogue), encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("id", nargs="?", help="the model's id on the hub, owner/name")
    parser.add_argument("config", nargs="?", type=Path, help="its config.json")
    parser.add_argument("--licence", help="its SPDX identifier, or its name")
    parser.add_argument("--source", help="where the config.json was read, a URL")
    parser.add_argument("--licence-source", default=UNCHECKED, help="where the licence was read")
    parser.add_argument("--parameters", type=int, help="how many it has, where a source says so")
    parser.add_argument("--active-parameters", type=int, help="of those, how many a token uses")
    parser.add_argument("--released", help="the month that it came out, as 2026-04")
    parser.add_argument("--notes", default="")
    parser.add_argument("--check", action="store_true", help="only check the catalogue")
    parser.add_argument("--catalogue", type=Path, default=CATALOGUE, help="models.json")
    return parser


def read(path: Path = CATALOGUE) -> dict[str, Any]:
    """Return the catalogue, an empty one where there is no file."""
    if not path.is_file():
        return {"models": [], "defaults": []}
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


def entry(name: str, config: Mapping[str, Any], asked: argparse.Namespace) -> dict[str, Any]:
    """Make a catalogue entry of a model's config.json and of what its file does not say.

    Whether a model is gated is on no config.json: it stays unknown, until somebody looked.
    """
    return {
        "id": name,
        "config": kept(config),
        "parameters": asked.parameters,
        "active_parameters": asked.active_parameters,
        "licence": asked.licence,
        "licence_permissive": asked.licence in PERMISSIVE,
        "gated": None,
        "released": asked.released,
        "sources": {
            "config": asked.source,
            "parameters": asked.source if asked.parameters else UNCHECKED,
            "licence": asked.licence_source,
            "gated": UNCHECKED,
        },
        "notes": asked.notes,
    }


def put(catalogue: dict[str, Any], made: Mapping[str, Any]) -> None:
    """Add an entry, or refresh it: what is new wins, what it does not know stays."""
    named = {found["id"]: found for found in catalogue["models"]}
    old = named.get(made["id"], {})
    sources = dict(old.get("sources", {}))
    sources.update({k: v for k, v in made["sources"].items() if v != UNCHECKED or k not in sources})
    known = {key: value for key, value in made.items() if value not in (None, "")}
    named[made["id"]] = {**made, **old, **known, "sources": sources}
    catalogue["models"] = list(named.values())


# What is kept -----------------------------------------------------------------------------------


def kept(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a config.json that decides memory and parallelism.

    Nesting stays as it is: what the families call their text model tells them apart.
    """
    found = {key: config[key] for key in KEPT if config.get(key) is not None}
    if "layer_types" in found and _says_nothing(found):
        del found["layer_types"]
    for key in ("rope_scaling", "rope_parameters"):
        if rope := _rope(config.get(key)):
            found[key] = rope
    for key in NESTED:
        if isinstance(config.get(key), Mapping):
            found[key] = kept(config[key])
    if isinstance(config.get("vision_config"), Mapping):
        found["vision_config"] = _only(config["vision_config"], KEPT_OF_VISION)
    if isinstance(config.get("quantization_config"), Mapping):
        found["quantization_config"] = _quantization(config["quantization_config"])
    return found


def _only(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: values[name] for name in names if values.get(name) is not None}


def _says_nothing(found: Mapping[str, Any]) -> bool:
    """Whether a list of layers only repeats what a shorter key, or none at all, says."""
    types = list(found["layer_types"])
    every = found.get("full_attention_interval")
    if not every:
        return set(types) == {"full_attention"} and not found.get("sliding_window")
    return types == [
        "linear_attention" if (number + 1) % every else "full_attention"
        for number in range(len(types))
    ]


def _rope(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value.get("factor"):
        return {}
    return _only(value, KEPT_OF_ROPE)


def _quantization(value: Mapping[str, Any]) -> dict[str, Any]:
    found = _only(value, KEPT_OF_QUANTIZATION)
    groups = value.get("config_groups")
    if isinstance(groups, Mapping):
        found["config_groups"] = {
            name: {
                side: _only(group[side], ("num_bits", "type", "group_size", "strategy", "dynamic"))
                for side in ("weights", "input_activations")
                if isinstance(group.get(side), Mapping)
            }
            for name, group in groups.items()
        }
    return found


# Writing and checking ---------------------------------------------------------------------------


def written(catalogue: Mapping[str, Any]) -> str:
    """Return the catalogue as text, sorted, a line for each field: a change shows as one line."""
    models = sorted(catalogue["models"], key=_order)
    defaults = sorted(catalogue["defaults"], key=lambda default: default["memory_gib_from"])
    parts = {"models": [_ordered(model) for model in models], "defaults": defaults}
    return "{\n" + ",\n".join(_part(name, found) for name, found in parts.items()) + "\n}\n"


def _part(name: str, found: Sequence[Mapping[str, Any]]) -> str:
    return f' "{name}": [\n' + ",\n".join(_block(values) for values in found) + "\n ]"


def _order(model: Mapping[str, Any]) -> tuple[str, str]:
    """Sort by id as the hub does, which does not tell capitals from small letters."""
    return str(model["id"]).lower(), str(model["id"])


def _ordered(model: Mapping[str, Any]) -> dict[str, Any]:
    empty = {"active_parameters", "checkpoint_gib", "released"}
    return {
        key: model.get(key, "" if key == "notes" else None)
        for key in FIELDS
        if model.get(key) is not None or key not in empty
    }


def _block(values: Mapping[str, Any]) -> str:
    lines = (f"   {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in values.items())
    return "  {\n" + ",\n".join(lines) + "\n  }"


def problems(catalogue: Mapping[str, Any]) -> Iterator[str]:
    """Say what is wrong with a catalogue: order, doubles, holes, defaults that name no model."""
    models = catalogue["models"]
    names = [model["id"] for model in models]
    if models != sorted(models, key=_order):
        yield "models are not sorted by id"
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{name} is there twice"
    for model in models:
        yield from (f"{model['id']}: {problem}" for problem in _holes(model))
    memories = [default["memory_gib_from"] for default in catalogue["defaults"]]
    if memories != sorted(memories):
        yield "defaults are not sorted by memory_gib_from"
    for default in catalogue["defaults"]:
        if default["model"] not in names:
            yield f"the default {default['model']} is not among the models"


def _holes(model: Mapping[str, Any]) -> Iterator[str]:
    config = model["config"]
    nested: Mapping[str, Any] = next((config[key] for key in NESTED if key in config), {})
    for key in NEEDED:
        if not {**config, **nested}.get(key):
            yield f"its config has no {key}"
    if not isinstance(model.get("parameters"), int):
        yield "it has no count of parameters"
    if not model.get("licence"):
        yield "it has no licence"
    for key in SOURCED:
        if not model.get("sources", {}).get(key):
            yield f"nothing says where its {key} comes from"


if __name__ == "__main__":
    sys.exit(main())
