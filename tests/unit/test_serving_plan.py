"""Decide: the plan's shape, and the order of its timeouts."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from hypothesis import given
from hypothesis import strategies as st
from serving_plan import FilterModule, model_source, serving_plan, timeout_budget

SETTINGS: dict[str, Any] = {
    "device": "cuda",
    "model": "Qwen/Qwen3-0.6B",
    "model_revision": "",
    "served_name": "",
    "max_model_len": 0,
    "max_num_seqs": 64,
    "kv_cache_mib": 3072,
    "engine_port": 8001,
    "gateway_port": 4100,
    "models_dir": "/var/lib/millrace/models",
    "engine_arguments": {},
    "cores": 16,
}


def engine(**changes: Any) -> dict[str, Any]:
    """Return the one engine of the plan for `SETTINGS` with `changes`."""
    (found,) = serving_plan({**SETTINGS, **changes})["engines"]
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
    plan = serving_plan(SETTINGS)
    assert set(plan) == {"version", "engines", "gateway", "backend", "budget"}
    assert plan["version"] == 1
    assert set(plan["gateway"]) == {"port", "workers"}
    assert set(plan["backend"]) == {"workers"}
    assert set(engine()) == {"name", "device", "model", "port", "arguments", "environment"}
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
    assert set(cpu["arguments"]) - set(cuda["arguments"]) == {
        "enforce-eager",
        "kv-cache-memory-bytes",
    }
    assert cpu["environment"] == cuda["environment"]


def test_only_the_built_in_model_is_slowed_down() -> None:
    recital, other = engine(model="recital"), engine(model="/srv/models/recital-2")
    assert recital["arguments"]["logits-processors"] == ["recital_pace:Pace"]
    assert "logits-processors" not in other["arguments"]
    assert int(recital["environment"]["RECITAL_STEP_MILLISECONDS"]) > 0
    assert set(other["environment"]) == set(engine()["environment"])


def test_the_context_is_the_engines_choice_unless_set() -> None:
    assert "max-model-len" not in engine()["arguments"]
    assert engine(max_model_len="4096")["arguments"]["max-model-len"] == 4096


def test_an_owners_flags_win() -> None:
    flags = {"max-num-seqs": 7, "tensor-parallel-size": 2}
    arguments = engine(engine_arguments=flags)["arguments"]
    assert {k: arguments[k] for k in flags} == flags


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
        ("nginx_pool_seconds", "backend_keepalive_seconds"),
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
    plan = serving_plan({**SETTINGS, "cores": cores})
    assert 1 <= plan["gateway"]["workers"] <= 4
    assert 1 <= plan["backend"]["workers"] <= 4


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
    plan = serving_plan(settings)
    assert settings == before
    assert json.loads(json.dumps(plan)) == plan == serving_plan(settings)


def test_changing_a_plan_does_not_change_the_next_one() -> None:
    first = serving_plan(SETTINGS)
    first["budget"].clear()
    first["engines"][0]["arguments"].clear()
    assert serving_plan(SETTINGS)["budget"] == timeout_budget()
    assert SETTINGS["engine_arguments"] == {}


def test_the_filters_are_found_by_name() -> None:
    assert set(FilterModule().filters()) == {"serving_plan", "model_source"}
