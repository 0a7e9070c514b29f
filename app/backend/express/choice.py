"""LiteLLM's word on which engine is next, and ours to it when one failed: gateway.engines."""

from __future__ import annotations

from dataclasses import dataclass

from backend.upstream import Upstream

_CHOOSE = "/millrace/engines"
_FAILED = "/millrace/engines/failures"
_PATIENCE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine as LiteLLM knows it; `key` is what it wants to be shown."""

    name: str
    key: str


async def choose_engine(upstream: Upstream, model: str) -> Engine | None:
    """Ask for one; None when there is none now, or LiteLLM does not say which."""
    told = await upstream.ask_gateway(_CHOOSE, {"model": model}, _PATIENCE_SECONDS)
    name, key = (told or {}).get("engine"), (told or {}).get("key")
    if not isinstance(name, str) or not isinstance(key, str):
        return None
    # It goes into a header as it is.
    return Engine(name, key) if key.isascii() and key.isprintable() else None


async def tell_failure(upstream: Upstream, engine: str, status: int) -> None:
    """Say that an engine failed, so that it rests where LiteLLM's rules say so."""
    await upstream.ask_gateway(_FAILED, {"engine": engine, "status": status}, _PATIENCE_SECONDS)
