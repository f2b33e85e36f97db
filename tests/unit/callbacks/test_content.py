"""Messages, answers and usage out of records of the three APIs, and out of records that hold anything."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.records import a_failure, a_payload, a_record
from tianji_mw.callbacks.record import content
from tianji_mw.callbacks.record.redaction import without_content
from tianji_mw.records import Record

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}


def test_chat() -> None:
    asked = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "what"}, {"type": "text", "text": "now"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    answer = {"choices": [{"message": {"role": "assistant", "content": "wet", "reasoning_content": "hm"}}]}
    record = a_record(messages=asked, response=answer)
    assert content.input_messages(record) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "what\nnow"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "rain", "tool_call_id": "c1"},
    ]
    assert content.output_messages(record) == [{"role": "assistant", "content": "wet", "reasoning_content": "hm"}]


def test_images_stay_parts() -> None:
    image = {"type": "image_url", "image_url": {"url": "https://x/y.png"}}
    record = a_record(messages=[{"role": "user", "content": [{"type": "text", "text": "see"}, image]}])
    (message,) = content.input_messages(record)
    assert message["content"] == [{"type": "text", "text": "see"}, image]
    assert content.text_of(message) == "see\n[image_url]"


def test_anthropic() -> None:
    place, rain = {"city": "Oslo"}, {"type": "text", "text": "rain"}
    asked = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "weather", "input": place}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": [rain]}]},
    ]
    blocks = [
        {"type": "thinking", "thinking": "hm"},
        {"type": "text", "text": "wet"},
        {"type": "tool_use", "id": "c2", "name": "weather", "input": {"city": "Bergen"}},
    ]
    record = a_record(messages=asked, response={"type": "message", "role": "assistant", "content": blocks})
    assert content.input_messages(record) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    (said,) = content.output_messages(record)
    assert (said["content"], said["reasoning_content"]) == ("wet", "hm")
    assert said["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city":"Bergen"}'}


def test_responses() -> None:
    asked = [
        {"role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city":"Oslo"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
    ]
    output = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "wet"}]},
        {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": "{}"},
        {"type": "web_search_call", "id": "ws1", "action": {"query": "rain"}},
    ]
    record = a_record(messages=asked, response={"object": "response", "output": output})
    assert content.input_messages(record) == [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    (said,) = content.output_messages(record)
    assert (said["content"], said["reasoning_content"]) == ("wet", "hm")
    assert [call["function"]["name"] for call in said["tool_calls"]] == ["weather", "web_search"]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("hi", [{"role": "user", "content": "hi"}]),
        (["a", "b"], [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]),
        ([1, 2], [{"role": "user", "content": "[1,2]"}]),
        ({"query": "q", "documents": ["d"]}, [{"role": "user", "content": '{"query":"q","documents":["d"]}'}]),
        (None, []),
        ([], []),
    ],
)
def test_other_inputs(asked: Any, told: Any) -> None:
    assert content.input_messages(a_record(messages=asked)) == told


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (None, []),
        ("text", "text"),
        ({"choices": [{"text": "old"}]}, "old"),
        ({"object": "list", "data": [{"embedding": [0.1, 0.2]}] * 3}, "3 embeddings of 2 numbers"),
        ({"results": [1], "usage": {}}, '{"results":[1]}'),
        ([{"a": 1}], '[{"a":1}]'),
    ],
)
def test_other_answers(answer: Any, told: Any) -> None:
    found = content.output_messages(a_record(response=answer))
    assert found == ([] if told == [] else [{"role": "assistant", "content": told}])


@pytest.mark.parametrize(
    "answer",
    [
        a_payload()["response"],
        {"content": [{"type": "text", "text": "secret"}, {"type": "tool_use", "input": {"a": "secret"}}]},
        {"output": [{"type": "message", "content": [{"type": "output_text", "text": "secret"}]}]},
        {"output": [{"type": "function_call", "name": "secret", "arguments": "secret"}]},
    ],
)
def test_redacted_records_say_that_they_are(answer: Any) -> None:
    data = without_content(a_payload(messages="secret", response=answer))
    record = Record.of("r", data)
    shown = orjson.dumps([content.input_messages(record), content.output_messages(record)])
    assert b"redacted-by-litellm" in shown
    assert b"secret" not in shown


def test_usage() -> None:
    assert content.usage(a_record()) == content.Tokens(12, 5, 17, cache_read=4, reasoning=2)
    metadata = {"usage_object": {"prompt_tokens": 9, "cache_creation_input_tokens": 3, "cache_read_input_tokens": 2}}
    used = content.usage(a_record(prompt_tokens=0, completion_tokens=0, total_tokens=0, metadata=metadata))
    assert (used.input, used.total, used.cache_write, used.cache_read) == (9, 9, 3, 2)


def test_tools_of_all_three_apis() -> None:
    schema = {"type": "object"}
    tools = [
        {"type": "function", "function": {"name": "a", "description": "d", "parameters": schema}},
        {"type": "function", "name": "b", "parameters": schema},
        {"name": "c", "input_schema": schema},
        {"type": "web_search"},
    ]
    found = content.tool_definitions(a_record(model_parameters={"tools": tools}))
    assert [(tool["name"], tool["schema"]) for tool in found] == [("a", schema), ("b", schema), ("c", schema)]


def test_failures() -> None:
    assert content.failure(a_record()) is None
    assert content.failure(a_failure("It broke.")) == content.Failure("UpstreamError", "It broke.", 502)
    assert content.failure(a_record(status="failure")) == content.Failure("Error", "failed", None)


def test_facts_hold_no_content() -> None:
    shown = orjson.dumps(content.facts(a_record(messages="secret", response="secret")))
    assert b"secret" not in shown
    assert b'"user_api_key_team_alias":"ml"' in shown


_json: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "type", "text", "tool_calls", "function", "name", "choices", "message", "output",
                 "arguments", "data", "embedding", "usage_object", "prompt_tokens_details", "attempts", "summary"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=25,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from([*a_payload(), "error_str"]), _json, max_size=8))
def test_nothing_raises(data: dict[str, Any]) -> None:
    record = Record.of("r", data)
    orjson.dumps(
        [
            content.input_messages(record),
            [content.text_of(message) for message in content.output_messages(record)],
            content.tool_definitions(record),
            content.facts(record),
            content.session_id(record),
            content.times(record),
            content.time_to_first_token(record),
            content.attempts(record),
            content.tags(record),
            content.cost(record),
            content.failure(record),
        ]
    )
    content.usage(record)
