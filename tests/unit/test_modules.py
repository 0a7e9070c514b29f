"""Our modules' documentation says what they take: the same options, defaults and choices."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import yaml
from unit_kit import ROOT, declared

MODULES = sorted(path.stem for path in (ROOT / "plugins/modules").glob("*.py"))
FRAGMENTS = ROOT / "plugins/doc_fragments"
SAID = ("type", "required", "default", "choices", "elements")


def fragment(name: str) -> dict[str, Any]:
    """Return the options that a documentation fragment describes."""
    text = (FRAGMENTS / f"{name}.py").read_text()
    return dict(yaml.safe_load(text.split('r"""')[1].split('"""')[0])["options"])


def documented(module: str) -> dict[str, dict[str, Any]]:
    """Return the options that a module's documentation describes, fragments and all."""
    told = yaml.safe_load(importlib.import_module(module).DOCUMENTATION)
    found = dict(told.get("options") or {})
    for name in told.get("extends_documentation_fragment", []):
        found |= fragment(name)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_documentation_and_options_say_the_same(module: str) -> None:
    said, taken = documented(module), declared(module)
    assert set(said) == set(taken)
    for name, option in taken.items():
        assert [said[name].get(word) for word in SAID] == [option.get(word) for word in SAID], name


def test_every_fragment_is_used() -> None:
    texts = [(ROOT / f"plugins/modules/{module}.py").read_text() for module in MODULES]
    for file in FRAGMENTS.glob("*.py"):
        assert any(f"extends_documentation_fragment: [{file.stem}]" in text for text in texts)
