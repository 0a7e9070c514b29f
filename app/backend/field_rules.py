"""Bounds on what a request may ask of the engine, for the fields where a few bytes ask for much."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backend.errors import ApiError

# OpenAI's own bounds, where it has one.
_MOST_TOP_LOGPROBS = 20
_MOST_TOOLS = 128
_MOST_INPUTS = 2048
_MOST_LOGIT_BIAS = 1024
# Every sequence is searched for in the whole answer, for every token.
_MOST_STOPS = 16
_TEXT_PARTS = frozenset(
    {
        "text",
        "input_text",
        "output_text",
        "refusal",
        "thinking",
        "reasoning",
        "reasoning_text",
        "summary_text",
    }
)
_IMAGE_PARTS = frozenset({"image_url", "input_image"})


def check_fields(fields: Mapping[str, Any], most_choices: int) -> None:
    """Refuse what would cost far more than it looks; raise ApiError 400 with the field's name.

    `most_choices` bounds how many answers one request may ask for, prompts times `n`. What has
    the wrong type is left for the engine to refuse, which knows its types.
    """
    _check_choices(fields, most_choices)
    _check_count(fields, "logit_bias", _MOST_LOGIT_BIAS)
    _check_count(fields, "stop", _MOST_STOPS)
    _check_count(fields, "stop_token_ids", _MOST_STOPS)
    _check_count(fields, "bad_words", _MOST_STOPS)
    _check_count(fields, "tools", _MOST_TOOLS)
    for name in ("top_logprobs", "logprobs"):
        value = fields.get(name)
        if isinstance(value, int | float) and value > _MOST_TOP_LOGPROBS:
            raise _too_much(name, f"at most {_MOST_TOP_LOGPROBS}")
    _check_template_arguments(fields.get("chat_template_kwargs"))
    for name in ("messages", "input"):
        _check_parts(fields.get(name), name)


def prompts_in(fields: Mapping[str, Any]) -> int:
    """Return how many prompts a request has: a list of numbers is one prompt, in tokens."""
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and any(isinstance(one, str | list) for one in prompt):
        return len(prompt)
    return 1


def _check_choices(fields: Mapping[str, Any], most: int) -> None:
    each = fields.get("n")
    count = each if isinstance(each, int | float) else 1
    if count > most:
        raise _too_much("n", f"at most {most}")
    prompts = prompts_in(fields)
    if prompts > 1 and prompts * max(count, 1) > most:
        raise _too_much("prompt", f"at most {most} prompts times n in one request")
    _check_count(fields, "input", _MOST_INPUTS, numbers_count=False)


def _check_count(
    fields: Mapping[str, Any], name: str, most: int, *, numbers_count: bool = True
) -> None:
    value = fields.get(name)
    if not isinstance(value, list | dict) or len(value) <= most:
        return
    if numbers_count or not all(isinstance(one, int) for one in value):
        raise _too_much(name, f"at most {most} entries")


def _check_template_arguments(arguments: Any) -> None:
    """Let switches such as `enable_thinking` through, and nothing that could be a template."""
    if arguments is None:
        return
    if not isinstance(arguments, dict):
        raise ApiError(400, "chat_template_kwargs must be an object.", param="chat_template_kwargs")
    for name, value in arguments.items():
        plain = value is None or isinstance(value, bool | int | float)
        word = isinstance(value, str) and len(value) <= 64 and value.replace("_", "a").isalnum()
        if "template" in name or name.startswith("_") or not (plain or word):
            raise ApiError(
                400,
                "chat_template_kwargs takes switches (true, false, numbers, single words) only.",
                param=f"chat_template_kwargs.{name[:60]}",
                code="unsupported_parameter",
            )


def _check_parts(messages: Any, name: str) -> None:
    """Let text through, and pictures that are in the request itself.

    With an address the engine would fetch what a client names, from inside the private network.
    """
    for message in messages if isinstance(messages, list) else ():
        # What a tool gave back is content too: /v1/responses calls it output.
        for field in ("content", "output") if isinstance(message, dict) else ():
            content = message.get(field)
            for part in content if isinstance(content, list) else ():
                if not isinstance(part, str):
                    _check_part(part, name)


def _check_part(part: Any, name: str) -> None:
    # One without a type is taken by the engine for whatever its fields are.
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind in _TEXT_PARTS:
        return
    if not isinstance(kind, str) or kind not in _IMAGE_PARTS:
        raise ApiError(
            400,
            f"Content of the type `{str(kind)[:60]}` is not taken here.",
            param=name,
            code="unsupported_content",
        )
    where = part.get("image_url")
    url = where.get("url") if isinstance(where, dict) else where
    if not (isinstance(url, str) and url.startswith("data:image/")):
        raise ApiError(
            400,
            "Send pictures in the request itself, as a data:image/…;base64 URL.",
            param=name,
            code="unsupported_content",
        )


def _too_much(name: str, bound: str) -> ApiError:
    return ApiError(400, f"{name}: {bound}.", param=name, code="value_above_limit")
