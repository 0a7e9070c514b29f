"""`./millrace plan`: what it prints, as a page and as JSON, and how it ends."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gpu_hardware
import pytest
import yaml
from planner import cards
from planner.__main__ import main
from planner.machine import from_facts, from_profile
from planner.plan import decide

ROOT = Path(__file__).resolve().parents[2]
MACHINES = ROOT / "tests/fixtures/machines"


def told(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code = main([*words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_the_documented_keys(capsys: pytest.CaptureFixture[str]) -> None:
    code, plan = told(capsys, "--gpu", "RTX 5090", "--count", "2", "--ram-gib", "64")
    assert code == 0
    text = (ROOT / "docs/plan.md").read_text(encoding="utf-8")
    for part in ("machine", "driver", "engine", "memory", "workers"):
        for key in plan[part]:
            assert f"`{part}.{key}`" in text, "every key is documented"
    for key in plan:
        assert f"`{key}" in text


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("RTX 5090", "NVIDIA GeForce RTX 5090"),
        ("nvidia geforce rtx 3090", "NVIDIA GeForce RTX 3090"),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3"),
        ("H100", "NVIDIA H100 80GB HBM3"),
        ("GeForce RTX 4060 Ti 16GB", "NVIDIA GeForce RTX 4060 Ti 16GB"),
        ("NVIDIA GeForce RTX 3050", "NVIDIA GeForce RTX 3050 8GB"),
        ("RTX 3050 6GB", "NVIDIA GeForce RTX 3050 6GB"),
        ("Tesla T4", "Tesla T4"),
        ("NVIDIA RTX 6000 Ada Generation", "NVIDIA RTX 6000 Ada Generation"),
        ("RTX PRO 6000", "NVIDIA RTX PRO 6000 Blackwell Workstation Edition"),
    ],
)
def test_a_card_by_any_name(given: str, name: str) -> None:
    assert cards.by_name(given).name == name


@pytest.mark.parametrize("name", cards.names())
def test_every_card_is_found_by_its_own_name(name: str) -> None:
    assert cards.by_name(name).name == name


@pytest.mark.parametrize(
    ("device", "subsystem", "printed", "name"),
    [
        ("1e30", "10de:129e", "", "Quadro RTX 8000"),
        ("1e30", "10de:12ba", "", "Quadro RTX 6000"),
        ("2507", "1043:8a12", "NVIDIA GeForce RTX 3050", "NVIDIA GeForce RTX 3050 8GB"),
    ],
)
def test_a_card_by_its_pci_id(device: str, subsystem: str, printed: str, name: str) -> None:
    found = cards.by_pci(device, subsystem, printed)
    assert found is not None
    assert found.name == name


def test_an_unknown_card_is_told_its_neighbours(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--gpu", "RTX 5091"]) == 2
    said = capsys.readouterr().err
    assert "no card 'RTX 5091'" in said
    assert "NVIDIA GeForce RTX 5090" in said


def test_a_model_that_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    code, plan = told(capsys, "--gpu", "RTX 3050", "--model", "Qwen/Qwen3-14B")
    assert (code, plan["engine"], plan["memory"]) == (1, None, None)
    (refusal,) = plan["refusals"]
    assert "27.5 GiB of weights" in refusal
    assert "What would fit" in refusal


def test_a_model_by_its_own_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {
        "model_type": "llama", "num_hidden_layers": 16, "hidden_size": 2048, "vocab_size": 32000,
        "num_attention_heads": 16, "intermediate_size": 8192, "max_position_embeddings": 8192,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    code, plan = told(capsys, "--gpu", "RTX 3060", "--model", str(tmp_path))
    assert code == 0
    assert plan["engine"]["max_model_len"] == 8192


@pytest.mark.parametrize("text", ["", "[]", "{}", "{"])
def test_a_file_that_is_no_model(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(text)
    assert main(["--gpu", "RTX 3060", "--model", str(tmp_path)]) == 2
    assert "config.json" in capsys.readouterr().err


def test_a_model_that_nobody_knows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--gpu", "RTX 3060", "--model", "nobody/nothing"]) == 2
    assert "Fetch its config.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "code", "card", "reason"),
    [
        ("rtx-3050", 0, "NVIDIA GeForce RTX 3050 8GB", ""),
        ("rtx-5090", 0, "NVIDIA GeForce RTX 5090", ""),
        ("two-rtx-5090", 0, "NVIDIA GeForce RTX 5090", ""),
        ("mixed", 0, "NVIDIA GeForce RTX 5090", ""),
        ("h100", 0, "NVIDIA H100 80GB HBM3", ""),
        ("no-gpu", 1, "", "no NVIDIA card"),
        ("foreign", 1, "", "1002:744c is not from NVIDIA"),
        ("unknown", 1, "", "does not know NVIDIA's ffff"),
    ],
)
def test_a_machine_by_its_profile(
    name: str, code: int, card: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ended, plan = told(capsys, "--machine", str(MACHINES / name / "machine.yml"))
    assert ended == code
    assert (plan["machine"]["gpus"][0]["name"] if card else "") == card
    assert reason in " ".join(plan["refusals"] + plan["reasons"])


def test_a_machine_by_what_was_observed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = {
        "gpus": [
            {
                "pci_address": "0000:41:00.0", "vendor": "10de", "device": "ffff",
                "name": "NVIDIA RTX 9999", "uuid": "GPU-1", "memory_mib": 49152,
                "compute_capability": "14.0",
            }
        ],
        "cpu": {"cores": 32}, "memory_mib": 131072,
        "system": {"distribution": "Ubuntu", "version": "24.04"},
    }  # fmt: skip
    file = tmp_path / "facts.json"
    file.write_text(json.dumps(seen))
    code, plan = told(capsys, "--machine", str(file))
    assert code == 0
    assert plan["engine"]["gpus"] == ["GPU-1"]
    assert plan["machine"]["system"] == "Ubuntu 24.04"
    assert plan["driver"]["source"] == "distribution"


@pytest.mark.parametrize("text", ["- 1", "gpus: 3", "pci: x", "{", "a: [", "gpus: [{}]"])
def test_a_file_that_is_no_machine(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "machine.yml"
    file.write_text(text)
    assert main(["--machine", str(file)]) == 2
    assert capsys.readouterr().err.startswith("millrace plan: ")


@pytest.mark.parametrize(
    "words",
    [
        [], ["--gpu", "L4", "--machine", "x"], ["--machine", "x", "--count", "2"],
        ["--gpu", "L4", "--count", "0"], ["--gpu", "L4", "--gpu-memory-utilization", "2"],
        ["--gpu", "L4", "--max-model-len", "long"],
    ],
)  # fmt: skip
def test_words_that_make_no_sense(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2


def test_a_split_says_how_many_cards_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    _, plan = told(capsys, "--gpu", "H100", "--model", "Qwen/Qwen3-32B", "-tp", "4")
    assert len(plan["machine"]["gpus"]) == 4
    assert plan["engine"]["tensor_parallel_size"] == 4


def test_a_context_as_people_write_it(capsys: pytest.CaptureFixture[str]) -> None:
    _, plan = told(capsys, "--gpu", "H100", "--model", "Qwen/Qwen3-8B", "--max-model-len", "16k")
    assert plan["engine"]["max_model_len"] == 16384


@pytest.mark.parametrize("width", [60, 100])
def test_the_page(width: int, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["--gpu", "RTX 3090", "--count", "3", "--model", "Qwen/Qwen3-8B"]) == 0
    page = capsys.readouterr().out
    for word in ("Machine", "Engine", "Memory of each card", "Driver", "Workers", "Why"):
        assert f"\n{word}" in f"\n{page}"
    reasons = page[page.index("\nWhy") :].splitlines()
    assert all(len(line) <= width for line in reasons)


def test_it_answers_in_under_a_second() -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "app")}
    words = [sys.executable, "-m", "planner", "--gpu", "RTX 3050", "--model", "openai/gpt-oss-120b"]
    took = []
    for _ in range(3):
        began = time.monotonic()
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
        took.append(time.monotonic() - began)
        assert done.returncode == 1, done.stderr
    assert min(took) < 1


@pytest.mark.parametrize("name", sorted(path.name for path in MACHINES.iterdir()))
def test_a_swapped_card_is_observed_and_planned_as_its_profile_says(
    name: str, tmp_path: Path
) -> None:
    """From the kernel's files, as a sandbox server shows them, through the module to the plan."""
    profile = yaml.safe_load((MACHINES / name / "machine.yml").read_text(encoding="utf-8"))
    sandbox_machine().build(profile, tmp_path / "sys/bus/pci/devices")
    seen = gpu_hardware.observe(tmp_path, [])
    observed = decide(from_facts({**seen, "cpu": {"cores": 8}, "memory_mib": 65536}))
    told = decide(from_profile(profile, cores=8, ram_gib=64))
    assert observed["engines"] == told["engines"]
    assert observed["memories"] == told["memories"]
    assert observed["refusals"] == told["refusals"]


