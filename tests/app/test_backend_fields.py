"""What a request may hold: the endpoints' lists, and bounds where a few bytes ask for much."""

from __future__ import annotations

import json

import pytest
from backend.apis import APIS
from backend_client import ask, chat

CHAT = "/v1/chat/completions"
DANGEROUS = [
    "chat_template", "mm_processor_kwargs", "media_io_kwargs", "prompt_embeds", "best_of",
    "use_beam_search", "priority", "request_id", "kv_transfer_params", "vllm_xargs", "cache_salt",
    "echo_", "prompt_logprobs", "truncate_prompt_tokens", "documents", "allowed_token_ids",
]  # fmt: skip


def refused(response, code: str, param: str) -> None:
    assert response.status == 400
    error = response.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("name", DANGEROUS)
async def test_what_is_not_listed_is_refused_by_name(port, upstream, name):
    refused(await ask(port, "POST", CHAT, chat(**{name: "x"})), "unsupported_parameter", name)
    assert not upstream.received


async def test_an_owner_can_widen_the_list(start_backend, upstream):
    port = start_backend(extra_fields=["priority"]).port
    assert (await ask(port, "POST", CHAT, chat(priority=1))).status == 200
    assert json.loads(upstream.received[-1].body)["priority"] == 1


def part(**fields):
    return {"messages": [{"role": "user", "content": [fields]}]}


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"n": 9}, "value_above_limit", "n"),
        ({"n": 1e9}, "value_above_limit", "n"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "value_above_limit", "logit_bias"),
        ({"stop": ["x"] * 17}, "value_above_limit", "stop"),
        ({"bad_words": ["x"] * 17}, "value_above_limit", "bad_words"),
        ({"tools": [{}] * 129}, "value_above_limit", "tools"),
        ({"top_logprobs": 21}, "value_above_limit", "top_logprobs"),
        (
            {"chat_template_kwargs": {"chat_template": "x"}},
            "unsupported_parameter",
            "chat_template_kwargs.chat_template",
        ),
        (
            {"chat_template_kwargs": {"tools": ["{{ x }}"]}},
            "unsupported_parameter",
            "chat_template_kwargs.tools",
        ),
        (
            {"chat_template_kwargs": {"mode": "{{ x }}"}},
            "unsupported_parameter",
            "chat_template_kwargs.mode",
        ),
        (part(type="image_url", image_url="http://10.1/"), "unsupported_content", "messages"),
        (part(type="image_url", image_url="file:///etc/passwd"), "unsupported_content", "messages"),
        (part(type="image_embeds", image_embeds="x"), "unsupported_content", "messages"),
        (part(type="audio_url", audio_url={"url": "data:x"}), "unsupported_content", "messages"),
        (part(image_url="http://10.1/"), "unsupported_content", "messages"),
        (part(type=[], image_url="http://10.1/"), "unsupported_content", "messages"),
    ],
)  # fmt: skip
async def test_what_asks_for_too_much_is_refused(port, upstream, fields, code, param):
    refused(await ask(port, "POST", CHAT, chat(**fields)), code, param)
    assert not upstream.received


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 8, "temperature": 0.5, "top_logprobs": 20, "logprobs": True, "seed": 1},
        {"stop": "x", "logit_bias": {"5": -100}, "user": "u", "metadata": {"a": "b"}},
        {"structured_outputs": {"choice": ["a"]}, "response_format": {"type": "json_object"}},
        {"chat_template_kwargs": {"enable_thinking": False, "reasoning_effort": "low"}},
        {"tools": [{"type": "function"}], "tool_choice": "auto", "parallel_tool_calls": True},
        part(type="text", text="hi"),
        part(type="image_url", image_url={"url": "data:image/png;base64,AAAA"}),
    ],
)
async def test_what_clients_send_passes(port, upstream, fields):
    assert (await ask(port, "POST", CHAT, chat(**fields))).status == 200
    sent = json.loads(upstream.received[-1].body)
    assert sent.items() >= fields.items()


@pytest.mark.parametrize(
    ("output", "status"),
    [
        ([{"type": "input_image", "image_url": "http://10.1/"}], 400),
        ([{"image_url": "http://10.1/"}], 400),
        ([{"type": "input_text", "text": "21 degrees"}], 200),
        ("21 degrees", 200),
    ],
)
async def test_what_a_tool_gave_back_is_content_too(port, upstream, output, status):
    given = {"type": "function_call_output", "call_id": "c", "output": output}
    thought = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]}
    body = json.dumps({"model": "tiny", "input": [thought, given]}).encode()
    assert (await ask(port, "POST", "/v1/responses", body)).status == status
    assert len(upstream.received) == (status == 200)


async def test_prompts_times_n(port, upstream):
    async def complete(**fields):
        body = json.dumps({"model": "tiny", **fields}).encode()
        return await ask(port, "POST", "/v1/completions", body)

    refused(await complete(prompt=["a"] * 5, n=2), "value_above_limit", "prompt")
    refused(await complete(prompt=[[1]] * 9), "value_above_limit", "prompt")
    assert not upstream.received
    # Numbers are the tokens of one prompt.
    assert (await complete(prompt=[1] * 500, n=8)).status == 200


async def test_no_number_is_no_json(port, upstream):
    for word in (b"NaN", b"Infinity", b"-Infinity", b"1e999"):
        body = b'{"model": "tiny", "messages": [], "temperature": ' + word + b"}"
        assert (await ask(port, "POST", CHAT, body)).status == 400
    assert not upstream.received


@pytest.mark.parametrize("api", APIS, ids=lambda api: api.name)
async def test_every_endpoint_is_passed_on(port, upstream, api):
    prompt = [] if api.prompt == "messages" else "hi"
    body = json.dumps({"model": "tiny", api.prompt: prompt}).encode()
    assert (await ask(port, "POST", api.path, body)).status == 200
    assert upstream.received[-1].path == "/vllm" + api.path
    missing = await ask(port, "POST", api.path, b'{"model": "tiny"}')
    assert missing.status == 400
    assert missing.json()["error"]["param"] == api.prompt
    assert (await ask(port, "GET", api.path)).status == 405


async def test_one_model(port):
    found = await ask(port, "GET", "/v1/models/tiny")
    assert (found.status, found.json()["id"]) == (200, "tiny")
    missing = await ask(port, "GET", "/v1/models/other/one")
    assert (missing.status, missing.json()["error"]["code"]) == (404, "model_not_found")
