"""Responses: what is read in requests and events, and what the official SDK makes of the streams we build."""

from __future__ import annotations

import copy

import httpx2
import openai
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseErrorEvent

from tianji_mw.apis import sse
from tianji_mw.apis.base import Seen, Usage
from tianji_mw.apis.responses import Responses
from tianji_mw.errors import InvalidRequest, UpstreamTruncated

API = Responses()

ANSWER = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "model": "m",
    "status": "completed",
    "error": None,
    "incomplete_details": None,
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "output": [
        {"id": "rs_1", "type": "reasoning", "summary": [{"type": "summary_text", "text": "think"}]},
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [
                {"type": "output_text", "text": "Hello", "annotations": []},
                {"type": "output_text", "text": " you", "annotations": []},
                {"type": "refusal", "refusal": "no"},
            ],
        },
        {
            "id": "fc_1",
            "type": "function_call",
            "call_id": "c1",
            "name": "f",
            "arguments": '{"a":1}',
            "status": "completed",
        },
        {"id": "ctc_1", "type": "custom_tool_call", "call_id": "c2", "name": "g", "input": "free"},
        {"id": "mcp_1", "type": "mcp_call", "server_label": "s", "name": "t", "arguments": "{}", "output": "found"},
    ],
    "usage": {
        "input_tokens": 9,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 2},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 14,
    },
}

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "delta", "item", "response", "output", "usage", "error", "input", "role", "part"]),
            inner
            | st.sampled_from(
                ["message", "response.created", "response.output_item.added", "response.x.delta", "function_call"]
            ),
            max_size=4,
        )
    ),
    max_leaves=15,
)


def client(stream: bytes) -> openai.OpenAI:
    def handle(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=stream)

    http = httpx2.Client(transport=httpx2.MockTransport(handle))
    return openai.OpenAI(api_key="k", base_url="http://test/v1", http_client=http, max_retries=0)


# --- requests ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({}, "input"),
        ({"input": 1}, "input"),
        ({"input": ["x"]}, "input"),
        ({"input": "x", "instructions": ["x"]}, "instructions"),
        ({"input": "x", "stream": "yes"}, "stream"),
    ],
)
def test_wrong_shapes_are_refused(request_: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        API.validate(request_)
    assert caught.value.param == param


def test_requests_without_input_are_right_when_state_is_elsewhere() -> None:
    API.validate({"previous_response_id": "resp_0"})
    API.validate({"prompt": {"id": "pmpt_1"}})


def test_every_text_of_a_request_with_its_place_and_role() -> None:
    request = {
        "instructions": "i",
        "prompt": {"id": "pmpt_1", "variables": {"city": "p", "pic": {"type": "input_text", "text": "q"}}},
        "input": [
            {"role": "user", "content": "a"},
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "b"}]},
            {"role": "user", "content": [{"type": "input_image", "image_url": "data:,x", "detail": "auto"}]},
            {
                "type": "reasoning",
                "id": "rs_1",
                "summary": [{"type": "summary_text", "text": "c"}],
                "encrypted_content": "x",
            },
            {"type": "function_call", "call_id": "1", "name": "f", "arguments": "d", "status": "completed"},
            {"type": "function_call_output", "call_id": "1", "output": "e"},
            {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "f2"}]},
            {"type": "custom_tool_call_output", "call_id": "2", "output": "g"},
            {"type": "local_shell_call_output", "id": "3", "output": "h"},
            {
                "type": "image_generation_call",
                "id": "4",
                "result": "base64",
                "revised_prompt": "j",
                "status": "completed",
            },
            {"type": "new_thing_output", "fields": {"deep": [["k"]]}},
        ],
    }
    parts = list(API.texts(request))
    assert [(p.role, p.text) for p in parts] == [
        ("system", "i"),
        ("user", "p"),
        ("user", "q"),
        ("user", "a"),
        ("developer", "b"),
        ("assistant", "c"),
        ("assistant", "f"),
        ("assistant", "d"),
        ("tool", "e"),
        ("tool", "f2"),
        ("tool", "g"),
        ("tool", "h"),
        ("assistant", "j"),
        ("tool", "k"),
    ]
    for part in parts:  # each path leads to its text
        value: object = request
        for step in part.path:
            value = value[step]  # type: ignore[index]
        assert value == part.text


