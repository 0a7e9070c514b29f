"""The plan as a page to read."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Plan = Mapping[str, Any]

PARTS = (
    ("weights", "weights_gib_per_gpu"),
    ("KV cache", "kv_cache_gib_per_gpu"),
    ("activations", "activations_gib_per_gpu"),
    ("CUDA", "cuda_context_gib_per_gpu"),
    ("CUDA graphs", "cuda_graphs_gib_per_gpu"),
)
BAR = 40


def text(plan: Plan, width: int = 0) -> str:
    """Return the page, ending with a line feed. `width`: columns; 0 takes the terminal's."""
    columns = min(width or shutil.get_terminal_size((100, 24)).columns, 110)
    return "\n".join(_lines(plan, columns)) + "\n"


def _lines(plan: Plan, columns: int) -> Iterator[str]:
    yield from _machine(plan["machine"])
    for engine, memory in zip(plan["engines"], plan["memories"], strict=True):
        yield ""
        yield from _engine(engine)
        yield ""
        yield from _memory(memory, engine)
    yield ""
    yield from _driver(plan["driver"])
    if plan["engines"]:
        yield ""
        yield from _workers(plan["workers"])
    yield from _list("Why", plan["reasons"], columns)
    yield from _list("Mind", plan["warnings"], columns)
    yield from _list("This cannot be", plan["refusals"], columns)


def _row(name: str, value: object) -> str:
    return f"  {name:<18} {value}"


def _machine(machine: Mapping[str, Any]) -> Iterator[str]:
    counts: dict[tuple[str, float], int] = {}
    for gpu in machine["gpus"]:
        key = (gpu["name"], gpu["memory_gib"])
        counts[key] = counts.get(key, 0) + 1
    cards = [f"{n} × {name}, {memory:g} GiB" for (name, memory), n in counts.items()]
    yield "Machine"
    yield _row("cards", "; ".join(cards) or "none")
    yield _row(
        "system", f"{machine['system']}, {machine['cores']} cores, {machine['memory_gib']:g} GiB"
    )


def _engine(engine: Mapping[str, Any]) -> Iterator[str]:
    billions = engine["parameters"] / 1e9
    split = f"tensor parallel {engine['tensor_parallel_size']}"
    if engine["data_parallel_size"] > 1:
        split += f", data parallel {engine['data_parallel_size']}"
    pace = engine["tokens_per_second"]
    yield "Engine"
    yield _row(
        "model", f"{engine['model']} ({billions:.1f} billion parameters, {engine['licence']})"
    )
    yield _row("weights in", engine["quantization"] or engine["dtype"])
    yield _row("cards", f"{len(engine['gpus'])}, {split}")
    yield _row("context", f"{engine['max_model_len']:,} tokens")
    yield _row("at a time", f"{engine['max_num_seqs']:,} requests")
    if pace["one"]:
        yield _row(
            "pace", f"about {pace['one']:,} tokens/s for one reader, {pace['all']:,} for all"
        )


def _memory(memory: Mapping[str, Any], engine: Mapping[str, Any]) -> Iterator[str]:
    total = memory["card_gib"]
    share = engine["gpu_memory_utilization"]
    yield f"Memory of each card: {total:g} GiB, of which vLLM may use {100 * share:.0f} %"
    rows = [(name, memory[key]) for name, key in PARTS]
    rows.append(("left free", total - memory["total_gib_per_gpu"]))
    for name, size in rows:
        bar = "█" * max(0, round(BAR * size / total))
        yield f"  {name:<18} {size:7.2f} GiB  {bar}".rstrip()
    yield _row("KV cache holds", f"{memory['kv_cache_tokens']:,} tokens")
    for row in memory["users"]:
        readers = "reader" if row["users"] == 1 else "readers"
        yield _row("", f"{row['users']:>6,} {readers} with {row['context_tokens']:,} tokens each")


def _driver(driver: Mapping[str, Any]) -> Iterator[str]:
    yield "Driver"
    if driver["source"] == "none":
        yield _row("source", "none")
        return
    source = (
        f"NVIDIA's repository ({driver['repository']})"
        if driver["source"] == "nvidia"
        else "the distribution"
    )
    yield _row("source", source)
    yield _row(
        "branch", f"{driver['branch']} ({driver['branch_status']}), {driver['flavour']} modules"
    )
    if driver["pinning_package"]:
        yield _row("pinned by", driver["pinning_package"])
    yield _row("packages", " ".join(driver["packages"]))


def _workers(workers: Mapping[str, Any]) -> Iterator[str]:
    yield "Workers"
    yield _row("LiteLLM", workers["gateway"])
    yield _row("backend", workers["backend"])
    made, passed = workers["tokens_per_second"], workers["chain_tokens_per_second"]
    yield _row("tokens a second", f"{made:,} expected; this processor passes on {passed:,}")
    yield _row(
        "streams",
        f"{workers['streams']:,}; nginx takes {workers['nginx_connections']:,} connections",
    )


def _list(title: str, items: Iterable[str], columns: int) -> Iterator[str]:
    found = list(items)
    if found:
        yield ""
        yield title
    for item in found:
        yield from textwrap.wrap(item, columns, initial_indent="  - ", subsequent_indent="    ")
