"""Anthropic requests as chat's: one golden case for each row of the mapping, and the way there and back."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.bridges.support import MARK, THOUGHT, USER, context, kept, result, texts
from tianji_mw.bridges.base import Context
from tianji_mw.bridges.chat_over_messages import ChatOverMessages
from tianji_mw.bridges.messages_over_chat import MessagesOverChat
from tianji_mw.errors import InvalidRequest, RequestError, TianjiError, UnsupportedParams

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
TOOL = {"name": "f", "description": "d", "input_schema": SCHEMA}
FUNCTION = {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
IMAGE_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}


def bridged(body: dict[str, Any], ctx: Context | None = None) -> dict[str, Any]:
    return kept(MessagesOverChat().request, body, ctx)


def use(call: str, name: str = "f", **given_: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": call, "name": name, "input": given_}


def called(call: str, arguments: str, name: str = "f") -> dict[str, Any]:
    return {"id": call, "type": "function", "function": {"name": name, "arguments": arguments}}


MESSAGES: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "plain": ({"messages": [USER]}, [USER]),
    "system string": ({"system": "s", "messages": [USER]}, [{"role": "system", "content": "s"}, USER]),
    "system blocks": (
        {"system": [{"type": "text", "text": "a", "cache_control": MARK}, *texts("b")], "messages": [USER]},
        [{"role": "system", "content": texts("a", "b")}, USER],
    ),
    "a system turn in between": (
        {"messages": [USER, {"role": "system", "content": "brief"}]},
        [USER, {"role": "system", "content": "brief"}],
    ),
    "one text block is a string": ({"messages": [{"role": "user", "content": texts("Hi")}]}, [USER]),
    "images": (
        {"messages": [{"role": "user", "content": [
            *texts("look"), IMAGE, {"type": "image", "source": {"type": "url", "url": "https://example.org/a"}}]}]},
        [{"role": "user", "content": [
            *texts("look"), IMAGE_PART, {"type": "image_url", "image_url": {"url": "https://example.org/a"}}]}],
    ),
    "documents and search results": (
        {"messages": [{"role": "user", "content": [
            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "doc"}},
            {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "aGk="}},
            {"type": "search_result", "title": "t", "source": "s", "content": texts("c")}]}]},
        [{"role": "user", "content": [
            *texts("doc"),
            {"type": "file", "file": {"filename": "document.pdf", "file_data": "data:application/pdf;base64,aGk="}},
            *texts("t\ns\nc")]}],
    ),
    "tool results come before the rest": (
        {"messages": [
            USER,
            {"role": "assistant", "content": [*texts("Wait"), use("t1", a="x"), use("t2")]},
            {"role": "user", "content": [
                *texts("and"), result("t1", "one", is_error=True), result("t2", [*texts("two", "three"), IMAGE])]}]},
        [
            USER,
            {"role": "assistant", "content": "Wait", "tool_calls": [called("t1", '{"a":"x"}'), called("t2", "{}")]},
            {"role": "tool", "tool_call_id": "t1", "content": "one"},
            {"role": "tool", "tool_call_id": "t2", "content": "two\nthree"},
            {"role": "user", "content": [*texts("and"), IMAGE_PART]},
        ],
    ),
    "tool results alone": (
        {"messages": [USER, {"role": "assistant", "content": [use("t1")]}, {"role": "user", "content": [result("t1",
         None)]}]},
        [
            USER,
            {"role": "assistant", "content": None, "tool_calls": [called("t1", "{}")]},
            {"role": "tool", "tool_call_id": "t1", "content": ""},
        ],
    ),
    "thinking and tools that ran at Anthropic stay out": (
        {"messages": [USER, {"role": "assistant", "content": [
            THOUGHT, {"type": "redacted_thinking", "data": "b3A="},
            {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
            {"type": "web_search_tool_result", "tool_use_id": "s", "content": []}, *texts("Yo")]}]},
        [USER, {"role": "assistant", "content": "Yo"}],
    ),
    "an empty answer": ({"messages": [USER, {"role": "assistant", "content": []}]}, [USER, {"role": "assistant",
    "content": ""}]),
}  # fmt: skip


@pytest.mark.parametrize("case", MESSAGES.values(), ids=MESSAGES.keys())
def test_messages(case: tuple[dict[str, Any], list[Any]]) -> None:
    body, messages = case
    assert bridged({"model": "m", "max_tokens": 9, **body}) == {"model": "m", "max_tokens": 9, "messages": messages}


def test_reasoning_goes_back_where_the_deployment_takes_it() -> None:
    out = bridged(
        {"messages": [{"role": "assistant", "content": [THOUGHT, *texts("Yo")]}]}, context({"reasoning_content": True})
    )
    assert out["messages"] == [
        {"role": "assistant", "content": "Yo", "reasoning_content": "hm", "thinking_blocks": [THOUGHT]}
    ]


def test_long_ids_stay_paired() -> None:
    out = bridged(
        {
            "messages": [
                {"role": "assistant", "content": [use("t" * 60)]},
                {"role": "user", "content": [result("t" * 60, "x")]},
            ]
        }
    )
    [call] = out["messages"][0]["tool_calls"]
    assert len(call["id"]) == 40
    assert out["messages"][1]["tool_call_id"] == call["id"]


PARAMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "stop_sequences": ({"stop_sequences": ["a"]}, {"stop": ["a"]}),
    "sampling": ({"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.5, "top_p": 0.9}),
    "stream": ({"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}),
    "no stream": ({"stream": False}, {"stream": False}),
    "hints are dropped": (
        {"top_k": 5, "cache_control": MARK, "speed": "fast", "context_management": {"edits": []}},
        {},
    ),
    "unknown fields survive": ({"seed": 3, "safe_prompt": True}, {"seed": 3, "safe_prompt": True}),
    "user": ({"metadata": {"user_id": "u"}}, {"user": "u"}),
    "tier auto": ({"service_tier": "auto"}, {"service_tier": "auto"}),
    "tier standard": ({"service_tier": "standard_only"}, {"service_tier": "default"}),
    "thinking off": ({"thinking": {"type": "disabled"}, "output_config": {"effort": "low"}}, {}),
    "thinking 1024": ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, {"reasoning_effort": "low"}),
    "thinking 2048": ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, {"reasoning_effort": "medium"}),
    "thinking 2049": ({"thinking": {"type": "enabled", "budget_tokens": 2049}}, {"reasoning_effort": "high"}),
    "adaptive": ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, {"reasoning_effort": "max"}),
    "adaptive alone": ({"thinking": {"type": "adaptive"}}, {}),
    "output format": (
        {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}},
    ),
    "output format, older field": (
        {"output_format": {"type": "json_schema", "schema": SCHEMA}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}},
    ),
    "tools": ({"tools": [TOOL]}, {"tools": [FUNCTION]}),
    "tool with type, strict and cache_control": (
        {"tools": [{"type": "custom", "name": "g", "strict": True, "cache_control": MARK}]},
        {"tools": [{"type": "function", "function": {"name": "g", "parameters": {"type": "object"}, "strict": True}}]},
    ),
    "choice auto": ({"tools": [TOOL], "tool_choice": {"type": "auto"}}, {"tools": [FUNCTION], "tool_choice": "auto"}),
    "choice any": ({"tools": [TOOL], "tool_choice": {"type": "any"}}, {"tools": [FUNCTION], "tool_choice": "required"}),
    "choice none": ({"tools": [TOOL], "tool_choice": {"type": "none"}}, {"tools": [FUNCTION], "tool_choice": "none"}),
    "choice tool": (
        {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "f"}},
        {"tools": [FUNCTION], "tool_choice": {"type": "function", "function": {"name": "f"}}},
    ),
    "one call at a time": (
        {"tools": [TOOL], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
        {"tools": [FUNCTION], "tool_choice": "auto", "parallel_tool_calls": False},
    ),
    "choice without tools": ({"tool_choice": {"type": "auto"}}, {}),
}


@pytest.mark.parametrize("case", PARAMS.values(), ids=PARAMS.keys())
def test_parameters(case: tuple[dict[str, Any], dict[str, Any]]) -> None:
    given_, wanted = case
    assert bridged({"model": "m", "messages": [USER], **given_}) == {"model": "m", "messages": [USER], **wanted}


def test_what_is_left_out_is_named() -> None:
    ctx = context()
    bridged({"messages": [USER], "top_k": 5}, ctx)
    assert ctx.dropped == ["top_k"]


def test_a_long_user_id_is_hashed_to_what_openai_takes() -> None:
    assert len(bridged({"messages": [USER], "metadata": {"user_id": "u" * 100}})["user"]) == 64


def test_long_tool_names_are_shortened_everywhere() -> None:
    ctx, name = context(), "mcp__" + "x" * 90
    out = bridged(
        {
            "messages": [{"role": "assistant", "content": [use("t", name)]}],
            "tools": [{"name": name, "input_schema": SCHEMA}],
            "tool_choice": {"type": "tool", "name": name},
        },
        ctx,
    )
    short = out["tools"][0]["function"]["name"]
    assert len(short) == 64
    assert out["tool_choice"]["function"]["name"] == short
    assert out["messages"][0]["tool_calls"][0]["function"]["name"] == short
    assert ctx.notes["tool_names"] == {short: name}


@pytest.mark.parametrize(
    ("body", "error", "param"),
    [
        ({"messages": [{"role": "robot"}]}, InvalidRequest, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, InvalidRequest, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, InvalidRequest, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "container_upload"}]}]},
            UnsupportedParams,
            "messages[0].content[0]",
        ),
        ({"messages": [USER], "system": 3}, InvalidRequest, "system"),
        ({"messages": [USER], "tools": "f"}, InvalidRequest, "tools"),
        ({"messages": [USER], "tools": ["f"]}, InvalidRequest, "tools[0]"),
        ({"messages": [USER], "tools": [{}]}, InvalidRequest, "tools[0].name"),
        ({"messages": [USER], "tools": [{"type": "web_search_20250305", "name": "w"}]}, UnsupportedParams, "tools[0]"),
        ({"messages": [USER], "tools": [TOOL], "tool_choice": {"type": "x"}}, InvalidRequest, "tool_choice"),
        ({"messages": [USER], "mcp_servers": [{}]}, UnsupportedParams, "mcp_servers"),
        ({"messages": [USER], "container": "c"}, UnsupportedParams, "container"),
    ],
)
def test_wrong_requests_name_the_field(body: dict[str, Any], error: type[TianjiError], param: str) -> None:
    with pytest.raises(error) as caught:
        bridged(body)
    assert caught.value.param == param


def test_hosted_tools_may_be_dropped() -> None:
    ctx = Context(call_id="c", model="m", created=0, drop_params=True)
    hosted = {"type": "web_search_20250305", "name": "w"}
    assert bridged({"messages": [USER], "tools": [hosted, TOOL], "mcp_servers": [{}]}, ctx)["tools"] == [FUNCTION]
    assert ctx.dropped == ["mcp_servers", "tools"]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 5)
    | st.sampled_from(["", "f", "text", "tool_use", "tool_result", "image"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "content", "source", "name", "text", "id", "input"]), inner, max_size=4
        )
    ),
    max_leaves=10,
)
FIELDS = [
    "system", "tools", "tool_choice", "thinking", "metadata", "service_tier", "output_config", "output_format",
    "stream",
    "stop_sequences", "stream_options",
]  # fmt: skip


@given(
    st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4),
    st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": VALUES}), max_size=4),
)
def test_odd_requests_end_in_a_clean_error_at_worst(fields: dict[str, Any], messages: list[Any]) -> None:
    try:
        out = bridged({"model": "m", "messages": messages, **fields})
    except RequestError:
        return
    orjson.dumps(out)


# --- there and back

WORDS = st.text(st.characters(codec="utf-8", categories=["L", "N"]), min_size=1, max_size=8)
NAMES = st.sampled_from(["f", "get_rate", "rates.get", "x" * 70])
ARGUMENTS = st.dictionaries(WORDS, st.integers(-9, 9) | WORDS | st.lists(WORDS, max_size=2), max_size=3)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Ordinary conversations: alternating turns, each tool call answered."""
    messages: list[dict[str, Any]] = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(WORDS)})
    for turn in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(WORDS)})
        count = draw(st.integers(0, 2))
        answer: dict[str, Any] = {
            "role": "assistant",
            "content": draw(WORDS) if not count or draw(st.booleans()) else None,
        }
        if count:
            answer["tool_calls"] = [
                called(f"call_{turn}_{j}", orjson.dumps(draw(ARGUMENTS)).decode(), draw(NAMES)) for j in range(count)
            ]
        messages.append(answer)
        ids = [f"call_{turn}_{j}" for j in range(count)]
        messages.extend({"role": "tool", "tool_call_id": call, "content": draw(WORDS)} for call in ids)
        if count:
            messages.append({"role": "assistant", "content": draw(WORDS)})
    messages.append({"role": "user", "content": draw(WORDS)})
    return messages


@given(conversations(), st.booleans())
def test_chat_to_messages_to_chat_keeps_the_conversation(messages: list[dict[str, Any]], with_tool: bool) -> None:
    ctx = context()
    tools = {"tools": [FUNCTION], "tool_choice": "auto"} if with_tool else {}
    there = ChatOverMessages().request({"model": "m", "max_tokens": 9, "messages": messages, **tools}, ctx)
    back = bridged(there)
    names = ctx.notes.get("tool_names", {})
    for message in back["messages"]:
        for call in message.get("tool_calls", ()):
            call["function"]["name"] = names.get(call["function"]["name"], call["function"]["name"])
    assert back["messages"] == messages
    if with_tool:
        assert back["tools"] == [FUNCTION]
        assert back["tool_choice"] == "auto"
