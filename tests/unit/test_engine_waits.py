"""How the engine's processes wait, with vLLM's two modules that it touches made up here.

Whether vLLM itself takes it is seen on the servers: tests/host/test_api.py and
test_models.py.
"""

from __future__ import annotations

import configparser
import importlib
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from gateway import engine_waits

PLUGIN = Path(__file__).resolve().parents[2] / "roles/vllm/files/millrace_engine.dist-info"


def no_rest() -> None:
    """Stand for vLLM's own way."""


def vllm(monkeypatch: pytest.MonkeyPatch, *, cpu: bool, **insides: object) -> ModuleType:
    """Put a vLLM of this kind where Python looks, and return its shm_broadcast."""
    platforms = ModuleType("vllm.platforms")
    vars(platforms)["current_platform"] = SimpleNamespace(is_cpu=lambda: cpu)
    communicators = ModuleType("vllm.distributed.device_communicators")
    broadcast = ModuleType("vllm.distributed.device_communicators.shm_broadcast")
    vars(broadcast).update(insides)
    vars(communicators)["shm_broadcast"] = broadcast
    for module in (platforms, communicators, broadcast):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in ("vllm", "vllm.distributed"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    return broadcast


def test_on_the_processor_it_sleeps_between_two_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    broadcast = vllm(monkeypatch, cpu=True, sched_yield=no_rest)
    engine_waits.install()
    began = time.thread_time(), time.monotonic()
    for _ in range(100):
        broadcast.sched_yield()
    worked, passed = time.thread_time() - began[0], time.monotonic() - began[1]
    assert passed >= 100 * engine_waits.SECONDS
    assert worked < 0.8 * passed


def test_beside_cards_it_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    broadcast = vllm(monkeypatch, cpu=False, sched_yield=no_rest)
    engine_waits.install()
    assert broadcast.sched_yield is no_rest


def test_another_vllm_is_refused_with_what_to_look_at(monkeypatch: pytest.MonkeyPatch) -> None:
    vllm(monkeypatch, cpu=True)
    with pytest.raises(RuntimeError, match=r"no sched_yield.*gateway\.engine_waits"):
        engine_waits.install()


def test_the_plugin_names_it() -> None:
    """By the group and the way that vLLM looks for plugins."""
    told = configparser.ConfigParser()
    told.read(PLUGIN / "entry_points.txt")
    (value,) = told["vllm.general_plugins"].values()
    module, _, name = value.partition(":")
    assert getattr(importlib.import_module(module), name) is engine_waits.install
    assert "Name: millrace-engine\n" in (PLUGIN / "METADATA").read_text()
