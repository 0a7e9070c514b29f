"""A release's name: the same for the same inputs, another for any other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from release_id import ID_LENGTH, release_id


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[Path, Path]:
    """Make a lock file and a source folder."""
    lock, source = tmp_path / "backend.txt", tmp_path / "backend"
    lock.write_text("aiohttp==3.14.5\n")
    (source / "sub").mkdir(parents=True)
    (source / "__init__.py").write_text("")
    (source / "sub/relay.py").write_text("x = 1\n")
    return lock, source


def name(inputs: tuple[Path, Path], *marks: str) -> str:
    """Return the release's name as the role asks for it."""
    return release_id([str(path) for path in inputs], "python3", *(marks or ("3.11.2",)))


def test_the_same_inputs_have_the_same_name(inputs: tuple[Path, Path]) -> None:
    first = name(inputs)
    os.utime(inputs[0], (1, 1))
    (inputs[1] / "sub/relay.py").chmod(0o600)
    assert name(inputs) == first
    assert len(first) == ID_LENGTH
    assert first.isalnum()


def test_the_same_files_elsewhere_have_the_same_name(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    first = name(inputs)
    elsewhere = tmp_path / "clone"
    elsewhere.mkdir()
    moved = tuple(path.rename(elsewhere / path.name) for path in inputs)
    assert name((moved[0], moved[1])) == first


def test_bytecode_does_not_count(inputs: tuple[Path, Path]) -> None:
    first = name(inputs)
    cache = inputs[1] / "sub/__pycache__"
    cache.mkdir()
    (cache / "relay.cpython-311.pyc").write_bytes(b"\0\1")
    assert name(inputs) == first


def test_every_change_has_another_name(inputs: tuple[Path, Path]) -> None:
    lock, source = inputs
    names = [name(inputs), name(inputs, "3.13.0"), name(inputs, "3.11.2", "more")]
    lock.write_text("aiohttp==3.14.6\n")
    names.append(name(inputs))
    (source / "sub/relay.py").write_text("x = 2\n")
    names.append(name(inputs))
    (source / "sub/relay.py").rename(source / "sub/relays.py")
    names.append(name(inputs))
    (source / "sub/relays.py").rename(source / "relays.py")
    names.append(name(inputs))
    (source / "empty.py").write_text("")
    names.append(name(inputs))
    names.append(release_id([str(lock)], "python3", "3.11.2"))
    assert len(set(names)) == len(names)


def test_bytes_that_move_between_files_change_the_name(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "a").write_text("12")
    (folder / "b").write_text("3")
    first = release_id([str(folder)])
    (folder / "a").write_text("1")
    (folder / "b").write_text("23")
    assert release_id([str(folder)]) != first


def test_a_missing_path_is_named(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone"):
        release_id([str(inputs[0]), str(tmp_path / "gone")], "python3")
