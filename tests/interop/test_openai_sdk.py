"""OpenAI's own Python SDK as the judge: what it sends arrives unchanged, what it gets it can read, errors raise."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import openai
import pytest
from pydantic import BaseModel

from tests.interop import replies
from tests.interop.sdk import Setup
from tests.interop.support import MASTER_KEY, UPSTREAM_KEY
from tianji_mw.testing import Reply

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def user(content: Any) -> list[Any]:
    return [{"role": "developer", "content": "Be brief. ü👋"}, {"role": "user", "content": content}]


async def test_chat(sdk: Setup) -> None:
    sdk.script("gpt", replies.plain(replies.chat()))
    async with sdk.openai() as client:
        raw = await client.chat.completions.with_raw_response.create(
            model="gpt", messages=user("hi"), extra_body={"unknown_field": [1.50]}, extra_headers={"openai-beta": "x=1"}
        )
    answer = raw.parse()
    assert raw.http_response.content == replies.js(replies.chat()), "the answer's bytes are the provider's"
    assert answer.choices[0].message.content == "Guten Tag, wie geht's? 👋"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 29
    received = sdk.unchanged("gpt", CHAT)
    assert received.headers["authorization"] == f"Bearer {UPSTREAM_KEY}"
    assert received.headers["openai-beta"] == "x=1"
    assert raw.headers["llm_provider-x-ratelimit-remaining-requests"] == "4999"
    assert raw.headers["x-request-id"] != "req_upstream"


async def test_chat_stream(sdk: Setup) -> None:
    sdk.script("gpt", replies.stream(*replies.chat_stream("Gu", "ten ", "Tag 👋")))
    async with sdk.openai() as client:
        stream = await client.chat.completions.create(model="gpt", messages=user("hi"), stream=True)
        chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "Guten Tag 👋"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)
    sdk.unchanged("gpt", CHAT)


async def test_the_bytes_of_a_stream(sdk: Setup) -> None:
    events = replies.chat_stream("Gu", "ten Tag")
    sdk.script("gpt", replies.stream(*events))
    async with sdk.openai() as client:
        create = client.chat.completions.with_streaming_response.create
        async with create(model="gpt", messages=user("hi"), stream=True) as raw:
            assert b"".join([part async for part in raw.iter_bytes()]) == b"".join(events)


async def test_usage_in_a_stream(sdk: Setup) -> None:
    sdk.script("gpt", replies.stream(*replies.chat_stream("Tag", usage=True)))
    async with sdk.openai() as client:
        stream = await client.chat.completions.create(
            model="gpt", messages=user("hi"), stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens_details is not None
    assert chunks[-1].usage.completion_tokens_details.reasoning_tokens == 2
    sdk.unchanged("gpt", CHAT)


@pytest.mark.parametrize("stream", [False, True])
async def test_parallel_tool_calls(sdk: Setup, stream: bool) -> None:
    calls = [replies.tool_call(1, "weather", '{"city":"Ulm"}'), replies.tool_call(2, "weather", '{"city":"Bonn"}')]
    sdk.script("gpt", replies.stream(*replies.tool_stream()) if stream else replies.plain(replies.chat(None, calls)))
    messages = [
        *user("weather?"),
        {"role": "assistant", "content": None, "tool_calls": [replies.tool_call(0, "weather", "{}")]},
        {"role": "tool", "tool_call_id": "call_0", "content": "which city?"},
    ]
    options: Any = {"tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": True, "messages": messages}
    async with sdk.openai() as client:
        if stream:
            async with client.chat.completions.stream(model="gpt", **options) as events:
                answer: Any = await events.get_final_completion()
        else:
            answer = await client.chat.completions.create(model="gpt", **options)
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert [(c.id, c.function.arguments) for c in choice.message.tool_calls] == [
        ("call_1", '{"city":"Ulm"}'),
        ("call_2", '{"city":"Bonn"}'),
    ]
    sdk.unchanged("gpt", CHAT)


async def test_images(sdk: Setup) -> None:
    sdk.script("gpt", replies.plain(replies.chat("a pixel")))
    content = [
        {"type": "text", "text": "what is it?"},
        {"type": "image_url", "image_url": {"url": replies.PIXEL, "detail": "low"}},
        {"type": "image_url", "image_url": {"url": 'https://example.org/a.png?x=/v1&y="model":"gpt"'}},
    ]
    async with sdk.openai() as client:
        answer = await client.chat.completions.create(model="gpt", messages=user(content))
    assert answer.choices[0].message.content == "a pixel"
    sdk.unchanged("gpt", CHAT)


class City(BaseModel):
    name: str
    people: int


async def test_structured_output(sdk: Setup) -> None:
    sdk.script("gpt", replies.plain(replies.chat('{"name":"Ulm","people":126000}')))
    async with sdk.openai() as client:
        answer = await client.chat.completions.parse(model="gpt", messages=user("a city"), response_format=City)
    assert answer.choices[0].message.parsed == City(name="Ulm", people=126000)
    assert sdk.unchanged("gpt", CHAT).json["response_format"]["json_schema"]["strict"] is True


@pytest.mark.parametrize("encoding", [None, "float"])
async def test_embeddings(sdk: Setup, encoding: Any) -> None:
    sdk.script("gpt", replies.plain(replies.embeddings(encoded=encoding is None)))
    more: Any = {"encoding_format": encoding} if encoding else {}
    async with sdk.openai() as client:
        answer = await client.embeddings.create(model="gpt", input=["one", "two"], **more)
    assert tuple(answer.data[0].embedding) == replies.VECTOR
    assert sdk.unchanged("gpt", "/v1/embeddings").json["encoding_format"] == (encoding or "base64")


async def test_moderations(sdk: Setup) -> None:
    sdk.script("gpt", replies.plain(replies.moderation()))
    async with sdk.openai() as client:
        answer = await client.moderations.create(model="gpt", input="I will hit you")
    assert answer.results[0].flagged
    assert answer.results[0].categories.violence
    sdk.unchanged("gpt", "/v1/moderations")


async def test_completions(sdk: Setup) -> None:
    sdk.script("gpt", replies.plain(replies.completion()))
    async with sdk.openai() as client:
        answer = await client.completions.create(model="gpt", prompt=["This is"], max_tokens=3)
    assert answer.choices[0].text == " and so on"
    sdk.unchanged("gpt", "/v1/completions")


@pytest.mark.parametrize("stream", [False, True])
async def test_completions_over_chat(sdk: Setup, stream: bool) -> None:
    events = replies.stream(*replies.chat_stream(" and", " so on"))
    sdk.script("chat-only", events if stream else replies.plain(replies.chat(" and so on")))
    async with sdk.openai() as client:
        answer: Any = await client.completions.create(model="chat-only", prompt="This is", stream=stream)
        parts = [c.choices[0].text async for c in answer if c.choices] if stream else [answer.choices[0].text]
    assert "".join(parts) == " and so on"
    assert sdk.reached("chat-only").json["messages"][-1]["content"] == "This is"


async def test_responses(sdk: Setup) -> None:
    sdk.script("gpt", replies.plain(replies.response()))
    async with sdk.openai() as client:
        answer = await client.responses.create(model="gpt", input="a story", instructions="short", store=False)
    assert answer.output_text == "Once upon a time."
    assert answer.usage is not None
    assert answer.usage.total_tokens == 123
    sdk.unchanged("gpt", "/v1/responses")


async def test_responses_stream(sdk: Setup) -> None:
    sdk.script("gpt", replies.stream(*replies.response_stream("Once ", "upon 👋")))
    async with sdk.openai() as client, client.responses.stream(model="gpt", input="a story") as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "Once upon 👋"
    assert final.output_text == "Once upon 👋"
    sdk.unchanged("gpt", "/v1/responses")


BRIDGED = {
    "chat-only": (replies.chat("Once upon"), replies.chat_stream("Once ", "upon", usage=True)),
    "claude": (replies.message({"type": "text", "text": "Once upon"}), replies.message_stream("Once ", "upon")),
}


@pytest.mark.parametrize("model", BRIDGED)
async def test_responses_bridged(sdk: Setup, model: str) -> None:
    sdk.script(model, replies.plain(BRIDGED[model][0]))
    async with sdk.openai() as client:
        answer = await client.responses.create(model=model, input="a story", instructions="short", max_output_tokens=99)
    assert answer.output_text == "Once upon"
    assert answer.status == "completed"
    assert answer.usage is not None
    assert answer.usage.output_tokens > 0
    assert sdk.reached(model).path == ("/v1/messages" if model == "claude" else CHAT)
    sdk.keys_stay()


@pytest.mark.parametrize("model", BRIDGED)
async def test_responses_bridged_stream(sdk: Setup, model: str) -> None:
    sdk.script(model, replies.stream(*BRIDGED[model][1]))
    async with sdk.openai() as client, client.responses.stream(model=model, input="a story") as stream:
        types = [event.type async for event in stream]
        final = await stream.get_final_response()
    assert final.output_text == "Once upon"
    assert types[0] == "response.created"
    assert types[-1] == "response.completed"


@pytest.mark.parametrize("stream", [False, True])
async def test_chat_over_messages(sdk: Setup, stream: bool) -> None:
    sdk.script("claude", replies.stream(*BRIDGED["claude"][1]) if stream else replies.plain(BRIDGED["claude"][0]))
    async with sdk.openai() as client:
        if stream:
            async with client.chat.completions.stream(model="claude", messages=user("hi"), max_tokens=50) as events:
                answer: Any = await events.get_final_completion()
        else:
            answer = await client.chat.completions.create(model="claude", messages=user("hi"), max_tokens=50)
    assert answer.choices[0].message.content == "Once upon"
    assert answer.choices[0].finish_reason == "stop"
    received = sdk.reached("claude")
    assert received.headers["x-api-key"] == UPSTREAM_KEY
    assert received.json["system"]
    assert received.json["model"] == "claude-sonnet-4-5"
    sdk.keys_stay()


async def test_tools_over_messages(sdk: Setup) -> None:
    uses = [replies.tool_use(1, "weather", {"city": "Ulm"}), replies.tool_use(2, "weather", {"city": "Bonn"})]
    sdk.script("claude", replies.plain(replies.message(*uses, reason="tool_use")))
    async with sdk.openai() as client:
        tools: Any = [TOOL]
        answer = await client.chat.completions.create(
            model="claude", messages=user("weather?"), tools=tools, max_tokens=9
        )
    calls: Any = answer.choices[0].message.tool_calls
    assert [json.loads(call.function.arguments) for call in calls] == [{"city": "Ulm"}, {"city": "Bonn"}]


async def test_models(sdk: Setup) -> None:
    async with sdk.openai() as client:
        names = [model.id async for model in client.models.list()]
        assert names == ["gpt", "chat-only", "claude", "dead", "slow"]
        assert (await client.models.retrieve("claude")).id == "claude"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("unknown")


async def test_transcription_upload(sdk: Setup) -> None:
    sdk.script("gpt", replies.plain({"text": "hello there"}))
    sound = bytes(range(256)) * 1000
    async with sdk.openai() as client:
        answer = await client.audio.transcriptions.create(model="gpt", file=("a.wav", sound), response_format="json")
    assert answer.text == "hello there"
    received = sdk.reached("gpt")
    assert received.path == "/v1/audio/transcriptions"
    assert sound in received.body
    assert b"gpt-4.1-2025-04-14" in received.body
    assert received.headers["content-type"].startswith("multipart/form-data; boundary=")
    sdk.keys_stay()


async def test_speech_download_streams(sdk: Setup) -> None:
    parts = [bytes([i]) * 5000 for i in range(6)]
    sdk.script("gpt", Reply(headers={"content-type": "audio/mpeg"}, parts=parts, pause_s=0.03, chunked=True))
    async with sdk.openai() as client:
        create = client.audio.speech.with_streaming_response.create
        async with create(model="gpt", voice="alloy", input="say it") as sound:
            pieces = [piece async for piece in sound.iter_bytes()]
    assert b"".join(pieces) == b"".join(parts)
    assert len(pieces) >= 4, "the sound is not collected first"
    assert sdk.unchanged("gpt", "/v1/audio/speech").json["voice"] == "alloy"


async def test_files(sdk: Setup) -> None:
    made = {"id": "file-1", "object": "file", "bytes": 5, "created_at": 1, "filename": "a.jsonl", "purpose": "batch"}
    binary = Reply(headers={"content-type": "application/octet-stream"}, parts=[b"\x00\xff" * 999])
    sdk.script("gpt", replies.plain({**made, "status": "processed"}), binary)
    async with sdk.openai() as client:
        query: Any = {"custom_llm_provider": "openai"}
        file = await client.files.create(file=("a.jsonl", b"x" * 100_000), purpose="batch", extra_query=query)
        content = await client.files.content(file.id, extra_query=query)
    assert file.id == "file-1"
    assert content.content == b"\x00\xff" * 999
    upload, download = sdk.upstreams["gpt"].requests
    assert (upload.method, upload.path) == ("POST", "/v1/files")
    assert b"x" * 100_000 in upload.body
    assert (download.method, download.path) == ("GET", "/v1/files/file-1/content")
    sdk.keys_stay()


@pytest.mark.parametrize("place", ["sidecar", "server", "mounted"], indirect=True)
def test_the_sync_client(sdk: Setup) -> None:
    sdk.script("gpt", replies.stream(*replies.chat_stream("Guten ", "Tag")))
    with httpx2.Client(trust_env=False) as http:
        client = openai.OpenAI(api_key=MASTER_KEY, base_url=f"{sdk.url}/v1", http_client=http)
        stream = client.chat.completions.create(model="gpt", messages=user("hi"), stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "Guten Tag"


@pytest.mark.parametrize("place", ["process"], indirect=True)
async def test_in_process_no_address_is_needed(sdk: Setup) -> None:
    sdk.script("gpt", replies.plain(replies.chat("Tag")))
    async with sdk.stack.httpx_client() as http:
        client = openai.AsyncOpenAI(api_key=MASTER_KEY, http_client=http)
        answer = await client.chat.completions.create(model="gpt", messages=user("hi"))
    assert answer.choices[0].message.content == "Tag"
