"""Where a model comes from, by what its owner wrote."""

from __future__ import annotations

import re

from planner.problem import PlanError

RECITAL = "recital"
"""The built-in model: trained on the server in a minute to recite a text of ours. No download."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def model_source(model: str, revision: str = "") -> dict[str, str]:
    """Say where a model comes from: `{source, id, revision, slug}`.

    `source` is `builtin`, `path` (an absolute path on the server) or `hub` (owner/name).
    Raises PlanError for anything else.
    """
    if model == RECITAL:
        return {"source": "builtin", "id": model, "revision": "", "slug": model}
    if model.startswith("/"):
        slug = model.rstrip("/").rsplit("/", 1)[-1]
        return {"source": "path", "id": model.rstrip("/"), "revision": "", "slug": slug}
    if HUB_ID.fullmatch(model):
        slug = model.replace("/", "--")
        return {"source": "hub", "id": model, "revision": revision, "slug": slug}
    raise PlanError(
        f"vllm_model is {model!r}: it must be 'recital' (built in), owner/name on the hub, "
        "or an absolute path on the server"
    )
