"""The memory model against what vLLM itself logged when it started.

tests/fixtures/kv_logs.jsonl holds published logs with their addresses. Versions differ in what they
count: until 0.16 the sampler took more, until 0.19 CUDA graphs were outside the budget and tokens
were counted by table. The plan is made for the newest; what older ones did otherwise stands here.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from planner import cards, kv_cache, memory, models
from planner.memory import GIB, Load
from planner.problem import PlanError

LOGS = Path(__file__).parents[1] / "fixtures/kv_logs.jsonl"
OLD_SAMPLER_BYTES = 37.7
FLAG_DEFAULTS = {"modern": 0.92, "old": 0.9}

# Runs of what the plan does not plan: adapters, several machines, a neighbour on the card.
ODD = re.compile(r"lora|encoder|mtp|detail=|expandable", re.IGNORECASE)


@dataclass(frozen=True)
class Case:
    """A logged start, and what the model says of it."""

    row: dict[str, Any]
    predicted: float
    logged: float

    @property
    def error(self) -> float:
        """Relative, of the KV cache's tokens, or of its size where no tokens were logged."""
        return self.predicted / self.logged - 1

    @property
    def name(self) -> str:
        """Its card, version and model."""
        row = self.row
        return f"{row['gpu']} x{row['tp']} vLLM {row['vllm_version']} {row['model']}"


def minor(row: dict[str, Any]) -> int:
    found = re.match(r"0\.(\d+)", row["vllm_version"] or "")
    return int(found[1]) if found else 27


def rows() -> Iterator[dict[str, Any]]:
    for line in LOGS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        plain = row["pp"] in (None, 1) and not row["spec_decode"]
        if plain and not ODD.search(f"{row['arch_class']} {row['model']}") and row["gpu"]:
            yield row


def account(row: dict[str, Any]) -> tuple[memory.Memory, kv_cache.Pool, Load] | None:
    """Return what the model says of a row; None where card or model are not of the catalogue."""
    try:
        card = cards.by_name(row["gpu"])
        model = models.find(row["model"])
    except PlanError:
        return None
    wide = row["dtype"] == "float32"
    shape = replace(model.shape, dtype="float32" if wide else "bfloat16")
    old = minor(row) < 20
    quantization = memory.quant_of(shape, "fp8" if "runtime" in str(row["quantization"]) else "")
    total = row["total_gpu_gib_seen_by_cuda"] or card.cuda_memory_gib
    large = total >= 70 and "A100" not in card.name
    load = Load(
        row["max_model_len"] or shape.context_tokens,
        row["max_num_seqs"] or (1024 if large else 256),
        row["max_num_batched_tokens"] or (8192 if large else 2048),
        row["gpu_memory_utilization"] or FLAG_DEFAULTS["old" if old else "modern"],
        row["tp"] or 1,
        1.0 if str(row["kv_cache_dtype"]).startswith("fp8") else 4.0 if wide else 2.0,
        bool(row["enforce_eager"]),
    )
    blocks = kv_cache.pool(
        shape, load.tensor_parallel_size, load.kv_bytes, load.max_num_batched_tokens
    )
    return memory.account(shape, total, quantization, load), blocks, load


def predict(row: dict[str, Any]) -> tuple[float, int] | None:
    """Return the KV cache's size, GiB, and its tokens, as that version counts them."""
    if not (found := account(row)):
        return None
    told, blocks, load = found
    size = told.kv_cache
    if minor(row) < 20:
        size += told.graphs
        count = int(size * GIB // blocks.block_bytes) // len(blocks.groups)
        return size, count * min(group.tokens for group in blocks.groups if group.tokens)
    return size, blocks.tokens(size * GIB, load.max_model_len)


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    found = []
    sampler = memory.SAMPLER_BYTES
    for row in rows():
        if row["outcome"] != "ok":
            continue
        try:
            if minor(row) <= 16:
                memory.SAMPLER_BYTES = OLD_SAMPLER_BYTES
            told = predict(row)
        finally:
            memory.SAMPLER_BYTES = sampler
        if not told:
            continue
        if row["kv_cache_tokens"]:
            found.append(Case(row, told[1], row["kv_cache_tokens"]))
        elif row["available_kv_gib"]:
            found.append(Case(row, told[0], row["available_kv_gib"]))
    return found


def table(found: list[Case]) -> str:
    return "\n".join(f"{100 * case.error:+6.1f} %  {case.name}" for case in found)


def test_the_median_error_is_small(cases: list[Case]) -> None:
    assert len(cases) >= 60
    assert statistics.median(abs(case.error) for case in cases) < 0.05, table(cases)


def test_the_release_that_is_served_on_a_card_of_our_own(cases: list[Case]) -> None:
    """Of the very version and arguments that a run sets: none is off by more than a first start's
    compiling, and none promises more than a hundredth.
    """
    found = [case for case in cases if case.row["url"].startswith("measured for this project")]
    assert len(found) == 6
    assert all(-0.035 < case.error < 0.01 for case in found), table(found)


def test_cards_that_work_together(cases: list[Case]) -> None:
    """Their buffers take 2 GiB of each, which would show in every one of these."""
    found = [
        case
        for case in cases
        if (case.row["tp"] or 1) > 1
        and minor(case.row) == 19
        and (case.row["available_kv_gib"] or 0) > 20
    ]
    assert len(found) >= 6
    assert all(abs(case.error) < 0.01 for case in found), table(found)


def test_what_did_not_start_is_not_promised() -> None:
    """A context that vLLM refused must not be planned; within what a log's rounding allows."""
    promised = []
    for row in rows():
        if row["failure_class"] not in ("kv_smaller_than_max_model_len", "no_kv_memory"):
            continue
        if (found := account(row)) and found[0].longest_request >= found[2].max_model_len:
            promised.append(f"{row['gpu']} {row['model']} {row['max_model_len']}")
    assert not promised