def test_deep_nesting_is_read_without_recursion() -> None:
    value: object = "deep"
    for _ in range(5000):
        value = [value]
    assert [p.text for p in API.texts({"input": [{"role": "user", "content": value}]})] == ["deep"]


# --- events -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "seen"),
    [
        ({"type": "response.output_text.delta", "delta": "a"}, Seen("text", "a")),
        ({"type": "response.refusal.delta", "delta": "a"}, Seen("text", "a")),
        ({"type": "response.audio.transcript.delta", "delta": "a"}, Seen("text", "a")),
        ({"type": "response.audio.delta", "delta": "QUJD"}, Seen("other")),
        ({"type": "response.function_call_arguments.delta", "delta": "a"}, Seen("tool", "a")),
        ({"type": "response.custom_tool_call_input.delta", "delta": "a"}, Seen("tool", "a")),
        ({"type": "response.mcp_call_arguments.delta", "delta": "a"}, Seen("tool", "a")),
        (
            {"type": "response.shell_call_output_content.delta", "delta": {"stdout": "a", "stderr": "b"}},
            Seen("tool", "ab"),
        ),
        ({"type": "response.reasoning_text.delta", "delta": "a"}, Seen("thinking", "a")),
        ({"type": "response.reasoning_summary_text.delta", "delta": "a"}, Seen("thinking", "a")),
        ({"type": "response.output_text.done", "text": "a"}, Seen("other")),
        ({"type": "response.content_part.done", "part": {"type": "output_text", "text": "a"}}, Seen("other")),
        ({"type": "response.output_item.done", "item": ANSWER["output"][1]}, Seen("other")),
        ({"type": "response.completed", "response": ANSWER}, Seen("stop")),
        ({"type": "response.incomplete", "response": ANSWER}, Seen("stop")),
        ({"type": "response.failed", "response": {"error": {"code": "server_error"}}}, Seen("error")),
        ({"type": "error", "message": "x"}, Seen("error")),
        ({"type": "response.created", "response": {"output": []}}, Seen("other")),
        ({"type": "response.web_search_call.searching", "item_id": "ws_1", "output_index": 0}, Seen("other")),
        # Content that never was a delta.
        (
            {"type": "response.created", "response": ANSWER | {"output": ANSWER["output"][1:2]}},
            Seen("text", "Hello youno"),
        ),
        ({"type": "response.output_item.added", "item": {"type": "function_call", "name": "f"}}, Seen("tool", "f")),
        ({"type": "response.output_item.added", "item": {"type": "message", "content": []}}, Seen("other")),
        ({"type": "response.content_part.added", "part": {"type": "output_text", "text": ""}}, Seen("other")),
        ({"type": "response.content_part.added", "part": {"type": "output_text", "text": "a"}}, Seen("text", "a")),
        ({"type": "response.reasoning_summary_part.added", "part": {"text": "a"}}, Seen("thinking", "a")),
        ({"type": "response.output_item.done", "item": ANSWER["output"][4]}, Seen("tool", "st{}found")),
        (
            {"type": "response.output_text.annotation.added", "annotation": {"title": "a", "url": "b"}},
            Seen("tool", "ab"),
        ),
        ({"type": "response.some_new_call.content", "text": "a"}, Seen("tool", "a")),
        (None, Seen("other")),
        ([], Seen("other")),
        ({"type": 7}, Seen("other")),
    ],
)
def test_see(event: object, seen: Seen) -> None:
    assert API.see(event, "") == seen


def test_the_event_name_counts_when_the_data_has_no_type() -> None:
    assert API.see({"delta": "a"}, "response.output_text.delta") == Seen("text", "a")
    assert API.is_end(b"", {}, "response.completed")


