"""The mock provider through the whole gateway: every field, every API that it serves by itself or over a bridge."""

from __future__ import annotations

import base64
import struct
import time
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from tests.support.stack import CHAT, DONE, STREAM
from tests.unit.providers.served import Build, error, stacks
from tianji_mw.testing import Driven, drive

TOOLS = [{"type": "function", "function": {"name": "get_rate", "parameters": {"type": "object"}}}]


@pytest.fixture
async def build() -> AsyncIterator[Build]:
    async with stacks() as found:
        yield found


async def ask(build: Build, body: Any, path: str = "/v1/chat/completions", **fields: Any) -> Driven:
    mapping = {"model_list": [{"model_name": "gpt-4o", "litellm_params": {"model": "mock/any", **fields}}]}
    return await drive(build(mapping), body, path=path)


def said(driven: Driven) -> str:
    """The text of a chat stream."""
    chunks = [event.removeprefix(b"data: ") for event in driven.body.split(b"\n\n") if event]
    found = [orjson.loads(chunk)["choices"] for chunk in chunks if chunk != b"[DONE]"]
    return "".join(choices[0]["delta"].get("content") or "" for choices in found if choices)


def content(driven: Driven) -> Any:
    return driven.json["choices"][0]["message"]["content"]


async def test_it_echoes(build: Build) -> None:
    driven = await ask(build, CHAT)
    assert (content(driven), driven.json["model"]) == ("hi", "any")
    assert driven.json["usage"] == {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    parts = [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": "data:"}},
        {"type": "text", "text": "b"},
    ]
    assert content(await ask(build, {**CHAT, "messages": [{"role": "user", "content": parts}]})) == "ab"
    assert "mock" in content(await ask(build, {**CHAT, "messages": []}))


async def test_equal_requests_have_equal_answers(build: Build) -> None:
    assert (await ask(build, CHAT)).body == (await ask(build, CHAT)).body


async def test_what_it_says(build: Build) -> None:
    assert content(await ask(build, CHAT, says="one two")) == "one two"
    driven = await ask(build, STREAM, says="one two")
    assert said(driven) == "one two"
    assert driven.body.endswith(DONE)
    assert b'"usage"' not in driven.body
    with_usage = await ask(build, {**STREAM, "stream_options": {"include_usage": True}}, says="one two")
    assert b'"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}' in with_usage.body


async def test_script(build: Build) -> None:
    driven = await ask(build, STREAM, script=["o", "ne", " tw", "o"])
    assert said(driven) == "one two"
    assert driven.body.count(b'"content":"') == 5
    assert content(await ask(build, CHAT, script=["o", "ne"])) == "one"


async def test_latencies(build: Build) -> None:
    begun = time.monotonic()
    await ask(build, CHAT, latency_s=0.1)
    assert time.monotonic() - begun >= 0.1
    begun = time.monotonic()
    await ask(build, STREAM, script=["a", "b"], chunk_latency_s=0.02)
    assert time.monotonic() - begun >= 0.1


@pytest.mark.parametrize("status", [400, 429, 500, 503])
async def test_error_status(build: Build, status: int) -> None:
    once = {"num_retries": 0}
    for body in (CHAT, STREAM):
        driven = await ask(build, {**body, **once}, error_status=status)
        assert driven.status == status
        assert "told to fail" in error(driven)["message"]
    native = await ask(build, {**CHAT, **once, "max_tokens": 1}, "/v1/messages", error_status=status)
    assert (native.status, native.json["type"]) == (status, "error")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_rate"}}])
async def test_tools(build: Build, choice: Any) -> None:
    body = {**CHAT, "tools": TOOLS, "tool_choice": choice}
    driven = await ask(build, body)
    [call] = driven.json["choices"][0]["message"]["tool_calls"]
    assert call["function"] == {"name": "get_rate", "arguments": "{}"}
    assert driven.json["choices"][0]["finish_reason"] == "tool_calls"
    streamed = await ask(build, {**body, "stream": True})
    assert b'"name":"get_rate"' in streamed.body
    assert b'"finish_reason":"tool_calls"' in streamed.body
    assert content(await ask(build, {**body, "tool_choice": "auto"})) == "hi"


async def test_tools_in_messages(build: Build) -> None:
    tools = [{"name": "get_rate", "input_schema": {"type": "object"}}]
    body = {**CHAT, "max_tokens": 5, "tools": tools, "tool_choice": {"type": "any"}}
    driven = await ask(build, body, "/v1/messages")
    assert driven.json["stop_reason"] == "tool_use"
    assert driven.json["content"][0]["name"] == "get_rate"


async def test_messages(build: Build) -> None:
    body = {**CHAT, "max_tokens": 5}
    driven = await ask(build, body, "/v1/messages", says="Hello there")
    assert driven.json["content"] == [{"type": "text", "text": "Hello there"}]
    assert driven.json["usage"]["output_tokens"] == 2
    streamed = await ask(build, {**body, "stream": True}, "/v1/messages", says="Hello there")
    assert b"event: message_start" in streamed.body
    assert b'"text":"there"' in streamed.body
    assert b"event: message_stop" in streamed.body


async def test_responses(build: Build) -> None:
    body = {"model": "gpt-4o", "input": "Hello there"}
    driven = await ask(build, body, "/v1/responses")
    assert driven.json["output"][0]["content"][0]["text"] == "Hello there"
    streamed = await ask(build, {**body, "stream": True}, "/v1/responses")
    assert b"event: response.output_text.delta" in streamed.body
    assert b"event: response.completed" in streamed.body


async def test_completions(build: Build) -> None:
    body = {"model": "gpt-4o", "prompt": "Hello there"}
    driven = await ask(build, body, "/v1/completions")
    assert driven.json["choices"][0]["text"] == "Hello there"
    streamed = await ask(build, {**body, "stream": True}, "/v1/completions")
    assert b'"text":"there"' in streamed.body


async def test_embeddings(build: Build) -> None:
    body = {"model": "gpt-4o", "input": ["a", "b", "a"], "dimensions": 5}
    found = [item["embedding"] for item in (await ask(build, body, "/v1/embeddings")).json["data"]]
    assert [len(vector) for vector in found] == [5, 5, 5]
    assert found[0] == found[2] != found[1]
    packed = (await ask(build, {**body, "encoding_format": "base64"}, "/v1/embeddings")).json["data"]
    assert struct.unpack("<5f", base64.b64decode(packed[0]["embedding"])) == pytest.approx(found[0])
    tokens = (await ask(build, {"model": "gpt-4o", "input": [1, 2, 3]}, "/v1/embeddings")).json
    assert len(tokens["data"]) == 1


async def test_moderations_and_rerank(build: Build) -> None:
    moderated = await ask(build, {"model": "gpt-4o", "input": ["a", "b"]}, "/v1/moderations")
    assert [result["flagged"] for result in moderated.json["results"]] == [False, False]
    body = {
        "model": "gpt-4o",
        "query": "red fox",
        "documents": ["a dog", {"text": "a red fox"}, "a red car"],
        "top_n": 2,
    }
    ranked = await ask(build, body, "/v1/rerank")
    assert [(r["index"], r["relevance_score"]) for r in ranked.json["results"]] == [(1, 1.0), (2, 0.5)]


@pytest.mark.parametrize(
    "body",
    [
        {**CHAT, "tools": [{"type": "function", "function": {}}], "tool_choice": "required"},
        {**CHAT, "tools": "odd", "tool_choice": "required"},
        {**CHAT, "tools": [{"type": "function", "function": "odd"}], "tool_choice": "required"},
        {**CHAT, "tool_choice": {"function": {"name": 7}}},
        {**CHAT, "messages": [{"role": "user", "content": {"odd": 1}}]},
        {**CHAT, "messages": [{"role": "user", "content": [{"type": "text", "text": 7}]}]},
    ],
)
async def test_odd_requests_do_not_break_it(build: Build, body: Any) -> None:
    assert (await ask(build, body)).status == 200


@pytest.mark.parametrize("dimensions", [0, -1, "x", True, 10**9, 2.5])
async def test_odd_dimensions_do_not_break_it(build: Build, dimensions: Any) -> None:
    driven = await ask(build, {"model": "gpt-4o", "input": "a", "dimensions": dimensions}, "/v1/embeddings")
    assert driven.status == 200
    assert len(driven.json["data"][0]["embedding"]) <= 4096


@pytest.mark.parametrize("path", ["/v1/messages/count_tokens", "/v1/audio/speech"])
async def test_what_it_does_not_serve(build: Build, path: str) -> None:
    driven = await ask(build, {**CHAT, "max_tokens": 1}, path)
    assert driven.status == 400
