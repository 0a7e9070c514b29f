"""All cards of a machine: which model, split how, over which of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from planner import engine, models
from planner.cards import Card
from planner.driver import WHEEL_CAPABILITY
from planner.engine import Fit, Wish
from planner.machine import Gpu, groups
from planner.memory import quant_of
from planner.models import Model
from planner.problem import PlanError, TooLarge

COMFORTABLE_TOKENS = 16384
COMFORTABLE_CONTEXT = 8192
"""Two people in a long conversation each: a default with less makes way for a smaller model."""


@dataclass(frozen=True)
class Placement:
    """An engine and the cards it has."""

    model: Model
    fit: Fit
    gpus: tuple[Gpu, ...]
    tensor_parallel_size: int
    data_parallel_size: int
    reasons: list[str] = field(default_factory=list)


def place(
    gpus: Sequence[Gpu], model: Model | None, wish: Wish
) -> tuple[list[Placement], list[str]]:
    """Return the engines and what is to be said of the cards. Raises PlanError.

    Cards of different kinds get an engine each kind, with the same model, where it fits on each;
    else one engine runs over all of them as if each were the smallest; else the best kind runs
    alone. `model`: None takes the catalogue's default.
    """
    fit_for_vllm = [gpu for gpu in gpus if gpu.card.compute_capability >= WHEEL_CAPABILITY]
    notes = [
        f"{gpu.name} ({gpu.card.name}, compute capability {gpu.card.capability}) stays idle: "
        f"vLLM's wheel begins with {WHEEL_CAPABILITY[0]}.{WHEEL_CAPABILITY[1]}"
        for gpu in gpus
        if gpu not in fit_for_vllm
    ]
    if not fit_for_vllm:
        raise PlanError(
            "no card here runs vLLM's wheel, which needs an NVIDIA card from Turing (compute "
            f"capability {WHEEL_CAPABILITY[0]}.{WHEEL_CAPABILITY[1]}) on: set vllm_device to cpu, "
            "or rent another card"
        )
    kinds = groups(fit_for_vllm)
    if len(kinds) == 1:
        return [best(kinds[0], model, wish)], notes
    return _place_mixed(kinds, fit_for_vllm, model, wish, notes)


def _place_mixed(
    kinds: list[tuple[Gpu, ...]],
    all_gpus: Sequence[Gpu],
    model: Model | None,
    wish: Wish,
    notes: list[str],
) -> tuple[list[Placement], list[str]]:
    told = ", ".join(f"{len(kind)} × {kind[0].card.name}" for kind in kinds)
    try:
        first = best(kinds[0], model, wish)
    except PlanError as error:
        smallest = min(all_gpus, key=lambda gpu: gpu.card.cuda_memory_gib).card
        # As if each were the smallest, and as old as the oldest.
        oldest = min(gpu.card.compute_capability for gpu in all_gpus)
        common = replace(smallest, compute_capability=oldest)
        try:
            whole = best([replace(gpu, card=common) for gpu in all_gpus], model, wish)
        except PlanError:
            raise error from None
        used = {gpu.name for gpu in whole.gpus}
        gpus = tuple(gpu for gpu in all_gpus if gpu.name in used)
        note = f"mixed cards ({told}): one engine over all, planned as if each were {smallest.name}"
        return [replace(whole, gpus=gpus)], [*notes, note]
    placed = [first]
    enough = min(first.fit.load.max_model_len, COMFORTABLE_CONTEXT)
    for kind in kinds[1:]:
        verb = "stays" if len(kind) == 1 else "stay"
        idle = f"{len(kind)} × {kind[0].card.name} {verb} idle"
        try:
            other = best(kind, first.model, wish)
        except PlanError as error:
            notes.append(f"{idle}: {error}")
            continue
        if other.fit.load.max_model_len < enough:
            notes.append(
                f"{idle}: {first.model.id} would have a context of "
                f"{other.fit.load.max_model_len:,} tokens there, and all engines must take the same"
            )
            continue
        placed.append(other)
    if len(placed) == 1:
        return placed, notes
    notes.append(f"mixed cards ({told}): an engine for each kind, all with {first.model.id}")
    # The gateway sends a request to any of them.
    shortest = min(other.fit.load.max_model_len for other in placed)
    alike = replace(wish, max_model_len=shortest)
    placed = [
        other if other.fit.load.max_model_len == shortest else best(other.gpus, first.model, alike)
        for other in placed
    ]
    notes.append(f"context: {shortest:,} tokens, which every engine has, whichever answers")
    return placed, notes


def best(gpus: Sequence[Gpu], model: Model | None, wish: Wish) -> Placement:
    """Return the best engine on cards of one kind."""
    if model is not None:
        return _over(gpus, model, wish)
    memory = sum(gpu.card.cuda_memory_gib for gpu in gpus)
    card = gpus[0].card
    tight: list[Placement] = []
    problem: PlanError | None = None
    for default in reversed(models.defaults()):
        if default.memory_gib > memory or card.compute_capability < default.capability:
            continue
        try:
            placed = _over(gpus, models.find(default.model), wish)
        except PlanError as error:
            problem = problem or error
            continue
        placed.reasons.insert(0, f"{default.model}: {default.why}")
        if _is_comfortable(placed):
            return placed
        tight.append(placed)
    if tight:
        return max(tight, key=lambda placed: placed.fit.memory.kv_cache_tokens)
    if problem:
        raise problem
    raise PlanError(
        f"{card.name} has {memory:.1f} GiB to give, and the smallest model of the catalogue that "
        f"runs on it wants {min(d.memory_gib for d in models.defaults()):.1f}: name a smaller one "
        "with vllm_model, or rent a larger card"
    )


def _is_comfortable(placed: Placement) -> bool:
    """Whether a default leaves room to talk: else a smaller model serves its owner better."""
    found = placed.fit
    context = min(COMFORTABLE_CONTEXT, placed.model.shape.context_tokens)
    return (
        found.memory.kv_cache_tokens >= COMFORTABLE_TOKENS and found.load.max_model_len >= context
    )


def _over(gpus: Sequence[Gpu], model: Model, wish: Wish) -> Placement:
    """Split a model over cards of one kind: as little as is comfortable, copies on the rest."""
    card, count = gpus[0].card, len(gpus)
    quantization = quant_of(model.shape, wish.quantization or "")
    if problem := engine.card_problem(model.shape, quantization, card, wish.dtype):
        raise PlanError(problem)
    if (wish.max_model_len or 0) > model.shape.context_tokens:
        raise PlanError(
            f"max_model_len {wish.max_model_len} is more than {model.id} was made for: it takes "
            f"{model.shape.context_tokens} at the most"
        )
    copies = wish.data_parallel_size or 1
    sizes = [wish.tensor_parallel_size] if wish.tensor_parallel_size else engine.splits(
        model.shape, quantization, count // copies
    )  # fmt: skip
    if wish.tensor_parallel_size:
        _check_split(model, quantization, count, wish.tensor_parallel_size, copies)
    if not sizes:
        raise PlanError(f"{copies} copies need {copies} cards, and there are {count}")
    fits: list[tuple[int, Fit]] = []
    problem = ""
    for size in sizes:
        try:
            found = engine.fit(model, card, size, wish)
        except PlanError as error:
            problem = str(error)
            continue
        fits.append((size, found))
        if _is_enough(model, found):
            break
    if not fits:
        raise TooLarge(problem)
    # The search ended at the first that has enough; else the most KV cache serves best.
    size, chosen = fits[-1]
    if not _is_enough(model, chosen):
        size, chosen = max(fits, key=lambda fit: fit[1].memory.kv_cache_tokens)
    data = wish.data_parallel_size or count // size
    return Placement(
        model, chosen, tuple(gpus[: size * data]), size, data,
        _reasons(model, card, count, size, data, quantization, wish),
    )  # fmt: skip


def _is_enough(model: Model, found: Fit) -> bool:
    """Whether nobody asks for another card: two long conversations, or all of a shorter context."""
    context = min(engine.GOOD_CONTEXT, model.shape.context_tokens)
    return (
        found.load.max_model_len >= context
        and found.memory.kv_cache_tokens >= 2 * engine.GOOD_CONTEXT
    )


def _check_split(model: Model, quantization: str, count: int, size: int, copies: int) -> None:
    if problem := engine.split_problem(model.shape, quantization, size):
        good = ", ".join(map(str, engine.splits(model.shape, quantization, max(count, 8))))
        raise PlanError(
            f"tensor_parallel_size {size} cannot be: {problem}; {model.id} takes {good}"
        )
    if size * copies > count:
        raise PlanError(
            f"tensor_parallel_size {size} × data_parallel_size {copies} needs {size * copies} "
            f"cards, and there are {count}"
        )


def _reasons(
    model: Model,
    card: Card,
    count: int,
    size: int,
    data: int,
    quantization: str,
    wish: Wish,
) -> list[str]:
    said = engine.remarks(quantization, card)
    if wish.tensor_parallel_size:
        said.append(f"tensor parallel {size}: as tensor_parallel_size says")
    elif size > 1:
        said.append(
            f"tensor parallel {size}: the model and its KV cache need {size} cards together"
        )
    if data > 1:
        said.append(
            f"data parallel {data}: {data} copies of the engine answer beside each other, since "
            f"{'one card holds' if size == 1 else f'{size} cards hold'} all of the model"
        )
    idle = count - size * data
    if idle:
        skipped = [
            f"{n}: {problem}"
            for n in range(size + 1, count + 1)
            if (problem := engine.split_problem(model.shape, quantization, n))
        ]
        why = f" ({'; '.join(skipped)})" if skipped else ""
        said.append(f"{idle} of {count} cards {'stays' if idle == 1 else 'stay'} idle{why}")
    if model.is_gated:
        said.append(
            f"{model.id} is gated: accept its terms on the hub and set vault_millrace_hub_token"
        )
    return said
