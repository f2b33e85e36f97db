"""Responses over Chat: answers and streams, judged by the official SDK's own models."""

from __future__ import annotations

import copy
from typing import Any

import httpx2
import openai
import orjson
import pytest
from openai.types.responses import Response

from tests.unit.bridges.responses import BRIDGE, MODELS, TOOL, check_order, context, messages, request, result
from tianji_mw.apis import sse
from tianji_mw.apis.chat_completions import ChatCompletions
from tianji_mw.apis.responses import Responses
from tianji_mw.bridges.base import Context, Event
from tianji_mw.errors import UpstreamMalformed

CUSTOM = {
    "type": "custom",
    "name": "patch",
    "description": "Edits.",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: X"},
}


# --- answers ----------------------------------------------------------------------------------------------------

USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 5,
    "total_tokens": 14,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 3},
}


def chat(message: dict[str, Any], reason: str = "stop", **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": reason}
    return {"id": "chatcmpl-1", "object": "chat.completion", "model": "n", "choices": [choice], "usage": USAGE, **more}


def tool(index: int | None, call_id: str | None, name: str | None, arguments: str) -> dict[str, Any]:
    out: dict[str, Any] = {"function": {"arguments": arguments}}
    if index is not None:
        out["index"] = index
    if call_id:
        out |= {"id": call_id, "type": "function"}
    if name:
        out["function"]["name"] = name
    return out


FULL = {
    "content": "Hello you",
    "reasoning_content": "think hard",
    "annotations": [
        {"type": "url_citation", "url_citation": {"start_index": 0, "end_index": 5, "url": "u", "title": "t"}}
    ],
    "tool_calls": [
        tool(None, "c1", "f", '{"a":1}'),
        tool(None, "c2", "f", ""),
        tool(None, "c3", "patch", '{"input":"free"}'),
    ],
}


def asked(ctx: Context | None = None) -> Context:
    ctx = ctx or context()
    request({"tools": [TOOL, CUSTOM], "instructions": "i", "temperature": 1, "text": {"verbosity": "low"}}, ctx)
    return ctx


def test_a_whole_answer() -> None:
    body = chat(FULL, "tool_calls")
    before = copy.deepcopy(body)
    answer = BRIDGE.answer(body, asked())
    assert body == before
    response = Response.model_validate(answer)
    assert response.output_text == "Hello you"
    assert (answer["id"], answer["model"], answer["created_at"], answer["status"]) == (
        "resp_abc",
        "alias",
        1700000000,
        "completed",
    )
    assert [item["type"] for item in answer["output"]] == [
        *("reasoning", "message", "function_call", "function_call", "custom_tool_call"),
    ]
    thoughts, message, first, second, third = answer["output"]
    assert thoughts["summary"] == [{"type": "summary_text", "text": "think hard"}]
    citation = {"type": "url_citation", "start_index": 0, "end_index": 5, "url": "u", "title": "t"}
    assert message["content"] == [
        {"type": "output_text", "text": "Hello you", "annotations": [citation], "logprobs": []}
    ]
    assert (first["call_id"], first["name"], first["arguments"], first["status"]) == ("c1", "f", '{"a":1}', "completed")
    assert second["arguments"] == "{}"
    assert (third["call_id"], third["name"], third["input"]) == ("c3", "patch", "free")
    assert len({item["id"] for item in answer["output"]}) == 5
    assert answer["usage"] == {
        "input_tokens": 9,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 14,
    }
    assert (answer["instructions"], answer["temperature"], answer["store"]) == ("i", 1, False)
    assert answer["text"] == {"format": {"type": "text"}, "verbosity": "low"}
    assert [t["name"] for t in answer["tools"]] == ["f", "patch"]


def test_an_answer_can_be_sent_back() -> None:
    answer = BRIDGE.answer(chat(FULL, "tool_calls"), asked())
    outputs = [result("c1"), result("c2"), {"type": "custom_tool_call_output", "call_id": "c3", "output": "done"}]
    found = messages({"role": "user", "content": "x"}, *answer["output"], *outputs)
    assert [m["role"] for m in found] == ["user", "assistant", "tool", "tool", "tool"]
    assert found[1]["content"] == "Hello you"
    assert [c["function"]["arguments"] for c in found[1]["tool_calls"]] == ['{"a":1}', "{}", '{"input":"free"}']


@pytest.mark.parametrize(("reason", "why"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
def test_incomplete_answers(reason: str, why: str) -> None:
    answer = BRIDGE.answer(chat({"content": "Hel", "reasoning_content": "r"}, reason), asked())
    Response.model_validate(answer)
    assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": why})
    assert [item["status"] for item in answer["output"]] == ["completed", "incomplete"]


def test_refusals_and_empty_answers() -> None:
    answer = BRIDGE.answer(chat({"content": None, "refusal": "no"}), asked())
    assert answer["output"][0]["content"] == [{"type": "refusal", "refusal": "no"}]
    Response.model_validate(answer)
    empty = BRIDGE.answer(chat({"content": ""}) | {"usage": None}, context())
    assert (empty["output"], empty["usage"]) == ([], None)
    Response.model_validate(empty)


@pytest.mark.parametrize(
    "body", [None, [], {}, {"choices": []}, {"choices": [{}]}, {"choices": [{"message": "x"}]}, "x"]
)
def test_answers_of_another_shape(body: object) -> None:
    with pytest.raises(UpstreamMalformed):
        BRIDGE.answer(body, context())


def test_logprobs_have_every_promised_field() -> None:
    token = {"token": "a", "logprob": -0.5, "bytes": None, "top_logprobs": [{"token": "b", "logprob": -1}]}
    body = chat({"content": "a"})
    body["choices"][0]["logprobs"] = {"content": [token]}
    part = Response.model_validate(BRIDGE.answer(body, asked())).output[0].content[0]  # type: ignore[union-attr, index]
    assert part.logprobs[0].bytes == [97]  # type: ignore[union-attr, index]


# --- streams ----------------------------------------------------------------------------------------------------


def delta(message: dict[str, Any] | None = None, reason: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": message or {}, "finish_reason": reason}
    return {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "n", "choices": [choice], **more}


STREAM = [
    delta({"role": "assistant", "content": ""}),
    delta({"reasoning_content": "think "}),
    delta({"reasoning_content": "hard"}),
    delta({"content": "Hello"}),
    delta({"content": " you", "annotations": FULL["annotations"]}),
    delta({"tool_calls": [tool(0, "c1", "f", "")]}),
    delta({"tool_calls": [tool(0, None, None, '{"a"')]}),
    delta({"tool_calls": [tool(1, "c2", "f", "")]}),
    delta({"tool_calls": [tool(0, None, None, ":1}")]}),
    delta({"tool_calls": [tool(2, "c3", "patch", '{"in'), tool(2, None, None, 'put":"free"}')]}),
    delta(reason="tool_calls"),
    {"id": "x", "choices": [], "usage": USAGE},
]


def play(chunks: list[Any], ctx: Context | None = None) -> list[dict[str, Any]]:
    before = copy.deepcopy(chunks)
    bridge = BRIDGE.stream(ctx or asked())
    events: list[dict[str, Any]] = []
    for chunk in chunks:
        for event in bridge.feed(Event(chunk)):
            assert event.name == event.data["type"]
            events.append(orjson.loads(orjson.dumps(event.data)))
    events += [orjson.loads(orjson.dumps(event.data)) for event in bridge.finish()]
    assert chunks == before
    assert bridge.ended
    assert list(bridge.finish()) == []
    return events


def sdk(events: list[dict[str, Any]]) -> openai.OpenAI:
    body = b"".join(sse.encode(orjson.dumps(event), event["type"]) for event in events)

    def handle(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=body)

    http = httpx2.Client(transport=httpx2.MockTransport(handle))
    return openai.OpenAI(api_key="k", base_url="http://test/v1", http_client=http, max_retries=0)


def test_a_stream_ends_with_the_same_response_as_the_answer() -> None:
    events = play(STREAM)
    check_order(events)
    assert events[-1]["type"] == "response.completed"
    assert events[-1]["response"] == BRIDGE.answer(chat(FULL, "tool_calls"), asked())
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert sorted(done, key=lambda item: item["id"]) == sorted(
        events[-1]["response"]["output"], key=lambda item: item["id"]
    )


def test_the_sdk_joins_the_stream() -> None:
    events = play(STREAM)
    with sdk(events).responses.stream(model="m", input="x") as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == "Hello you"
    calls = [item for item in final.output if item.type == "function_call"]
    assert [(item.call_id, item.arguments) for item in calls] == [("c1", '{"a":1}'), ("c2", "{}")]
    raw = list(sdk(events).responses.create(model="m", input="x", stream=True))
    assert [event.type for event in raw] == [event["type"] for event in events]


def test_deltas_are_seen_as_what_they_are() -> None:
    """What guards read in the bridged stream is what the upstream said."""
    events, api, chat_api = play(STREAM), Responses(), ChatCompletions()
    for kind in ("text", "thinking"):
        said = "".join(s.text for s in (chat_api.see(chunk, "") for chunk in STREAM) if s.kind == kind)
        assert "".join(s.text for s in (api.see(event, event["type"]) for event in events) if s.kind == kind) == said
    assert api.is_end(b"", events[-1], "")
    assert api.usage(events[-1]) == chat_api.usage(STREAM[-1])


def test_calls_that_all_have_index_0_and_calls_without_index() -> None:
    for index in (0, None):
        chunks = [
            delta(
                {"tool_calls": [tool(index, "a", "f", '{"x":'), tool(index, None, None, "1}")] if index == 0 else []}
            ),
            delta({"tool_calls": [tool(index, "a", "f", '{"x":1}')]} if index is None else {}),
            delta({"tool_calls": [tool(index, "b", "f", "{}")]}),
            delta(reason="tool_calls"),
        ]
        events = play(chunks)
        check_order(events)
        assert [i["arguments"] for i in events[-1]["response"]["output"]] == ['{"x":1}', "{}"]


def test_a_call_whose_name_comes_late_or_never() -> None:
    chunks = [
        delta({"tool_calls": [tool(0, "a", None, '{"x"')]}),
        delta({"tool_calls": [tool(0, None, "f", ":1}")]}),
        delta({"tool_calls": [tool(1, None, None, "{}")]}),
        delta(reason="tool_calls"),
    ]
    events = play(chunks)
    check_order(events)
    first, second = events[-1]["response"]["output"]
    assert (first["name"], first["arguments"]) == ("f", '{"x":1}')
    assert (second["name"], second["arguments"]) == ("", "{}")
    assert second["call_id"].startswith("call_")


def test_thoughts_between_answers_are_items_of_their_own() -> None:
    chunks = [
        delta({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "a"}]}]}),
        delta({"content": "b"}),
        delta({"reasoning": "c"}),
        delta({"content": "d"}),
        delta(reason="stop"),
    ]
    events = play(chunks)
    check_order(events)
    output = events[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["reasoning", "message", "reasoning"]
    assert output[1]["content"][0]["text"] == "bd"


def test_text_and_refusal_are_two_parts() -> None:
    events = play([delta({"content": "a"}), delta({"refusal": "n"}), delta({"refusal": "o"}), delta(reason="stop")])
    check_order(events)
    assert [part["type"] for part in events[-1]["response"]["output"][0]["content"]] == ["output_text", "refusal"]
    sdk_final = list(sdk(events).responses.create(model="m", input="x", stream=True))[-1]
    assert sdk_final.response.output[0].content[1].refusal == "no"  # type: ignore[union-attr]


def test_a_cut_by_length() -> None:
    events = play([delta({"content": "a"}), delta({}, "length")])
    check_order(events)
    assert events[-1]["type"] == "response.incomplete"
    assert events[-1]["response"]["output"][0]["status"] == "incomplete"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ({"message": "slow down", "type": "rate_limit_error"}, "rate_limit_exceeded"),
        ({"message": "bad", "type": "invalid_request_error", "code": None}, "invalid_prompt"),
        ({"message": "boom", "code": 502}, "server_error"),
        ("boom", "server_error"),
    ],
)
@pytest.mark.parametrize("start", [[], STREAM[:4]])
def test_an_error_in_the_stream(error: object, code: str, start: list[Any]) -> None:
    events = play([*start, {"error": error}])
    assert events[-1]["type"] == "response.failed"
    MODELS["response.failed"].model_validate(events[-1])
    response = events[-1]["response"]
    Response.model_validate(response)
    assert (response["status"], response["error"]["code"]) == ("failed", code)
    assert response["error"]["message"] in ("slow down", "bad", "boom")


def test_a_stream_without_its_end_is_not_ended() -> None:
    bridge = BRIDGE.stream(asked())
    for chunk in STREAM[:9]:
        list(bridge.feed(Event(chunk)))
        assert not bridge.ended
    list(bridge.feed(Event(STREAM[10])))
    assert bridge.ended
