"""Chat answers as Anthropic's, judged by goldens and by Anthropic's own models."""

from __future__ import annotations

from typing import Any

import pytest
from anthropic.types import Message
from hypothesis import given

from tests.unit.bridges.chat_answers import BRIDGE, JSON_VALUES, ZERO, thought, use
from tests.unit.bridges.support import A_USAGE, CHAT_USAGE, context, kept, text
from tianji_mw.bridges.base import Context
from tianji_mw.bridges.chat_over_messages import ChatOverMessages
from tianji_mw.errors import UpstreamMalformed


def called(arguments: str, name: str = "f", call: str = "call_1") -> dict[str, Any]:
    return {"id": call, "type": "function", "function": {"name": name, "arguments": arguments}}


def completion(finish: str | None = "stop", **message: Any) -> dict[str, Any]:
    found = {"role": "assistant", "content": None, **message}
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt",
        "choices": [{"index": 0, "message": found, "finish_reason": finish}], "usage": CHAT_USAGE,
    }  # fmt: skip


def answered(body: dict[str, Any], ctx: Context | None = None) -> dict[str, Any]:
    answer = kept(BRIDGE.answer, body, ctx)
    Message.model_validate(answer, strict=True)
    return answer


def test_a_whole_answer() -> None:
    body = completion("tool_calls", content="Hi", reasoning_content="hm", tool_calls=[called('{"a":1}')])
    assert answered(body) == {
        "id": "msg_chatcmpl-1",
        "type": "message",
        "role": "assistant",
        "model": "gpt",
        "content": [thought("hm"), text("Hi"), use(a=1)],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": A_USAGE,
    }


CONTENT: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "text": ({"content": "Hi"}, [text("Hi")]),
    "parts": ({"content": [text("a"), text("b")]}, [text("ab")]),
    "nothing": ({}, []),
    "refusal": ({"refusal": "No."}, [text("No.")]),
    "reasoning": ({"reasoning": "hm", "content": "Hi"}, [thought("hm"), text("Hi")]),
    "signed thinking": (
        {
            "reasoning_content": "hm",
            "thinking_blocks": [thought("hm", "c2ln"), {"type": "redacted_thinking", "data": "b3A="}],
        },
        [{"type": "redacted_thinking", "data": "b3A="}, thought("hm", "c2ln")],
    ),
    "empty arguments": ({"tool_calls": [called("")]}, [use()]),
    "broken arguments": ({"tool_calls": [called('{"a')]}, [use(raw_arguments='{"a')]),
    "arguments as an object": (
        {"tool_calls": [{"id": "call_1", "function": {"name": "f", "arguments": {"a": 1}}}]},
        [use(a=1)],
    ),
    "a thought signature in the id": ({"tool_calls": [called("{}", call="call_1__thought__a+b/=")]}, [use()]),
    "no id": ({"tool_calls": [called("{}", call="")]}, [use(call="toolu_c1_0")]),
    "legacy call": ({"function_call": {"name": "f", "arguments": "{}"}}, [use(call="toolu_c1_0")]),
}


@pytest.mark.parametrize("case", CONTENT.values(), ids=CONTENT.keys())
def test_content(case: tuple[dict[str, Any], list[Any]]) -> None:
    message, content = case
    assert answered(completion(**message))["content"] == content


@pytest.mark.parametrize(
    ("finish", "reason"),
    [("stop", "end_turn"), ("length", "max_tokens"), ("content_filter", "refusal"), ("tool_calls", "end_turn"),
     ("odd", "end_turn"), (None, "end_turn")],
)  # fmt: skip
def test_stop_reasons(finish: str | None, reason: str) -> None:
    assert answered(completion(finish, content="Hi"))["stop_reason"] == reason


def test_calls_and_refusals_show_in_the_stop_reason() -> None:
    assert answered(completion("stop", tool_calls=[called("{}")]))["stop_reason"] == "tool_use"
    assert answered(completion("stop", refusal="No."))["stop_reason"] == "refusal"


def test_names_are_restored_and_gaps_filled() -> None:
    body = completion(tool_calls=[called("{}", name="short")])
    del body["usage"], body["id"], body["model"]
    answer = answered(body, context(tool_names={"short": "long" * 30}))
    assert answer["content"][0]["name"] == "long" * 30
    assert (answer["id"], answer["model"], answer["usage"]) == ("msg_c1", "asked", ZERO)


@pytest.mark.parametrize("body", [None, [], {}, {"choices": []}, {"choices": [{}]}, {"error": {"message": "x"}}])
def test_other_shapes_are_malformed(body: Any) -> None:
    with pytest.raises(UpstreamMalformed):
        BRIDGE.answer(body, context())


@given(JSON_VALUES)
def test_answers_are_total(value: Any) -> None:
    message = value if isinstance(value, dict) else {"content": value, "tool_calls": value, "thinking_blocks": value}
    BRIDGE.answer({"choices": [{"message": message, "finish_reason": value}], "usage": value, "id": value}, context())


def test_chat_answer_to_messages_and_back() -> None:
    plain = completion("tool_calls", content="Hi", tool_calls=[called('{"a":1}')])
    back = ChatOverMessages().answer(answered(plain), context())
    assert back["choices"][0]["message"] == {
        "role": "assistant", "content": "Hi", "refusal": None, "tool_calls": [called('{"a":1}')],
    }  # fmt: skip
    assert back["choices"][0]["finish_reason"] == "tool_calls"
    assert {key: back["usage"][key] for key in CHAT_USAGE} == CHAT_USAGE
