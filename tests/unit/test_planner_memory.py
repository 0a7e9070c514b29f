"""The memory model: what a model's own file tells of its weights and its cache."""

from __future__ import annotations

from typing import Any

import pytest
from planner import kv_cache, memory, shape
from planner.memory import GIB, Load
from planner.problem import PlanError

LLAMA: dict[str, Any] = {
    "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "vocab_size": 128256,
    "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
    "max_position_embeddings": 131072, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
GEMMA: dict[str, Any] = {
    "model_type": "gemma3", "vision_config": {"num_hidden_layers": 27, "hidden_size": 1152,
    "intermediate_size": 4304}, "tie_word_embeddings": True, "text_config": {
    "model_type": "gemma3_text", "num_hidden_layers": 62, "hidden_size": 5376, "head_dim": 128,
    "vocab_size": 262208, "num_attention_heads": 32, "num_key_value_heads": 16,
    "intermediate_size": 21504, "max_position_embeddings": 131072, "sliding_window": 1024},
}  # fmt: skip
GPT_OSS: dict[str, Any] = {
    "model_type": "gpt_oss", "num_hidden_layers": 24, "hidden_size": 2880, "head_dim": 64,
    "vocab_size": 201088, "num_attention_heads": 64, "num_key_value_heads": 8,
    "intermediate_size": 2880, "num_local_experts": 32, "num_experts_per_tok": 4,
    "sliding_window": 128, "max_position_embeddings": 131072, "tie_word_embeddings": False,
    "quantization_config": {"quant_method": "mxfp4"},
}  # fmt: skip
DEEPSEEK: dict[str, Any] = {
    "model_type": "deepseek_v2", "num_hidden_layers": 27, "hidden_size": 2048,
    "vocab_size": 102400, "num_attention_heads": 16, "num_key_value_heads": 16,
    "intermediate_size": 10944, "moe_intermediate_size": 1408, "n_routed_experts": 64,
    "n_shared_experts": 2, "num_experts_per_tok": 6, "first_k_dense_replace": 1,
    "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
    "max_position_embeddings": 163840, "tie_word_embeddings": False,
}  # fmt: skip
NEXT: dict[str, Any] = {
    "model_type": "qwen3_next", "num_hidden_layers": 48, "hidden_size": 2048, "head_dim": 256,
    "vocab_size": 151936, "num_attention_heads": 16, "num_key_value_heads": 2,
    "intermediate_size": 5120, "moe_intermediate_size": 512, "num_experts": 512,
    "num_experts_per_tok": 10, "shared_expert_intermediate_size": 512,
    "full_attention_interval": 4, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
    "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4,
    "max_position_embeddings": 262144, "tie_word_embeddings": False, "attn_output_gate": True,
}  # fmt: skip

USUAL = Load(8192, 256, 2048)


@pytest.mark.parametrize(
    ("config", "billions"),
    # As their makers state them.
    [(LLAMA, 8.03), (GPT_OSS, 20.9), (DEEPSEEK, 15.7), (NEXT, 80.0), (GEMMA, 27.4)],
)
def test_parameters_are_counted_as_their_makers_do(config: Any, billions: float) -> None:
    assert shape.from_config(config).parameters.total / 1e9 == pytest.approx(billions, rel=0.02)


def test_a_known_total_stands_for_a_vision_tower() -> None:
    assert shape.from_config(LLAMA, 9_000_000_000).parameters.total == 9_000_000_000
    assert shape.from_config(LLAMA, 7).parameters.total == pytest.approx(8.03e9, rel=0.01)


@pytest.mark.parametrize("broken", [{}, {"num_hidden_layers": 3}, {**LLAMA, "vocab_size": "many"}])
def test_what_is_no_text_model_is_refused(broken: Any) -> None:
    with pytest.raises(PlanError, match="it is no text model"):
        shape.from_config(broken)


def test_the_cache_of_a_plain_model() -> None:
    read = shape.from_config(LLAMA)
    blocks = kv_cache.pool(read, 1, 2.0, 2048)
    # Keys and values, 8 heads of 128, 2 bytes, 32 layers, 16 tokens.
    assert blocks.block_bytes == 2 * 8 * 128 * 2 * 32 * 16
    assert blocks.tokens(10 * GIB, 8192) == 10 * GIB // blocks.block_bytes * 16
    halved = kv_cache.pool(read, 2, 2.0, 2048)
    assert halved.block_bytes * 2 == blocks.block_bytes
    # Sixteen cards share eight heads: each has a copy of one.
    assert kv_cache.pool(read, 16, 2.0, 2048).block_bytes * 8 == blocks.block_bytes
    assert kv_cache.pool(read, 1, 1.0, 2048).block_bytes * 2 == blocks.block_bytes


def test_windows_save_where_the_context_is_longer() -> None:
    """Gemma 3: 52 layers with a window and 10 without make seven tables of ten layers."""
    blocks = kv_cache.pool(shape.from_config(GEMMA), 1, 2.0, 2048)
    assert len(blocks.groups) == 7
    assert blocks.block_bytes == 10 * 2 * 16 * 128 * 2 * 16
    # 131,072 tokens in one, and the window with two batches in six.
    assert blocks.request_blocks(131072) == 8192 + 6 * (-(-(1023 + 4096) // 16) + 1)
    short, long = (blocks.request_blocks(n) / n for n in (4096, 131072))
    assert long < 0.3 * short


def test_pairs_of_layers_are_two_tables() -> None:
    blocks = kv_cache.pool(shape.from_config(GPT_OSS), 1, 2.0, 8192)
    assert [group.layer.kind for group in blocks.groups] == ["sliding", "full"]
    assert blocks.block_bytes == 12 * 2 * 8 * 64 * 2 * 16


def test_a_latent_cache_is_one_vector_on_every_card() -> None:
    read = shape.from_config(DEEPSEEK)
    one, four = (kv_cache.pool(read, n, 2.0, 2048).block_bytes for n in (1, 4))
    assert one == four == 31104 * 16


def test_states_make_the_blocks_of_attention_larger() -> None:
    read = shape.from_config(NEXT)
    assert [layer.kind for layer in read.layers[:4]] == ["state", "state", "state", "full"]
    blocks = kv_cache.pool(read, 1, 2.0, 2048)
    (full,) = [group for group in blocks.groups if group.layer.kind == "full"]
    state = max(layer.state_bytes for layer in read.layers)
    assert full.tokens % 16 == 0
    assert full.tokens * 2 * 2 * 256 * 2 >= state > (full.tokens - 16) * 2 * 2 * 256 * 2
    assert len(blocks.groups) == 4
    # What a request keeps of its past does not grow in three of four layers.
    assert blocks.request_bytes(262144) < 262144 * 12 * 2 * 2 * 256 * 2 * 1.1


def test_the_longest_request_is_what_fits() -> None:
    blocks = kv_cache.pool(shape.from_config(LLAMA), 1, 2.0, 2048)
    room = 101 * blocks.block_bytes
    assert blocks.longest_request(room, 8192) == 1600
    assert blocks.longest_request(room, 1000) == 1000
    assert blocks.longest_request(0, 1000) == 0
    assert blocks.tokens(-5, 1000) == 0


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4"),
        ({"quant_method": "gptq", "bits": 8}, "int8"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bnb4"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}},
            },
            "int4",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}},
            },
            "fp8",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "float"}}},
            },
            "nvfp4",
        ),
        (None, "none"),
    ],
)
def test_how_weights_are_held(method: Any, kind: str) -> None:
    read = shape.from_config({**LLAMA, "quantization_config": method})
    assert memory.quant_of(read) == kind


