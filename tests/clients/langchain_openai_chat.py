"""What people do with LangChain's chat model for OpenAI's API."""

from __future__ import annotations

import contextlib

import openai
from kit import BEGINNING, HOLD, KEY, LIMITED_KEY, MODEL, SCHEMA, URL, refusal, run, scenario
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAI

ASKED = "How does the water find its way?"
GATE = {"title": "set_gate", "description": "Move a gate", **SCHEMA}


def model(**more: object) -> ChatOpenAI:
    settings = {"max_tokens": 30, "max_retries": 0, "timeout": 60, "api_key": KEY, **more}
    return ChatOpenAI(model=MODEL, base_url=URL, **settings)


@scenario("chat")
def chat() -> None:
    answer = model().invoke([("system", "Recite."), ("human", ASKED)])
    assert answer.content.startswith(BEGINNING)
    assert answer.usage_metadata["output_tokens"] == 30


@scenario("chat, streamed")
def chat_streamed() -> None:
    chunks = list(model().stream(ASKED))
    # An engine puts tokens together whose reader is slow.
    assert len(chunks) > 5
    assert "".join(chunk.content for chunk in chunks).startswith(BEGINNING)


@scenario("chat, streamed with the count")
def chat_streamed_with_usage() -> None:
    whole = None
    for chunk in model(stream_usage=True, max_tokens=10).stream(ASKED):
        whole = chunk if whole is None else whole + chunk
    assert whole.usage_metadata["output_tokens"] == 10


@scenario("several at once")
def batch() -> None:
    answers = model().batch([ASKED] * 4)
    assert [answer.content.startswith(BEGINNING) for answer in answers] == [True] * 4


@scenario("log probabilities")
def logprobs() -> None:
    answer = model(logprobs=True, top_logprobs=2, max_tokens=4).invoke(ASKED)
    assert len(answer.response_metadata["logprobs"]["content"]) == 4


@scenario("JSON by schema")
def json_schema() -> None:
    told = model(max_tokens=200).with_structured_output(GATE).invoke(ASKED)
    assert set(told) == {"stage", "open"}


@scenario("JSON by a tool")
def json_by_tool() -> None:
    asked = model(max_tokens=200).with_structured_output(GATE, method="function_calling")
    assert set(asked.invoke(ASKED)) == {"stage", "open"}


@scenario("a named tool and its result")
def tool() -> None:
    bound = model(max_tokens=200).bind_tools([GATE], tool_choice="set_gate")
    answer = bound.invoke(ASKED)
    call = answer.tool_calls[0]
    assert call["name"] == "set_gate"
    result = ToolMessage("done", tool_call_id=call["id"])
    assert model().invoke([HumanMessage(ASKED), answer, result]).content


@scenario("completions")
def completions() -> None:
    asked = OpenAI(model=MODEL, base_url=URL, api_key=KEY, max_tokens=8, max_retries=0)
    assert asked.invoke("The mill")
    assert "".join(asked.stream("The mill"))


@scenario("responses, streamed")
def responses() -> None:
    whole = None
    for chunk in model(use_responses_api=True).stream(ASKED):
        whole = chunk if whole is None else whole + chunk
    assert whole.text.startswith(BEGINNING)


def refused(kind: type[Exception], **more: object) -> None:
    refusal(kind, lambda: model(**more).invoke(ASKED))


@scenario("errors are those of the library")
def errors() -> None:
    refused(openai.AuthenticationError, api_key="mr-wrong")
    refused(openai.BadRequestError, max_tokens=10_000_000)
    refused(openai.BadRequestError, n=10_000)


@scenario("a key that has had its share is a RateLimitError")
def rate_limit() -> None:
    # Another program may have had it already.
    with contextlib.suppress(openai.RateLimitError):
        model(api_key=LIMITED_KEY, max_tokens=3).invoke(ASKED)
    refused(openai.RateLimitError, api_key=LIMITED_KEY, max_tokens=3)


@scenario("leaving in mid-stream frees the engine")
def leaving() -> str:
    stream = model(max_tokens=8000, extra_body={"ignore_eos": True}).stream(ASKED)
    for number, _ in enumerate(stream):
        if number == 20:
            break
    stream.close()
    return HOLD


run()
