"""The old plan beside the new, and what vLLM found beside what was planned."""

from __future__ import annotations

from typing import Any

from planner import change, measured
from planner.serving import serving_plan
from test_serving_plan import CARD, HARDWARE, SETTINGS, UUID, with_driver


def plan(hardware: dict[str, Any] = HARDWARE, **settings: Any) -> dict[str, Any]:
    return serving_plan({**SETTINGS, **settings}, hardware)


def test_the_same_plan_changes_nothing() -> None:
    assert change.told(plan(), plan()) == []


def test_a_second_card_is_shown_with_all_that_follows() -> None:
    lines = change.told(plan(with_driver(UUID)), plan(with_driver(UUID, UUID + "b")))
    assert lines[0] == "The plan changes:"
    text = "\n".join(lines)
    assert "1 × NVIDIA GeForce RTX 3090  " in text
    assert "→  2 × NVIDIA GeForce RTX 3090" in text
    assert any("data-parallel-size" in line and "→  2" in line for line in lines)
    assert not any("max-model-len" in line for line in lines), "what stays is not shown"
    assert len({line.index("→") for line in lines[1:]}) == 1


def test_from_the_processor_to_a_card() -> None:
    lines = change.told(plan(device="cpu"), plan())
    assert any("computes on" in line and "cpu" in line and "cuda" in line for line in lines)
    assert any("driver" in line and "nvidia 580 open" in line for line in lines)


def test_an_old_plan_that_tells_less_is_no_obstacle() -> None:
    old = {"version": 1, "engines": plan()["engines"]}
    assert change.told(old, plan())


def test_a_card_is_planned_for_the_engine_that_works_on_it() -> None:
    other = {"pci_address": "0000:02:00.0", "vendor": "10de", "device": "2b85"}
    foreign = {"pci_address": "0000:03:00.0", "vendor": "1002", "device": "744c"}
    cards = plan({**HARDWARE, "gpus": [CARD, other, foreign]})["hardware"]["cards"]
    assert [card["pci_address"] for card in cards] == ["0000:01:00.0", "0000:02:00.0"]
    assert sorted(card["engine"] for card in cards) == ["engine2", "main"]
    idle = plan({**HARDWARE, "gpus": [CARD]}, device="cpu")["hardware"]["cards"]
    assert [card["engine"] for card in idle] == [""]


def test_on_a_processor_the_cache_is_counted_too() -> None:
    on_cpu = plan(device="cpu", model="recital", kv_cache_mib=128)
    assert on_cpu["engines"][0]["kv_cache_tokens"] == 131072, "as vLLM logs it for 128 MiB"
    unknown = plan(device="cpu", model="acme/unknown")
    assert unknown["engines"][0]["kv_cache_tokens"] is None


LOG = "(EngineCore pid=1) INFO utils.py:1] GPU KV cache size: {} tokens, Maximum concurrency\n"


def tokens_of(given: dict[str, Any]) -> int:
    return int(given["engines"][0]["kv_cache_tokens"])


def test_the_last_start_counts() -> None:
    given = plan()
    tokens = tokens_of(given)
    said = LOG.format("1,000") + LOG.format(f"{tokens:,}")
    (found,) = measured.compare(given, {"main": said, "engine7": said})
    assert (found["logged_tokens"], found["difference_percent"]) == (tokens, 0.0)
    assert found["remark"] == ""


def test_a_plan_that_is_off_is_said() -> None:
    given = plan()
    tokens = tokens_of(given)
    (found,) = measured.compare(given, {"main": LOG.format(f"{tokens // 2:,}")})
    assert found["difference_percent"] == -50.0
    assert "50 % fewer" in found["remark"]
    (found,) = measured.compare(given, {"main": LOG.format(f"{tokens * 13 // 10:,}")})
    assert "30 % more" in found["remark"]


def test_a_journal_that_has_let_go_of_it() -> None:
    assert measured.compare(plan(), {"main": "something else"}) == []
