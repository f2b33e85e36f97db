"""Responses over Chat: what the upstream is asked, field by field."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.bridges.responses import BRIDGE, TOOL, context, messages, request, result
from tianji_mw.errors import InvalidRequest, UnsupportedParams

SCHEMA = {"type": "json_schema", "name": "s", "schema": {"type": "object"}, "strict": True}


def call(call_id: str, name: str = "f", arguments: str = "{}") -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}


# --- requests ---------------------------------------------------------------------------------------------------


def test_plain_text_and_instructions() -> None:
    out = request({"instructions": "Be brief.", "temperature": 0.5, "top_p": 0.9, "user": "u", "metadata": {"a": "b"}})
    assert out == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x"}],
        "temperature": 0.5,
        "top_p": 0.9,
        "user": "u",
        "metadata": {"a": "b"},
    }


def test_messages_of_all_kinds() -> None:
    parts = [
        {"type": "input_text", "text": "see"},
        {"type": "input_image", "image_url": "https://x/y.png", "detail": "low"},
        {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "original"},
        {"type": "input_file", "file_data": "data:application/pdf;base64,AA==", "filename": "a.pdf"},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
    ]
    said = [{"type": "output_text", "text": "a", "annotations": []}, {"type": "refusal", "refusal": "b"}]
    assert messages(
        {"role": "developer", "content": "d"},
        {"type": "message", "role": "user", "content": parts},
        {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": said},
        {"role": "user", "content": [{"type": "input_text", "text": "one"}]},
    ) == [
        {"role": "system", "content": "d"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "see"},
                {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
                {"type": "file", "file": {"file_data": "data:application/pdf;base64,AA==", "filename": "a.pdf"}},
                {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
            ],
        },
        {"role": "assistant", "content": "ab"},
        {"role": "user", "content": "one"},
    ]


def test_parallel_calls_are_one_turn_and_results_follow_it() -> None:
    found = messages(
        {"role": "user", "content": "go"},
        {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"role": "assistant", "content": "Looking."},
        call("1", arguments='{"a":1}'),
        {"type": "reasoning", "id": "rs2", "summary": []},
        call("2", arguments=""),
        result("2", [{"type": "input_text", "text": "two"}]),
        {"role": "user", "content": "and?"},
        result("1", "one"),
        call("3"),
        result("3"),
    )
    assert [m["role"] for m in found] == ["user", "assistant", "tool", "tool", "user", "assistant", "tool"]
    assert found[1]["content"] == "Looking."
    assert "reasoning_content" not in found[1]
    assert [(c["id"], c["function"]["arguments"]) for c in found[1]["tool_calls"]] == [("1", '{"a":1}'), ("2", "{}")]
    assert [(m["tool_call_id"], m["content"]) for m in found[2:4]] == [("2", "two"), ("1", "one")]
    assert found[5] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "3", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }


def test_words_after_a_call_stay_in_its_turn() -> None:
    found = messages(call("1"), {"role": "assistant", "content": "wait"}, result("1"))
    assert [m["role"] for m in found] == ["assistant", "tool"]
    assert found[0]["content"] == "wait"


def test_reasoning_goes_along_where_the_deployment_takes_it() -> None:
    thought = {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
    found = messages(thought, call("1"), result("1"), defaults={"reasoning_content": True})
    assert found[0]["reasoning_content"] == "hm"


@pytest.mark.parametrize(
    "items",
    [
        [result("9")],
        [{"type": "item_reference", "id": "msg_1"}],
        [{"id": "msg_1"}],
        [{"role": "robot", "content": "x"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}],
        [{"role": "user", "content": [{"type": "input_file", "file_url": "https://x"}]}],
        [{"role": "user", "content": [{"type": "hologram"}]}],
        [{"role": "user", "content": ["x"]}],
        [{"role": "assistant", "content": [{"type": "input_image", "image_url": "x"}]}],
        [{"type": "function_call", "name": "f"}],
        [],
    ],
)
def test_input_that_cannot_be_said(items: list[dict[str, Any]]) -> None:
    with pytest.raises((InvalidRequest, UnsupportedParams)) as caught:
        BRIDGE.request({"model": "m", "input": items}, context(drop_params=True))
    assert caught.value.param == "input"


def test_items_of_hosted_tools() -> None:
    item = {"type": "web_search_call", "id": "ws_1", "status": "completed"}
    with pytest.raises(UnsupportedParams):
        messages(item, {"role": "user", "content": "x"})
    ctx = context(drop_params=True)
    assert len(request({"input": [item, {"role": "user", "content": "x"}]}, ctx)["messages"]) == 1
    assert ctx.dropped == ["input"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("previous_response_id", "resp_1"),
        ("conversation", {"id": "c"}),
        ("background", True),
        ("prompt", {"id": "p"}),
    ],
)
def test_state_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InvalidRequest, match=name) as caught:
        request({name: value}, context(drop_params=True))
    assert caught.value.param == name
    assert name not in request({name: None})
    assert "background" not in request({"background": False})


@pytest.mark.parametrize("name", ["context_management", "moderation", "max_tool_calls"])
def test_what_chat_has_no_word_for(name: str) -> None:
    with pytest.raises(UnsupportedParams) as caught:
        request({name: [1]})
    assert caught.value.param == name
    ctx = context(drop_params=True)
    assert name not in request({name: [1]}, ctx)
    assert ctx.dropped == [name]


def test_fields_without_effect_are_noted_never_refused() -> None:
    ctx = context()
    out = request({"store": True, "truncation": "auto", "include": ["reasoning.encrypted_content"]}, ctx)
    assert set(out) == {"model", "messages"}
    assert ctx.dropped == ["store", "truncation", "include"]
    ctx = context()
    request({"store": False, "truncation": "disabled", "include": []}, ctx)
    assert ctx.dropped == []


@pytest.mark.parametrize(
    ("model", "field"),
    [
        ("gpt-4o", "max_tokens"),
        ("llama-3", "max_tokens"),
        ("openai/o3-mini", "max_completion_tokens"),
        ("gpt-5", "max_completion_tokens"),
    ],
)
def test_the_token_limit(model: str, field: str) -> None:
    out = request({"model": model, "max_output_tokens": 7})
    assert out[field] == 7
    assert "max_output_tokens" not in out


def test_tools_and_their_choice() -> None:
    out = request({"tools": [TOOL], "tool_choice": {"type": "function", "name": "f"}, "parallel_tool_calls": False})
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
    assert out["tools"] == [{"type": "function", "function": function}]
    assert out["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert out["parallel_tool_calls"] is False
    assert request({"tools": [TOOL], "tool_choice": "required"})["tool_choice"] == "required"
    assert set(request({"tools": [], "tool_choice": "auto", "parallel_tool_calls": True})) == {"model", "messages"}


def test_allowed_tools_become_the_tools() -> None:
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]}
    out = request({"tools": [TOOL, TOOL | {"name": "g"}], "tool_choice": choice})
    assert [tool["function"]["name"] for tool in out["tools"]] == ["f"]
    assert out["tool_choice"] == "required"
    with pytest.raises(InvalidRequest):
        request({"tools": [TOOL], "tool_choice": choice | {"tools": []}})


def test_hosted_tools() -> None:
    with pytest.raises(UnsupportedParams, match="web_search") as caught:
        request({"tools": [{"type": "web_search"}]})
    assert caught.value.param == "tools"
    ctx = context(drop_params=True)
    out = request({"tools": [{"type": "web_search"}, TOOL], "tool_choice": {"type": "web_search"}}, ctx)
    assert len(out["tools"]) == 1
    assert "tool_choice" not in out
    assert ctx.dropped == ["tools", "tool_choice"]
    with pytest.raises(InvalidRequest):
        request({"tools": [{"type": "function"}]})


def test_text_format_reasoning_and_logprobs() -> None:
    out = request({"text": {"format": SCHEMA, "verbosity": "low"}, "reasoning": {"effort": "high"}, "top_logprobs": 2})
    schema = {"name": "s", "schema": {"type": "object"}, "strict": True}
    assert out["response_format"] == {"type": "json_schema", "json_schema": schema}
    assert (out["verbosity"], out["reasoning_effort"], out["logprobs"], out["top_logprobs"]) == ("low", "high", True, 2)
    assert request({"text": {"format": {"type": "json_object"}}})["response_format"] == {"type": "json_object"}
    assert "response_format" not in request({"text": {"format": {"type": "text"}}})
    assert request({"include": ["message.output_text.logprobs"]})["logprobs"] is True


def test_streams_ask_for_usage_and_unknown_fields_pass() -> None:
    out = request({"stream": True, "stream_options": {"include_obfuscation": True}, "top_k": 5})
    assert out["stream_options"] == {"include_usage": True}
    assert out["top_k"] == 5


KEYS = st.sampled_from(["type", "role", "content", "name", "call_id", "output", "format", "text"])
WORDS = st.sampled_from(["message", "function", "user", "input_text", "reasoning", "function_call"])
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=4) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner),
    max_leaves=12,
)


@given(
    st.dictionaries(
        st.sampled_from(["input", "tools", "tool_choice", "text", "reasoning", "include", "instructions"]), JSON_VALUES
    )
)
def test_requests_give_an_error_or_a_request(body: dict[str, Any]) -> None:
    before = copy.deepcopy(body)
    found: dict[str, Any] | str | None
    try:
        found = BRIDGE.request(body, context(drop_params=True))["messages"]
    except (InvalidRequest, UnsupportedParams) as error:
        found = error.param
    assert found
    assert body == before
