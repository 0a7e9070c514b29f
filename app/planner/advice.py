"""What would fit, where a model does not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from planner import engine, fleet, models
from planner.engine import Fit, Wish
from planner.machine import Machine, groups
from planner.memory import quant_of
from planner.models import Model
from planner.problem import PlanError

MORE_CARDS = (2, 4, 8)
MOST = 4


def told(machine: Machine, model: Model, wish: Wish) -> str:
    """Return a sentence with at most four ways out; empty without."""
    ways = [way for way in dict.fromkeys(_ways(machine, model, wish)) if way != model.id]
    return f". What would fit: {', or '.join(ways[:MOST])}" if ways else ""


def _ways(machine: Machine, model: Model, wish: Wish) -> Iterator[str]:
    """Yield a shorter context, packed twins, more cards, another model."""
    gpus = groups(machine.gpus)[0]
    card, count = gpus[0].card, len(gpus)
    own = wish.tensor_parallel_size

    def fits(other: Model, size: int, wanted: Wish) -> Fit | None:
        quantization = quant_of(other.shape, wish.quantization or "")
        if engine.split_problem(other.shape, quantization, size):
            return None
        if engine.card_problem(other.shape, quantization, card, wanted.dtype):
            return None
        with contextlib.suppress(PlanError):
            return engine.fit(other, card, size, wanted)
        return None

    if wish.max_model_len:
        sizes = engine.splits(model.shape, quant_of(model.shape, wish.quantization or ""), count)
        if found := fits(model, own or max(sizes), replace(wish, max_model_len=None)):
            yield f"max_model_len {found.load.max_model_len}"
    for name in models.names():
        if _is_twin(name, model.id) and fits(models.find(name), own or 1, wish):
            yield name
    for more in MORE_CARDS:
        if not own and more > count and fits(model, more, wish):
            yield f"{more} × {card.name}"
            break
    with contextlib.suppress(PlanError):
        yield fleet.best(gpus, None, Wish()).model.id


def _is_twin(name: str, other: str) -> bool:
    """Whether one is a packed version of the other: the same name with a suffix."""
    mine, theirs = (text.rsplit("/", 1)[-1].lower() for text in (name, other))
    return mine != theirs and mine.startswith(theirs)
