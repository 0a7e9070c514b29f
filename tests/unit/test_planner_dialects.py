"""How models write tool calls and reasoning, and that vLLM is told."""

from __future__ import annotations

from typing import Any

import pytest
from planner.dialects import Dialect, dialect_arguments, dialect_of
from planner.models import names
from test_serving_plan import HARDWARE, SETTINGS, serving_plan


@pytest.mark.parametrize(
    ("name", "tools", "reasoning"),
    [
        ("Qwen/Qwen3-8B", "hermes", "qwen3"),
        ("Qwen/Qwen3-8B-FP8", "hermes", "qwen3"),
        ("nvidia/Qwen3-235B-A22B-NVFP4", "hermes", "qwen3"),
        ("Qwen/Qwen3-4B-Instruct-2507", "hermes", ""),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct-FP8", "hermes", ""),
        ("Qwen/Qwen3-Coder-30B-A3B-Instruct", "qwen3_xml", ""),
        ("Qwen/Qwen3.5-27B-GPTQ-Int4", "qwen3_xml", "qwen3"),
        ("nvidia/Qwen3.6-35B-A3B-NVFP4", "qwen3_xml", "qwen3"),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", "hermes", ""),
        ("Qwen/Qwen2.5-Coder-32B-Instruct", "", ""),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "", "deepseek_r1"),
        ("RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic", "llama3_json", ""),
        ("RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16", "llama3_json", ""),
        ("openai/gpt-oss-20b", "openai", ""),
        ("zai-org/GLM-4.5-Air-FP8", "glm45", "glm45"),
        ("mistralai/Ministral-3-8B-Instruct-2512", "mistral", ""),
        ("mistralai/Mistral-7B-Instruct-v0.2", "", ""),
        ("google/gemma-4-12B-it-qat-w4a16-ct", "gemma4", "gemma4"),
        ("google/gemma-4-26B-A4B", "", ""),
        ("/srv/models/Qwen3-8B", "hermes", "qwen3"),
        # Never taught to chat, and what nobody knows.
        ("Qwen/Qwen3-4B-Base", "", ""),
        ("someone/a-model", "", ""),
        ("qwen3-8b/other", "", ""),
    ],
)
def test_a_family_is_known_by_its_name(name: str, tools: str, reasoning: str) -> None:
    assert dialect_of(name) == Dialect(tools, reasoning)


def test_most_of_the_catalogue_can_call_tools() -> None:
    """A rule that fits nothing any more is a rule for another name."""
    known = [name for name in names() if dialect_of(name).tools]
    assert len(known) > len(names()) / 2


def arguments(model: str, **changes: Any) -> dict[str, Any]:
    plan = serving_plan({**SETTINGS, "model": model, **changes}, HARDWARE)
    return dict(plan["engines"][0]["arguments"])


def test_the_engine_is_told() -> None:
    assert (
        arguments("Qwen/Qwen3-0.6B").items()
        >= {
            "enable-auto-tool-choice": True,
            "tool-call-parser": "hermes",
            "reasoning-parser": "qwen3",
        }.items()
    )
    assert dialect_arguments("someone/a-model") == {}


def test_an_owner_knows_better() -> None:
    own = {"enable-auto-tool-choice": False, "reasoning-parser": "deepseek_r1"}
    told = arguments("Qwen/Qwen3-0.6B", engine_arguments=own)
    assert told.items() >= own.items()


def test_the_built_in_model_keeps_its_own() -> None:
    told = arguments("recital", device="cpu")
    assert told["tool-call-parser"] == "hermes"
    assert "reasoning-parser" not in told
