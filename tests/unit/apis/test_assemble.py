"""Streams as the plain answers they amount to."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.stack import ANSWER, stream_of
from tianji_mw.apis import by_name, sse
from tianji_mw.apis.assemble import assemble, first_content

CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
CHAT: dict[str, Any] = {
    "id": "c", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "Hello é☃"}, "finish_reason": "stop"},
        {"index": 1, "message": {"role": "assistant", "content": None, "tool_calls": [CALL, {**CALL, "id": "call_2"}]},
         "finish_reason": "tool_calls"},
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}  # fmt: skip
MESSAGE: dict[str, Any] = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "stop_sequence": None,
    "content": [
        {"type": "thinking", "thinking": "Hm.", "signature": "sig"},
        {"type": "text", "text": "Hello"},
        {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Ulm"}},
    ],
    "stop_reason": "tool_use", "usage": {"input_tokens": 3, "output_tokens": 2},
}  # fmt: skip


def streamed(api: str, answer: dict[str, Any]) -> bytes:
    return b"".join(by_name(api).split(answer))


@pytest.mark.parametrize(("api", "answer"), [("chat_completions", CHAT), ("messages", MESSAGE)])
def test_what_was_split_is_assembled_to_the_same_answer(api: str, answer: dict[str, Any]) -> None:
    assert assemble(api, streamed(api, answer)) == answer


def test_deltas_are_joined() -> None:
    answer = assemble("chat_completions", b"".join(stream_of("Hel", "lo", " you")))
    assert answer is not None
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "Hello you"}


def test_tool_calls_in_pieces_and_out_of_order() -> None:
    def chunk(call: dict[str, Any]) -> bytes:
        return sse.encode(orjson.dumps({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}))

    pieces = [
        chunk({"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": ""}}),
        chunk({"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x"'}}),
        chunk({"index": 0, "function": {"arguments": ": 1}"}}),
        chunk({"index": 1, "function": {"arguments": "{}"}}),
    ]
    answer = assemble("chat_completions", b"".join(pieces))
    assert answer is not None
    assert answer["choices"][0]["message"]["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]


def test_tool_input_that_broke_off_stays_text() -> None:
    start = {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "t", "input": {}}}
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": '{"ci'}}
    answer = assemble("messages", b"".join(sse.encode(orjson.dumps(event), event["type"]) for event in (start, delta)))
    assert answer == {"content": [{"type": "tool_use", "id": "t", "input": '{"ci'}]}


def test_a_response_is_the_one_of_its_last_event_or_the_text_until_then() -> None:
    delta = {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": "Hel"}
    begun = {"type": "response.created", "response": {"id": "r", "status": "in_progress", "output": []}}
    done = {"type": "response.completed", "response": {"id": "r", "status": "completed", "output": [{"type": "x"}]}}
    events = [sse.encode(orjson.dumps(event), event["type"]) for event in (begun, delta, done)]
    assert assemble("responses", b"".join(events)) == done["response"]
    cut = assemble("responses", b"".join(events[:2]))
    assert cut is not None
    assert cut["output"][0]["content"] == [{"type": "output_text", "text": "Hel"}]


@pytest.mark.parametrize("api", ["chat_completions", "completions", "messages", "responses", "embeddings"])
@given(raw=st.binary(max_size=200), cut=st.integers(0, 2000))
def test_any_bytes_give_an_answer_or_none(api: str, raw: bytes, cut: int) -> None:
    for whole in (raw, streamed("chat_completions", CHAT)[:cut] + raw, streamed("messages", MESSAGE)[:cut]):
        assert orjson.dumps(assemble(api, whole))
        assert 0 <= first_content(api, whole) <= len(whole) + 4


def test_the_first_content_is_no_role_and_no_ping() -> None:
    role = sse.encode(orjson.dumps({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}))
    text = sse.encode(orjson.dumps({"choices": [{"index": 0, "delta": {"content": "Hi"}}]}))
    raw = b": ping\n\n" + role + text + b"data: [DONE]\n\n"
    assert first_content("chat_completions", raw) == len(b": ping\n\n" + role + text)
    assert first_content("chat_completions", role) == 0


def test_the_answer_of_the_tests_has_no_stream() -> None:
    assert assemble("chat_completions", orjson.dumps(ANSWER)) is None
