"""How a model writes tool calls and reasoning, by its name.

vLLM passes both on as text unless it is told which of its parsers reads this model's way; a request
that must call a tool is then refused, and a reader sees the reasoning as part of the answer. The
names of the parsers are vLLM's, held by a test to those that the installed one knows.

Sources: vLLM's docs/features/tool_calling.md and docs/features/reasoning_outputs.md (October 2026),
and what its `vllm.parser.qwen3` says of Qwen's XML. Of a family that they do not name nothing is
said here: an owner's `plan_engine_arguments` can.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple


class Dialect(NamedTuple):
    """vLLM's parsers for one family; empty where there is none."""

    tools: str = ""
    reasoning: str = ""


# By the part of the name behind the owner, for quantised copies keep it; the first that fits.
_FAMILIES: tuple[tuple[str, Dialect], ...] = (
    # Checkpoints that were never taught to chat.
    (r".*-base$", Dialect()),
    (r"qwen3-coder-.*", Dialect("qwen3_xml")),
    (r"qwen3\.\d-.*", Dialect("qwen3_xml", "qwen3")),
    (r"qwen3-.*-instruct.*", Dialect("hermes")),
    (r"qwen3-.*", Dialect("hermes", "qwen3")),
    (r"qwq-32b.*", Dialect("hermes", "deepseek_r1")),
    # These answer with code blocks instead of calls, whatever they are told.
    (r"qwen2\.5-coder-.*", Dialect()),
    (r"qwen2\.5-.*-instruct.*", Dialect("hermes")),
    (r"deepseek-r1-distill-.*", Dialect("", "deepseek_r1")),
    (r"hermes-[23]-.*", Dialect("hermes")),
    (r"(meta-)?llama-3\.[123]-.*instruct.*", Dialect("llama3_json")),
    (r"mistral-7b-instruct-v0\.3.*", Dialect("mistral")),
    (r"(mistral-nemo|mistral-small|ministral)-.*", Dialect("mistral")),
    # vLLM knows how gpt-oss reasons by its architecture.
    (r"gpt-oss-.*", Dialect("openai")),
    (r"glm-4\.[56].*", Dialect("glm45", "glm45")),
    (r"glm-4\.7.*", Dialect("glm47", "glm47")),
    (r"minimax-m2.*", Dialect("minimax_m2", "minimax_m2")),
    (r"gemma-4-.*-it.*", Dialect("gemma4", "gemma4")),
    (r"granite-3\.[123]-.*instruct.*", Dialect("granite")),
    (r"granite-4\.0-.*", Dialect("granite4")),
    (r"kimi-k2.*", Dialect("kimi_k2", "kimi_k2")),
)


DIALECTS = tuple(dialect for _, dialect in _FAMILIES)
"""Every one that a plan may name."""


def dialect_of(name: str) -> Dialect:
    """Return the dialect of a model by its name (`owner/name`); an empty one when none is known."""
    own = name.rsplit("/", 1)[-1].lower()
    for family, dialect in _FAMILIES:
        if re.fullmatch(family, own):
            return dialect
    return Dialect()


def dialect_arguments(name: str) -> dict[str, Any]:
    """Return the flags that tell vLLM how this model writes."""
    dialect = dialect_of(name)
    flags: dict[str, Any] = {}
    if dialect.tools:
        flags |= {"enable-auto-tool-choice": True, "tool-call-parser": dialect.tools}
    if dialect.reasoning:
        flags["reasoning-parser"] = dialect.reasoning
    return flags
