"""What the guard makes of the hardware: what keeps the engine down, and what is only said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import hardware_guard as guard
import pytest
from unit_kit import ROOT

GUARD = ROOT / "roles/guard/files"
DRIVER = {"module_version": "580.95.05", "library_version": "580.95.05", "problem": ""}


def card(slot: int, engine: str = "main", uuid: str = "", device: str = "2b85") -> dict[str, str]:
    return {
        "pci_address": f"0000:0{slot}:00.0", "device": device, "uuid": uuid or f"GPU-{slot}",
        "name": "RTX 5090", "engine": engine,
    }  # fmt: skip


def gpu(slot: int, uuid: str | None = None, device: str = "2b85") -> dict[str, Any]:
    seen = {"pci_address": f"0000:0{slot}:00.0", "vendor": "10de", "device": device}
    uuid = f"GPU-{slot}" if uuid is None else uuid
    return {**seen, "uuid": uuid, "name": "RTX 5090"} if uuid else seen


def compare(
    cards: list[dict[str, str]], gpus: list[dict[str, Any]], device: str = "cuda",
    engine: str = "main", **driver: str,
) -> tuple[list[str], list[str]]:  # fmt: skip
    plan = {"hardware": {"cards": cards}, "engines": [{"name": "main", "device": device}]}
    return guard.compare(plan, engine, {"gpus": gpus, "driver": {**DRIVER, **driver}})


def test_what_was_planned_is_there() -> None:
    assert compare([card(5)], [gpu(5)]) == ([], [])


def test_a_foreign_card_is_nobodys_business() -> None:
    assert compare([card(5)], [gpu(5), {**gpu(7, ""), "vendor": "1002"}]) == ([], [])


def test_a_missing_card_keeps_a_plan_down_that_needs_it() -> None:
    problems, notes = compare([card(5), card(6)], [gpu(5)])
    assert "RTX 5090 at 0000:06:00.0 is missing" in problems[0]
    assert "./millrace site" in problems[0]
    assert notes == []


def test_a_missing_card_that_nobody_needs_is_said() -> None:
    problems, notes = compare([card(5), card(6, engine="")], [gpu(5)])
    assert problems == []
    assert "is gone" in notes[0]


def test_another_engines_card_is_that_engines_concern() -> None:
    both = [card(5), card(6, engine="engine2")]
    problems, notes = compare(both, [gpu(5)])
    assert problems == []
    assert "engine engine2 was planned for it" in notes[0]
    problems, notes = compare(both, [gpu(5)], engine="engine2")
    assert "0000:06:00.0 is missing" in problems[0]
    assert compare(both, [gpu(5), gpu(6)], engine="engine2") == ([], [])


def test_a_second_card_disturbs_nothing_and_is_said() -> None:
    problems, notes = compare([card(5)], [gpu(5), gpu(6)])
    assert problems == []
    assert "0000:06:00.0 is new" in notes[0]


def test_a_card_that_moved_is_the_same_by_its_uuid() -> None:
    assert compare([card(5)], [gpu(9, uuid="GPU-5")]) == ([], [])


def test_another_card_of_its_kind_is_another_card() -> None:
    problems, notes = compare([card(5)], [gpu(5, uuid="GPU-other")])
    assert "is missing" in problems[0]
    assert "is new" in notes[0]


def test_a_plan_from_before_the_driver_knows_cards_by_their_place_and_kind() -> None:
    unnamed = {**card(5), "uuid": ""}
    assert compare([unnamed], [gpu(5)]) == ([], [])
    assert compare([unnamed], [gpu(8)]) == ([], []), "an added card shifts the others"
    assert "missing" in compare([unnamed], [gpu(5, device="2507")])[0][0]


def test_a_card_that_fell_off_the_bus() -> None:
    problems, _ = compare([card(5), card(6)], [gpu(5), gpu(6, uuid="")])
    assert "0000:06:00.0 is plugged in and the driver does not see it" in problems[0]


@pytest.mark.parametrize(
    ("driver", "problem"),
    [
        ({"module_version": ""}, "no NVIDIA module is loaded"),
        ({"library_version": "580.105.08"}, "reboot"),
        ({"problem": "Unable to determine the device handle"}, "nvidia-smi says: Unable"),
    ],
)
def test_a_driver_that_is_not_one(driver: dict[str, str], problem: str) -> None:
    assert problem in compare([card(5)], [gpu(5)], **driver)[0][0]
    on_cpu = compare([card(5, engine="")], [gpu(5)], device="cpu", **driver)
    assert on_cpu[0] == [], "a plan without cards needs no driver"
    assert "vllm_device is cpu" in on_cpu[1][0]


def test_a_card_that_was_left_idle_is_said() -> None:
    _, notes = compare([card(5), card(6, engine="")], [gpu(5), gpu(6)])
    assert "leaves RTX 5090 at 0000:06:00.0 idle" in notes[0]


def run(tmp_path: Path, plan: str) -> tuple[int, dict[str, Any], str]:
    (tmp_path / "plan.json").write_text(plan)
    report = tmp_path / "run/hardware.json"
    done = subprocess.run(
        [sys.executable, GUARD / "hardware_guard.py", "--plan", tmp_path / "plan.json",
         "--engine", "main", "--report", report, "--root", tmp_path],
        env={"PYTHONPATH": str(ROOT / "plugins/module_utils"), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, json.loads(report.read_text()), done.stderr


def test_as_the_unit_runs_it(tmp_path: Path) -> None:
    plan = {"hardware": {"cards": [card(5)]}, "engines": [{"name": "main", "device": "cuda"}]}
    code, report, said = run(tmp_path, json.dumps(plan))
    assert code == 1
    assert "no NVIDIA module" in report["problems"][0]
    assert said.startswith("<3>no NVIDIA module"), "the journal knows it for an error"


@pytest.mark.parametrize("plan", ["", '{"version": 1}'])
def test_a_plan_that_it_cannot_read_keeps_nobody_down(tmp_path: Path, plan: str) -> None:
    code, report, said = run(tmp_path, plan)
    assert code == 0
    assert "./millrace site" in report["notes"][0]
    assert said.startswith("<4>")
