"""What a new plan changes: the old one beside it, row by row. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

Plan = Mapping[str, Any]

NONE = "none"


def told(old: Plan, new: Plan) -> list[str]:
    """Return a table of what is another than before, its lines; empty where all is the same.

    `old` may be of an earlier version of Millrace: what it does not tell is left out.
    """
    before, after = _rows(old), _rows(new)
    changed = [
        (name, before.get(name, NONE), after.get(name, NONE))
        for name in {**after, **before}
        if before.get(name, NONE) != after.get(name, NONE)
    ]
    if not changed:
        return []
    wide = max(len(name) for name, _, _ in changed)
    middle = max(len(value) for _, value, _ in changed)
    lines = [f"{name:<{wide}}  {was:<{middle}}  →  {will}" for name, was, will in changed]
    return ["The plan changes:", *(f"  {line}" for line in lines)]


def _rows(plan: Plan) -> dict[str, str]:
    rows: dict[str, str] = {}
    cards = plan.get("hardware", {}).get("cards")
    if cards is not None:
        rows["cards"] = _counted(card["name"] for card in cards)
        rows["of them in use"] = _counted(card["name"] for card in cards if card["engine"])
    decided = plan.get("decided") or {}
    if driver := decided.get("driver"):
        rows["driver"] = " ".join(
            str(driver[key]) for key in ("source", "branch", "flavour") if driver.get(key)
        )
    for engine in plan.get("engines", []):
        rows |= _engine_rows(engine)
    for name in ("gateway", "backend"):
        if workers := plan.get(name, {}).get("workers"):
            rows[f"{name} workers"] = str(workers)
    return rows


def _engine_rows(engine: Mapping[str, Any]) -> dict[str, str]:
    prefix = "" if engine["name"] == "main" else f"{engine['name']}: "
    arguments = engine["arguments"]
    rows = {"computes on": engine["device"], "model": engine["model"]["id"]}
    rows |= {k: str(v) for k, v in arguments.items() if k not in ("model", "served-model-name")}
    rows |= {name: str(value) for name, value in engine["environment"].items()}
    if tokens := engine.get("kv_cache_tokens"):
        rows["KV cache holds"] = f"{tokens:,} tokens"
    return {prefix + name: value for name, value in rows.items()}


def _counted(names: Any) -> str:
    found = Counter(names)
    return ", ".join(f"{n} × {name}" for name, n in found.items()) or NONE
