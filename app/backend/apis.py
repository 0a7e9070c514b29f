"""The endpoints of OpenAI's API that are passed on, and which fields of a request may be.

A field that is not listed is refused with its name: an engine has fields that change what it runs
(`chat_template`, `mm_processor_kwargs`, `prompt_embeds`, `kv_transfer_params`, `priority`, …),
every release has new ones, and a typing error would otherwise quietly do nothing. An owner can
widen the lists with `extra_fields`. Fields were compared with vLLM 0.32's own request classes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


def _names(words: str) -> frozenset[str]:
    return frozenset(words.split())


# What shapes the sampling; the same for every kind of text that an engine makes.
_SAMPLING = _names(
    """temperature top_p top_k min_p seed stop stop_token_ids min_tokens ignore_eos
    frequency_penalty presence_penalty repetition_penalty logit_bias bad_words
    skip_special_tokens spaces_between_special_tokens include_stop_str_in_output
    structured_outputs"""
)
# OpenAI's own, which vLLM takes and does nothing with: clients send them unasked.
_BOOKKEEPING = _names("""user metadata store service_tier safety_identifier prompt_cache_key""")


@dataclass(frozen=True, slots=True)
class Api:
    """One endpoint.

    `prompt` names the field that holds what is asked; without it a request is refused here.
    `most_tokens` names the fields that bound the answer, the one that wins first. `terminal`
    finds the event after which nothing comes; None stands for OpenAI's `data: [DONE]`.
    """

    name: str
    path: str
    prompt: str
    fields: frozenset[str]
    most_tokens: tuple[str, ...] = ()
    streams: bool = True
    has_stream_options: bool = False
    terminal: re.Pattern[bytes] | None = None


CHAT = Api(
    name="chat",
    path="/v1/chat/completions",
    prompt="messages",
    fields=_SAMPLING
    | _BOOKKEEPING
    | _names(
        """model messages stream stream_options n max_tokens max_completion_tokens
    logprobs top_logprobs response_format tools tool_choice parallel_tool_calls
    reasoning_effort include_reasoning thinking_token_budget
    chat_template_kwargs"""
    ),
    most_tokens=("max_completion_tokens", "max_tokens"),
    has_stream_options=True,
)

COMPLETIONS = Api(
    name="completions",
    path="/v1/completions",
    prompt="prompt",
    fields=_SAMPLING
    | _BOOKKEEPING
    | _names(
        """model prompt suffix stream stream_options n max_tokens logprobs echo
    response_format"""
    ),
    most_tokens=("max_tokens",),
    has_stream_options=True,
)

EMBEDDINGS = Api(
    name="embeddings",
    path="/v1/embeddings",
    prompt="input",
    fields=_BOOKKEEPING | _names("""model input encoding_format dimensions"""),
    streams=False,
)

# Without `previous_response_id` and `background`: both need a store of answers on the engine.
RESPONSES = Api(
    name="responses",
    path="/v1/responses",
    prompt="input",
    fields=_SAMPLING
    | _BOOKKEEPING
    | _names(
        """model input instructions stream max_output_tokens max_tool_calls tools
    tool_choice parallel_tool_calls text reasoning include include_reasoning
    top_logprobs truncation chat_template_kwargs"""
    ),
    most_tokens=("max_output_tokens",),
    terminal=re.compile(rb"(?:^|\n|\r)event: ?response\.(?:completed|failed|incomplete)[\r\n]"),
)

APIS = (CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES)
