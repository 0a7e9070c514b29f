"""Every refusal of preflight, one by one, from a server that is well."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from preflight_problems import ENGINE_MIB, MARGIN_MIB, SERVICES_MIB, preflight_problems

ENGINE_KEY = "engine-key-" + "e" * 32
GATEWAY_KEY = "sk-" + "g" * 40
CLIENT_KEY = "client-key-" + "c" * 32
RELEASES, MODELS = "/opt/millrace", "/var/lib/millrace/models"
CURRENT = f"{RELEASES}/vllm/current"
GIB = 1 << 30

FACTS = {"distribution": "Debian", "distribution_version": "12", "architecture": "x86_64"}


def well() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return what is observed, known and decided of a fresh server that is well."""
    observed = {
        "user_id": 0,
        "python_version": "3.11",
        "listeners": {},
        "space": {
            RELEASES: {"exists": False, "free_mib": 200_000, "device": 1},
            MODELS: {"exists": False, "free_mib": 200_000, "device": 1},
            CURRENT: {"exists": False, "free_mib": 200_000, "device": 1},
        },
        "memory_mib": 64_000,
        "unreachable": [],
        "model": {"problem": "", "bytes": 2 * GIB, "revision": "abc", "present": False},
    }
    decided = {
        "device": "cuda",
        "driver_problem": "",
        "model": {"source": "hub", "id": "owner/name", "revision": "", "path": f"{MODELS}/o--n"},
        "kv_cache_mib": 4096,
        "folders": {"releases": RELEASES, "models": MODELS},
        "secrets": {
            "engine": ENGINE_KEY,
            "gateway": GATEWAY_KEY,
            "streamcheck": "s" * 48,
            "session": "s" * 48,
            "clients": {"owner": CLIENT_KEY},
        },
    }
    return observed, dict(FACTS), decided


def refuse(change: dict[str, Any]) -> str:
    """Return the one problem of a well server after `change`, keyed by dotted paths."""
    (problem,) = refusals(change)
    return problem


def refusals(change: dict[str, Any]) -> list[str]:
    """Return the problems of a well server after `change`."""
    observed, facts, decided = well()
    at = {"observed": observed, "facts": facts, "decided": decided}
    for path, value in change.items():
        *way, last = path.split(".")
        target: Any = at
        for step in way:
            target = target[step]
        target[last] = value
    problems = preflight_problems(observed, facts, decided)
    for secret in (ENGINE_KEY, GATEWAY_KEY, CLIENT_KEY):
        assert not [line for line in problems if secret in line]
    return problems


def test_a_server_that_is_well_has_no_problem() -> None:
    assert refusals({}) == []


@pytest.mark.parametrize(
    ("name", "version"), [("Debian", "12"), ("Debian", "13"), ("Debian", "12.5"),
                          ("Ubuntu", "24.04"), ("Debian", 13)],
)  # fmt: skip
def test_supported_systems_pass(name: str, version: Any) -> None:
    assert refusals({"facts.distribution": name, "facts.distribution_version": version}) == []


@pytest.mark.parametrize(
    ("name", "version"), [("Debian", "11"), ("Debian", "1"), ("Debian", "120"), ("Ubuntu", "22.04"),
                          ("Ubuntu", "12"), ("AlmaLinux", "9.4"), ("Debian", "")],
)  # fmt: skip
def test_another_system_is_refused_with_those_that_work(name: str, version: str) -> None:
    problem = refuse({"facts.distribution": name, "facts.distribution_version": version})
    for word in (name, version, "Debian 12", "Debian 13", "Ubuntu 24.04"):
        assert word in problem


def test_another_processor_is_refused() -> None:
    assert "aarch64 is not supported" in refuse({"facts.architecture": "aarch64"})


def test_without_root_says_how_to_become_it() -> None:
    problem = refuse({"observed.user_id": 1000})
    assert "ansible_user: root" in problem
    assert "ansible_become" in problem


def test_an_old_python_is_refused() -> None:
    problem = refuse({"observed.python_version": "3.9"})
    assert "3.9" in problem
    assert "3.11" in problem


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "4.0"])
def test_a_python_new_enough_passes(version: str) -> None:
    assert refusals({"observed.python_version": version}) == []


def test_a_missing_python_is_refused() -> None:
    assert "install python3" in refuse({"observed.python_version": ""})


def test_a_port_taken_by_something_else_is_named_with_its_owner() -> None:
    problem = refuse(
        {"observed.listeners": {"443": {"process": "apache2", "unit": "apache2.service"}}}
    )
    for word in ("443", "apache2", "apache2.service", "stop"):
        assert word in problem


