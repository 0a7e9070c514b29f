"""The pages that people read say what the code does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_variable_is_documented() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs/make_variables.py", "--check"], check=False)
    assert done.returncode == 0, "run docs/make_variables.py"


def test_links_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_the_architecture_names_every_role() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    for role in (ROOT / "roles").iterdir():
        assert f"`{role.name}`" in text
