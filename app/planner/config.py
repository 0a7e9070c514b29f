"""Reading a model's config.json, whose families call the same things by several names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Config = Mapping[str, Any]

NESTED = ("text_config", "llm_config", "language_config", "thinker_config")


def text_of(config: Config) -> Config:
    """Return the text model's part: multimodal configurations nest it."""
    for key in NESTED:
        nested = config.get(key)
        if isinstance(nested, Mapping):
            return text_of({**{k: v for k, v in config.items() if k != key}, **nested})
    return config


def first(config: Config, *names: str) -> Any:
    """Return the first that is there; None without."""
    return next((config[name] for name in names if config.get(name) is not None), None)


def number(config: Config, *names: str) -> int:
    """Return the first that is there, if it is a whole number; 0 without."""
    found = first(config, *names)
    return found if isinstance(found, int) else 0


def family(config: Config) -> str:
    """Return the model's type."""
    return str(config.get("model_type") or "")
