"""A mistyped or malformed setting is found before anything is changed."""

from __future__ import annotations

from typing import Any

import pytest
from settings_problems import settings_problems

SPECS: dict[str, dict[str, Any]] = {
    "vllm": {
        "vllm_model": {"type": "str", "default": "recital", "description": "The model."},
        "vllm_device": {"type": "str", "choices": ["cuda", "cpu"], "default": "cuda"},
        "vllm_start_seconds": {"type": "int", "default": 1800},
        "vllm_engine_key": {"type": "str", "no_log": True},
    },
    "tls": {"tls_domains": {"type": "list", "elements": "str", "default": []}},
    "backend": {
        "backend_client_keys": {"type": "dict", "default": {}, "no_log": True},
        "backend_name": {"type": "str", "required": True},
    },
}
WIRING = ["millrace_wheelhouse", "millrace_secrets_dir"]
SECRET = "hunter2-hunter2-hunter2"


def test_right_settings_pass() -> None:
    settings = {
        "vllm_model": "a/b",
        "vllm_device": "cpu",
        "vllm_start_seconds": 60,
        "vllm_engine_key": SECRET,
        "tls_domains": ["a.example"],
        "backend_client_keys": {"owner": SECRET},
        "millrace_wheelhouse": "/srv/wheels",
        "__vllm_engine": {},
    }
    assert settings_problems(settings, SPECS, WIRING) == []


def test_nothing_set_is_right_even_what_is_required() -> None:
    assert settings_problems({}, SPECS, WIRING) == []


def test_numbers_may_be_written_as_text() -> None:
    assert settings_problems({"vllm_start_seconds": "60"}, SPECS) == []


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("vllm_modle", "vllm_model"),
        ("vllm_start_second", "vllm_start_seconds"),
        ("millrace_wheelhuose", "millrace_wheelhouse"),
        ("tls_domain", "tls_domains"),
    ],
)
def test_a_mistyped_name_is_told_with_the_right_one(wrong: str, meant: str) -> None:
    (problem,) = settings_problems({wrong: "x"}, SPECS, WIRING)
    assert problem == f"{wrong}: no role knows this setting. Did you mean {meant}?"


def test_an_unknown_name_gets_no_far_fetched_suggestion() -> None:
    (problem,) = settings_problems({"nginx_zzzzzzzzzz": 1}, SPECS, WIRING)
    assert problem == "nginx_zzzzzzzzzz: no role knows this setting."


def test_a_wrong_type_names_the_setting_and_its_role() -> None:
    (problem,) = settings_problems({"vllm_start_seconds": "soon"}, SPECS)
    assert problem.startswith("vllm: ")
    assert "vllm_start_seconds" in problem
    assert "int" in problem


def test_a_list_of_the_wrong_things_is_found() -> None:
    (problem,) = settings_problems({"tls_domains": {"a.example": 1}}, SPECS)
    assert "tls_domains" in problem


def test_a_bad_choice_names_the_good_ones() -> None:
    (problem,) = settings_problems({"vllm_device": "gpu"}, SPECS)
    for word in ("vllm_device", "cuda", "cpu", "gpu"):
        assert word in problem


def test_the_value_of_a_secret_is_never_told() -> None:
    settings = {
        "backend_client_keys": SECRET,  # not a dictionary
        "vllm_engine_key": {"key": SECRET},  # not text
        "vllm_engine_kye": SECRET,
    }
    problems = settings_problems(settings, SPECS)
    assert not [line for line in problems if SECRET in line]
    told = [line.split(":")[0] for line in problems]
    assert "backend_client_keys" in told
    assert "vllm_engine_kye" in told


def test_all_problems_are_told_at_once_in_order() -> None:
    settings = {"vllm_device": "gpu", "vllm_modle": "x", "tls_domian": [], "vllm_start_seconds": []}
    problems = settings_problems(settings, SPECS, WIRING)
    assert [line.split(":")[0] for line in problems] == ["tls_domian", "vllm_modle", "vllm", "vllm"]


class Lazy(dict[str, Any]):
    """As Ansible's containers: a deep copy would drag all variables along."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Lazy:
        raise AssertionError("copied deeply, which costs seconds in a real run")


def test_what_ansible_templates_is_not_copied_deeply() -> None:
    specs = Lazy(tls=Lazy(tls_domains=Lazy(type="list", options=Lazy()), tls_map=Lazy(type="dict")))
    assert settings_problems(Lazy(tls_domains=[Lazy(a=1)], tls_map=Lazy()), specs) == []