def test_see_whole_reads_answers_and_what_events_repeat() -> None:
    whole = API.see_whole(ANSWER)
    assert whole == Seen("text", 'think\nHello youno\nf{"a":1}\ngfree\nst{}found')
    assert API.see_whole({"type": "response.completed", "response": ANSWER}) == whole
    assert API.see_whole({"type": "response.output_text.done", "item_id": "m", "text": "a"}) == Seen("text", "a")
    assert API.see_whole({"type": "response.output_item.done", "item": ANSWER["output"][1]}) == Seen(
        "text", "Hello youno"
    )
    assert API.see_whole({"error": {"message": "x"}}) == Seen("error")
    assert API.see_whole({"object": "response", "output": []}) == Seen("other")


@pytest.mark.parametrize("data", [ANSWER, {"type": "response.completed", "response": ANSWER}])
def test_usage(data: object) -> None:
    assert API.usage(data) == Usage(9, 5, 4, 2, 3, "provider")
    assert API.usage_pattern.search(orjson.dumps(data))


def test_no_usage() -> None:
    assert API.usage({"response": {"usage": None}}) is None
    assert API.usage([]) is None


@pytest.mark.parametrize(
    "kind", ["response.completed", "response.incomplete", "response.failed", "response.cancelled", "error"]
)
def test_is_end(kind: str) -> None:
    assert API.is_end(b"", {"type": kind}, kind)
    assert not API.is_end(b"", {"type": "response.output_text.done"}, "")
    assert API.is_end(b"data: [DONE]\n\n", None, "")


# --- streams we build, judged by the SDK ------------------------------------------------------------------------


def test_split_gives_a_stream_the_sdk_joins_to_the_same_answer() -> None:
    before = copy.deepcopy(ANSWER)
    events = API.split(ANSWER)
    assert before == ANSWER
    data = [orjson.loads(sse.parse(raw)[1] or b"") for raw in events]
    assert [event["sequence_number"] for event in data] == list(range(len(data)))
    assert [sse.parse(raw)[0] for raw in events] == [event["type"] for event in data]
    with client(b"".join(events)).responses.stream(model="m", input="x") as stream:
        seen = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert seen == final.output_text == "Hello you"
    assert Response.model_validate(data[-1]["response"]).output_text == "Hello you"
    assert data[-1]["response"] == ANSWER
    done = [event["item"] for event in data if event["type"] == "response.output_item.done"]
    assert done == ANSWER["output"]


def test_a_guard_sees_all_of_a_split_answer() -> None:
    data = [orjson.loads(sse.parse(raw)[1] or b"") for raw in API.split(ANSWER)]
    seen = [API.see(event, "") for event in data]
    text = "".join(s.text for s in seen if s.kind == "text")
    assert text == "Hello youno"
    assert "".join(s.text for s in seen if s.kind == "thinking") == "think"
    for expected in ("f", '{"a":1}', "free", "found"):
        assert expected in "".join(s.text for s in seen if s.kind == "tool")


def test_split_keeps_the_status() -> None:
    events = API.split(ANSWER | {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}})
    assert sse.parse(events[-1])[0] == "response.incomplete"


def test_the_error_event_is_documented_and_raises_in_the_sdk() -> None:
    raw = API.error_event(UpstreamTruncated("the answer stopped", code="cut"), "req")
    name, payload = sse.parse(raw)
    data = orjson.loads(payload or b"")
    assert name == "error"
    event = ResponseErrorEvent.model_validate(data)
    assert (event.code, event.message, event.param) == ("cut", "the answer stopped", None)
    assert API.see(data, name) == Seen("error")
    assert API.is_end(raw, data, name)
    start = b"".join(API.split(ANSWER)[:4])
    with pytest.raises(openai.APIError, match="the answer stopped"):
        list(client(start + raw).responses.create(model="m", input="x", stream=True))


@given(JSON_VALUES)
def test_reading_is_total(data: object) -> None:
    API.see(data, "")
    API.see_whole(data)
    API.usage(data)
    API.is_end(b"data: x\n\n", data, "")
    if isinstance(data, dict):
        list(API.texts(data))
        API.split(data)