def test_weights_are_divided() -> None:
    read = shape.from_config(LLAMA)
    assert memory.weight_bytes(read, "none", 1) / GIB == pytest.approx(14.96, abs=0.02)
    assert memory.weight_bytes(read, "fp8", 1) / GIB == pytest.approx(8.49, abs=0.05)
    assert memory.weight_bytes(read, "none", 4) / GIB == pytest.approx(3.77, abs=0.05)


def test_a_runtime_quantisation_counts_where_the_checkpoint_has_none() -> None:
    assert memory.quant_of(shape.from_config(LLAMA), "fp8") == "fp8"


def test_the_account_adds_up() -> None:
    found = memory.account(shape.from_config(LLAMA), 23.5, "none", USUAL)
    assert found.used == pytest.approx(found.budget)
    assert found.budget == pytest.approx(23.5 * 0.92)
    eager = memory.account(
        shape.from_config(LLAMA), 23.5, "none", Load(8192, 256, 2048, enforce_eager=True)
    )
    assert eager.graphs == 0
    assert eager.kv_cache > found.kv_cache
    fixed = memory.account(
        shape.from_config(LLAMA), 23.5, "none", Load(8192, 256, 2048, kv_cache_memory_bytes=GIB)
    )
    assert fixed.kv_cache == 1.0
