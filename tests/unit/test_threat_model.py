"""docs/threat-model.md cannot rot: each of its lines has a test that is there, or says why not."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest
from unit_kit import ROOT

PAGE = ROOT / "docs/threat-model.md"
TEST = re.compile(r"`([\w/]+\.py)::(test_\w+)`")


@functools.cache
def names_in(file: Path) -> frozenset[str]:
    """Return the names of the tests in a file; none where there is no file."""
    if not file.is_file():
        return frozenset()
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = ast.walk(ast.parse(file.read_text()))
    return frozenset(node.name for node in nodes if isinstance(node, functions))


def cells(row: str) -> list[str]:
    """Return the cells of a line of a table."""
    return [cell.strip() for cell in row.strip().strip("|").split("|")]


def rows(text: str) -> list[tuple[int, list[str], list[str]]]:
    """Return each row of each table: its line's number, its table's head, and its cells."""
    found = []
    head: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.lstrip().startswith("|"):
            head = []
        elif not head:
            head = cells(line)
        elif not re.fullmatch(r"[\s|:-]+", line):
            found.append((number, head, cells(line)))
    return found


def problems(text: str) -> list[str]:
    """Return what is wrong with the page, by line."""
    found = []
    for number, head, row in rows(text):
        if head[-1] != "test":
            found.append(f"{number}: a table's last column is not `test`")
        elif len(row) != len(head) or not all(row):
            found.append(f"{number}: {len(row)} cells for {len(head)}, or an empty one")
        elif named := TEST.findall(row[-1]):
            for file, test in named:
                if test not in names_in(ROOT / "tests" / file):
                    found.append(f"{number}: there is no {file}::{test}")
        elif not re.fullmatch(r"none: .{10,}", row[-1]):
            found.append(f"{number}: neither a test nor a reason: {row[-1]}")
    return found


def test_every_line_has_a_test_or_a_reason() -> None:
    assert problems(PAGE.read_text()) == []


def test_there_are_lines_and_most_have_a_test() -> None:
    last = [row[-1] for _, _, row in rows(PAGE.read_text())]
    assert len(last) > 80
    assert sum(cell.startswith("none:") for cell in last) < len(last) / 5


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("| a | `unit/test_threat_model.py::test_every_line_has_a_test_or_a_reason` |", None),
        ("| a | none: there is a good reason |", None),
        ("| a | `unit/test_threat_model.py::test_that_was_renamed` |", "there is no"),
        ("| a | `unit/test_gone.py::test_it` |", "there is no"),
        ("| a | none |", "neither"),
        ("| a | to be written |", "neither"),
        ("| a | b | none: there is a good reason |", "cells"),
        ("| a | |", "empty"),
    ],
)  # fmt: skip
def test_a_line_that_rots_is_found(row: str, said: str | None) -> None:
    told = problems(f"| what | test |\n| --- | --- |\n{row}\n")
    assert (told == []) if said is None else said in told[0]


def test_every_secret_that_the_kit_makes_is_in_the_table() -> None:
    """Each file of the controller's folder, and each value that only a vault holds."""
    wiring = (ROOT / "inventory/group_vars/millrace/wiring.yml").read_text()
    made = re.findall(r"millrace_secrets_dir ~ '/(\w+)'", wiring)
    kept = re.findall(r"\b(vault_\w+) \| default\(''\)", wiring)
    page = PAGE.read_text()
    assert {"engine_key", "session_secret"} <= set(made)
    assert [name for name in [*made, *kept] if f"`{name}`" not in page] == []
