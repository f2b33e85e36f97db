"""Anthropic's streams as chat chunks, judged by goldens and by OpenAI's own client."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk

from tests.unit.bridges.anthropic_answers import BRIDGE, FULL_USAGE, JSON_VALUES, called, message, use
from tests.unit.bridges.support import THOUGHT, context, text
from tianji_mw.apis.chat_completions import ChatCompletions
from tianji_mw.bridges.base import Context, Event


def start(**usage: int) -> Event:
    opening = message(stop=None, usage={"input_tokens": 10, "output_tokens": 1, **usage})
    return Event({"type": "message_start", "message": opening}, "message_start")


def block(index: int, found: dict[str, Any], *deltas: dict[str, Any]) -> list[Event]:
    head = {"type": "content_block_start", "index": index, "content_block": found}
    body = [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
    return [Event(data, data["type"]) for data in (head, *body, {"type": "content_block_stop", "index": index})]


def said(index: int, *texts: str) -> list[Event]:
    return block(index, {"type": "text", "text": ""}, *({"type": "text_delta", "text": t} for t in texts))


def tool(index: int, name: str, call: str, *fragments: str) -> list[Event]:
    deltas = [{"type": "input_json_delta", "partial_json": fragment} for fragment in fragments]
    return block(index, {"type": "tool_use", "id": call, "name": name, "input": {}}, *deltas)


def end(stop: str = "end_turn", **usage: int) -> list[Event]:
    delta = {"stop_reason": stop, "stop_sequence": None}
    last = {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 9, **usage}}
    return [Event(last, "message_delta"), Event({"type": "message_stop"}, "message_stop")]


PING = Event({"type": "ping"}, "ping")
FULL = [
    start(cache_read_input_tokens=5),
    PING,
    *block(
        0,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "h"},
        {"type": "thinking_delta", "thinking": "m"},
        {"type": "signature_delta", "signature": "c2ln"},
    ),
    *said(1, "Hel", "lo"),
    *tool(2, "f", "toolu_1", "", '{"a":', '"x"}'),
    *tool(3, "g", "toolu_2", ""),
    *end("tool_use"),
]


def streamed(events: list[Event], ctx: Context | None = None) -> tuple[list[Any], Any]:
    before = deepcopy(events)
    stream = BRIDGE.stream(ctx or context())
    out = [found.data for event in events for found in stream.feed(event)]
    if stream.ended:
        out += [found.data for found in stream.finish()]
    assert events == before
    for chunk in out:
        if "error" not in chunk:
            ChatCompletionChunk.model_validate(chunk, strict=True)
    return out, stream


def deltas(chunks: list[Any]) -> list[Any]:
    return [choice["delta"] for chunk in chunks for choice in chunk["choices"]]


def test_a_whole_stream() -> None:
    chunks, stream = streamed(FULL, context(include_usage=True))
    assert stream.ended
    head = {"id": "msg_1", "object": "chat.completion.chunk", "created": 1700000000, "model": "claude"}
    assert all({key: chunk[key] for key in head} == head for chunk in chunks)
    assert deltas(chunks) == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "h"},
        {"reasoning_content": "m"},
        {"thinking_blocks": [THOUGHT]},
        {"content": "Hel"},
        {"content": "lo"},
        {"tool_calls": [{"index": 0, **called("", "f", "toolu_1")}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"x"}'}}]},
        {"tool_calls": [{"index": 1, **called("", "g", "toolu_2")}]},
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * 11 + ["tool_calls"]
    assert chunks[-2]["choices"][0]["provider_specific_fields"] == {"native_finish_reason": "tool_use"}
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {
        **FULL_USAGE, "prompt_tokens": 15, "total_tokens": 24, "cache_creation_input_tokens": 0,
        "completion_tokens_details": {"reasoning_tokens": 0},
    }  # fmt: skip


def test_the_official_client_reads_the_stream(openai_reads: Callable[..., dict[str, Any]]) -> None:
    chunks, _ = streamed(FULL, context(include_usage=True))
    found = openai_reads([Event(chunk) for chunk in chunks])
    [choice] = found["choices"]
    assert choice["message"]["content"] == "Hello"
    assert [call["function"]["arguments"] for call in choice["message"]["tool_calls"]] == ['{"a":"x"}', "{}"]
    assert choice["finish_reason"] == "tool_calls"
    assert found["usage"]["total_tokens"] == 24


def test_the_stream_says_what_the_plain_answer_says() -> None:
    api = ChatCompletions()
    plain = BRIDGE.answer(message(text("Hello"), use(a="x"), stop="tool_use"), context())
    chunks, _ = streamed([start(), *said(0, "Hello"), *tool(1, "f", "toolu_1", '{"a":"x"}'), *end("tool_use")])
    assert "".join(api.see(chunk, "").text for chunk in chunks) == api.see_whole(plain).text


@pytest.mark.parametrize("notes", [{}, {"include_usage": True}, {"want_usage": True}])
def test_the_usage_chunk_comes_only_where_somebody_wants_it(notes: dict[str, Any]) -> None:
    chunks, _ = streamed([start(), *said(0, "Hi"), *end(input_tokens=11)], context(**notes))
    assert [chunk["usage"]["prompt_tokens"] for chunk in chunks if chunk.get("usage")] == ([11] if notes else [])


def test_json_mode_streams_the_input_as_content() -> None:
    events = [
        start(),
        *said(0, "Here:"),
        *tool(1, "json_tool_call", "t", '{"n"', ":1}"),
        *said(2, "."),
        *end("tool_use"),
    ]
    chunks, _ = streamed(events, context(json_tool="json_tool_call"))
    assert deltas(chunks) == [{"role": "assistant", "content": ""}, {"content": '{"n"'}, {"content": ":1}"}, {}]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_json_mode_without_the_tool_keeps_the_text() -> None:
    chunks, _ = streamed([start(), *said(0, "No", "!"), *end()], context(json_tool="json_tool_call"))
    assert deltas(chunks) == [{"role": "assistant", "content": ""}, {"content": "No!"}, {}]


def test_json_mode_with_empty_input() -> None:
    chunks, _ = streamed(
        [start(), *tool(0, "json_tool_call", "t"), *end("tool_use")], context(json_tool="json_tool_call")
    )
    assert {"content": "{}"} in deltas(chunks)


def test_legacy_clients_get_one_function_call() -> None:
    events = [start(), *tool(0, "f", "t", '{"a":1}'), *tool(1, "g", "u", "{}"), *end("tool_use")]
    chunks, _ = streamed(events, context(legacy_functions=True))
    assert deltas(chunks)[1:] == [
        {"function_call": {"name": "f", "arguments": ""}}, {"function_call": {"arguments": '{"a":1}'}}, {},
    ]  # fmt: skip
    assert chunks[-1]["choices"][0]["finish_reason"] == "function_call"


def test_input_that_comes_whole_with_the_start() -> None:
    whole = block(0, {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}})
    chunks, _ = streamed([start(), *whole, *end("tool_use")])
    assert {"tool_calls": [{"index": 0, "function": {"arguments": '{"a":1}'}}]} in deltas(chunks)


def test_an_open_tool_is_closed_by_the_end() -> None:
    chunks, _ = streamed([start(), *tool(0, "f", "t")[:1], *end("tool_use")])
    assert deltas(chunks)[-2:] == [{"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}, {}]


def test_tools_that_ran_at_the_provider_give_nothing() -> None:
    server = block(
        0,
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
        {"type": "input_json_delta", "partial_json": '{"q":"x"}'},
    )
    result = block(1, {"type": "web_search_tool_result", "tool_use_id": "s", "content": []})
    chunks, _ = streamed([start(), *server, *result, *said(2, "Hi"), *end()])
    assert deltas(chunks) == [{"role": "assistant", "content": ""}, {"content": "Hi"}, {}]


def test_finish_comes_once_and_nothing_after_it() -> None:
    twice = end("max_tokens")
    chunks, stream = streamed([start(), *said(0, "Hi"), twice[0], *said(1, "late"), *end(), *said(2, "later")])
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None, None, "length"]
    assert stream.ended


def test_a_stream_without_its_start_has_the_role_chunk_all_the_same() -> None:
    chunks, _ = streamed([*said(0, "Hi"), *end()])
    assert deltas(chunks) == [{"role": "assistant", "content": ""}, {"content": "Hi"}, {}]
    assert chunks[0]["id"] == "chatcmpl-c1"


@pytest.mark.parametrize(
    ("kind", "code", "type_"),
    [
        ("overloaded_error", "503", "api_error"), ("rate_limit_error", "429", "rate_limit_error"),
        ("invalid_request_error", "400", "invalid_request_error"), ("api_error", "500", "api_error"),
        ("timeout_error", "504", "timeout_error"), ("odd_error", "502", "api_error"),
    ],
)  # fmt: skip
def test_an_error_breaks_the_stream_off(kind: str, code: str, type_: str) -> None:
    error = Event({"type": "error", "error": {"type": kind, "message": "busy"}}, "error")
    chunks, stream = streamed([start(), *said(0, "Hi"), error, *end()])
    assert chunks[-1] == {"error": {"message": "busy", "type": type_, "param": None, "code": code}}
    assert not stream.ended
    assert stream.failed
    assert ChatCompletions().see(chunks[-1], "").kind == "error"


@pytest.mark.parametrize("cut", range(len(FULL)))
def test_a_cut_stream_has_not_ended(cut: int) -> None:
    chunks, stream = streamed(FULL[:cut])
    assert not stream.ended
    assert list(stream.finish()) == []
    assert chunks == streamed(FULL)[0][: len(chunks)]


KINDS = [
    "message_start",
    "content_block_start",
    "content_block_delta",
    "content_block_stop",
    "message_delta",
    "error",
    "x",
]


@given(st.lists(st.tuples(JSON_VALUES, st.sampled_from(KINDS)), max_size=12), st.sampled_from([{}, {"json_tool": ""}]))
def test_streams_are_total(events: list[tuple[Any, str]], notes: dict[str, Any]) -> None:
    mixed = [Event({**data, "type": kind} if isinstance(data, dict) else data, kind) for data, kind in events]
    streamed(mixed, context(include_usage=True, **notes))
