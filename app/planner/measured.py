"""What vLLM found beside what was planned: the tokens that its KV cache holds. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

LINE = re.compile(r"KV cache size: ([\d,]+) tokens")
"""vLLM's own word for it, per replica: vllm/v1/core/kv_cache_utils.py, 0.17 to 0.33."""
ALLOWED_PERCENT = 10.0
"""Above the median error against published logs of other cards (docs/plan.md), and some."""


def compare(plan: Mapping[str, Any], journals: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return `{engine, model, planned_tokens, logged_tokens, difference_percent, remark}` of each
    engine that said anything.

    `journals`: by the engine's name, what it wrote since its start; the last such line counts.
    `planned_tokens` and `difference_percent` are None where nothing was planned; the latter is
    positive where vLLM found more; `remark` is a sentence where the difference is more than what is
    to be expected.
    """
    return [
        _engine(engine, lines[-1])
        for engine in plan["engines"]
        if (lines := LINE.findall(journals.get(engine["name"], "")))
    ]


def _engine(engine: Mapping[str, Any], said: str) -> dict[str, Any]:
    logged = int(said.replace(",", ""))
    planned = engine["kv_cache_tokens"]
    percent = round(100 * (logged - planned) / planned, 1) if planned else None
    remark = ""
    if percent is not None and abs(percent) > ALLOWED_PERCENT:
        word = "more" if percent > 0 else "fewer"
        remark = (
            f"The KV cache of engine {engine['name']} holds {logged:,} tokens, {abs(percent):g} % "
            f"{word} than the {planned:,} that were planned: the memory model is off for this "
            "model or card."
        )
    return {
        "engine": engine["name"],
        "model": engine["model"]["id"],
        "planned_tokens": planned,
        "logged_tokens": logged,
        "difference_percent": percent,
        "remark": remark,
    }
