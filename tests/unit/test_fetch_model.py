"""Fetching a model from a stand-in of the hub: whole, resumed, or refused in plain words."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from unit_kit import ROOT, Handler, answer_json, clean_environment

SCRIPT = ROOT / "roles/vllm/files/fetch_model.py"
COMMIT = "5" * 40
SIZE = 3_000_000
TOKEN = "hf_right"


@pytest.fixture
def fetcher(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Load the script, with little patience and small blocks."""
    source = SCRIPT.read_text()
    if "import huggingface_hub" in source or "from huggingface_hub" in source:
        pytest.skip("fetch_model.py leans on huggingface_hub, which is not in requirements/dev.in")
    spec = importlib.util.spec_from_file_location("fetch_model", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fetch_model", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PAUSES_SECONDS", (0.01, 0.02))
    monkeypatch.setattr(module, "TICK_SECONDS", 0.05)
    return module


class Hub:
    """The stand-in, started anew with other troubles."""

    def __init__(self, root: Path, log: Path) -> None:
        self.root, self.log = root, log
        self.process: subprocess.Popen[str] | None = None

    def start(self, *arguments: str) -> str:
        """Start it and return its address."""
        self.stop()
        self.log.write_text("")
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "tests/fixtures/hub.py", "--root", self.root, "--log", self.log,
             "--token", TOKEN, *arguments],
            stdout=subprocess.PIPE, text=True, env=clean_environment(),
        )  # fmt: skip
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def stop(self) -> None:
        """Stop it."""
        if self.process:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None

    def requests(self, name: str = "") -> list[dict[str, Any]]:
        """Return what was asked of it, or of one file."""
        rows = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [row for row in rows if row["path"].endswith(name)]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """Make repositories and their hub."""
    repositories = {
        "tiny": {"config.json": 20, "model.safetensors": SIZE, "tokenizer/vocab.json": 300},
        "both": {"config.json": 20, "a.safetensors": 4000, "a.bin": 4000, "a.gguf": 90, "b.pth": 9},
        "old": {"config.json": 20, "a.bin": 4000, "a.gguf": 90},
        "data": {"readme.md": 20},
        "gated": {"config.json": 20, "model.safetensors": 4000, ".gated": 0},
        "private": {"config.json": 20, "model.safetensors": 4000, ".private": 0},
    }
    for name, files in repositories.items():
        for file, size in files.items():
            path = tmp_path / "hub/owner" / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((f"{name}/{file} ".encode() * (size // 8 + 1))[:size])
    hub = Hub(tmp_path / "hub", tmp_path / "hub.log")
    yield hub
    hub.stop()


Fetch = Callable[..., int]


@pytest.fixture
def fetch(fetcher: ModuleType, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fetch:
    """Return a function that runs the command line against the hub as it stands."""

    def run(name: str, *arguments: str, url: str | None = None, token: str = "") -> int:
        monkeypatch.setattr(fetcher, "HUB", url if url is not None else hub.start())
        if token:
            (tmp_path / "token").write_text(f"{token}\n")
            arguments = (*arguments, "--token-file", str(tmp_path / "token"))
        output = str(tmp_path / "models" / name)
        given = ["fetch_model.py", "--model", f"owner/{name}", "--output", output, *arguments]
        monkeypatch.setattr(sys, "argv", given)
        code: int = fetcher.main()
        return code

    return run


def same(one: Path, other: Path) -> bool:
    """Tell whether two folders hold the same files; marks do not count."""

    def content(folder: Path) -> dict[str, bytes]:
        return {
            str(f.relative_to(folder)): f.read_bytes()
            for f in folder.rglob("*")
            if f.is_file() and not f.name.startswith(".")
        }

    return content(one) == content(other)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Return where models go."""
    return tmp_path / "models"


Printed = pytest.CaptureFixture[str]


def test_a_model_is_fetched_whole(fetch: Fetch, hub: Hub, models: Path, capsys: Printed) -> None:
    assert fetch("tiny") == 0
    assert same(models / "tiny", hub.root / "owner/tiny")
    assert (models / "tiny/.revision").read_text() == f"{COMMIT}\n"
    assert [path.name for path in models.iterdir()] == ["tiny"]
    assert sorted(p.name for p in (models / "tiny").iterdir()) == [
        ".revision", "config.json", "model.safetensors", "tokenizer",
    ]  # fmt: skip
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"owner/tiny at {COMMIT} is in {models / 'tiny'}"
    )


def test_progress_is_told_in_lines(fetch: Fetch, hub: Hub, capsys: Printed) -> None:
    assert fetch("tiny", url=hub.start("--pace", "6000000")) == 0
    lines = capsys.readouterr().out.splitlines()[:-1]
    assert len(lines) >= 3
    percents = [int(line.split("%")[0]) for line in lines]
    assert percents == sorted(percents)
    assert 0 < percents[-2] < 100
    assert all(line.endswith(" MiB/s") and " of 2 MiB, " in line for line in lines)


def test_what_is_there_already_is_not_fetched_again(fetch: Fetch, hub: Hub) -> None:
    assert fetch("tiny") == 0
    url = hub.start()
    assert fetch("tiny", url=url) == 0
    assert fetch("tiny", "--revision", COMMIT, url=url) == 0
    assert hub.requests("model.safetensors") == []


def test_a_broken_download_goes_on_from_where_it_broke(
    fetch: Fetch, hub: Hub, models: Path, capsys: Printed
) -> None:
    assert fetch("tiny", url=hub.start("--cut-after", "1000000")) == 1
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("fetch_model: ")
    assert "Run again" in said
    assert not (models / "tiny").exists()
    first = sum(row["bytes"] for row in hub.requests("model.safetensors"))
    assert 0 < first <= 1_000_000

    assert fetch("tiny") == 0
    (request,) = hub.requests("model.safetensors")
    assert request["range"] == f"bytes={first}-"
    assert request["status"] == 206
    assert request["bytes"] == SIZE - first
    assert same(models / "tiny", hub.root / "owner/tiny")


def test_a_short_break_is_bridged_within_one_run(
    fetch: Fetch, fetcher: ModuleType, hub: Hub, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = hub.start("--cut-after", "1000000").rsplit(":", 1)[1]
    monkeypatch.setattr(fetcher, "PAUSES_SECONDS", (0.3,) * 10)

    def mend() -> None:
        while not any(row["status"] == 0 for row in hub.requests()):
            threading.Event().wait(0.05)
        hub.start("--port", port)

    mending = threading.Thread(target=mend)
    mending.start()
    assert fetch("tiny", url=f"http://127.0.0.1:{port}") == 0
    mending.join()
    assert same(models / "tiny", hub.root / "owner/tiny")


def test_what_arrives_damaged_is_thrown_away(
    fetch: Fetch, hub: Hub, models: Path, capsys: Printed
) -> None:
    assert fetch("tiny", url=hub.start("--cut-after", "1000000")) == 1
    part = models / "tiny.partial/model.safetensors.part"
    part.write_bytes(b"\0" * part.stat().st_size)
    assert fetch("tiny") == 1
    assert "damaged" in capsys.readouterr().out.splitlines()[-1]
    assert not (models / "tiny").exists()
    assert fetch("tiny") == 0
    assert same(models / "tiny", hub.root / "owner/tiny")


def test_the_beginnings_of_another_commit_are_not_used(
    fetch: Fetch, hub: Hub, models: Path
) -> None:
    partial = models / "tiny.partial"
    partial.mkdir(parents=True)
    (partial / ".wanted").write_text("6" * 40)
    (partial / "old.json").write_text("of another commit")
    (partial / "model.safetensors.part").write_bytes(b"x" * 1000)
    assert fetch("tiny") == 0
    assert same(models / "tiny", hub.root / "owner/tiny")


def test_another_commit_takes_the_place_of_the_old_one(
    fetch: Fetch, hub: Hub, models: Path
) -> None:
    old = models / "tiny"
    old.mkdir(parents=True)
    (old / ".revision").write_text("6" * 40 + "\n")
    (old / "config.json").write_text("old")
    assert fetch("tiny") == 0
    assert same(models / "tiny", hub.root / "owner/tiny")
    assert (old / ".revision").read_text() == f"{COMMIT}\n"


def test_of_several_formats_safetensors_are_fetched(fetch: Fetch, hub: Hub, models: Path) -> None:
    assert fetch("both") == 0
    files = {p.name for p in (models / "both").iterdir()}
    assert files == {".revision", "config.json", "a.safetensors"}
    assert [row["path"] for row in hub.requests(".bin")] == []


def test_without_safetensors_the_old_format_is_fetched(fetch: Fetch, models: Path) -> None:
    assert fetch("old") == 0
    assert {p.name for p in (models / "old").iterdir()} == {".revision", "config.json", "a.bin"}


@pytest.mark.parametrize(
    ("name", "arguments", "token", "words"),
    [
        ("tiny", ["--revision", "no/such"], "", ["no such revision", "vllm_model_revision"]),
        ("none", [], "", ["owner/none", "check the name"]),
        ("none", [], TOKEN, ["owner/none", "check the name"]),
        ("gated", [], "", ["is gated", "accept its terms", "vault_millrace_hub_token"]),
        ("gated", [], "hf_other", ["is gated", "accept its terms"]),
        ("private", [], "", ["check the name", "vault_millrace_hub_token"]),
        ("data", [], "", ["no config.json"]),
    ],
)
def test_each_refusal_says_how_to_mend_it(
    fetch: Fetch, models: Path, capsys: Printed, name: str, arguments: list[str], token: str,
    words: list[str],
) -> None:  # fmt: skip
    assert fetch(name, *arguments, token=token) == 1
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("fetch_model: ")
    for word in words:
        assert word in said
    assert not token or token not in said
    assert not (models / name).exists()


@pytest.mark.parametrize("name", ["gated", "private"])
def test_the_right_token_opens_what_is_closed(
    fetch: Fetch, hub: Hub, models: Path, name: str
) -> None:
    assert fetch(name, token=TOKEN) == 0
    assert same(models / name, hub.root / "owner" / name)


def test_a_hub_that_cannot_be_reached_is_told(fetch: Fetch, capsys: Printed) -> None:
    assert fetch("tiny", url="http://127.0.0.1:9") == 1
    said = capsys.readouterr().out.splitlines()[-1]
    assert "127.0.0.1:9" in said
    assert "refused" in said


def test_too_little_space_is_told_before_anything_is_fetched(
    fetch: Fetch, fetcher: ModuleType, hub: Hub, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = SimpleNamespace(free=1000 << 20)
    monkeypatch.setattr(fetcher.shutil, "disk_usage", lambda path: free)
    assert fetch("tiny") == 1
    said = capsys.readouterr().out.splitlines()[-1]
    assert "MiB are needed for owner/tiny and 1000 are free" in said
    assert [row for row in hub.requests() if "/resolve/" in row["path"]] == []


def test_a_file_outside_the_models_folder_is_refused(
    fetch: Fetch, serve: Callable[..., str], models: Path, capsys: Printed
) -> None:
    siblings = [{"rfilename": "config.json", "size": 2}, {"rfilename": "../../evil", "size": 2}]
    url = serve(lambda request: answer_json(request, 200, {"sha": COMMIT, "siblings": siblings}))
    assert fetch("tiny", url=url) == 1
    assert "not to be trusted" in capsys.readouterr().out
    assert list(models.parent.rglob("evil")) == []


def test_the_token_is_not_told_to_the_storage_behind_the_hub(
    fetch: Fetch, serve: Callable[..., str], models: Path
) -> None:
    shown: list[tuple[str, str | None]] = []

    def storage(request: Handler) -> None:
        shown.append(("storage", request.headers["Authorization"]))
        answer_json(request, 200, {})

    other = serve(storage).replace("127.0.0.1", "localhost")

    def front(request: Handler) -> None:
        shown.append(("hub", request.headers["Authorization"]))
        if "/resolve/" in request.path:
            request.send_response(302)
            request.send_header("Location", f"{other}/blob")
            request.send_header("Content-Length", "0")
            request.end_headers()
        else:
            siblings = [{"rfilename": "config.json", "size": 2}]
            answer_json(request, 200, {"sha": COMMIT, "siblings": siblings})

    assert fetch("tiny", url=serve(front), token=TOKEN) == 0
    assert shown == [("hub", f"Bearer {TOKEN}")] * 2 + [("storage", None)]
    assert (models / "tiny/config.json").read_text() == "{}"
