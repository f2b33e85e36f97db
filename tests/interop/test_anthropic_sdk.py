"""Anthropic's own Python SDK as the judge: native on Anthropic, bridged on an upstream that speaks chat completions."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anthropic
import pytest

from tests.interop import replies
from tests.interop.sdk import Setup
from tests.interop.support import MASTER_KEY, UPSTREAM_KEY
from tianji_mw.testing import Reply

pytestmark = pytest.mark.slow

MESSAGES = "/v1/messages"
TOOL: Any = {
    "name": "weather",
    "description": "of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
ASK: dict[str, Any] = {"max_tokens": 99, "messages": [{"role": "user", "content": "hi ü👋"}]}
#: Answers of both kinds of upstream with the same content.
PLAIN = {
    "claude": replies.message({"type": "text", "text": "Guten Tag 👋"}),
    "chat-only": replies.chat("Guten Tag 👋"),
    "gpt": replies.chat("Guten Tag 👋"),
}
WORDS = ("Gu", "ten ", "Tag 👋")
STREAMS = {
    "claude": replies.message_stream(*WORDS),
    "chat-only": replies.chat_stream(*WORDS, usage=True),
    "gpt": replies.chat_stream(*WORDS, usage=True),
}


async def test_messages_native(sdk: Setup) -> None:
    sdk.script("claude", replies.plain(PLAIN["claude"], anthropic_ratelimit_requests_remaining="9"))
    async with sdk.anthropic() as client:
        raw = await client.messages.with_raw_response.create(
            model="claude",
            system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
            **ASK,
            extra_headers={"anthropic-beta": "tools-2024-04-04"},
            extra_body={"unknown_field": {"x": 1.50}},
        )
        answer = await raw.parse()
    assert answer.content[0].text == "Guten Tag 👋"
    assert answer.usage.cache_read_input_tokens == 3
    assert raw.http_response.content == replies.js(PLAIN["claude"])
    received = sdk.unchanged("claude", MESSAGES)
    assert received.headers["x-api-key"] == UPSTREAM_KEY
    assert received.headers["anthropic-version"] == sdk.sent[-1].headers["anthropic-version"]
    assert received.headers["anthropic-beta"] == "tools-2024-04-04"
    assert "authorization" not in received.headers
    assert raw.headers["llm_provider-anthropic-ratelimit-requests-remaining"] == "9"


async def test_messages_native_stream(sdk: Setup) -> None:
    sdk.script("claude", replies.stream(*STREAMS["claude"]))
    async with sdk.anthropic() as client, client.messages.stream(model="claude", **ASK) as stream:
        text = "".join([part async for part in stream.text_stream])
        final = await stream.get_final_message()
    assert text == "Guten Tag 👋"
    assert final.stop_reason == "end_turn"
    assert (final.usage.input_tokens, final.usage.output_tokens) == (12, 15)
    sdk.unchanged("claude", MESSAGES)


async def test_the_bytes_of_a_stream(sdk: Setup) -> None:
    sdk.script("claude", replies.stream(*STREAMS["claude"]))
    async with sdk.anthropic() as client:
        create = client.messages.with_streaming_response.create
        async with create(model="claude", **ASK, stream=True) as raw:
            assert b"".join([part async for part in raw.iter_bytes()]) == b"".join(STREAMS["claude"])


@pytest.mark.parametrize("model", ["gpt", "chat-only"])
async def test_messages_bridged(sdk: Setup, model: str) -> None:
    sdk.script(model, replies.plain(PLAIN[model]))
    async with sdk.anthropic() as client:
        answer = await client.messages.create(model=model, system="Be brief.", stop_sequences=["END"], **ASK)
    assert answer.content[0].text == "Guten Tag 👋"  # type: ignore[union-attr]
    assert (answer.stop_reason, answer.role, answer.type) == ("end_turn", "assistant", "message")
    assert answer.usage.output_tokens == 10
    received = sdk.reached(model)
    assert received.path == "/v1/chat/completions"
    assert received.headers["authorization"] == f"Bearer {UPSTREAM_KEY}"
    assert [m["role"] for m in received.json["messages"]] == ["system", "user"]
    assert received.json["stop"] == ["END"]
    sdk.keys_stay()


@pytest.mark.parametrize("model", ["gpt", "chat-only"])
async def test_messages_bridged_stream(sdk: Setup, model: str) -> None:
    sdk.script(model, replies.stream(*STREAMS[model]))
    async with sdk.anthropic() as client, client.messages.stream(model=model, **ASK) as stream:
        types = [event.type async for event in stream]
        final = await stream.get_final_message()
    assert final.content[0].text == "Guten Tag 👋"  # type: ignore[union-attr]
    assert (types[0], types[-1]) == ("message_start", "message_stop")
    assert final.usage.output_tokens == 10
    assert "stream_options" in sdk.reached(model).json


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["claude", "chat-only"])
async def test_parallel_tools(sdk: Setup, model: str, stream: bool) -> None:
    if model == "claude":
        uses = [replies.tool_use(1, "weather", {"city": "Ulm"}), replies.tool_use(2, "weather", {"city": "Bonn"})]
        reply = (
            replies.stream(*_tool_events(uses)) if stream else replies.plain(replies.message(*uses, reason="tool_use"))
        )
    else:
        calls = [replies.tool_call(1, "weather", '{"city":"Ulm"}'), replies.tool_call(2, "weather", '{"city":"Bonn"}')]
        reply = replies.stream(*replies.tool_stream()) if stream else replies.plain(replies.chat(None, calls))
    sdk.script(model, reply)
    turns: Any = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": [replies.tool_use(0, "weather", {})]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_0", "content": "which city?"}]},
    ]
    async with sdk.anthropic() as client:
        if stream:
            async with client.messages.stream(model=model, max_tokens=9, messages=turns, tools=[TOOL]) as events:
                answer: Any = await events.get_final_message()
        else:
            answer = await client.messages.create(model=model, max_tokens=9, messages=turns, tools=[TOOL])
    assert answer.stop_reason == "tool_use"
    assert [block.input for block in answer.content if block.type == "tool_use"] == [{"city": "Ulm"}, {"city": "Bonn"}]


def _tool_events(uses: list[dict[str, Any]]) -> list[bytes]:
    head, *_, end = replies.message_stream()
    events: list[dict[str, Any]] = []
    for i, use in enumerate(uses):
        events.append({"type": "content_block_start", "index": i, "content_block": {**use, "input": {}}})
        for piece in (json.dumps(use["input"])[:6], json.dumps(use["input"])[6:]):
            delta = {"type": "input_json_delta", "partial_json": piece}
            events.append({"type": "content_block_delta", "index": i, "delta": delta})
        events.append({"type": "content_block_stop", "index": i})
    delta = {"stop_reason": "tool_use", "stop_sequence": None}
    events.append({"type": "message_delta", "delta": delta, "usage": {"output_tokens": 15}})
    return [head, *(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n".encode() for e in events), end]


@pytest.mark.parametrize("model", ["claude", "chat-only"])
async def test_images(sdk: Setup, model: str) -> None:
    sdk.script(model, replies.plain(PLAIN[model]))
    data = replies.PIXEL.partition(",")[2]
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
    turns: Any = [{"role": "user", "content": [image, {"type": "text", "text": "what is it?"}]}]
    async with sdk.anthropic() as client:
        await client.messages.create(model=model, max_tokens=9, messages=turns)
    if model == "claude":
        sdk.unchanged("claude", MESSAGES)
    else:
        assert replies.PIXEL in sdk.reached(model).body.decode()


async def test_counting_tokens(sdk: Setup) -> None:
    sdk.script("claude", replies.plain({"input_tokens": 14}))
    async with sdk.anthropic() as client:
        answer = await client.messages.count_tokens(model="claude", messages=ASK["messages"])
    assert answer.input_tokens == 14
    sdk.unchanged("claude", "/v1/messages/count_tokens")


async def test_models(sdk: Setup) -> None:
    async with sdk.anthropic() as client:
        assert [model.id async for model in client.models.list()] == ["gpt", "chat-only", "claude", "dead", "slow"]
        assert (await client.models.retrieve("claude")).id == "claude"
        with pytest.raises(anthropic.NotFoundError):
            await client.models.retrieve("unknown")


ERRORS: list[tuple[int, type[anthropic.APIStatusError], str]] = [
    (400, anthropic.BadRequestError, "invalid_request_error"),
    (401, anthropic.AuthenticationError, "authentication_error"),
    (403, anthropic.PermissionDeniedError, "permission_error"),
    (404, anthropic.NotFoundError, "not_found_error"),
    (413, anthropic.APIStatusError, "request_too_large"),
    (429, anthropic.RateLimitError, "rate_limit_error"),
    (500, anthropic.InternalServerError, "api_error"),
    (529, anthropic.InternalServerError, "overloaded_error"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("status", "kind", "type_"), ERRORS)
async def test_errors_of_the_provider(sdk: Setup, status: int, kind: type, type_: str, stream: bool) -> None:
    error = replies.anthropic_error("it broke", type_)
    sdk.script("claude", replies.plain(error, status, retry_after="7"))
    async with sdk.anthropic() as client:
        with pytest.raises(kind, match="it broke") as raised:
            await client.messages.create(model="claude", stream=stream, **ASK)
    found: Any = raised.value
    assert (found.status_code, found.body) == (status, error)
    if status == 429:
        assert found.response.headers["retry-after"] == "7"
    sdk.keys_stay()


@pytest.mark.parametrize(("status", "kind", "type_"), [e for e in ERRORS if e[0] != 413])
async def test_errors_across_a_bridge(sdk: Setup, status: int, kind: type, type_: str) -> None:
    sdk.script("gpt", replies.plain(replies.openai_error("it broke", "some_type", "some_code"), status))
    async with sdk.anthropic() as client:
        with pytest.raises(kind, match="it broke") as raised:
            await client.messages.create(model="gpt", **ASK)
    body: Any = raised.value.body
    assert (body["type"], body["error"]["type"]) == ("error", type_)


@pytest.mark.parametrize("model", ["claude", "chat-only"])
async def test_a_rate_limit_is_retried_by_the_sdk(sdk: Setup, model: str) -> None:
    error = replies.anthropic_error("slow down", "rate_limit_error")
    sdk.script(model, replies.plain(error, 429, retry_after_ms="20", retry_after="1"), replies.plain(PLAIN[model]))
    async with sdk.anthropic(max_retries=1) as client:
        answer = await client.messages.create(model=model, **ASK)
    assert answer.content
    assert len(sdk.upstreams[model].requests) == 2


async def test_keys(sdk: Setup) -> None:
    async with sdk.anthropic(api_key="sk-wrong") as client:
        with pytest.raises(anthropic.AuthenticationError) as raised:
            await client.messages.create(model="claude", **ASK)
    body: Any = raised.value.body
    assert body["error"]["type"] == "authentication_error"
    sdk.script("claude", replies.plain(PLAIN["claude"]))
    async with sdk.anthropic(api_key=None, auth_token=MASTER_KEY) as client:
        assert (await client.messages.create(model="claude", **ASK)).content
    sdk.keys_stay()


async def test_an_unknown_model(sdk: Setup) -> None:
    async with sdk.anthropic() as client:
        with pytest.raises(anthropic.NotFoundError, match="does not exist") as raised:
            await client.messages.create(model="unknown", **ASK)
    body: Any = raised.value.body
    assert body["error"]["type"] == "not_found_error"


async def test_an_unreachable_provider(sdk: Setup) -> None:
    async with sdk.anthropic() as client:
        with pytest.raises(anthropic.InternalServerError, match="not reachable"):
            await client.messages.create(model="dead", **ASK)


async def test_a_provider_that_hangs(sdk: Setup) -> None:
    sdk.script("slow", Reply(parts=[b"{}"], delay_s=5))
    async with sdk.anthropic() as client:
        with pytest.raises(anthropic.APIStatusError) as raised:
            await client.messages.create(model="slow", **ASK)
    assert raised.value.status_code in (408, 504)


async def test_the_timeout_of_the_sdk(sdk: Setup) -> None:
    sdk.script("claude", Reply(parts=[b"{}"], delay_s=20))
    async with sdk.anthropic(timeout=0.3) as client:
        with pytest.raises(anthropic.APITimeoutError):
            await client.messages.create(model="claude", **ASK)


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("model", ["claude", "chat-only", "gpt"])
async def test_a_stream_that_is_cut(sdk: Setup, model: str, reset: bool) -> None:
    events = STREAMS[model]
    # Behind the first word, in the middle of an event.
    cut = len(b"".join(events[: 4 if model == "claude" else 2])) + 9
    sdk.script(model, replies.stream(*events, cut_after=cut, reset=reset, pause_s=0.01))
    got: list[Any] = []
    async with sdk.anthropic() as client:
        stream = await client.messages.create(model=model, stream=True, **ASK)
        with pytest.raises(anthropic.APIStatusError, match="broke off"):
            await drain(stream, got)
    assert "Gu" in str(got)


async def test_an_error_event_of_the_provider(sdk: Setup) -> None:
    error = json.dumps(replies.anthropic_error("too busy", "overloaded_error"))
    sdk.script("claude", replies.stream(*STREAMS["claude"][:5], f"event: error\ndata: {error}\n\n".encode()))
    async with sdk.anthropic() as client:
        stream = await client.messages.create(model="claude", stream=True, **ASK)
        with pytest.raises(anthropic.APIStatusError, match="too busy"):
            await drain(stream, [])


async def test_leaving_a_stream_cancels_the_upstream(sdk: Setup) -> None:
    llm = sdk.upstreams["claude"]
    dropped = llm.dropped
    sdk.script("claude", replies.stream(*replies.message_stream(*["word "] * 300), pause_s=0.02))
    async with sdk.anthropic() as client:
        async with client.messages.stream(model="claude", **ASK) as stream:
            async for _ in stream.text_stream:
                break
        async with asyncio.timeout(3):
            while llm.dropped == dropped:
                await asyncio.sleep(0.01)


async def drain(stream: Any, got: list[Any]) -> None:
    """Read to the end; what came stays in `got` when the end is an exception."""
    async for event in stream:
        got += [event]
