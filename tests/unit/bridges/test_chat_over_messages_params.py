"""Chat parameters as Anthropic's: one golden case for each row of the mapping; what is refused; odd requests."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.bridges.chat_requests import A_TOOL, CALLS, TOOL, USER_TURN, bridged
from tests.unit.bridges.support import MARK, USER, context
from tianji_mw.bridges.base import Context
from tianji_mw.errors import InvalidRequest, RequestError, TianjiError, UnsupportedParams

G_TOOL = {"type": "function", "function": {"name": "g"}}
A_G_TOOL = {"name": "g", "input_schema": {"type": "object", "properties": {}}}
SCHEMA = {"type": "object", "properties": {"n": {"$ref": "#/$defs/N"}}, "$defs": {"N": {"type": "integer"}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}
HELP = "Give the final answer by calling this tool. Its input is the whole answer."
JSON_TOOL = {"name": "json_tool_call", "description": HELP, "input_schema": SCHEMA}


PARAMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default limit": ({}, {"max_tokens": 4096}),
    "max_tokens": ({"max_tokens": 7}, {"max_tokens": 7}),
    "max_completion_tokens wins": ({"max_tokens": 7, "max_completion_tokens": 8}, {"max_tokens": 8}),
    "nulls are absent": ({"max_tokens": None, "temperature": None, "stop": None, "n": None, "seed": None}, {}),
    "temperature": ({"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.5, "top_p": 0.9}),
    "temperature is clamped": ({"temperature": 1.7}, {"temperature": 1}),
    "stop string": ({"stop": "END"}, {"stop_sequences": ["END"]}),
    "stop list": ({"stop": ["a", "b"]}, {"stop_sequences": ["a", "b"]}),
    "stop empty": ({"stop": []}, {}),
    "stream": ({"stream": True}, {"stream": True}),
    "user": ({"user": "u-1"}, {"metadata": {"user_id": "u-1"}}),
    "safety_identifier": ({"safety_identifier": "u-1"}, {"metadata": {"user_id": "u-1"}}),
    "user is an e-mail": ({"user": "a@example.org"}, {}),
    "user is a phone number": ({"user": "+49 30 1234567"}, {}),
    "metadata": ({"metadata": {"user_id": "u", "tag": "x"}}, {"metadata": {"user_id": "u"}}),
    "service_tier auto": ({"service_tier": "auto"}, {"service_tier": "auto"}),
    "service_tier default": ({"service_tier": "default"}, {"service_tier": "standard_only"}),
    "neutral values": (
        {
            "n": 1, "logprobs": False, "top_logprobs": 0, "frequency_penalty": 0, "presence_penalty": 0.0,
            "logit_bias": {},
            "modalities": ["text"], "verbosity": "medium",
        },
        {},
    ),
    "hints": ({"store": True, "prompt_cache_key": "k"}, {}),
    "Anthropic's own and unknown fields survive": (
        {"top_k": 3, "thinking": {"type": "disabled"}, "container": "c", "invented": [1], "cache_control": MARK},
        {"top_k": 3, "thinking": {"type": "disabled"}, "container": "c", "invented": [1], "cache_control": MARK},
    ),
    "system beside the messages": ({"system": "s"}, {"system": [{"type": "text", "text": "s"}]}),
    "system blocks beside the messages": (
        {"system": [{"type": "text", "text": "s", "cache_control": MARK}]},
        {"system": [{"type": "text", "text": "s", "cache_control": MARK}]},
    ),
    "thinking null alone": ({"thinking": None}, {}),
    "thinking null": (
        {"thinking": None, "reasoning_effort": "low"},
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
    ),
    "format and thinking": (
        {"response_format": FORMAT, "reasoning_effort": "low"},
        {
            "tools": [JSON_TOOL], "tool_choice": {"type": "auto"},
            "thinking": {"type": "enabled", "budget_tokens": 1024},
        },
    ),
    "tools": ({"tools": [TOOL, G_TOOL]}, {"tools": [A_TOOL, A_G_TOOL]}),
    "tool with extras": (
        {"tools": [{"type": "function", "function": {"name": "g", "strict": True}, "cache_control": MARK}]},
        {"tools": [{**A_G_TOOL, "strict": True, "cache_control": MARK}]},
    ),
    "hosted tools": (
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}, A_TOOL]},
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}, A_TOOL]},
    ),
    "choice auto": ({"tools": [TOOL], "tool_choice": "auto"}, {"tools": [A_TOOL], "tool_choice": {"type": "auto"}}),
    "choice required": ({"tools": [TOOL], "tool_choice": "required"}, {"tools": [A_TOOL],
    "tool_choice": {"type": "any"}}),
    "choice none": ({"tools": [TOOL], "tool_choice": "none"}, {"tools": [A_TOOL], "tool_choice": {"type": "none"}}),
    "choice named": (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"tools": [A_TOOL], "tool_choice": {"type": "tool", "name": "f"}},
    ),
    "choice without tools": ({"tool_choice": "auto", "parallel_tool_calls": False}, {}),
    "allowed tools": (
        {"tools": [TOOL, G_TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {
            "mode": "required", "tools": [{"type": "function", "function": {"name": "g"}}]}}},
        {"tools": [A_G_TOOL], "tool_choice": {"type": "any"}},
    ),
    "one call at a time": (
        {"tools": [TOOL], "parallel_tool_calls": False},
        {"tools": [A_TOOL], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
    ),
    "one call at a time, none allowed": (
        {"tools": [TOOL], "parallel_tool_calls": False, "tool_choice": "none"},
        {"tools": [A_TOOL], "tool_choice": {"type": "none"}},
    ),
    "format text": ({"response_format": {"type": "text"}}, {}),
    "format schema": (
        {"response_format": FORMAT},
        {"tools": [JSON_TOOL], "tool_choice": {"type": "tool", "name": "json_tool_call"}},
    ),
    "format object": (
        {"response_format": {"type": "json_object"}},
        {
            "tools": [{**JSON_TOOL, "input_schema": {"type": "object", "additionalProperties": True}}],
            "tool_choice": {"type": "tool", "name": "json_tool_call"},
        },
    ),
    "format beside tools": (
        {"response_format": FORMAT, "tools": [TOOL]},
        {"tools": [A_TOOL, JSON_TOOL], "tool_choice": {"type": "any"}},
    ),
    "format beside forced tools": (
        {"response_format": FORMAT, "tools": [TOOL], "tool_choice": "required"},
        {"tools": [A_TOOL], "tool_choice": {"type": "any"}},
    ),
    "format beside tools that may not be called": (
        {"response_format": FORMAT, "tools": [TOOL], "tool_choice": "none"},
        {"tools": [A_TOOL, JSON_TOOL], "tool_choice": {"type": "tool", "name": "json_tool_call"}},
    ),
    "effort none": ({"reasoning_effort": "none"}, {}),
    "effort low": ({"reasoning_effort": "low"}, {"thinking": {"type": "enabled", "budget_tokens": 1024}}),
    "effort medium": ({"reasoning_effort": "medium"}, {"thinking": {"type": "enabled", "budget_tokens": 2048}}),
    "effort high": (
        {"reasoning_effort": "high", "max_tokens": 100},
        {"thinking": {"type": "enabled", "budget_tokens": 4096}, "max_tokens": 4196},
    ),
    "effort xhigh": (
        {"reasoning_effort": "xhigh", "max_tokens": 9000},
        {"thinking": {"type": "enabled", "budget_tokens": 8192}, "max_tokens": 9000},
    ),
    "effort max": (
        {"reasoning_effort": "max"},
        {"thinking": {"type": "enabled", "budget_tokens": 16384}, "max_tokens": 20480},
    ),
    "thinking wins, and keeps room": (
        {"reasoning_effort": "low", "thinking": {"type": "enabled", "budget_tokens": 5000}, "max_tokens": 10},
        {"thinking": {"type": "enabled", "budget_tokens": 5000}, "max_tokens": 5010},
    ),
    "thinking takes no temperature and no forced tool": (
        {"reasoning_effort": "low", "temperature": 0.2, "tools": [TOOL], "tool_choice": "required"},
        {
            "thinking": {"type": "enabled", "budget_tokens": 1024},
            "tools": [A_TOOL],
            "tool_choice": {"type": "auto"},
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PARAMS.values(), ids=PARAMS.keys())
def test_parameters(case: tuple[dict[str, Any], dict[str, Any]]) -> None:
    given_, wanted = case
    out = bridged({"model": "claude", "messages": [USER], **given_})
    assert out == {"model": "claude", "messages": [USER_TURN], "max_tokens": 4096, **wanted}


def test_what_is_left_out_is_named() -> None:
    ctx = context()
    bridged(
        {
            "messages": [USER], "store": True, "metadata": {"a": "b"}, "user": "a@example.org",
            "reasoning_effort": "low",
            "temperature": 0, "tools": [TOOL], "tool_choice": "required",
        },
        ctx,
    )  # fmt: skip
    assert sorted(ctx.dropped) == ["metadata", "store", "temperature", "tool_choice", "user"]


def test_defaults_of_the_deployment() -> None:
    assert bridged({"messages": [USER]}, context({"max_tokens": 64000}))["max_tokens"] == 64000
    out = bridged({"messages": [USER], "response_format": FORMAT}, context({"native_json_schema": True}))
    assert out["output_config"] == {"format": {"type": "json_schema", "schema": SCHEMA}}
    assert "tools" not in out
    out = bridged({"messages": [USER], "reasoning_effort": "minimal"}, context({"adaptive_thinking": True}))
    assert out["thinking"] == {"type": "adaptive"}
    assert out["output_config"] == {"effort": "low"}


def test_no_thinking_in_an_open_tool_round_without_signature() -> None:
    ctx = context()
    history = [USER, CALLS, {"role": "tool", "tool_call_id": "call_1", "content": "x"}]
    assert "thinking" not in bridged({"messages": history, "reasoning_effort": "low"}, ctx)
    assert ctx.dropped == ["reasoning_effort"]
    signed = {**CALLS, "thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": "c2ln"}]}
    assert "thinking" in bridged({"messages": [USER, signed, history[2]], "reasoning_effort": "low"})


def test_tool_names_are_mapped_everywhere() -> None:
    ctx = context()
    name = "rates.get/" + "x" * 80
    out = bridged(
        {
            "messages": [
                USER,
                {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": name, "arguments": "{}"}}]},
            ],
            "tools": [{"type": "function", "function": {"name": name}}],
            "tool_choice": {"type": "function", "function": {"name": name}},
        },
        ctx,
    )
    [tool] = out["tools"]
    assert len(tool["name"]) == 64
    assert out["tool_choice"]["name"] == tool["name"] == out["messages"][1]["content"][0]["name"]
    assert ctx.notes["tool_names"] == {tool["name"]: name}


def test_the_json_tool_avoids_the_clients_names() -> None:
    ctx = context()
    mine = {"type": "function", "function": {"name": "json_tool_call"}}
    out = bridged({"messages": [USER], "tools": [mine], "response_format": FORMAT}, ctx)
    assert [tool["name"] for tool in out["tools"]] == ["json_tool_call", "json_tool_call_"]
    assert ctx.notes["json_tool"] == "json_tool_call_"


def test_usage_wish_is_noted() -> None:
    ctx = context()
    out = bridged({"messages": [USER], "stream": True, "stream_options": {"include_usage": True}}, ctx)
    assert "stream_options" not in out
    assert ctx.notes == {"include_usage": True}


# --- refusals


UNSUPPORTED = {
    "n": 2, "logprobs": True, "top_logprobs": 3, "frequency_penalty": 0.1, "presence_penalty": -0.1, "seed": 0,
    "logit_bias": {"1": 5}, "verbosity": "low", "modalities": ["text", "audio"], "audio": {"voice": "v"},
    "prediction": {"type": "content"}, "web_search_options": {}, "service_tier": "flex", "stop": [" ", "x"],
}  # fmt: skip


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_parameters(name: str) -> None:
    body = {"messages": [USER], name: UNSUPPORTED[name]}
    with pytest.raises(UnsupportedParams) as caught:
        bridged(body)
    assert caught.value.param == name
    ctx = Context(call_id="c", model="m", created=0, drop_params=True)
    out = bridged(body, ctx)
    assert ctx.dropped == [name]
    assert name not in out
    assert out.get("stop_sequences") == (["x"] if name == "stop" else None)


@pytest.mark.parametrize(
    ("body", "error", "param"),
    [
        ({"messages": [{"role": "robot", "content": "x"}]}, InvalidRequest, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, InvalidRequest, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [3]}]}, InvalidRequest, "messages[0].content[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "ftp://x"}}]}]},
            InvalidRequest,
            "messages[0].content[0]",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
            UnsupportedParams,
            "messages[0].content[0]",
        ),
        ({"messages": [USER], "tools": "f"}, InvalidRequest, "tools"),
        ({"messages": [USER], "tools": ["f"]}, InvalidRequest, "tools[0]"),
        (
            {"messages": [USER], "tools": [{"type": "function", "function": {}}]},
            InvalidRequest,
            "tools[0].function.name",
        ),
        ({"messages": [USER], "tools": [{"type": "custom", "custom": {"name": "x"}}]}, UnsupportedParams, "tools[0]"),
        ({"messages": [USER], "tools": [TOOL], "tool_choice": "perhaps"}, InvalidRequest, "tool_choice"),
        ({"messages": [USER], "response_format": {"type": "grammar"}}, InvalidRequest, "response_format"),
        ({"messages": [USER], "response_format": {"type": "json_schema"}}, InvalidRequest, "response_format"),
        ({"messages": [USER], "reasoning_effort": "enormous"}, InvalidRequest, "reasoning_effort"),
    ],
)
def test_wrong_requests_name_the_field(body: dict[str, Any], error: type[TianjiError], param: str) -> None:
    with pytest.raises(error) as caught:
        bridged(body)
    assert caught.value.param == param


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 5) | st.sampled_from(["", "auto", "f", "user", "text", "function"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "role", "content", "function", "name", "text", "id"]), inner, max_size=4
        )
    ),
    max_leaves=10,
)
FIELDS = [
    "tools", "tool_choice", "functions", "function_call", "response_format", "stop", "max_tokens", "temperature",
    "reasoning_effort", "thinking", "user", "metadata", "service_tier", "stream_options", "system",
    "parallel_tool_calls",
]  # fmt: skip
ROLES = st.sampled_from(["user", "assistant", "tool", "system", "function"])
ODD_MESSAGES = st.lists(
    st.builds(lambda role, rest: {**rest, "role": role}, ROLES, st.dictionaries(
        st.sampled_from(["content", "tool_calls", "tool_call_id", "function_call", "thinking_blocks",
         "cache_control"]), VALUES)),
    max_size=4,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4), ODD_MESSAGES)
def test_odd_requests_end_in_a_clean_error_at_worst(fields: dict[str, Any], messages: list[Any]) -> None:
    body = {"model": "claude", "messages": messages, **fields}
    try:
        out = bridged(body)
    except RequestError:
        return
    assert out["messages"][0]["role"] == "user"
    roles = [turn["role"] for turn in out["messages"]]
    assert all(a != b for a, b in pairwise(roles))
