"""A release is built whole or not at all; really, with pip, and without any network."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import io
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from python_release import Install, split
from unit_kit import clean_environment

Run = Callable[..., Any]


# Lock files ----------------------------------------------------------------------------------

LOCKED = """\
# Written by requirements/compile.py: do not edit.
numpy==2.3.0 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
torch==2.13.0+cpu \\
    --hash=sha256:cc
typing-extensions==4.15.0 ; python_version < "3.13" \\
    --hash=sha256:dd
torchvision==0.28.0+cpu --hash=sha256:ee
"""


def test_only_local_versions_go_to_the_other_index() -> None:
    main, local = split(LOCKED)
    assert [line.split("==")[0] for line in local.splitlines() if "==" in line] == [
        "torch", "torchvision",
    ]  # fmt: skip
    assert "--hash=sha256:cc" in local
    assert "--hash=sha256:ee" in local
    assert "torch" not in main
    for kept in ("numpy==2.3.0", "sha256:aa", "sha256:bb", "typing-extensions", "sha256:dd"):
        assert kept in main


def test_nothing_is_lost_or_doubled_by_the_split() -> None:
    main, local = split(LOCKED)
    assert sorted((main + local).split()) == sorted(LOCKED.split())


def test_a_lock_without_local_versions_stays_one() -> None:
    text = "a==1 \\\n    --hash=sha256:aa+bb\nb==2 --hash=sha256:cc\n"
    main, local = split(text)
    assert local == ""
    assert main == text


def test_the_projects_own_locks_survive_the_split() -> None:
    for lock in (Path(__file__).parents[2] / "requirements").glob("*.txt"):
        text = lock.read_text()
        main, local = split(text)
        assert sorted((main + local).split()) == sorted(text.split()), lock.name
        assert bool(local) == ("+cpu" in text), lock.name


# Progress ------------------------------------------------------------------------------------


def test_pips_lines_become_progress(tmp_path: Path) -> None:
    install = Install(tmp_path, 3)

    def told() -> str:
        return (tmp_path / ".progress").read_text().strip()

    install.read("Collecting numpy==2.3.0 (from -r main.txt (line 1))")
    assert told() == "1/3 packages: numpy"
    install.read("Progress 52428800 of 104857600")
    assert told() == "1/3 packages: numpy 50% of 100 MiB"
    install.read("Progress 10 of 100")  # not worth a word
    assert told() == "1/3 packages: numpy 50% of 100 MiB"
    for name in ("torch[x]", "a;b", "more"):
        install.read(f"  Collecting {name}")
    assert told() == "3/3 packages: more"
    install.read("Installing collected packages: numpy, torch")
    assert told() == "unpacking 3 packages"
    assert list(tmp_path.iterdir()) == [tmp_path / ".progress"]


def test_only_pips_last_words_are_kept(tmp_path: Path) -> None:
    install = Install(tmp_path, 1)
    for n in range(500):
        install.read(f"line {n}")
    assert install.tail[-1] == "line 499"
    assert len(install.tail) < 50


# Real builds ---------------------------------------------------------------------------------


def pack(folder: Path, name: str, version: str, files: dict[str, bytes]) -> str:
    """Write a wheel of `files` with a RECORD of its own; returns its SHA-256."""
    info = f"{name}-{version}.dist-info"
    rows = []
    for path, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest())
        rows.append(f"{path},sha256={digest.decode().rstrip('=')},{len(content)}")
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,", ""]).encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as wheel:
        for path, content in files.items():
            wheel.writestr(zipfile.ZipInfo(path), content)
    (folder / f"{name}-{version}-py3-none-any.whl").write_bytes(packed.getvalue())
    return hashlib.sha256(packed.getvalue()).hexdigest()


def pack_brook(folder: Path) -> str:
    """Write a wheel with one module that answers its version, and a template that is no Python."""
    info = "brook-1.0.dist-info"
    tag = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    return pack(folder, "brook", "1.0", {
        "brook.py": b"ANSWER = '1.0'\n",
        "brook_template.py": b"{{ answer }}\nis no Python",
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: brook\nVersion: 1.0\n",
        f"{info}/WHEEL": tag.encode(),
    })  # fmt: skip


@pytest.fixture(scope="session")
def pip_wheel(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Pack the pip that runs here into a wheel again, so that no network is needed for one."""
    installed = importlib.metadata.distribution("pip")
    if tuple(int(n) for n in installed.version.split(".")[:2]) < (24, 1):
        pytest.skip(f"pip {installed.version} here is older than the pinned one; use ./millrace")
    files = {
        str(file): Path(str(file.locate())).read_bytes()
        for file in installed.files or []
        if not str(file).startswith("..") and file.suffix != ".pyc" and file.name != "RECORD"
    }
    folder = tmp_path_factory.mktemp("pip")
    digest = pack(folder, "pip", installed.version, files)
    (wheel,) = folder.iterdir()
    return wheel, f"pip=={installed.version} --hash=sha256:{digest}\n"


