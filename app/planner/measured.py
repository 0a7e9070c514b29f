"""What vLLM found beside what was planned: the tokens that its KV cache holds. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

LINE = re.compile(r"KV cache size: ([\d,]+) tokens")
"""vLLM's own word for it, per replica: vllm/v1/core/kv_cache_utils.py, 0.17 to 0.33."""
ALLOWED_PERCENT = 10.0
"""Above the median error against published logs of other cards (docs/plan.md), and some."""


def compare(plan: Mapping[str, Any], journal: str) -> dict[str, Any]:
    """Return `{model, planned_tokens, logged_tokens, difference_percent, remark}`.

    `journal`: what the engine wrote since its start; the last such line counts. Each value is None
    where there is none; `difference_percent` is positive where vLLM found more than was planned;
    `remark` is a sentence where the difference is more than what is to be expected.
    """
    lines = LINE.findall(journal)
    logged = int(lines[-1].replace(",", "")) if lines else None
    planned = plan["kv_cache_tokens"]
    percent = round(100 * (logged - planned) / planned, 1) if logged and planned else None
    remark = ""
    if percent is not None and abs(percent) > ALLOWED_PERCENT:
        word = "more" if percent > 0 else "fewer"
        remark = (
            f"The engine's KV cache holds {logged:,} tokens, {abs(percent):g} % {word} than the "
            f"{planned:,} that were planned: the memory model is off for this model or card."
        )
    return {
        "model": plan["engines"][0]["model"]["id"],
        "planned_tokens": planned,
        "logged_tokens": logged,
        "difference_percent": percent,
        "remark": remark,
    }
