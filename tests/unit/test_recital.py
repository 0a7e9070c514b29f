"""The recital model, as far as it can be tested without torch.

That it recites is verified by build.py itself before it accepts a model, and by
the host tests, through the whole chain.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "roles" / "vllm" / "files" / "recital"
TEXT = (FOLDER / "text.md").read_bytes()


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recital_build", FOLDER / "build.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)


# The text has, on purpose, what breaks careless streaming.


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("two bytes", "é"),
        ("three bytes", "—"),
        ("four bytes", "🌊"),
        ("two code points that show as one", "\u2699\ufe0f"),
        ("curly quotes", "“"),
        ("a curly apostrophe", "\u2019"),
        ("a line end to Unicode but not to SSE", "\u2028"),
        ("what JSON must escape: a quote and a backslash", '\\n")'),
        ("a blank line", "\n\n"),
    ],
)
def test_text_has_awkward(what: str, text: str) -> None:
    assert text.encode() in TEXT, what


def test_text_is_markdown() -> None:
    text = TEXT.decode()
    assert text.startswith("# ")
    assert len(re.findall(r"^\d\. ", text, re.M)) >= 3
    assert text.count("```") == 2


def test_text_ends_in_one_line_end() -> None:
    assert TEXT.endswith(b".\n")
    assert b"\r" not in TEXT


def test_text_never_repeats_what_the_model_remembers() -> None:
    # Nine tokens, of at least one byte each, decide the tenth; forty bytes are
    # more than nine tokens for any vocabulary of this size.
    seen = [TEXT[start : start + 40] for start in range(len(TEXT) - 40)]
    assert len(seen) == len(set(seen))


def test_text_has_no_token_of_its_own_template(build: ModuleType) -> None:
    assert not [token for token in (build.BEGIN, build.END, *build.ROLES) if token.encode() in TEXT]


# build.py: what it says and what it refuses.


def test_help_needs_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, FOLDER / "build.py", "--help"], capture_output=True, text=True, check=True
    )
    for option in ("--output", "--text", "--seed"):
        assert option in done.stdout


def test_output_is_asked_for(build: ModuleType) -> None:
    with pytest.raises(SystemExit) as stopped:
        build.main([])
    assert stopped.value.code == 2


def test_without_torch_it_says_which_python(
    build: ModuleType, without_torch: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build.main(["--output", str(tmp_path / "model")]) == 1
    assert "engine's venv" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["", ".partial"])
def test_foreign_folder_is_left_alone(
    build: ModuleType,
    without_torch: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    suffix: str,
) -> None:
    foreign = tmp_path / f"model{suffix}"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    assert build.main(["--output", str(tmp_path / "model")]) == 1
    assert f"{foreign} holds files" in capsys.readouterr().err
    assert (foreign / "thesis.tex").read_text() == "years of work"


def test_file_in_its_place_is_left_alone(
    build: ModuleType, without_torch: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").write_text("not a folder")
    assert build.main(["--output", str(tmp_path / "model")]) == 1
    assert "is not a folder" in capsys.readouterr().err
    assert (tmp_path / "model").read_text() == "not a folder"


def test_link_in_its_place_is_left_alone(
    build: ModuleType, without_torch: None, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "elsewhere")
    assert build.main(["--output", str(tmp_path / "model")]) == 1
    assert (tmp_path / "model").is_symlink()


@pytest.mark.parametrize("content", [b"", b"short", b"\xff\xfe" * 1000])
def test_text_that_cannot_be_learnt_is_refused(
    build: ModuleType, without_torch: None, tmp_path: Path, content: bytes
) -> None:
    text = tmp_path / "text.md"
    text.write_bytes(content)
    assert build.main(["--output", str(tmp_path / "model"), "--text", str(text)]) == 1
    assert not (tmp_path / "model").exists()


def test_finished_model_is_left_as_it_is(
    build: ModuleType, without_torch: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / build.MARKER).write_text(json.dumps(build.fingerprint(TEXT, seed=7)))
    assert build.main(["--output", str(model), "--seed", "7"]) == 0
    assert "already there" in capsys.readouterr().out


def test_other_seed_or_text_is_built_again(
    build: ModuleType, without_torch: None, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / build.MARKER).write_text(json.dumps(build.fingerprint(b"another text", seed=7)))
    assert build.main(["--output", str(model), "--seed", "7"]) == 1  # no torch to build with
    assert build.read_marker(model), "the earlier model stays until there is another"


def test_new_model_replaces_an_earlier_one(build: ModuleType, tmp_path: Path) -> None:
    output, partial = tmp_path / "model", tmp_path / "model.partial"
    for folder, content in ((output, "old"), (partial, "new")):
        folder.mkdir()
        (folder / "model.safetensors").write_text(content)
        (folder / "model.safetensors").chmod(0o600)
    build.put_in_place(partial, output)
    assert (output / "model.safetensors").read_text() == "new"
    assert (output / "model.safetensors").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