def test_a_port_taken_without_a_unit_is_told() -> None:
    problem = refuse({"observed.listeners": {"8001": {"process": "python3", "unit": ""}}})
    assert "python3 (no unit)" in problem


def test_taken_ports_are_told_in_order() -> None:
    owner = {"process": "x", "unit": ""}
    problems = refusals({"observed.listeners": {"8001": owner, "80": owner, "443": owner}})
    assert [line.split()[1] for line in problems] == ["80", "443", "8001"]


@pytest.mark.parametrize(
    ("process", "unit"),
    [
        ("nginx", "nginx.service"),
        ("python", "millrace-vllm@main.service"),
        ("litellm", "millrace-litellm.service"),
        ("systemd", "init.scope"),
    ],
)
def test_our_own_listeners_are_no_problem(process: str, unit: str) -> None:
    assert refusals({"observed.listeners": {"443": {"process": process, "unit": unit}}}) == []


@pytest.mark.parametrize("unit", ["nginx.service.d", "xmillrace-a.service", "not-nginx.service"])
def test_a_unit_that_only_looks_like_ours_is_not(unit: str) -> None:
    assert refusals({"observed.listeners": {"443": {"process": "x", "unit": unit}}}) != []


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        ("missing", ["no folder owner/name", "Copy the model"]),
        ("no_config", ["owner/name holds no config.json"]),
        ("http_401", ["owner/name", "vault_millrace_hub_token", "Check the name"]),
        ("http_403", ["owner/name", "accept the model's terms"]),
        ("http_404", ["owner/name at revision main", "vllm_model_revision"]),
        ("unreachable", ["cannot be reached", "no route to host", "give its path"]),
        ("http_503", ["answered http_503 for owner/name", "try again later"]),
    ],
)
def test_each_trouble_with_the_model_says_what_to_do(seen: str, words: list[str]) -> None:
    problem = refuse({"observed.model": {"problem": seen, "detail": "no route to host"}})
    assert problem.startswith("vllm_model: ")
    for word in words:
        assert word in problem


def test_too_little_disk_says_how_much() -> None:
    need = ENGINE_MIB["cuda"] + SERVICES_MIB + 2048 + MARGIN_MIB
    space = "observed.space."
    assert refusals({f"{space}{RELEASES}.free_mib": need}) == []
    problem = refuse({f"{space}{RELEASES}.free_mib": need - 1})
    for word in (RELEASES, f"{need} MiB", f"{need - 1} MiB", "smaller model"):
        assert word in problem


def test_too_little_disk_for_models_of_their_own_file_system() -> None:
    space = "observed.space."
    own = {f"{space}{MODELS}.device": 2}
    need = 2048 + MARGIN_MIB
    assert refusals({**own, f"{space}{MODELS}.free_mib": need}) == []
    problem = refuse({**own, f"{space}{MODELS}.free_mib": need - 1})
    assert MODELS in problem
    assert f"{need} MiB" in problem


def test_what_is_there_already_needs_no_room() -> None:
    full = {f"observed.space.{path}.free_mib": 0 for path in (RELEASES, MODELS)}
    there = {f"observed.space.{CURRENT}.exists": True, "observed.model.present": True}
    assert refusals({**full, **there}) == []
    assert refusals(full) != []


def test_a_cpu_engine_needs_less_room() -> None:
    need = ENGINE_MIB["cpu"] + SERVICES_MIB + 2048 + MARGIN_MIB
    assert ENGINE_MIB["cpu"] < ENGINE_MIB["cuda"]
    change = {"decided.device": "cpu", f"observed.space.{RELEASES}.free_mib": need}
    assert refusals(change) == []


def test_too_little_memory_for_weights_and_cache_on_a_cpu() -> None:
    need = 2048 + 2048 + 2048 + 4 * 1024
    cpu = {"decided.device": "cpu"}
    assert refusals({**cpu, "observed.memory_mib": need}) == []
    problem = refuse({**cpu, "observed.memory_mib": need - 1})
    for word in (f"{need} MiB", f"{need - 1} MiB", "KV cache", "smaller model"):
        assert word in problem


def test_on_a_gpu_the_weights_are_not_in_memory() -> None:
    assert refusals({"observed.memory_mib": 4096}) == []
    problem = refuse({"observed.memory_mib": 4095})
    assert "KV cache" not in problem


def test_no_route_to_a_package_source_names_the_other_way() -> None:
    problem = refuse({"observed.unreachable": ["pypi.example:443: timed out"]})
    assert "pypi.example:443: timed out" in problem
    assert "millrace_wheelhouse" in problem


MALFORMED = ["", "short", "e" * 31, "x" * 20 + " " + "x" * 20, "x" * 40 + "\n", "x" * 40 + "ü"]


