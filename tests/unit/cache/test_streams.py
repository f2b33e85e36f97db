"""One entry serves both forms of an answer; in the form it was kept in it comes back byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest

from tests.support.cached import COUNTED, DONE, END, STREAM, TOOL_CALL, Cached, answer, ask, chunk, stream
from tests.unit.providers.served import MESSAGE
from tianji_mw.apis import by_name
from tianji_mw.apis.assemble import assemble
from tianji_mw.testing import FakeLLM, Reply, drive

Make = Callable[..., Cached]

TOOLS = (
    chunk({"role": "assistant", "content": None}),
    chunk({"tool_calls": [{"index": 0, **TOOL_CALL, "function": {"name": "weather", "arguments": ""}}]}),
    chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"city":'}}]}),
    chunk({"tool_calls": [{"index": 0, "function": {"arguments": '"Bern"}'}}]}),
    chunk({}, "tool_calls"),
    DONE,
)


@pytest.mark.parametrize(
    "parts", [(*STREAM, END, DONE), (*STREAM, END, COUNTED, DONE), TOOLS], ids=["text", "usage", "tools"]
)
async def test_a_stream_comes_back_byte_for_byte(llm: FakeLLM, cached: Make, parts: tuple[bytes, ...]) -> None:
    gateway = cached()
    llm.replies.append(stream(*parts))
    asked = ask(stream=True, **({"stream_options": {"include_usage": True}} if COUNTED in parts else {}))
    first, second = await gateway(asked), await gateway(asked)
    assert second.headers["x-cache"] == "HIT"
    assert first.body == second.body == b"".join(parts)
    assert second.headers["content-type"].startswith("text/event-stream")
    assert len(llm.requests) == 1


async def test_a_plain_answer_with_tools_comes_back_byte_for_byte(llm: FakeLLM, cached: Make) -> None:
    gateway = cached()
    body = answer("", "tool_calls", tool_calls=[TOOL_CALL])
    llm.replies.append(Reply.json(body))
    first, second = await gateway(ask()), await gateway(ask())
    assert first.body == second.body == orjson.dumps(body)


async def test_a_plain_answer_as_a_stream(llm: FakeLLM, cached: Make) -> None:
    gateway = cached()
    llm.replies.append(Reply.json(answer("Hi!", tool_calls=[TOOL_CALL])))
    await gateway(ask())
    told = await gateway(ask(stream=True, stream_options={"include_usage": True}))
    assert told.headers["x-cache"] == "HIT"
    again = assemble("chat_completions", told.body)
    assert again is not None
    assert again["choices"][0]["message"]["content"] == "Hi!"
    assert again["choices"][0]["message"]["tool_calls"] == [TOOL_CALL]
    assert again["usage"]["total_tokens"] == 12
    assert told.body.endswith(DONE)
    quiet = await gateway(ask(stream=True))
    assert b"usage" not in quiet.body
    assert quiet.body.endswith(DONE)


async def test_a_counted_stream_as_a_plain_answer(llm: FakeLLM, cached: Make) -> None:
    gateway = cached()
    llm.replies.append(stream(*TOOLS[:-1], COUNTED, DONE))
    await gateway(ask(stream=True, stream_options={"include_usage": True}))
    plain = await gateway(ask())
    assert plain.headers["x-cache"] == "HIT"
    assert plain.json["choices"][0]["message"]["tool_calls"] == [TOOL_CALL]
    assert plain.json["object"] == "chat.completion"
    assert plain.json["usage"]["prompt_tokens"] == 7
    assert b"usage" not in (await gateway(ask(stream=True))).body


async def test_a_stream_that_nobody_counted_makes_no_plain_answer(llm: FakeLLM, cached: Make) -> None:
    """What it used is not known, and a plain answer without usage is none that clients expect."""
    gateway = cached()
    llm.replies += [stream(), Reply.json(answer("Counted"))]
    await gateway(ask(stream=True))
    assert (await gateway(ask())).headers["x-cache"] == "MISS"
    told = await gateway(ask(stream=True, stream_options={"include_usage": True}))
    assert told.headers["x-cache"] == "HIT"
    assert b"Counted" in told.body


@pytest.mark.parametrize(
    "reply",
    [stream(*STREAM, cut_after=500), stream(*STREAM, DONE), stream(*STREAM, chunk({}, "content_filter"), DONE),
     stream(*STREAM, b'data: {"error":{"message":"broken"}}\n\n')],
    ids=["cut", "no reason", "filtered", "error"],
)  # fmt: skip
async def test_a_stream_without_a_proper_end_is_not_kept(llm: FakeLLM, cached: Make, reply: Reply) -> None:
    gateway = cached()
    llm.replies += [reply, stream()]
    await gateway(ask(stream=True))
    again = await gateway(ask(stream=True))
    assert again.headers["x-cache"] == "MISS"
    assert again.body.endswith(DONE)


async def test_a_client_that_left_leaves_no_entry(llm: FakeLLM, cached: Make) -> None:
    gateway = cached()
    llm.replies += [stream(pause_s=0.05), stream()]
    await gateway(ask(stream=True), leave_after=1)
    assert (await gateway(ask(stream=True))).headers["x-cache"] == "MISS"


async def test_anthropics_messages(llm: FakeLLM) -> None:
    """Another API, in both forms: its events and its plain answer are made of each other."""
    from tests.support.cached import CacheRules, compose, from_dict
    from tests.unit.providers.served import config
    from tianji_mw.cache.middleware import Cache

    gateway = compose(from_dict(config(llm, "anthropic/claude", "claude", api_base=llm.url), env={}), env={}).app
    app = Cache(gateway, rules=CacheRules(keyless=True))
    events = by_name("messages").split(MESSAGE)
    llm.replies.append(Reply.events(*events))
    request: dict[str, Any] = {"model": "claude", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}

    first = await drive(app, {**request, "stream": True}, path="/v1/messages")
    again = await drive(app, {**request, "stream": True}, path="/v1/messages")
    plain = await drive(app, request, path="/v1/messages")
    assert first.body == again.body == b"".join(events)
    assert again.headers["x-cache"] == plain.headers["x-cache"] == "HIT"
    assert plain.json["content"] == MESSAGE["content"]
    assert plain.json["usage"]["output_tokens"] == 2
    assert len(llm.requests) == 1
    await app.runtime.aclose()
