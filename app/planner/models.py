"""The catalogue of models, and any other model by its own config.json."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner import cards, shape
from planner.problem import PlanError
from planner.shape import Shape

CATALOGUE = Path(__file__).parent / "data/models.json"


@dataclass(frozen=True)
class Model:
    """A model: what it is called, how it is licensed, what decides its memory."""

    id: str
    shape: Shape
    licence: str = "unknown"
    is_permissive: bool = False
    is_gated: bool = False
    # Of those that work on a token; all of them where every one does.
    active_parameters: int = 0


@dataclass(frozen=True)
class Default:
    """The model that an engine gets whose owner named none, from so much memory on, GiB."""

    memory_gib: float
    model: str
    why: str
    capability: tuple[int, int]


def find(name: str, config: Mapping[str, Any] | None = None) -> Model:
    """Return a model by its hub id, or by the path of its folder or config.json.

    `config`: its config.json where somebody has read it already. Raises PlanError.
    """
    if config is not None:
        return _own(name, config)
    if is_known(name):
        return _listed(name.lower())
    path = Path(name)
    if path.is_dir():
        path /= "config.json"
    if path.is_file():
        return _own(name, _read(path))
    if name.startswith(("/", ".")):
        raise PlanError(
            f"{name}: there is no config.json, which says how much memory a model needs"
        )
    raise PlanError(
        f"the catalogue does not know {name}. Fetch its config.json from the hub and give the "
        "file's path in its place; ./millrace site reads it from the server's hub by itself"
    )


def is_known(name: str) -> bool:
    """Whether the catalogue knows a model of that id."""
    return name.lower() in _entries()


def defaults() -> list[Default]:
    """Return the defaults, the one for the least memory first."""
    return [
        Default(
            float(entry["memory_gib_from"]), entry["model"], entry["why"],
            cards.capability_of(entry.get("needs_compute_capability") or "7.5"),
        )
        for entry in _catalogue()["defaults"]
    ]  # fmt: skip


def names() -> list[str]:
    """Return every model's id."""
    return [entry["id"] for entry in _catalogue()["models"]]


def _own(name: str, config: Mapping[str, Any]) -> Model:
    title = name.rstrip("/").removesuffix("/config.json") if "/" in name else name
    return Model(title, shape.from_config(config))


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise PlanError(f"{path} cannot be read as a config.json: {error}") from None
    if not isinstance(found, dict):
        raise PlanError(f"{path} is no config.json: it holds no object")
    return found


@functools.cache
def _catalogue() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(CATALOGUE.read_text(encoding="utf-8"))
    return found


@functools.cache
def _entries() -> dict[str, dict[str, Any]]:
    return {entry["id"].lower(): entry for entry in _catalogue()["models"]}


@functools.cache
def _listed(name: str) -> Model:
    entry = _entries()[name]
    return Model(
        id=entry["id"],
        shape=shape.from_config(entry["config"], int(entry.get("parameters") or 0)),
        licence=str(entry.get("licence") or "unknown"),
        is_permissive=bool(entry.get("licence_permissive")),
        is_gated=bool(entry.get("gated")),
        active_parameters=int(entry.get("active_parameters") or 0),
    )