@pytest.mark.parametrize("key", MALFORMED)
def test_a_malformed_engine_key_is_named_and_not_shown(key: str) -> None:
    problem = refuse({"decided.secrets.engine": key})
    assert "vault_millrace_engine_key" in problem
    assert not key or key not in problem


@pytest.mark.parametrize("key", [*MALFORMED, "k" * 40, "sk-" + "x" * 28])
def test_a_malformed_gateway_key_is_named_and_not_shown(key: str) -> None:
    problem = refuse({"decided.secrets.gateway": key})
    assert "vault_millrace_gateway_key" in problem
    assert not key or key not in problem


@pytest.mark.parametrize("key", MALFORMED)
def test_a_malformed_key_of_the_stream_check_is_named_and_not_shown(key: str) -> None:
    problem = refuse({"decided.secrets.streamcheck": key})
    assert "vault_millrace_streamcheck_key" in problem
    assert not key or key not in problem


@pytest.mark.parametrize("secret", MALFORMED)
def test_a_malformed_session_secret_is_named_and_not_shown(secret: str) -> None:
    problem = refuse({"decided.secrets.session": secret})
    assert "vault_millrace_session_secret" in problem
    assert not secret or secret not in problem


def test_the_stream_checks_name_is_taken() -> None:
    clients = {"owner": CLIENT_KEY, "streamcheck": "x" * 48}
    assert "stream check's own" in refuse({"decided.secrets.clients": clients})


@pytest.mark.parametrize("key", MALFORMED)
def test_a_malformed_client_key_is_named_and_not_shown(key: str) -> None:
    clients = {"owner": CLIENT_KEY, "phone": key}
    problem = refuse({"decided.secrets.clients": clients})
    assert "the key of phone" in problem
    assert not key or key not in problem


@pytest.mark.parametrize(
    ("client", "said"),
    [
        ({}, "the key of phone"),
        ({"key": "short"}, "the key of phone"),
        ({"key": "x" * 40, "expire": 1}, "phone has expire; what it may have is key, expires"),
        ({"key": "x" * 40, "expires": "soon"}, "expires of phone is a date such as"),
        ({"key": "x" * 40, "expires": 90}, "expires of phone is a date such as"),
        ({"key": "x" * 40, "models": "tiny"}, "models of phone is a list"),
        ({"key": "x" * 40, "models": []}, "models of phone is a list"),
        ({"key": "x" * 40, "limits": {"requests": 1}}, "limits of phone are requests_per_minute"),
        ({"key": "x" * 40, "limits": {"requests_per_minute": 0}}, "each a number from 1 up"),
        ({"key": "x" * 40, "limits": {"concurrent_streams": True}}, "each a number from 1 up"),
        ({"key": CLIENT_KEY}, "two clients share a key"),
    ],
)
def test_what_a_client_may_have_is_told(client: Any, said: str) -> None:
    problem = refuse({"decided.secrets.clients": {"owner": CLIENT_KEY, "phone": client}})
    assert said in problem
    assert CLIENT_KEY not in problem


def test_a_client_with_everything_is_right() -> None:
    more = {
        "key": "x" * 40,
        "expires": "2037-12-31",
        "models": ["tiny"],
        "limits": {"requests_per_minute": "60", "tokens_per_minute": 1, "concurrent_streams": 1},
    }
    clients = {"owner": CLIENT_KEY, "phone": more}
    assert not refusals({"decided.secrets.clients": clients})


@pytest.mark.parametrize("clients", [{}, [], "owner", None])
def test_without_a_client_nobody_could_use_the_service(clients: Any) -> None:
    assert "at least one client" in refuse({"decided.secrets.clients": clients})


def test_two_clients_with_one_key_could_not_be_told_apart() -> None:
    clients = {"owner": CLIENT_KEY, "phone": CLIENT_KEY}
    assert "two clients share a key" in refuse({"decided.secrets.clients": clients})


def test_all_problems_are_told_at_once() -> None:
    problems = refusals(
        {
            "observed.user_id": 1,
            "facts.architecture": "riscv64",
            "observed.listeners": {"80": {"process": "x", "unit": ""}},
            "observed.model": {"problem": "http_404"},
            "observed.memory_mib": 1,
            "observed.unreachable": ["a:1: no", "b:2: no"],
            "decided.secrets.engine": "",
        }
    )
    assert len(problems) == 8


def test_what_was_observed_is_not_changed() -> None:
    observed, facts, decided = well()
    before = copy.deepcopy((observed, facts, decided))
    preflight_problems(observed, facts, decided)
    assert (observed, facts, decided) == before


def test_a_driver_that_cannot_serve() -> None:
    assert refuse({"decided.driver_problem": "no NVIDIA driver runs"}) == "no NVIDIA driver runs."
