"""Chat Completions: everything readable is seen, in requests, plain answers and chunks."""

from __future__ import annotations

import copy

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk

from tianji_mw.apis import sse
from tianji_mw.apis.base import Seen, Usage
from tianji_mw.apis.chat_completions import ChatCompletions
from tianji_mw.errors import InvalidRequest, UpstreamTruncated

API = ChatCompletions()
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "delta", "message", "content", "tool_calls", "function", "custom", "error", "audio"]
            )
            | st.sampled_from(
                ["usage", "text", "thinking", "index", "finish_reason", "prompt_tokens", "arguments", "role"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)


def chunk(delta: object, **choice: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": delta, **choice}]}


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"messages": None},
        {"messages": "x"},
        {"messages": ["x"]},
        {"messages": [], "model": 1},
        {"messages": [], "stream": 1},
    ],
)
def test_wrong_shapes_are_refused(request_: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        API.validate(request_)
    assert caught.value.param in ("messages", "model", "stream")


def test_texts_of_a_conversation() -> None:
    request = {
        "messages": [
            {"role": "system", "content": "s"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "u"}, {"type": "image_url", "image_url": {"url": "x"}}],
            },
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                    {"id": "2", "type": "custom", "custom": {"name": "c", "input": "free"}},
                    "odd",
                ],
            },
            {"role": "assistant", "function_call": {"name": "g", "arguments": "old"}},
            {"role": "tool", "tool_call_id": "1", "content": "t"},
        ]
    }
    parts = list(API.texts(request))
    assert [(p.role, p.text) for p in parts] == [
        ("system", "s"),
        ("user", "u"),
        ("assistant", "{}"),
        ("assistant", "free"),
        ("assistant", "old"),
        ("tool", "t"),
    ]
    for part in parts:  # each path leads to its text
        value: object = request
        for step in part.path:
            value = value[step]  # type: ignore[index]
        assert value == part.text


@pytest.mark.parametrize(
    ("data", "seen"),
    [
        (chunk({"role": "assistant", "content": ""}), Seen("other")),
        (chunk({"content": "a"}), Seen("text", "a")),
        (chunk({"refusal": "no"}), Seen("text", "no")),
        (chunk({"audio": {"transcript": "said"}}), Seen("text", "said")),
        (chunk({"reasoning_content": "r"}), Seen("thinking", "r")),
        (chunk({"reasoning_content": "r", "reasoning": "r"}), Seen("thinking", "r")),
        (
            chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "m"}]}]}),
            Seen("thinking", "m"),
        ),
        (chunk({"reasoning": "r", "content": "c"}), Seen("text", "rc")),
        (chunk({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{"}}]}), Seen("tool", "f{")),
        (chunk({"tool_calls": [{"index": 0, "custom": {"name": "c", "input": "i"}}]}), Seen("tool", "ci")),
        (chunk({"function_call": {"arguments": "x"}}), Seen("tool", "x")),
        (chunk({}, finish_reason="stop"), Seen("stop")),
        (chunk({"content": "a"}, finish_reason="stop"), Seen("text", "a")),
        ({"choices": [], "usage": {"prompt_tokens": 1}}, Seen("usage")),
        ({"error": {"message": "x"}}, Seen("error")),
        ({"error": {"message": "x"}, **chunk({"content": "leak"})}, Seen("error", "leak")),
        (None, Seen("other")),
        ([], Seen("other")),
    ],
)
def test_see(data: object, seen: Seen) -> None:
    assert API.see(data, "") == seen


def test_see_whole_joins_all_choices() -> None:
    answer = {"choices": [{"message": {"content": "a"}}, {"message": {"reasoning_content": "r", "content": "b"}}, {}]}
    assert API.see_whole(answer) == Seen("text", "a\nrb")
    assert API.see_whole({"choices": []}) == Seen("other")
    assert API.see_whole({"error": {"message": "x"}}) == Seen("error")


@pytest.mark.parametrize(
    ("raw", "end"),
    [
        (b"data: [DONE]\n\n", True),
        (b"data:[DONE]\r\n\r\n", True),
        (b": c\ndata: [DONE]\n\n", True),
        (b'data: {"choices":[{"finish_reason":"stop"}]}\n\n', True),
        (b'data: {"error":{"message":"x"}}\n\n', True),
        (b'data: {"choices":[{"delta":{"content":"[DONE]"}}]}\n\n', False),
        (b": [DONE]\n\n", False),
    ],
)
def test_is_end(raw: bytes, end: bool) -> None:
    payload = sse.parse(raw)[1]
    data = orjson.loads(payload) if payload and payload != b"[DONE]" else None
    assert API.is_end(raw, data, "") is end


def test_usage_with_details() -> None:
    found = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    assert API.usage({"usage": found}) == Usage(10, 5, 4, 0, 3, "provider")
    assert API.usage({"usage": None}) is None
    assert API.usage({"usage": {"prompt_tokens": "x", "prompt_tokens_details": []}}) == Usage(source="provider")


def test_split_is_a_stream_of_the_sdk() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    logprobs = {"content": [{"token": "a", "logprob": -0.1, "bytes": None, "top_logprobs": []}], "refusal": None}
    answer = {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "finish_reason": "tool_calls",
                "logprobs": logprobs,
                "message": {"role": "assistant", "content": "a", "tool_calls": [call, "odd"]},
            }
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    }
    before = copy.deepcopy(answer)
    *events, done = API.split(answer)
    assert answer == before
    assert done == b"data: [DONE]\n\n"
    chunks = [orjson.loads(sse.parse(event)[1] or b"") for event in events]
    parsed = [ChatCompletionChunk.model_validate(c) for c in chunks]
    assert parsed[0].choices[0].delta.content == "a"
    assert parsed[0].choices[0].logprobs is not None
    assert parsed[1].choices[0].finish_reason == "tool_calls"
    assert API.usage(chunks[-1]) == Usage(1, 2, source="provider")
    assert "".join(API.see(c, "").text for c in chunks) == API.see_whole(answer).text


def test_errors_in_the_shape_of_openai() -> None:
    event = API.error_event(UpstreamTruncated("cut", param="p"), "req")
    assert orjson.loads(sse.parse(event)[1] or b"") == {
        "error": {"message": "cut", "type": "api_error", "param": "p", "code": None}
    }


@given(JSON_VALUES)
def test_reading_answers_is_total(data: object) -> None:
    API.see(data, "")
    API.see_whole(data)
    API.usage(data)
    API.is_end(b"data: x\n\n", data, "")
    list(API.texts({"messages": data}))
    if isinstance(data, dict):
        API.split(data)