class Release:
    """A release's folder with its lock files and a wheelhouse, as the role prepares them."""

    def __init__(self, folder: Path, run: Run, pip: tuple[Path, str]) -> None:
        self.run = run
        self.path = folder / "releases/abc"
        self.wheelhouse = folder / "wheels"
        self.wheelhouse.mkdir()
        self.path.mkdir(parents=True)
        shutil.copy(pip[0], self.wheelhouse)
        (self.path / "pip.txt").write_text(pip[1])
        self.hash = pack_brook(self.wheelhouse)
        self.lock(self.hash)

    def lock(self, digest: str) -> None:
        """Write the lock file."""
        (self.path / "requirements.txt").write_text(f"brook==1.0 \\\n    --hash=sha256:{digest}\n")

    def build(self, **more: Any) -> Any:
        """Run the module."""
        return self.run(
            "python_release",
            path=str(self.path),
            requirements=str(self.path / "requirements.txt"),
            bootstrap=str(self.path / "pip.txt"),
            python=sys.executable,
            wheelhouse=str(self.wheelhouse),
            **more,
        )

    @property
    def complete(self) -> bool:
        """Whether the mark is there."""
        return (self.path / ".complete").exists()

    def answer(self) -> str:
        """Ask the installed module."""
        return subprocess.run(
            [self.path / "venv/bin/python", "-c", "import brook; print(brook.ANSWER)"],
            capture_output=True, text=True, check=True, env=clean_environment(),
        ).stdout.strip()  # fmt: skip


@pytest.fixture
def release(tmp_path: Path, module: Run, pip_wheel: tuple[Path, str]) -> Release:
    """Prepare a release that can be built."""
    return Release(tmp_path, module, pip_wheel)


def test_check_mode_changes_nothing(release: Release) -> None:
    before = sorted(release.path.iterdir())
    assert release.build(check_mode=True)["changed"] is True
    assert sorted(release.path.iterdir()) == before


def test_no_hash_or_a_wrong_one_stops_it_and_the_next_run_builds_it_whole_and_once(
    release: Release,
) -> None:
    (release.path / "requirements.txt").write_text("brook==1.0\n")
    told = release.build()
    assert told["failed"] is True
    assert "hash" in told["msg"].lower()
    assert not release.complete

    release.lock("0" * 64)
    told = release.build()
    assert told["failed"] is True
    assert "pip could not install" in told["msg"]
    assert "run the playbook again" in told["msg"]
    # pip's own words, which say what was expected and what came.
    assert "0" * 64 in told["msg"]
    assert release.hash in told["msg"]
    assert not release.complete
    (release.path / "venv/half-built").write_text("left behind")

    release.lock(release.hash)
    told = release.build()
    assert told.get("msg") is None
    assert told["changed"] is True
    assert release.answer() == "1.0"
    # Units may write nothing there: what is not compiled now is compiled at each start.
    assert [file.name.split(".")[0] for file in release.path.rglob("brook*.pyc")] == ["brook"]
    assert json.loads((release.path / ".complete").read_text()) == {"packages": 1}
    assert not (release.path / ".progress").exists()
    assert not (release.path / "venv/half-built").exists()

    python = release.path / "venv/bin/python"
    before = python.lstat().st_mtime_ns
    assert release.build()["changed"] is False
    assert python.lstat().st_mtime_ns == before


def test_a_python_that_cannot_make_environments_is_named(release: Release) -> None:
    told = release.run(
        "python_release",
        path=str(release.path),
        requirements=str(release.path / "requirements.txt"),
        bootstrap=str(release.path / "pip.txt"),
        python="/bin/false",
    )
    assert told["failed"] is True
    assert "/bin/false could not make a virtual environment" in told["msg"]