def sandbox_machine() -> Any:
    """Return what makes the kernel's files of a sandbox server."""
    folder = ROOT / "roles/sandbox/files"
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("millrace_sandbox.machine")
    finally:
        sys.path.remove(str(folder))


def test_a_true_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """What the hardware module read on a rented H100, its driver running."""
    code, plan = told(capsys, "--machine", str(MACHINES / "h100/facts.json"))
    assert code == 0
    (gpu,) = plan["machine"]["gpus"]
    # torch saw 79.1787 GiB there: of what a plan gives away, a hundredth more would be missed.
    assert gpu["memory_gib"] == pytest.approx(79.1787, abs=0.02)
    assert (gpu["compute_capability"], gpu["pci_address"]) == ("9.0", "0000:00:06.0")
    assert plan["engine"]["gpus"] == [gpu["uuid"]]
    assert plan["driver"]["flavour"] == "open"
    assert plan["driver"]["branch"] == "580"
    assert plan["refusals"] == []


@pytest.mark.parametrize(
    ("model", "one", "crowd"),
    # docs/measurements.md: tokens a second of one reader, and of 64.
    [
        ("Qwen/Qwen3-8B", 146, 5714),
        ("meta-llama/Llama-3.1-8B-Instruct", 154, 5436),
        ("Qwen/Qwen3-30B-A3B", 210, 3813),
    ],
)
def test_the_pace_is_about_what_was_measured(
    model: str, one: float, crowd: float, capsys: pytest.CaptureFixture[str]
) -> None:
    _, plan = told(capsys, "--machine", str(MACHINES / "h100/facts.json"), "--model", model)
    pace = plan["engine"]["tokens_per_second"]
    assert pace["one"] == pytest.approx(one, rel=0.1)
    assert pace["all"] == pytest.approx(crowd, rel=0.2)
