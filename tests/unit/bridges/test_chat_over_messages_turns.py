"""Chat messages as Anthropic's turns: one golden case for each row of the mapping."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.bridges.chat_requests import A_TOOL, CALLS, FUNCTION, TOOL, USER_TURN, bridged
from tests.unit.bridges.support import MARK, USER, context, result, texts


def use(call: str, given_: Any, name: str = "f") -> dict[str, Any]:
    return {"type": "tool_use", "id": call, "name": name, "input": given_}


MESSAGES: dict[str, tuple[list[Any], Any, list[Any]]] = {
    "plain": ([USER], None, [USER_TURN]),
    "system and developer": (
        [{"role": "system", "content": "a"}, {"role": "developer", "content": texts("b", " ")}, USER],
        texts("a", "b"),
        [USER_TURN],
    ),
    "cache_control of a message and of a part": (
        [
            {"role": "system", "content": "a", "cache_control": MARK},
            {
                "role": "user",
                "content": [{"type": "text", "text": "x", "cache_control": MARK}, {"type": "text", "text": "y"}],
            },
        ],
        [{"type": "text", "text": "a", "cache_control": MARK}],
        [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": MARK}, *texts("y")]}],
    ),
    "a later system message keeps its place": (
        [USER, {"role": "assistant", "content": "Yo"}, {"role": "system", "content": "be brief"}, USER],
        None,
        [
            USER_TURN,
            {"role": "assistant", "content": texts("Yo")},
            {"role": "user", "content": texts("be brief", "Hi")},
        ],
    ),
    "consecutive roles are merged": (
        [USER, USER, {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}, USER],
        None,
        [{"role": "user", "content": texts("Hi", "Hi")}, {"role": "assistant", "content": texts("a", "b")}, USER_TURN],
    ),
    "the first turn is a user's": (
        [{"role": "assistant", "content": "Hello "}],
        None,
        [{"role": "user", "content": texts(".")}, {"role": "assistant", "content": texts("Hello")}],
    ),
    "system alone": ([{"role": "system", "content": "a"}], texts("a"), [{"role": "user", "content": texts(".")}]),
    "blank texts are removed": (
        [{"role": "user", "content": texts("", "x", " \n")}, {"role": "assistant", "content": ""}, USER],
        None,
        [{"role": "user", "content": texts("x", "Hi")}],
    ),
    "tool results in one turn, in call order, ahead of the rest": (
        [
            USER,
            CALLS,
            {"role": "user", "content": "wait"},
            {"role": "tool", "tool_call_id": "call_2", "content": texts("two")},
            {"role": "tool", "tool_call_id": "call_1", "content": "one", "cache_control": MARK},
            USER,
        ],
        None,
        [
            USER_TURN,
            {"role": "assistant", "content": [use("call_1", {"a": "x"}), use("call_2", {})]},
            {
                "role": "user",
                "content": [
                    {**result("call_1", "one"), "cache_control": MARK},
                    result("call_2", texts("two")),
                    *texts("wait", "Hi"),
                ],
            },
        ],
    ),
    "ids outside the alphabet are changed alike in call and result": (
        [
            USER,
            {"role": "assistant", "tool_calls": [{"id": "a:1", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "a:1", "content": "", "is_error": True},
        ],
        None,
        [
            USER_TURN,
            {"role": "assistant", "content": [use("a_1_2b2c40a6", {})]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a_1_2b2c40a6", "is_error": True}]},
        ],
    ),
    "arguments that are no object survive": (
        [USER, {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": '{"a'}}]}],
        None,
        [USER_TURN, {"role": "assistant", "content": [use("c", {"raw_arguments": '{"a'})]}],
    ),
    "signed thinking comes first, unsigned stays out": (
        [
            USER,
            {
                "role": "assistant",
                "content": "Yo",
                "reasoning_content": "hm",
                "thinking_blocks": [
                    {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
                    {"type": "redacted_thinking", "data": "b3A="},
                    {"type": "thinking", "thinking": "unsigned"},
                ],
            },
        ],
        None,
        [
            USER_TURN,
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
                    {"type": "redacted_thinking", "data": "b3A="},
                    *texts("Yo"),
                ],
            },
        ],
    ),
    "a refusal is what the assistant said": (
        [USER, {"role": "assistant", "content": None, "refusal": "No."}, USER],
        None,
        [USER_TURN, {"role": "assistant", "content": texts("No.")}, USER_TURN],
    ),
    "images and files": (
        [
            {
                "role": "user",
                "content": [
                    {
                        "type": "image_url",
                        "image_url": {"url": "data:IMAGE/PNG;x=y;base64,aG k="},
                        "cache_control": MARK,
                    },
                    {"type": "image_url", "image_url": "https://example.org/a.png"},
                    {"type": "image_url", "image_url": {"url": "data:application/pdf;base64,aGk="}},
                    {"type": "file", "file": {"file_data": "data:application/pdf;base64,aGk=", "filename": "a.pdf"}},
                    {"type": "search_result", "source": "s", "title": "t", "content": texts("c")},
                ],
            }
        ],
        None,
        [
            {
                "role": "user",
                "content": [
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": "aGk="},
                        "cache_control": MARK,
                    },
                    {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
                    {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "aGk="}},
                    {
                        "type": "document",
                        "source": {"type": "base64", "media_type": "application/pdf", "data": "aGk="},
                        "title": "a.pdf",
                    },
                    {"type": "search_result", "source": "s", "title": "t", "content": texts("c")},
                ],
            }
        ],
    ),
}


@pytest.mark.parametrize("case", MESSAGES.values(), ids=MESSAGES.keys())
def test_messages(case: tuple[list[Any], Any, list[Any]]) -> None:
    messages, system, turns = case
    out = bridged({"model": "claude", "messages": messages, "tools": [TOOL]})
    assert out["messages"] == turns
    assert out.get("system") == system


def test_legacy_functions_are_one_tool_after_the_other() -> None:
    ctx = context()
    history = [
        USER,
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"a":"x"}'}},
        {"role": "function", "name": "f", "content": "one"},
    ]
    out = bridged({"messages": history, "functions": [FUNCTION], "function_call": {"name": "f"}}, ctx)
    [call] = out["messages"][1]["content"]
    assert call == use(call["id"], {"a": "x"})
    assert out["messages"][2] == {"role": "user", "content": [result(call["id"], "one")]}
    assert out["tools"] == [A_TOOL]
    assert out["tool_choice"] == {"type": "tool", "name": "f", "disable_parallel_tool_use": True}
    assert ctx.notes["legacy_functions"] is True


def test_history_with_tools_needs_tools() -> None:
    out = bridged({"messages": [USER, CALLS, {"role": "tool", "tool_call_id": "call_1", "content": "x"}]})
    assert out["tools"] == [{"name": "f", "input_schema": {"type": "object", "properties": {}}}]
    assert out["tool_choice"] == {"type": "none"}
