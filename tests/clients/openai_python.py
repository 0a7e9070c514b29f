"""What people do with OpenAI's Python library."""

from __future__ import annotations

import contextlib

import openai
from kit import (
    BEGINNING,
    HOLD,
    KEY,
    LIMITED_KEY,
    MODEL,
    SCHEMA,
    URL,
    fits_schema,
    refusal,
    run,
    scenario,
)
from pydantic import BaseModel

client = openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0, timeout=60)
ASKED = [{"role": "user", "content": "How does the water find its way?"}]
TOOL = {
    "type": "function",
    "function": {"name": "set_gate", "description": "Move a gate", "parameters": SCHEMA},
}


@scenario("models")
def models() -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


@scenario("chat")
def chat() -> None:
    answer = client.chat.completions.create(model=MODEL, messages=ASKED, max_tokens=30)
    assert answer.choices[0].message.content.startswith(BEGINNING)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 30


@scenario("chat, streamed")
def chat_streamed() -> None:
    with client.chat.completions.create(
        model=MODEL, messages=ASKED, max_tokens=30, stream=True
    ) as stream:
        chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text.startswith(BEGINNING)
    # An engine puts tokens together whose reader is slow.
    assert len(chunks) > 5
    assert chunks[-1].choices[0].finish_reason == "length"
    # Nobody asked for the count, and nobody gets it.
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


@scenario("chat, streamed with the count")
def chat_streamed_with_usage() -> None:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=ASKED,
        max_completion_tokens=10,
        stream=True,
        stream_options={"include_usage": True},
    )
    *_, last = stream
    assert last.choices == []
    assert last.usage.completion_tokens == 10


@scenario("chat, by the library's own stream helper")
def chat_stream_helper() -> None:
    # The helper takes an answer that was cut at max_tokens for an error.
    with client.chat.completions.stream(model=MODEL, messages=ASKED, stop=["\n\n"]) as stream:
        kinds = {event.type for event in stream}
        whole = stream.get_final_completion()
    assert "content.delta" in kinds
    assert whole.choices[0].message.content.startswith(BEGINNING)


@scenario("log probabilities")
def logprobs() -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=ASKED, max_tokens=4, logprobs=True, top_logprobs=2
    )
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == 4
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in tokens)


@scenario("JSON by schema")
def json_schema() -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "gate", "schema": SCHEMA}}
    answer = client.chat.completions.create(
        model=MODEL, messages=ASKED, max_tokens=200, response_format=wanted
    )
    fits_schema(answer.choices[0].message.content)


@scenario("JSON by a pydantic class")
def json_parsed() -> None:
    class Gate(BaseModel):
        open: bool

    answer = client.chat.completions.parse(
        model=MODEL, messages=ASKED, max_tokens=200, response_format=Gate
    )
    assert isinstance(answer.choices[0].message.parsed, Gate)


@scenario("a named tool")
def tool() -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=ASKED,
        max_tokens=200,
        tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "set_gate"}},
    )
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "set_gate"
    fits_schema(call.function.arguments)
    again = client.chat.completions.create(
        model=MODEL,
        max_tokens=5,
        messages=[
            *ASKED,
            answer.choices[0].message,
            {"role": "tool", "tool_call_id": call.id, "content": "done"},
        ],
    )
    assert again.choices[0].message.content


@scenario("a named tool, streamed")
def tool_streamed() -> None:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=ASKED,
        max_tokens=300,
        tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "set_gate"}},
        stream=True,
    )
    names, arguments = [], ""
    for chunk in stream:
        for call in chunk.choices[0].delta.tool_calls or []:
            names += [call.function.name] if call.function.name else []
            arguments += call.function.arguments or ""
    assert names == ["set_gate"]
    fits_schema(arguments)


@scenario("completions")
def completions() -> None:
    answer = client.completions.create(model=MODEL, prompt="The mill", max_tokens=8)
    assert answer.choices[0].text
    stream = client.completions.create(model=MODEL, prompt="The mill", max_tokens=8, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == answer.choices[0].text


@scenario("responses")
def responses() -> None:
    answer = client.responses.create(
        model=MODEL, input="How does the water find its way?", max_output_tokens=30
    )
    assert answer.output_text.startswith(BEGINNING)


@scenario("responses, streamed")
def responses_streamed() -> None:
    stream = client.responses.create(
        model=MODEL, input=ASKED, instructions="Recite.", max_output_tokens=30, stream=True
    )
    events = list(stream)
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text.startswith(BEGINNING)
    assert events[-1].type in ("response.completed", "response.incomplete")


def short(**more: object) -> object:
    return client.chat.completions.create(
        **{"model": MODEL, "messages": ASKED, "max_tokens": 3, **more}
    )


@scenario("embeddings, which a generating engine has not")
def embeddings() -> None:
    refused = refusal(
        openai.NotFoundError, lambda: client.embeddings.create(model=MODEL, input="x")
    )
    assert refused.code == "unsupported_endpoint"


@scenario("a wrong key is an AuthenticationError")
def wrong_key() -> None:
    stranger = client.with_options(api_key="mr-wrong")
    refused = refusal(openai.AuthenticationError, lambda: stranger.models.list())
    assert refused.code == "invalid_api_key"


@scenario("an unknown model is a NotFoundError")
def unknown_model() -> None:
    assert refusal(openai.NotFoundError, lambda: short(model="x")).code == "model_not_found"


@scenario("a bad request is a BadRequestError")
def bad_request() -> None:
    assert refusal(openai.BadRequestError, lambda: short(n=10_000)).param == "n"
    # Refused by the engine itself.
    refused = refusal(openai.BadRequestError, lambda: short(max_tokens=10_000_000))
    assert "tokens" in refused.message
    refusal(openai.BadRequestError, lambda: short(max_tokens=10_000_000, stream=True))


@scenario("a key that has had its share is a RateLimitError")
def rate_limit() -> None:
    limited = client.with_options(api_key=LIMITED_KEY)

    def ask() -> object:
        return limited.chat.completions.create(model=MODEL, messages=ASKED, max_tokens=3)

    # Another program may have had it already.
    with contextlib.suppress(openai.RateLimitError):
        ask()
    refused = refusal(openai.RateLimitError, ask)
    assert int(refused.response.headers["retry-after"]) > 0


@scenario("leaving in mid-stream frees the engine")
def leaving() -> str:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=ASKED,
        max_tokens=8000,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    for number, _ in enumerate(stream):
        if number == 20:
            break
    stream.close()
    return HOLD


run()
