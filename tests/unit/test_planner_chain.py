"""The chain in front of the engines: workers and connections by what a token costs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planner import chain, models, page
from planner.engine import Wish
from planner.fleet import Placement, best
from planner.machine import of_cards
from planner.plan import decide


def placed(cards: int = 1) -> list[Placement]:
    """Return a placement of a small model."""
    machine = of_cards("RTX 4090", cards, ram_gib=64, cores=16)
    return [best(machine.gpus, models.find("Qwen/Qwen3-8B"), Wish())]


@given(tokens=st.floats(0, 1e6), cores=st.integers(1, 256))
def test_workers_are_enough_or_as_many_as_there_are_cores(tokens: float, cores: int) -> None:
    planned = chain.plan(placed(), cores, tokens)
    left = max(1, cores - 2)
    assert 1 <= planned.gateway <= left
    busy = tokens * chain.GATEWAY.spread / planned.gateway
    assert busy <= chain.BUSY_SHARE + 1e-9 or planned.gateway == left


@given(tokens=st.floats(0, 1e6), cores=st.integers(1, 256))
def test_a_processor_that_holds_the_cards_back_is_told(tokens: float, cores: int) -> None:
    planned = chain.plan(placed(), cores, tokens)
    assert bool(planned.problem) == (round(tokens) > planned.most_tokens_per_second)
    more = chain.plan(placed(), cores + 1, tokens)
    assert more.most_tokens_per_second >= planned.most_tokens_per_second


def test_an_engine_keeps_cores_of_its_own() -> None:
    (place,) = placed()
    assert chain.engine_cores(place) == 2
    copies = placed(4)[0]
    assert chain.engine_cores(copies) > 2


def test_one_backend_is_the_bound_of_a_large_machine() -> None:
    most = chain.HEADROOM / chain.BACKEND.spread
    assert chain.capacity(10_000) == pytest.approx(most)
    assert chain.capacity(1) < most


def test_the_plan_says_it() -> None:
    few = decide(of_cards("H100 80GB", 1, ram_gib=64, cores=3), models.find("Qwen/Qwen3-8B"))
    (warning,) = few["warnings"]
    assert f"{few['workers']['chain_tokens_per_second']:,}" in warning
    assert "hold the cards back" in page.text(few, 400)
    many = decide(of_cards("H100 80GB", 1, ram_gib=64, cores=32), models.find("Qwen/Qwen3-8B"))
    assert many["warnings"] == []
    assert many["workers"]["gateway"] > few["workers"]["gateway"]
    assert "\nMind" not in page.text(many)
