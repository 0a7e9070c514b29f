"""Decide: the plan's shape, and the order of its timeouts."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from hypothesis import given
from hypothesis import strategies as st
from planner.budget import timeout_budget
from planner.serving import RECITAL_CONFIG
from serving_plan import FilterModule, model_source, serving_plan

ROOT = Path(__file__).resolve().parents[2]

SETTINGS: dict[str, Any] = {
    "device": "cuda",
    "model": "Qwen/Qwen3-0.6B",
    "model_revision": "",
    "served_name": "",
    "max_model_len": 0,
    "max_num_seqs": 0,
    "kv_cache_mib": 3072,
    "engine_port": 8001,
    "gateway_port": 4100,
    "metrics_port": 9464,
    "models_dir": "/var/lib/millrace/models",
    "engine_arguments": {},
    "cores": 16,
}
UUID = "GPU-11111111-2222-3333-4444-555555555555"
CARD: dict[str, Any] = {"pci_address": "0000:01:00.0", "vendor": "10de", "device": "2204"}
HARDWARE: dict[str, Any] = {
    "gpus": [CARD],
    "cpu": {"cores": 16},
    "memory_mib": 65536,
    "system": {"distribution": "Debian", "version": "12"},
}


def with_driver(*uuids: str) -> dict[str, Any]:
    """Return HARDWARE as a running driver describes it, with a card for each UUID."""
    told = {"name": "NVIDIA GeForce RTX 3090", "memory_mib": 24576, "compute_capability": "8.6"}
    cards = [
        {**CARD, **told, "uuid": uuid, "pci_address": f"0000:0{n}:00.0"}
        for n, uuid in enumerate(uuids, 1)
    ]
    return {**HARDWARE, "gpus": cards}


def engine(**changes: Any) -> dict[str, Any]:
    """Return the one engine of the plan for `SETTINGS` with `changes`."""
    (found,) = serving_plan({**SETTINGS, **changes}, HARDWARE)["engines"]
    return dict(found)


def test_the_built_in_model_has_no_revision() -> None:
    assert model_source("recital", "abc") == {
        "source": "builtin", "id": "recital", "revision": "", "slug": "recital",
    }  # fmt: skip


def test_a_path_is_taken_as_it_is() -> None:
    found = model_source("/srv/models/Tiny-1B/", "abc")
    assert found == {
        "source": "path", "id": "/srv/models/Tiny-1B", "revision": "", "slug": "Tiny-1B",
    }  # fmt: skip


def test_a_hub_model_keeps_its_revision() -> None:
    assert model_source("Qwen/Qwen3-0.6B", "c1899de") == {
        "source": "hub", "id": "Qwen/Qwen3-0.6B", "revision": "c1899de", "slug": "Qwen--Qwen3-0.6B",
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["", "qwen", "a/b/c", "../etc", "a/../b", "./model", "Qwen/Qwen3 8B", "a/b;rm", "-a/b", "a/-b",
     "https://huggingface.co/a/b", "a/b\n"],
)  # fmt: skip
def test_nonsense_is_refused_with_the_three_ways_named(name: str) -> None:
    with pytest.raises(AnsibleFilterError) as refused:
        model_source(name)
    message = str(refused.value)
    assert repr(name) in message
    for way in ("recital", "owner/name", "absolute path"):
        assert way in message


@given(st.text(max_size=40))
def test_a_slug_is_always_one_safe_folder_name(name: str) -> None:
    try:
        found = model_source(name)
    except AnsibleFilterError:
        return
    if found["source"] == "hub":
        assert "/" not in found["slug"]
        assert not found["slug"].startswith((".", "-"))


def test_the_plan_has_the_shape_that_roles_render() -> None:
    plan = serving_plan(SETTINGS, HARDWARE)
    assert set(plan) == {
        "version", "engines", "gateway", "backend", "budget", "hardware", "decided", "refusals",
        "driver_problem",
    }  # fmt: skip
    assert set(plan) == set(serving_plan({**SETTINGS, "device": "cpu"}, {}))
    assert plan["version"] == 4
    assert plan["refusals"] == []
    assert set(plan["gateway"]) == {"port", "workers"}
    assert set(plan["backend"]) == {"workers", "streams", "metrics_ports"}
    assert plan["backend"]["metrics_ports"] == {"a": 9464, "b": 9465}
    assert set(engine()) == {
        "name", "device", "model", "port", "weight", "kv_cache_tokens", "arguments", "environment",
    }  # fmt: skip
    assert set(engine()["model"]) == {"source", "id", "revision", "slug", "path", "served_name"}
    assert plan["budget"] == timeout_budget()
    assert all(name.endswith("_seconds") for name in plan["budget"])
    assert all(isinstance(v, int) and v > 0 for v in plan["budget"].values())


def test_the_engine_listens_on_loopback_only() -> None:
    arguments = engine(engine_port="8123")["arguments"]
    assert (arguments["host"], arguments["port"]) == ("127.0.0.1", 8123)
    assert engine()["environment"]["VLLM_HOST_IP"] == "127.0.0.1"


def test_the_engine_beats_and_drains_as_the_budget_says() -> None:
    budget = timeout_budget()
    arguments, environment = engine()["arguments"], engine()["environment"]
    assert arguments["sse-keep-alive-interval"] == budget["heartbeat_seconds"]
    assert arguments["shutdown-timeout"] == budget["drain_seconds"]
    keepalive = str(budget["engine_keepalive_seconds"])
    assert environment["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"] == keepalive


def test_only_a_cpu_engine_is_eager_and_told_its_cache() -> None:
    cpu, cuda = engine(device="cpu"), engine(device="cuda")
    assert cpu["arguments"]["enforce-eager"] is True
    assert cpu["arguments"]["kv-cache-memory-bytes"] == 3072 * 1024 * 1024
    assert cpu["arguments"]["max-num-seqs"] == 64
    assert set(cpu["arguments"]) - set(cuda["arguments"]) == {
        "enforce-eager",
        "kv-cache-memory-bytes",
    }
    assert set(cuda["environment"]) - set(cpu["environment"]) == {
        "CUDA_DEVICE_ORDER", "VLLM_USE_FLASHINFER_SAMPLER",
    }  # fmt: skip
    assert cuda["environment"]["VLLM_USE_FLASHINFER_SAMPLER"] == "0", "it wants nvcc and ninja"
    assert set(cpu["environment"]) - set(cuda["environment"]) == {"TORCHDYNAMO_DISABLE"}


def test_an_engine_on_a_card_is_told_all_that_was_planned() -> None:
    arguments = engine()["arguments"]
    assert arguments["gpu-memory-utilization"] > 0.9
    assert arguments["dtype"] == "bfloat16"
    assert arguments["max-num-batched-tokens"] == 2048
    assert "tensor-parallel-size" not in arguments


def test_cards_are_named_by_what_does_not_change() -> None:
    (found,) = serving_plan(SETTINGS, with_driver(UUID, UUID + "b"))["engines"]
    assert found["environment"]["CUDA_VISIBLE_DEVICES"] == f"{UUID},{UUID}b"
    assert found["arguments"]["data-parallel-size"] == 2
    assert "CUDA_VISIBLE_DEVICES" not in engine()["environment"], "without a driver none is known"


@pytest.mark.parametrize(
    ("driver", "problem"),
    [
        ({"module_version": "580.95.05", "library_version": "580.95.05"}, ""),
        ({"module_version": "595.45.04"}, ""),
        ({}, "no NVIDIA driver runs"),
        ({"module_version": "580.65.06", "library_version": "580.95.05"}, "reboot"),
        ({"module_version": "535.309.01", "library_version": "535.309.01"}, "580.65 or newer"),
    ],
)
def test_the_driver_that_runs(driver: dict[str, str], problem: str) -> None:
    own = {**SETTINGS, "driver": {"source": "none"}}
    told = serving_plan(own, {**HARDWARE, "driver": driver})["driver_problem"]
    assert problem in told if problem else told == ""
    kits = serving_plan(SETTINGS, {**HARDWARE, "driver": driver})
    assert kits["driver_problem"] == "", "any but an owner's is the kit's to mend"


OTHER = {"pci_address": "0000:02:00.0", "vendor": "10de", "device": "2b85"}


def test_cards_of_another_kind_get_an_engine_of_their_own() -> None:
    plan = serving_plan(SETTINGS, {**HARDWARE, "gpus": [CARD, OTHER]})
    first, second = plan["engines"]
    assert (first["name"], second["name"]) == ("main", "engine2")
    assert (first["port"], second["port"]) == (8001, 8002)
    assert first["model"] == second["model"]
    assert first["weight"] > second["weight"] > 0, "a 5090 takes more than a 3090"
    assert first["kv_cache_tokens"] != second["kv_cache_tokens"]
    by_place = {c["pci_address"]: c["engine"] for c in plan["hardware"]["cards"]}
    assert by_place == {"0000:01:00.0": "engine2", "0000:02:00.0": "main"}


def test_whichever_engine_answers_the_context_is_the_same() -> None:
    small = {"pci_address": "0000:02:00.0", "vendor": "10de", "device": "2507"}
    plan = serving_plan(SETTINGS, {**HARDWARE, "gpus": [CARD, small]})
    lengths = {engine["arguments"]["max-model-len"] for engine in plan["engines"]}
    assert len(plan["engines"]) == 2
    assert len(lengths) == 1
    # Where it would be much shorter for all, the smaller card stays idle.
    plan = serving_plan({**SETTINGS, "model": "Qwen/Qwen3-4B"}, {**HARDWARE, "gpus": [CARD, small]})
    assert len(plan["engines"]) == 1
    assert any("stays idle" in line for line in plan["decided"]["reasons"])


def test_an_owner_may_leave_the_model_to_the_planner() -> None:
    plan = serving_plan({**SETTINGS, "model": ""}, HARDWARE)
    assert plan["engines"][0]["model"]["source"] == "hub"
    assert any(plan["engines"][0]["model"]["id"] in line for line in plan["decided"]["reasons"])
    on_cpu = serving_plan({**SETTINGS, "model": "", "device": "cpu"}, {})
    assert on_cpu["engines"][0]["model"]["id"] == "recital"


def test_a_model_of_which_nothing_is_known_is_refused_with_what_to_do() -> None:
    plan = serving_plan({**SETTINGS, "model": "owner/unheard-of"}, HARDWARE)
    assert "unheard-of" in plan["refusals"][0]
    assert "config.json" in plan["refusals"][0]
    read = {"num_hidden_layers": 2, "hidden_size": 256, "vocab_size": 1000}
    known = serving_plan({**SETTINGS, "model": "owner/unheard-of", "model_config": read}, HARDWARE)
    assert known["refusals"] == []


def test_without_a_card_there_is_a_reason_and_a_way_out() -> None:
    plan = serving_plan(SETTINGS, {**HARDWARE, "gpus": []})
    assert "vllm_device to cpu" in plan["refusals"][0]


def test_the_built_in_model_is_as_planned() -> None:
    """The plan needs its dimensions before it is made."""
    source = (ROOT / "roles/vllm/files/recital/build.py").read_text(encoding="utf-8")
    real = {name: int(n) for name, n in re.findall(r"^([A-Z_]+) = (\d+)", source, re.MULTILINE)}
    assert RECITAL_CONFIG["vocab_size"] == real["VOCABULARY"]
    assert RECITAL_CONFIG["max_position_embeddings"] == real["CONTEXT_TOKENS"]
    assert RECITAL_CONFIG["hidden_size"] == real["HEAD_SIZE"] * 2


def test_only_the_built_in_model_is_slowed_down_and_held_to_its_tools() -> None:
    own = {"num_hidden_layers": 2, "hidden_size": 256, "vocab_size": 1000}
    recital = engine(model="recital")
    other = engine(model="/srv/models/recital-2", model_config=own)
    assert recital["arguments"]["logits-processors"] == ["recital_pace:Pace"]
    assert "logits-processors" not in other["arguments"]
    assert int(recital["environment"]["RECITAL_STEP_MILLISECONDS"]) > 0
    assert recital["arguments"]["tool-call-parser"]
    assert "tool-call-parser" not in other["arguments"]
    assert set(other["environment"]) == set(engine()["environment"])


def test_the_context_is_the_planners_choice_unless_set() -> None:
    assert engine()["arguments"]["max-model-len"] == 40960, "all that the model was made for"
    assert engine(max_model_len="4096")["arguments"]["max-model-len"] == 4096
    assert "max-model-len" not in engine(device="cpu")["arguments"]


def test_an_owners_flags_win() -> None:
    flags = {"max-num-seqs": 7, "max-model-len": 512, "seed": 3}
    arguments = engine(engine_arguments=flags, max_model_len=1024)["arguments"]
    assert {k: arguments[k] for k in flags} == flags


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("model", ["recital", "Qwen/Qwen3-0.6B", "openai/gpt-oss-20b"])
def test_no_plan_runs_what_a_model_brings(model: str, device: str) -> None:
    """Its code, its files of this server, and tools that the engine itself would run."""
    given = engine(device=device, model=model)["arguments"]
    for flag in ("trust-remote-code", "allowed-local-media-path", "tool-server", "hf-overrides",
                 "tool-parser-plugin", "enable-lora", "worker-extension-cls"):  # fmt: skip
        assert flag not in given
    assert given["host"] == "127.0.0.1"


def test_an_owners_flag_that_cannot_be_is_refused() -> None:
    plan = serving_plan({**SETTINGS, "engine_arguments": {"tensor-parallel-size": 2}}, HARDWARE)
    assert "needs 2 cards" in plan["refusals"][0]


@pytest.mark.parametrize(
    ("changes", "name", "path"),
    [
        ({}, "Qwen3-0.6B", "/var/lib/millrace/models/Qwen--Qwen3-0.6B"),
        ({"model": "recital"}, "recital", "/var/lib/millrace/models/recital"),
        ({"model": "/srv/models/Tiny/"}, "Tiny", "/srv/models/Tiny"),
        ({"served_name": "chat"}, "chat", "/var/lib/millrace/models/Qwen--Qwen3-0.6B"),
    ],
)
def test_served_name_and_path(changes: dict[str, Any], name: str, path: str) -> None:
    found = engine(**changes)
    assert found["model"]["served_name"] == found["arguments"]["served-model-name"] == name
    assert found["model"]["path"] == found["arguments"]["model"] == path


@pytest.mark.parametrize(
    ("pool", "server"),
    [
        ("gateway_pool_seconds", "engine_keepalive_seconds"),
        ("backend_pool_seconds", "gateway_keepalive_seconds"),
    ],
)
def test_each_pool_lets_go_before_the_server_behind_it_closes(pool: str, server: str) -> None:
    budget = timeout_budget()
    assert budget[pool] < budget[server]


def test_cloudflare_lets_go_of_an_idle_connection_before_nginx_does() -> None:
    assert timeout_budget()["client_keepalive_seconds"] > 900


def test_the_hop_nearest_to_a_fault_names_it() -> None:
    budget = timeout_budget()
    assert budget["gateway_read_seconds"] < budget["idle_seconds"]
    assert budget["idle_seconds"] < budget["longest_stream_seconds"]
    assert budget["first_byte_seconds"] < budget["longest_stream_seconds"]


def test_three_heartbeats_fit_in_cloudflares_patience() -> None:
    assert timeout_budget()["heartbeat_seconds"] * 3 < 100


@given(st.integers(min_value=-4, max_value=4096))
def test_workers_are_one_to_four(cores: int) -> None:
    plan = serving_plan({**SETTINGS, "device": "cpu", "cores": cores}, {})
    assert 1 <= plan["gateway"]["workers"] <= 4
    assert plan["backend"]["workers"] == 1


@given(
    device=st.sampled_from(["cpu", "cuda"]),
    model=st.sampled_from(["recital", "/srv/m", "a/b"]),
    flags=st.dictionaries(st.sampled_from(["seed", "max-num-seqs"]), st.integers(), max_size=2),
    # Ansible hands numbers over as text as often as not.
    cores=st.integers(1, 256).map(str),
    length=st.integers(0, 9999).map(str),
)
def test_the_plan_is_pure_and_can_be_written_down(
    device: str, model: str, flags: dict[str, int], cores: str, length: str
) -> None:
    settings = {
        **SETTINGS, "device": device, "model": model, "engine_arguments": flags, "cores": cores,
        "max_model_len": length,
    }  # fmt: skip
    before = copy.deepcopy(settings)
    plan = serving_plan(settings, HARDWARE)
    assert settings == before
    assert json.loads(json.dumps(plan)) == plan == serving_plan(settings, HARDWARE)


def test_changing_a_plan_does_not_change_the_next_one() -> None:
    first = serving_plan(SETTINGS, HARDWARE)
    first["budget"].clear()
    first["engines"][0]["arguments"].clear()
    assert serving_plan(SETTINGS, HARDWARE)["budget"] == timeout_budget()
    assert SETTINGS["engine_arguments"] == {}


def test_the_filters_are_found_by_name() -> None:
    assert set(FilterModule().filters()) == {
        "serving_plan", "model_source", "needs_own_config", "plan_page", "plan_change",
        "plan_measured",
    }  # fmt: skip
