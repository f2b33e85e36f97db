"""Anthropic's answers as chat completions, judged by goldens and by OpenAI's own models."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from openai.types.chat import ChatCompletion

from tests.unit.bridges.anthropic_answers import BRIDGE, FULL_USAGE, JSON_VALUES, called, message, use
from tests.unit.bridges.support import THOUGHT, context, kept, text
from tianji_mw.bridges.base import Context
from tianji_mw.errors import UpstreamMalformed


def answered(body: dict[str, Any], ctx: Context | None = None) -> dict[str, Any]:
    answer = kept(BRIDGE.answer, body, ctx)
    ChatCompletion.model_validate(answer, strict=True)
    return answer


def test_a_whole_answer() -> None:
    body = message(
        THOUGHT, {"type": "redacted_thinking", "data": "b3A="}, text("Hel"), text("lo"), use(a="x"), stop="tool_use"
    )
    assert answered(body) == {
        "id": "msg_1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "claude",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "Hello",
                    "refusal": None,
                    "reasoning_content": "hm",
                    "thinking_blocks": [THOUGHT, {"type": "redacted_thinking", "data": "b3A="}],
                    "tool_calls": [called('{"a":"x"}')],
                },
                "logprobs": None,
                "finish_reason": "tool_calls",
                "provider_specific_fields": {"native_finish_reason": "tool_use"},
            }
        ],
        "usage": FULL_USAGE,
    }


MESSAGES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "text": ([text("Hi")], {"content": "Hi"}),
    "nothing": ([], {"content": ""}),
    "a tool call alone": ([use()], {"content": None, "tool_calls": [called("{}")]}),
    "two tool calls": (
        [use(a=1), use("g", "toolu_2", b=[])],
        {"content": None, "tool_calls": [called('{"a":1}'), called('{"b":[]}', "g", "toolu_2")]},
    ),
    "tools that ran at the provider": (
        [
            {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"q": "x"}},
            {"type": "web_search_tool_result", "tool_use_id": "s", "content": []},
            text("Hi"),
        ],
        {"content": "Hi"},
    ),
    "odd blocks": ([3, None, {"type": 4}, {"type": "text", "text": 5}, text("Hi")], {"content": "Hi"}),
}


@pytest.mark.parametrize("case", MESSAGES.values(), ids=MESSAGES.keys())
def test_messages(case: tuple[list[Any], dict[str, Any]]) -> None:
    content, wanted = case
    found = answered(message(*content))["choices"][0]["message"]
    assert found == {"role": "assistant", "refusal": None, **wanted}


@pytest.mark.parametrize(
    ("native", "reason"),
    [
        ("end_turn", "stop"), ("stop_sequence", "stop"), ("max_tokens", "length"), ("pause_turn", "length"),
        ("model_context_window_exceeded", "length"), ("compaction", "length"), ("refusal", "content_filter"),
        ("brand_new", "stop"), (None, "stop"),
    ],
)  # fmt: skip
def test_finish_reasons(native: str | None, reason: str) -> None:
    choice = answered(message(text("Hi"), stop=native))["choices"][0]
    assert choice["finish_reason"] == reason
    assert choice.get("provider_specific_fields", {}).get("native_finish_reason") == native


def test_a_call_is_never_called_stop() -> None:
    assert answered(message(use(), stop="end_turn"))["choices"][0]["finish_reason"] == "tool_calls"
    assert answered(message(use(), stop="max_tokens"))["choices"][0]["finish_reason"] == "length"


def test_ids_and_usage_may_be_missing() -> None:
    answer = answered({"content": [text("Hi")]})
    assert answer["id"] == "chatcmpl-c1"
    assert answer["model"] == "asked"
    assert "usage" not in answer


def test_names_are_restored() -> None:
    ctx = context(tool_names={"a_b": "a.b"})
    found = answered(message(use("a_b")), ctx)
    assert found["choices"][0]["message"]["tool_calls"] == [called("{}", "a.b")]


def test_a_formatted_answer_is_unwrapped() -> None:
    found = answered(
        message(text("Here:"), use("json_tool_call", n=1), stop="tool_use"), context(json_tool="json_tool_call")
    )
    [choice] = found["choices"]
    assert choice["message"] == {"role": "assistant", "content": '{"n":1}', "refusal": None}
    assert choice["finish_reason"] == "stop"


def test_a_tool_call_instead_of_a_formatted_answer() -> None:
    found = answered(message(text("Wait"), use(), stop="tool_use"), context(json_tool="json_tool_call"))
    assert found["choices"][0]["message"]["content"] == "Wait"
    assert found["choices"][0]["finish_reason"] == "tool_calls"


def test_legacy_clients_get_a_function_call() -> None:
    [choice] = answered(message(use(a=1), stop="tool_use"), context(legacy_functions=True))["choices"]
    assert choice["message"]["function_call"] == {"name": "f", "arguments": '{"a":1}'}
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "function_call"


@pytest.mark.parametrize(
    "body", [None, [], "x", {}, {"content": "x"}, {"type": "error", "error": {"type": "api_error"}}]
)
def test_other_shapes_are_malformed(body: Any) -> None:
    with pytest.raises(UpstreamMalformed):
        BRIDGE.answer(body, context())


@given(JSON_VALUES)
def test_answers_are_total(value: Any) -> None:
    answered({"content": [value] if not isinstance(value, list) else value, "usage": value, "stop_reason": value})
