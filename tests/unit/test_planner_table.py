"""Every card of the catalogue, alone and in numbers, with a spread of models."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planner import cards, engine, fleet, models
from planner.cards import Card
from planner.engine import Wish
from planner.machine import Gpu, Machine, of_cards
from planner.memory import Load, account, quant_of
from planner.plan import decide
from planner.problem import PlanError

COUNTS = (1, 2, 3, 4, 8)
SPREAD = (
    "Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B", "Qwen/Qwen3-14B-AWQ", "Qwen/Qwen3-30B-A3B",
    "Qwen/Qwen2.5-7B-Instruct", "google/gemma-3-27b-it", "openai/gpt-oss-20b",
    "openai/gpt-oss-120b", "RedHatAI/Llama-3.3-70B-Instruct-fp8-dynamic",
    "deepseek-ai/DeepSeek-V2-Lite-Chat",
)  # fmt: skip
MODERN = [name for name in cards.names() if cards.by_name(name).compute_capability >= (7, 5)]


@pytest.fixture(scope="module", autouse=True)
def each_fit_is_searched_once() -> Iterator[None]:
    """Eight cards ask for what one card asks for, and more. `fit` is a pure function, and an id is
    one model here.
    """
    search, found = engine.fit, {}

    def fit(model: models.Model, card: Card, size: int, wish: Wish) -> engine.Fit:
        asked = (model.id, card, size, wish)
        if asked not in found:
            try:
                found[asked] = search(model, card, size, wish)
            except PlanError as error:
                found[asked] = error
        if isinstance(found[asked], PlanError):
            raise type(found[asked])(*found[asked].args)
        return found[asked]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "fit", fit)
        yield


def planned(card: str, count: int, model: str | None) -> dict[str, Any]:
    machine = of_cards(card, count, ram_gib=64, cores=16)
    return decide(machine, models.find(model) if model else None)


@pytest.mark.parametrize("card", cards.names())
def test_every_card_in_every_number_with_every_model(card: str) -> None:
    for count, name in itertools.product(COUNTS, (*SPREAD, None)):
        plan = planned(card, count, name)
        if not plan["engines"]:
            (refusal,) = plan["refusals"]
            assert len(refusal) > 60, "a reason, and a way out"
            continue
        assert plan["refusals"] == []
        for told, memory in zip(plan["engines"], plan["memories"], strict=True):
            _holds(told, memory, count)


def _holds(told: dict[str, Any], memory: dict[str, Any], count: int) -> None:
    shape = models.find(told["model"]).shape
    split = told["tensor_parallel_size"]
    assert memory["total_gib_per_gpu"] <= memory["budget_gib"] + 0.01 < memory["card_gib"]
    assert memory["kv_cache_tokens"] >= told["max_model_len"]
    assert memory["users"][-1]["users"] >= 1
    assert split * told["data_parallel_size"] == len(told["gpus"]) <= count
    assert shape.heads % split == 0
    assert shape.kv_heads % split == 0 or split % shape.kv_heads == 0


def no_smaller_than_needed(card: Card, split: int, model: models.Model) -> None:
    """The next longer context, and the next larger number of sequences, would not do."""
    found = engine.fit(model, card, split, Wish())
    load = found.load
    quantization = quant_of(model.shape)
    ladder = [model.shape.context_tokens, *engine.CONTEXTS]
    longer = [c for c in ladder if load.max_model_len < c <= model.shape.context_tokens]
    for context in longer:
        fewest = replace(load, max_model_len=context, max_num_seqs=4, max_num_batched_tokens=2048)
        memory = account(model.shape, card.cuda_memory_gib, quantization, fewest)
        assert memory.kv_cache_tokens < 2 * context, f"{context} would have fitted"
    busier = [n for n in engine.SEQUENCES if n > load.max_num_seqs]
    most, _ = engine.card_defaults(card)
    for number in [n for n in busier if n <= most]:
        more = replace(load, max_num_seqs=number, max_num_batched_tokens=2048)
        memory = account(model.shape, card.cuda_memory_gib, quantization, more)
        is_full = not memory.holds(number, min(load.max_model_len, engine.SEQUENCE_TOKENS))
        assert is_full or memory.kv_cache_tokens < 2 * load.max_model_len


@pytest.mark.parametrize("card", MODERN)
def test_no_plan_is_needlessly_small(card: str) -> None:
    kind = cards.by_name(card)
    for name in SPREAD:
        model = models.find(name)
        try:
            no_smaller_than_needed(kind, 1, model)
        except PlanError:
            continue


# More is never less --------------------------------------------------------------------------

PLAIN = Card("a card", "ampere", (8, 6), 24, 23.5, 900)


def sized(memory: float, model: str) -> tuple[int, int] | None:
    """Return the context and the sequences of one card; None where nothing fits."""
    card = replace(PLAIN, cuda_memory_gib=memory)
    try:
        load = engine.fit(models.find(model), card, 1, Wish()).load
    except PlanError:
        return None
    return load.max_model_len, load.max_num_seqs


@given(st.floats(3, 300), st.floats(0, 40), st.sampled_from(SPREAD))
def test_more_memory_never_gives_a_smaller_engine(memory: float, more: float, model: str) -> None:
    small, large = sized(memory, model), sized(memory + more, model)
    assert (small or (0, 0)) <= (large or (0, 0))


def rank(memory: float, count: int = 1) -> int:
    """Return the place of the default that so much memory is given; -1 for none."""
    order = [default.model for default in models.defaults()]
    gpus = tuple(Gpu(replace(PLAIN, cuda_memory_gib=memory), f"GPU-{n}") for n in range(count))
    plan = decide(Machine(gpus))
    return order.index(plan["engine"]["model"]) if plan["engine"] else -1


@given(st.floats(3, 300), st.floats(0, 60))
def test_more_memory_never_gives_a_smaller_default(memory: float, more: float) -> None:
    assert rank(memory) <= rank(memory + more)


@given(st.floats(5, 100), st.sampled_from([1, 2, 4]))
def test_twice_the_cards_never_give_a_smaller_default(memory: float, count: int) -> None:
    assert rank(memory, count) <= rank(memory, 2 * count)


# What cards are left -------------------------------------------------------------------------


def gpus(*kinds: str) -> Iterator[Gpu]:
    for n, kind in enumerate(kinds):
        yield Gpu(cards.by_name(kind), f"GPU-{n}")


def test_three_cards_that_one_model_fills() -> None:
    plan = planned("RTX 3090", 3, "Qwen/Qwen3-14B")
    told = plan["engine"]
    assert told["tensor_parallel_size"] * told["data_parallel_size"] in (2, 3)
    if told["tensor_parallel_size"] == 2:
        assert any("1 of 3 cards stays idle" in line for line in plan["reasons"])
        assert any("does not divide" in line for line in plan["reasons"])


def test_cards_that_are_not_needed_answer_beside_each_other() -> None:
    plan = planned("RTX 5090", 3, "openai/gpt-oss-20b")
    assert (plan["engine"]["tensor_parallel_size"], plan["engine"]["data_parallel_size"]) == (1, 3)
    assert any("data parallel 3" in line for line in plan["reasons"])


def test_mixed_cards_get_an_engine_each() -> None:
    found, notes = fleet.place(
        list(gpus("RTX 5090", "RTX 3090")), models.find("Qwen/Qwen3-8B"), Wish()
    )
    assert [place.gpus[0].card.name for place in found] == [
        "NVIDIA GeForce RTX 5090",
        "NVIDIA GeForce RTX 3090",
    ]
    assert any("an engine for each kind" in note for note in notes)
    assert len({place.fit.load.max_model_len for place in found}) == 1


def test_a_card_that_is_too_small_for_the_model_stays_idle_and_is_named() -> None:
    found, notes = fleet.place(
        list(gpus("RTX 5090", "RTX 3050")), models.find("Qwen/Qwen3-14B-AWQ"), Wish()
    )
    assert len(found) == 1
    assert "RTX 3050" in notes[0]
    assert "stays idle" in notes[0]


def test_mixed_cards_together_where_the_model_fits_on_none_alone() -> None:
    found, notes = fleet.place(
        list(gpus("RTX 3090", "RTX 4090")), models.find("Qwen/Qwen3-14B"), Wish()
    )
    (place,) = found
    assert place.tensor_parallel_size == 2
    assert {gpu.card.name for gpu in place.gpus} == {
        "NVIDIA GeForce RTX 3090",
        "NVIDIA GeForce RTX 4090",
    }
    assert "as if each were" in notes[-1]


def test_an_old_card_beside_a_new_one_stays_idle() -> None:
    found, notes = fleet.place(
        list(gpus("GTX 1080 Ti", "RTX 3090")), models.find("Qwen/Qwen3-8B"), Wish()
    )
    assert [place.gpus[0].card.name for place in found] == ["NVIDIA GeForce RTX 3090"]
    assert "7.5" in notes[0]


# What an owner sets --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wish", "why"),
    [
        (Wish(max_model_len=100_000), "made for"),
        (Wish(max_model_len=40_960, gpu_memory_utilization=0.8), "max_model_len is 40,960"),
        (Wish(tensor_parallel_size=3), "3 does not divide the 32 attention heads"),
        (Wish(tensor_parallel_size=2), "needs 2 cards, and there are 1"),
        (Wish(data_parallel_size=2), "2 copies need 2 cards"),
        (Wish(max_num_seqs=0), "it must be 1 or more"),
        (Wish(gpu_memory_utilization=1.5), "between 0 and 1"),
        (Wish(kv_cache_memory_bytes=2**28), "for the KV cache"),
        (Wish(gpu_memory_utilization=0.5), "of weights"),
    ],
)
def test_an_override_that_does_not_fit_is_refused_with_numbers(wish: Wish, why: str) -> None:
    machine = of_cards("RTX 3090", 1, ram_gib=64, cores=16)
    plan = decide(machine, models.find("Qwen/Qwen3-8B"), wish)
    assert plan["engine"] is None
    assert why in plan["refusals"][0]


def test_an_override_that_fits_is_taken() -> None:
    machine = of_cards("RTX 3090", 2, ram_gib=64, cores=16)
    wish = Wish(
        max_model_len=4096, max_num_seqs=7, tensor_parallel_size=2, gpu_memory_utilization=0.8,
        max_num_batched_tokens=1024, kv_cache_dtype="fp8", enforce_eager=True,
    )  # fmt: skip
    told = decide(machine, models.find("Qwen/Qwen3-8B"), wish)["engine"]
    kept = ("max_model_len", "max_num_seqs", "tensor_parallel_size")
    assert {key: told[key] for key in kept} == {
        "max_model_len": 4096, "max_num_seqs": 7, "tensor_parallel_size": 2,
    }  # fmt: skip
    assert (told["gpu_memory_utilization"], told["kv_cache_dtype"]) == (0.8, "fp8")
    assert (told["max_num_batched_tokens"], told["enforce_eager"]) == (1024, True)


def test_a_card_without_the_kernels_is_named() -> None:
    plan = planned("Tesla T4", 1, "openai/gpt-oss-20b")
    assert "no kernels for mxfp4" in plan["refusals"][0]
    assert planned("Tesla T4", 1, "Qwen/Qwen3-8B-AWQ")["engine"]["dtype"] == "float16"


def test_a_fixed_cache_is_what_it_is() -> None:
    shape = models.find("Qwen/Qwen3-8B").shape
    load = Load(8192, 64, 2048, kv_cache_memory_bytes=3 * 2**30)
    assert account(shape, 23.5, "none", load).kv_cache == 3.0


def test_a_default_leaves_room_to_talk() -> None:
    """An RTX 3050 holds the model of 8 billion as well, and then 4,000 tokens of conversation."""
    plan = planned("RTX 3050", 1, None)
    assert plan["engine"]["model"] == "Qwen/Qwen3-4B-AWQ"
    assert plan["memory"]["kv_cache_tokens"] >= 16384
    assert planned("RTX 3050", 1, "Qwen/Qwen3-8B-AWQ")["refusals"] == []


def test_a_split_that_costs_more_than_it_brings_is_not_taken() -> None:
    """One key-value head is copied, not divided, and cards that talk need buffers for it."""
    config = {
        "num_hidden_layers": 40, "hidden_size": 1024, "num_attention_heads": 8, "head_dim": 256,
        "num_key_value_heads": 1, "intermediate_size": 4096, "vocab_size": 32000,
        "max_position_embeddings": 8192,
    }  # fmt: skip
    model = models.find("owner/one-head", config)
    small = replace(PLAIN, cuda_memory_gib=4.4)
    alone, split = (engine.fit(model, small, size, Wish()).memory for size in (1, 2))
    assert split.kv_cache_tokens < alone.kv_cache_tokens < 2 * engine.GOOD_CONTEXT
    placed = fleet.best([Gpu(small, f"GPU-{n}") for n in range(2)], model, Wish())
    assert (placed.tensor_parallel_size, placed.data_parallel_size) == (1, 2)
