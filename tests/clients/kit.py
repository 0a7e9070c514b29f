"""Runs what one client library is asked to do, and tells the host tests how it went.

    MILLRACE_URL=https://…/v1 MILLRACE_KEY=… python tests/clients/openai_python.py [PART OF A NAME]

One line of JSON goes out for each scenario. A scenario that returns HOLD has left a stream in the
middle: the process then stays as it is until a line comes in, so that the engine can be looked at
meanwhile, and nothing but the client's own leaving can have freed it.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import TypeVar

URL = os.environ["MILLRACE_URL"]
KEY = os.environ["MILLRACE_KEY"]
LIMITED_KEY = os.environ.get("MILLRACE_LIMITED_KEY")
MODEL = "recital"
BEGINNING = "# The mill race"
"""How the model's answer always begins."""

HOLD = "hold"
SCHEMA = {
    "type": "object",
    "properties": {"stage": {"enum": ["weir", "wheel", "race"]}, "open": {"type": "boolean"}},
    "required": ["stage", "open"],
    "additionalProperties": False,
}
"""Small and closed, for a model that would fill a free field with its text."""

Error = TypeVar("Error", bound=Exception)
_scenarios: dict[str, Callable[[], str | None]] = {}


def scenario(name: str) -> Callable[[Callable[[], str | None]], Callable[[], str | None]]:
    """Take a function as one scenario."""

    def take(function: Callable[[], str | None]) -> Callable[[], str | None]:
        _scenarios[name] = function
        return function

    return take


def fits_schema(text: str) -> None:
    """Check that `text` is what SCHEMA asks for."""
    told = json.loads(text)
    assert told["stage"] in ("weir", "wheel", "race"), told
    assert isinstance(told["open"], bool), told


def refusal(kind: type[Error], ask: Callable[[], object]) -> Error:
    """Return the error that `ask` raises, which must be of this kind."""
    try:
        ask()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def run() -> None:
    """Run every scenario, or those that an argument names a part of."""
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    for name, function in _scenarios.items():
        if wanted not in name:
            continue
        error, result = None, None
        try:
            result = function()
        except Exception:
            error = traceback.format_exc()
        told = {"scenario": name, "error": error, "held": result == HOLD}
        print(json.dumps(told), flush=True)
        if result == HOLD:
            sys.stdin.readline()
