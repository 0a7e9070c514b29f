"""The catalogue of models: whole, with the source of each value, and with sane defaults."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from planner import cards, models
from planner.engine import Wish
from planner.fleet import best
from planner.machine import Gpu
from planner.memory import GIB, quant_of, weight_bytes

DATA = Path(models.CATALOGUE).parent
CATALOGUE = json.loads(models.CATALOGUE.read_text(encoding="utf-8"))
BY_ID = {entry["id"]: entry for entry in CATALOGUE["models"]}


def builder() -> Any:
    spec = importlib.util.spec_from_file_location("build_models", DATA / "build_models.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nothing_is_amiss() -> None:
    assert list(builder().problems(CATALOGUE)) == []
    assert len(BY_ID) >= 90


@pytest.mark.parametrize("name", sorted(BY_ID))
def test_a_model_counts_what_it_says(name: str) -> None:
    """Its dimensions give the parameters that it is sold with; the rest is a vision tower."""
    entry = BY_ID[name]
    shape = models.find(name).shape
    assert shape.parameters.total == pytest.approx(entry["parameters"], rel=0.02)
    assert shape.parameters.other < 0.2 * shape.parameters.total
    assert all(entry["sources"].values())


@pytest.mark.parametrize(
    ("name", "gib"),
    # Loaded, as vLLM logged it (tests/fixtures/kv_logs.jsonl).
    [
        ("Qwen/Qwen3-8B", 15.27), ("Qwen/Qwen3-14B-AWQ", 9.44), ("openai/gpt-oss-20b", 13.64),
        ("openai/gpt-oss-120b", 64.38), ("Qwen/Qwen3-30B-A3B", 56.88),
        ("google/gemma-2-9b-it", 17.22),
        ("RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8", 8.49),
        ("Qwen/Qwen3.5-35B-A3B-FP8", 34.22), ("Qwen/Qwen3.5-4B", 8.61),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", 87.02),
    ],
)  # fmt: skip
def test_weights_are_as_large_as_vllm_says(name: str, gib: float) -> None:
    shape = models.find(name).shape
    assert weight_bytes(shape, quant_of(shape), 1) / GIB == pytest.approx(gib, rel=0.03)


def test_defaults_are_free_for_everybody() -> None:
    for default in models.defaults():
        model = models.find(default.model)
        assert model.is_permissive
        assert not model.is_gated
        assert BY_ID[default.model]["sources"]["licence"].startswith("https://")
        assert len(default.why) > 20


@pytest.mark.parametrize("default", models.defaults(), ids=lambda default: default.model)
def test_every_default_serves_some_card(default: models.Default) -> None:
    """None is there that no card would be given."""
    given = set()
    for name in cards.names():
        card = cards.by_name(name)
        if card.compute_capability >= (7, 5) and card.cuda_memory_gib >= 5:
            given.add(best([Gpu(card)], None, Wish()).model.id)
    assert default.model in given


def test_an_entry_is_made_of_a_models_own_file(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    told = {
        "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 100,
        "num_attention_heads": 2, "bos_token_id": 1, "intermediate_size": 128,
    }  # fmt: skip
    config.write_text(json.dumps(told))
    catalogue = tmp_path / "models.json"
    words = [
        "owner/small", str(config), "--licence", "MIT", "--source", "https://example.org/c",
        "--parameters", "100000", "--catalogue", str(catalogue),
    ]  # fmt: skip
    assert builder().main(words) == 0
    (made,) = json.loads(catalogue.read_text())["models"]
    assert "bos_token_id" not in made["config"]
    assert made["config"]["hidden_size"] == 64
    assert (made["licence_permissive"], made["gated"]) == (True, None)
    assert builder().main(["--check", "--catalogue", str(catalogue)]) == 0
    assert builder().main(["owner/small"]) == 2
