"""OpenAI's own Python SDK when things go wrong: it must raise the right error, and never end in silence."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

from tests.interop import replies
from tests.interop.sdk import Setup
from tianji_mw.testing import Reply

pytestmark = pytest.mark.slow

USER: Any = [{"role": "user", "content": "hi"}]

ERRORS = [
    (400, openai.BadRequestError, "invalid_request_error"),
    (401, openai.AuthenticationError, "invalid_request_error"),
    (404, openai.NotFoundError, "invalid_request_error"),
    (422, openai.UnprocessableEntityError, "invalid_request_error"),
    (429, openai.RateLimitError, "insufficient_quota"),
    (500, openai.InternalServerError, "server_error"),
    (503, openai.InternalServerError, "overloaded"),
    (529, openai.InternalServerError, "overloaded_error"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("status", "kind", "type_"), ERRORS)
async def test_errors_of_the_provider(sdk: Setup, status: int, kind: type, type_: str, stream: bool) -> None:
    error = replies.openai_error("something is wrong", type_, "some_code", "messages")
    sdk.script("gpt", replies.plain(error, status, retry_after="7"))
    async with sdk.openai() as client:
        with pytest.raises(kind) as raised:
            await client.chat.completions.create(model="gpt", messages=USER, stream=stream)
    found: Any = raised.value
    assert (found.status_code, found.body, found.code) == (status, error["error"], "some_code")
    if status == 429:
        assert found.response.headers["retry-after"] == "7"
    assert found.request_id == found.response.headers["x-request-id"]
    sdk.keys_stay()


@pytest.mark.parametrize("model", ["gpt", "claude"])
async def test_a_rate_limit_is_retried_by_the_sdk(sdk: Setup, model: str) -> None:
    good = replies.message() if model == "claude" else replies.chat()
    limit = replies.plain(replies.openai_error("slow down", "requests"), 429, retry_after_ms="20", retry_after="1")
    sdk.script(model, limit, replies.plain(good))
    async with sdk.openai(max_retries=1) as client:
        answer = await client.chat.completions.create(model=model, messages=USER, max_tokens=9)
    assert answer.choices[0].message.content
    assert len(sdk.upstreams[model].requests) == 2


@pytest.mark.parametrize(("status", "kind", "type_"), [e for e in ERRORS if e[0] != 422])
async def test_errors_across_a_bridge(sdk: Setup, status: int, kind: type, type_: str) -> None:
    sdk.script("claude", replies.plain(replies.anthropic_error("it broke", type_), status, retry_after="7"))
    async with sdk.openai() as client:
        with pytest.raises(kind, match="it broke") as raised:
            await client.chat.completions.create(model="claude", messages=USER, max_tokens=9)
    found: Any = raised.value
    assert found.status_code == status
    assert set(found.body) == {"message", "type", "param", "code"}


async def test_a_wrong_key(sdk: Setup) -> None:
    async with sdk.openai(api_key="sk-wrong") as client:
        with pytest.raises(openai.AuthenticationError) as raised:
            await client.chat.completions.create(model="gpt", messages=USER)
        assert raised.value.code == "invalid_api_key"
        for ask in (client.models.list(), client.files.list()):
            with pytest.raises(openai.AuthenticationError):
                await ask
    assert sdk.upstreams["gpt"].requests == []


async def test_an_unknown_model(sdk: Setup) -> None:
    async with sdk.openai() as client:
        with pytest.raises(openai.NotFoundError, match="does not exist") as raised:
            await client.chat.completions.create(model="unknown", messages=USER)
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")


async def test_a_malformed_request(sdk: Setup) -> None:
    async with sdk.openai() as client:
        with pytest.raises(openai.BadRequestError, match="messages"):
            await client.chat.completions.create(model="gpt", messages="hi")  # type: ignore[call-overload]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_unreachable_provider(sdk: Setup, stream: bool) -> None:
    async with sdk.openai() as client:
        with pytest.raises(openai.InternalServerError, match="not reachable") as raised:
            await client.chat.completions.create(model="dead", messages=USER, stream=stream)
    assert raised.value.status_code == 502


async def test_a_provider_that_hangs(sdk: Setup) -> None:
    sdk.script("slow", Reply(parts=[b"{}"], delay_s=5))
    async with sdk.openai() as client:
        with pytest.raises(openai.APIStatusError) as raised:
            await client.chat.completions.create(model="slow", messages=USER)
    assert raised.value.status_code in (408, 504)


async def test_the_timeout_of_the_sdk(sdk: Setup) -> None:
    dropped = sdk.upstreams["gpt"].dropped
    sdk.script("gpt", Reply(parts=[b"{}"], delay_s=20))
    async with sdk.openai(timeout=0.3) as client:
        with pytest.raises(openai.APITimeoutError):
            await client.chat.completions.create(model="gpt", messages=USER)
        await until(lambda: sdk.upstreams["gpt"].dropped > dropped)


@pytest.mark.parametrize("model", ["chat-only", "claude"])
async def test_a_plain_answer_that_is_cut(sdk: Setup, model: str) -> None:
    sdk.script(model, Reply(headers={"content-type": "application/json"}, parts=[b"{" + b" " * 500], cut_after=20))
    async with sdk.openai() as client:
        with pytest.raises(openai.InternalServerError):
            await client.chat.completions.create(model=model, messages=USER, max_tokens=9)


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("model", ["gpt", "chat-only", "claude"])
async def test_a_chat_stream_that_is_cut(sdk: Setup, model: str, reset: bool) -> None:
    words = ["one ", "two ", "three "]
    events = replies.message_stream(*words) if model == "claude" else replies.chat_stream(*words)
    sdk.script(model, replies.stream(*events, cut_after=len(b"".join(events[:4])) + 9, reset=reset, pause_s=0.01))
    got: list[Any] = []
    async with sdk.openai() as client:
        stream = await client.chat.completions.create(model=model, messages=USER, stream=True, max_tokens=9)
        with pytest.raises(openai.APIError, match="broke off"):
            await drain(stream, got)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in got).startswith("one ")


@pytest.mark.parametrize("model", ["gpt", "chat-only", "claude"])
async def test_a_response_stream_that_is_cut(sdk: Setup, model: str) -> None:
    words = ["one ", "two ", "three "]
    scripts = {"gpt": replies.response_stream, "chat-only": replies.chat_stream, "claude": replies.message_stream}
    events = scripts[model](*words)
    sdk.script(model, replies.stream(*events, cut_after=len(b"".join(events[:5])) + 9, pause_s=0.01))
    async with sdk.openai() as client:
        stream: Any = await client.responses.create(model=model, input="hi", stream=True)
        with pytest.raises(openai.APIError, match="broke off"):
            await drain(stream)


async def test_an_error_event_of_the_provider(sdk: Setup) -> None:
    error = b"data: " + json.dumps(replies.openai_error("quota is gone", "insufficient_quota")).encode() + b"\n\n"
    sdk.script("gpt", replies.stream(*replies.chat_stream("one ")[:2], error))
    async with sdk.openai() as client:
        stream = await client.chat.completions.create(model="gpt", messages=USER, stream=True)
        with pytest.raises(openai.APIError, match="quota is gone"):
            await drain(stream)


async def drain(stream: Any, got: list[Any] | None = None) -> None:
    """Read to the end; what came stays in `got` when the end is an exception."""
    async for event in stream:
        if got is not None:
            got.append(event)


async def test_leaving_a_stream_cancels_the_upstream(sdk: Setup) -> None:
    llm = sdk.upstreams["gpt"]
    dropped = llm.dropped
    sdk.script("gpt", replies.stream(*replies.chat_stream(*["word "] * 300), pause_s=0.02))
    async with sdk.openai() as client:
        stream = await client.chat.completions.create(model="gpt", messages=USER, stream=True)
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        await stream.close()
        await until(lambda: llm.dropped > dropped)


async def until(condition: Any) -> None:
    async with asyncio.timeout(3):
        while not condition():
            await asyncio.sleep(0.01)
