"""The page's release: built whole or not at all, by an npm and a node that are told what to do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from unit_kit import ROOT, clean_environment

WEB = ROOT / "app/web"
MODULE = ROOT / "plugins/modules/web_release.py"
NPM = (
    '#!/bin/sh\necho "npm $@" >>"$LOG"; [ -z "$NPM_FAILS" ] || { echo "registry away"; exit 1; }\n'
)
NODE = """#!/bin/sh
echo "node $1" >>"$LOG"
[ -z "$NODE_FAILS" ] || exit 3
mkdir -p "$2/assets"; echo x >"$2/assets/a.js"
cp src/page "$2/index.html"; chmod 600 "$2/index.html"
"""


class Builder:
    """Sources, tools that only note what they are asked, and a place for the release."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source, self.path, self.tools = (folder / n for n in ("source", "out/abc", "tools"))
        (self.source / "src").mkdir(parents=True)
        (self.source / "src/page").write_text("a page")
        (self.source / "package.json").write_text("{}")
        (self.source / "node_modules").mkdir()
        self.tools.mkdir()
        for name, text in (("npm", NPM), ("node", NODE)):
            (self.tools / name).write_text(text)
            (self.tools / name).chmod(0o755)

    def build(self, check: bool = False, **environment: str) -> dict[str, Any]:
        arguments = {
            "source": str(self.source), "parts": ["src", "package.json"],
            "tools": str(self.tools), "path": str(self.path), "_ansible_check_mode": check,
            "_ansible_remote_tmp": str(self.folder), "_ansible_keep_remote_files": False,
        }  # fmt: skip
        given = self.folder / "arguments.json"
        given.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": arguments}))
        done = subprocess.run(
            [sys.executable, MODULE, given],
            env=clean_environment(LOG=str(self.folder / "log"), PATH=os.environ["PATH"],
                                  **environment),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    @property
    def asked(self) -> list[str]:
        log = self.folder / "log"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


def test_it_is_built_once_and_packed_for_everybody_to_read(builder: Builder) -> None:
    assert builder.build()["changed"] is True
    assert (builder.path / ".complete").exists()
    with tarfile.open(builder.path / "release.tar.gz") as packed:
        found = {entry.name: (entry.mode, entry.uid) for entry in packed.getmembers()}
    assert found == {
        "index.html": (0o644, 0),
        "assets": (0o755, 0),
        "assets/a.js": (0o644, 0),
    }
    assert builder.asked[0].startswith("npm ci --omit=dev --ignore-scripts")
    again = builder.build()
    assert again["changed"] is False
    assert len(builder.asked) == 2


def test_check_mode_builds_nothing(builder: Builder) -> None:
    assert builder.build(check=True)["changed"] is True
    assert not builder.path.exists()
    assert builder.asked == []


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"NPM_FAILS": "1"}, ["npm could not install", "registry away", "millrace_page: false"]),
        ({"NODE_FAILS": "1"}, ["node could not build the page (exit status 3)"]),
    ],
)
def test_what_fails_leaves_nothing_and_says_how_to_go_on(
    builder: Builder, environment: dict[str, str], words: list[str]
) -> None:
    answer = builder.build(**environment)
    assert answer["failed"] is True
    for said in words:
        assert said in answer["msg"]
    assert not builder.path.exists()
    assert list(builder.path.parent.iterdir()) == []


def test_the_lock_has_hashes_and_no_addresses() -> None:
    lock = json.loads((WEB / "package-lock.json").read_text())
    packages = {name: found for name, found in lock["packages"].items() if name}
    assert packages
    for name, found in packages.items():
        assert "resolved" not in found, name
        assert re.match(r"sha512-", found["integrity"]), name
    assert "://" not in re.sub(r'"(url|funding)": "[^"]*"', "", json.dumps(lock))
    wanted = json.loads((WEB / "package.json").read_text())
    for name, version in {**wanted["dependencies"], **wanted["devDependencies"]}.items():
        assert re.fullmatch(r"\d+\.\d+\.\d+", version), f"{name} is not pinned"


def test_a_release_is_named_after_all_that_the_build_takes() -> None:
    parts = yaml.safe_load((ROOT / "roles/web/vars/main.yml").read_text())["__web_parts"]
    tested = {"test", "biome.json", "node_modules", "dist"}
    assert set(parts) == {path.name for path in WEB.iterdir()} - tested
