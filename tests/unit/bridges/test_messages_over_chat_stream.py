"""Chat streams as Anthropic's, judged by goldens and by Anthropic's own client."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
from anthropic.types import RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from tests.unit.bridges.chat_answers import BRIDGE, JSON_VALUES, ZERO, thought, use
from tests.unit.bridges.support import A_USAGE, CHAT_USAGE, context, text
from tianji_mw.apis.base import Usage
from tianji_mw.apis.messages import Messages
from tianji_mw.bridges.base import Context, Event
from tianji_mw.bridges.chat_over_messages import ChatOverMessages

EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


def chunk(finish: str | None = None, usage: Any = None, **delta: Any) -> Event:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt"}
    return Event({**head, "choices": choices, **({"usage": usage} if usage else {})})


def call_piece(index: int, arguments: str | None = None, name: str | None = None, call: str | None = None) -> Event:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    piece: dict[str, Any] = {"index": index, "function": function}
    if call is not None:
        piece |= {"id": call, "type": "function"}
    return chunk(tool_calls=[piece])


USAGE_CHUNK = Event({"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [], "usage": CHAT_USAGE})
FULL = [
    chunk(role="assistant", content=""),
    chunk(reasoning_content="h"),
    chunk(reasoning_content="m"),
    chunk(thinking_blocks=[thought("hm", "c2ln")]),
    chunk(content="Hel"),
    chunk(content="lo"),
    call_piece(0, "", "f", "call_1"),
    call_piece(0, '{"a":'),
    call_piece(0, '"x"}'),
    call_piece(1, '{"b":1}', "g", "call_2"),
    chunk("tool_calls"),
    USAGE_CHUNK,
]


def streamed(events: list[Event], ctx: Context | None = None) -> tuple[list[Event], Any]:
    before = deepcopy(events)
    stream = BRIDGE.stream(ctx or context())
    out = [found for event in events for found in stream.feed(event)]
    if stream.ended:
        out += stream.finish()
    assert events == before
    for event in out:
        assert event.name == event.data["type"]
        if event.name not in ("ping", "error"):
            EVENT.validate_python(event.data, strict=True)
    return out, stream


def short(events: list[Event]) -> list[tuple[Any, ...]]:
    """Each event in brief, without the opening ones."""
    found: list[tuple[Any, ...]] = []
    for event in events:
        data = event.data
        match event.name:
            case "content_block_start":
                found.append(("start", data["index"], data["content_block"]))
            case "content_block_delta":
                found.append(("delta", data["index"], next(v for k, v in data["delta"].items() if k != "type")))
            case "content_block_stop":
                found.append(("stop", data["index"]))
            case "message_delta":
                found.append(("end", data["delta"]["stop_reason"], data["usage"]["output_tokens"]))
            case "error":
                found.append(("error", data["error"]["type"]))
    return found


def test_a_whole_stream() -> None:
    out, stream = streamed(FULL)
    assert stream.ended
    assert [event.name for event in out[:2]] == ["message_start", "ping"]
    assert out[0].data["message"] == {
        "id": "msg_chatcmpl-1", "type": "message", "role": "assistant", "model": "gpt", "content": [],
        "stop_reason": None,
        "stop_sequence": None, "usage": ZERO,
    }  # fmt: skip
    assert short(out) == [
        ("start", 0, thought("")), ("delta", 0, "h"), ("delta", 0, "m"), ("delta", 0, "c2ln"), ("stop", 0),
        ("start", 1, text("")), ("delta", 1, "Hel"), ("delta", 1, "lo"), ("stop", 1),
        ("start", 2, use()), ("delta", 2, '{"a":'), ("delta", 2, '"x"}'), ("stop", 2),
        ("start", 3, use("g", "call_2")), ("delta", 3, '{"b":1}'), ("stop", 3),
        ("end", "tool_use", 9),
    ]  # fmt: skip
    assert out[-2].data == {
        "type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None}, "usage": A_USAGE,
    }  # fmt: skip
    assert out[-1] == Event({"type": "message_stop"}, "message_stop")


def test_the_official_client_reads_the_stream(anthropic_reads: Callable[..., dict[str, Any]]) -> None:
    found = anthropic_reads(streamed(FULL)[0])
    assert [block["type"] for block in found["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    assert found["content"][0]["signature"] == "c2ln"
    assert found["content"][1]["text"] == "Hello"
    assert [block["input"] for block in found["content"][2:]] == [{"a": "x"}, {"b": 1}]
    assert found["stop_reason"] == "tool_use"
    assert found["usage"]["output_tokens"] == 9


def test_our_api_counts_the_stream_right() -> None:
    api, usage = Messages(), Usage()
    for event in streamed(FULL)[0]:
        usage = usage.merged(api.usage(event.data) or Usage())
    assert usage == Usage(17, 9, 5, 2, 4, "provider")


STREAMS: dict[str, tuple[list[Event], list[tuple[Any, ...]]]] = {
    "the first chunk has content": (
        [chunk(role="assistant", content="Hi"), chunk("stop")],
        [("start", 0, text("")), ("delta", 0, "Hi"), ("stop", 0), ("end", "end_turn", 0)],
    ),
    "everything in one chunk": (
        [chunk("stop", CHAT_USAGE, role="assistant", content="Hi")],
        [("start", 0, text("")), ("delta", 0, "Hi"), ("stop", 0), ("end", "end_turn", 9)],
    ),
    "name and arguments in one chunk": (
        [call_piece(0, '{"a":1}', "f", "call_1"), chunk("tool_calls")],
        [("start", 0, use()), ("delta", 0, '{"a":1}'), ("stop", 0), ("end", "tool_use", 0)],
    ),
    "no arguments at all": (
        [call_piece(0, "", "f", "call_1"), chunk("tool_calls")],
        [("start", 0, use()), ("delta", 0, "{}"), ("stop", 0), ("end", "tool_use", 0)],
    ),
    "chunks without choices": (
        [Event({"choices": [], "prompt_filter_results": []}), chunk(content="Hi"), Event({"choices": []}),
         chunk("stop")],
        [("start", 0, text("")), ("delta", 0, "Hi"), ("stop", 0), ("end", "end_turn", 0)],
    ),
    "usage before and after the finish": (
        [chunk(None, {"completion_tokens": 1}, content="Hi"), chunk("stop", {"completion_tokens": 2}), USAGE_CHUNK],
        [("start", 0, text("")), ("delta", 0, "Hi"), ("stop", 0), ("end", "end_turn", 9)],
    ),
    "finish says stop although a tool was called": (
        [call_piece(0, "{}", "f", "call_1"), chunk("stop")],
        [("start", 0, use()), ("delta", 0, "{}"), ("stop", 0), ("end", "tool_use", 0)],
    ),
    "text after a tool": (
        [call_piece(0, "{}", "f", "call_1"), chunk(content="Hi"), chunk("stop")],
        [("start", 0, use()), ("delta", 0, "{}"), ("stop", 0), ("start", 1, text("")), ("delta", 1, "Hi"), ("stop", 1),
         ("end", "tool_use", 0)],
    ),
    "two calls under one index, each with an id": (
        [call_piece(0, "{}", "f", "call_1"), call_piece(0, '{"b":1}', "g", "call_2"), chunk("tool_calls")],
        [("start", 0, use()), ("delta", 0, "{}"), ("stop", 0), ("start", 1, use("g", "call_2")), ("delta", 1,
         '{"b":1}'),
         ("stop", 1), ("end", "tool_use", 0)],
    ),
    "id and name repeated in every piece": (
        [call_piece(0, '{"a"', "f", "call_1"), call_piece(0, ":1}", "f", "call_1"), chunk("tool_calls")],
        [("start", 0, use()), ("delta", 0, '{"a"'), ("delta", 0, ":1}"), ("stop", 0), ("end", "tool_use", 0)],
    ),
    "calls without index and id": (
        [chunk(tool_calls=[{"function": {"name": "f", "arguments": "{}"}}, {"function": {"name": "g",
         "arguments": "{}"}}]),
         chunk("tool_calls")],
        [("start", 0, use("f", "toolu_c1_0")), ("delta", 0, "{}"), ("stop", 0), ("start", 1, use("g", "toolu_c1_1")),
         ("delta", 1, "{}"), ("stop", 1), ("end", "tool_use", 0)],
    ),
    "legacy call": (
        [chunk(function_call={"name": "f", "arguments": ""}), chunk(function_call={"arguments": "{}"}),
         chunk("function_call")],
        [("start", 0, use("f", "call_c1")), ("delta", 0, "{}"), ("stop", 0), ("end", "tool_use", 0)],
    ),
    "refusal": (
        [chunk(refusal="No."), chunk("stop")],
        [("start", 0, text("")), ("delta", 0, "No."), ("stop", 0), ("end", "refusal", 0)],
    ),
    "redacted thinking": (
        [chunk(thinking_blocks=[{"type": "redacted_thinking", "data": "b3A="}]), chunk(content="Hi"), chunk("stop")],
        [("start", 0, {"type": "redacted_thinking", "data": "b3A="}), ("stop", 0), ("start", 1, text("")), ("delta",
         1, "Hi"),
         ("stop", 1), ("end", "end_turn", 0)],
    ),
    "thinking blocks without reasoning_content": (
        [chunk(thinking_blocks=[thought("h")]), chunk(thinking_blocks=[thought("m")]),
         chunk(thinking_blocks=[thought("", "c2ln")]), chunk("stop")],
        [("start", 0, thought("")), ("delta", 0, "h"), ("delta", 0, "m"), ("delta", 0, "c2ln"), ("stop", 0),
         ("end", "end_turn", 0)],
    ),
    "other choices": (
        [Event({"choices": [{"index": 1, "delta": {"content": "no"}}, {"delta": {"content": "Hi"}}]}), chunk("length")],
        [("start", 0, text("")), ("delta", 0, "Hi"), ("stop", 0), ("end", "max_tokens", 0)],
    ),
    "an empty answer": ([chunk(role="assistant", content=""), chunk("stop")], [("end", "end_turn", 0)]),
    "content after the finish": (
        [chunk(content="Hi"), chunk("stop"), chunk(content="late"), chunk("length")],
        [("start", 0, text("")), ("delta", 0, "Hi"), ("stop", 0), ("end", "end_turn", 0)],
    ),
    "an error": (
        [chunk(content="Hi"), Event({"error": {"message": "slow down", "type": "x", "code": "429"}}), chunk("stop")],
        [("start", 0, text("")), ("delta", 0, "Hi"), ("error", "rate_limit_error")],
    ),
    "arguments for a closed call": (
        [call_piece(0, '{"a"', "f", "call_1"), call_piece(1, "{}", "g", "call_2"), call_piece(0, ":1}"),
         chunk("tool_calls")],
        [("start", 0, use()), ("delta", 0, '{"a"'), ("stop", 0), ("start", 1, use("g", "call_2")), ("delta", 1, "{}"),
         ("error", "api_error")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", STREAMS.values(), ids=STREAMS.keys())
def test_streams(case: tuple[list[Event], list[tuple[Any, ...]]]) -> None:
    events, wanted = case
    out, stream = streamed(events)
    assert short(out) == wanted
    failed = wanted[-1][0] == "error"
    assert stream.failed is failed
    assert stream.ended is not failed
    if not failed:
        assert out[-1].name == "message_stop"


def test_names_and_ids_in_streams() -> None:
    out, _ = streamed(
        [call_piece(0, "{}", "short", "call_1__thought__a+/="), chunk("tool_calls")],
        context(tool_names={"short": "a" * 70}),
    )
    assert ("start", 0, use("a" * 70)) in short(out)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "x", "code": 503}, "overloaded_error"), ({"message": "x", "code": "400"}, "invalid_request_error"),
        ({"message": "x", "type": "rate_limit_error", "code": None}, "rate_limit_error"),
        ({"message": "x", "code": "insufficient_quota"}, "rate_limit_error"), ({"message": "x", "type": "odd"},
         "api_error"),
        ("plain words", "api_error"), ({"message": 3, "code": True}, "api_error"),
    ],
)  # fmt: skip
def test_errors_break_the_stream_off(error: Any, kind: str) -> None:
    [event] = BRIDGE.stream(context()).feed(Event({"error": error}))
    assert event.name == "error"
    assert event.data["error"]["type"] == kind
    assert Messages().see(event.data, event.name).kind == "error"


@pytest.mark.parametrize("cut", range(10))
def test_a_cut_stream_has_not_ended(cut: int) -> None:
    out, stream = streamed(FULL[:cut])
    assert not stream.ended
    assert list(stream.finish()) == []
    assert out == streamed(FULL)[0][: len(out)]


@given(st.lists(JSON_VALUES | st.builds(lambda value: {"choices": [{"delta": value}]}, JSON_VALUES), max_size=8))
def test_streams_are_total(values: list[Any]) -> None:
    streamed([Event(value) for value in values])


def test_a_stream_through_both_bridges_keeps_text_and_calls() -> None:
    there, _ = streamed(FULL)
    chat = ChatOverMessages().stream(context())
    chunks = [found.data for event in there for found in chat.feed(event)]
    assert chat.ended
    found = [choice["delta"] for piece in chunks for choice in piece["choices"]]
    assert "".join(delta.get("content") or "" for delta in found) == "Hello"
    calls = [call for delta in found for call in delta.get("tool_calls", ())]
    for index, arguments in enumerate(['{"a":"x"}', '{"b":1}']):
        assert "".join(c["function"]["arguments"] for c in calls if c["index"] == index) == arguments
