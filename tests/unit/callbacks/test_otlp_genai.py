"""Records as GenAI attributes: names and types of the conventions, content in its parts form from all APIs."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tests.support.records import a_payload
from tianji_mw.callbacks.otlp import messages
from tianji_mw.callbacks.otlp.genai import call_attributes, server_of
from tianji_mw.callbacks.otlp.limits import LIMIT
from tianji_mw.callbacks.otlp.metrics import Meter


def payload(api: str = "chat_completions", **changes: Any) -> dict[str, Any]:
    return a_payload(**{"tianji": {**a_payload()["tianji"], "api": api}, **changes})


def text(content: str) -> dict[str, str]:
    return {"type": "text", "content": content}


def test_the_attributes_of_a_plain_call() -> None:
    found = call_attributes(payload())
    assert found == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o-mini",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 100,
        "gen_ai.response.id": "chatcmpl-77",
        "gen_ai.response.model": "gpt-4o-mini-2024-07-18",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "gen_ai.usage.reasoning.output_tokens": 2,
        "server.address": "api.openai.com",
        "server.port": 443,
        "tianji.key.hash": "9f2c" * 16,
        "tianji.key.alias": "ci",
        "tianji.team.id": "t1",
        "tianji.team.alias": "ml",
        "tianji.user.id": "u1",
        "tianji.call.id": "019a0c5f-1111-7222-8333-944455556666",
        "tianji.trace.id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "tianji.route": "/v1/chat/completions",
        "tianji.outcome": "ok",
        "tianji.model.group": "fast",
        "tianji.model.id": "d-19",
        "tianji.end_user.id": "customer-7",
        "tianji.cost.total": 4.8e-06,
        "tianji.attempts": 1,
        "tianji.tags": ["team:ml", "User-Agent: curl"],
    }


def test_earlier_names_only_where_they_are_wanted() -> None:
    old = call_attributes(payload(), legacy=True)
    new = call_attributes(payload())
    added = {name: old[name] for name in old.keys() - new.keys()}
    assert added["gen_ai.system"] == "openai"
    assert added["gen_ai.usage.prompt_tokens"] == 12
    assert added["gen_ai.usage.completion_tokens"] == 5
    assert added["gen_ai.cost.total_cost"] == added["litellm.cost.total"] == 4.8e-06
    assert added["gen_ai.cost.input_cost"] == 1.8e-06
    assert added["metadata.user_api_key_team_id"] == "t1"
    assert added["llm.is_streaming"] == "False"
    assert {name: old[name] for name in new} == new


def test_params() -> None:
    params = {
        "temperature": 1, "top_p": 0.5, "top_k": 40, "frequency_penalty": 0.1, "presence_penalty": math.nan, "n": 3,
        "seed": 7, "stream": True, "stop": "END", "max_completion_tokens": 9,
        "response_format": {"type": "json_schema"}, "encoding_format": "base64", "dimensions": 256,
        "service_tier": "flex",
    }  # fmt: skip
    found = call_attributes(payload(model_parameters=params))
    assert found["gen_ai.request.temperature"] == 1.0
    assert isinstance(found["gen_ai.request.top_k"], float)
    assert "gen_ai.request.presence_penalty" not in found
    assert found["gen_ai.request.choice.count"] == 3
    assert found["gen_ai.request.seed"] == 7
    assert found["gen_ai.request.stream"] is True
    assert found["gen_ai.request.stop_sequences"] == ["END"]
    assert found["gen_ai.request.max_tokens"] == 9
    assert found["gen_ai.output.type"] == "json"
    assert found["gen_ai.request.encoding_formats"] == ["base64"]
    assert found["gen_ai.embeddings.dimension.count"] == 256
    assert found["openai.request.service_tier"] == "flex"
    assert "gen_ai.request.choice.count" not in call_attributes(payload(model_parameters={"n": 1}))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("bedrock", "aws.bedrock"), ("azure", "azure.ai.openai"), ("vertex_ai", "gcp.vertex_ai"), ("groq", "groq")],
)
def test_providers(ours: str, theirs: str) -> None:
    assert call_attributes(payload(custom_llm_provider=ours))["gen_ai.provider.name"] == theirs


@pytest.mark.parametrize(
    ("api", "operation"),
    [("completions", "text_completion"), ("embeddings", "embeddings"), ("responses", "chat"), ("rerank", "rerank")],
)
def test_operations(api: str, operation: str) -> None:
    assert call_attributes(payload(api))["gen_ai.operation.name"] == operation


@pytest.mark.parametrize(
    ("base", "found"),
    [
        ("http://ollama:11434/v1", {"server.address": "ollama", "server.port": 11434}),
        ("http://x", {"server.address": "x", "server.port": 80}),
        ("https://[::1]:8443", {"server.address": "::1", "server.port": 8443}),
        ("https://x:99999", {}),
        ("", {}),
        (None, {}),
    ],
)
def test_servers(base: Any, found: dict[str, Any]) -> None:
    assert server_of(base) == found


def test_content_only_when_asked_and_as_json() -> None:
    assert not [name for name in call_attributes(payload()) if "messages" in name]
    found = call_attributes(payload(), content=True)
    assert json.loads(str(found["gen_ai.input.messages"])) == [
        {"role": "system", "parts": [text("Be brief.")]},
        {"role": "user", "parts": [text("hi")]},
    ]
    assert json.loads(str(found["gen_ai.output.messages"])) == [
        {"role": "assistant", "parts": [text("hello")], "finish_reason": "stop"}
    ]


def test_content_of_many_megabytes_is_json_below_the_limit() -> None:
    long = [{"role": "user", "content": "x" * 500_000}, {"role": "user", "content": "short"}]
    raw = str(call_attributes(payload(messages=long), content=True)["gen_ai.input.messages"])
    assert len(raw) <= LIMIT
    first, second = json.loads(raw)
    assert "truncated, 500000 bytes" in first["parts"][0]["content"]
    assert second["parts"] == [text("short")]


def test_a_chat_with_tools_and_media() -> None:
    asked = [
        {"role": "developer", "content": "rules"},
        {"role": "user", "name": "ann", "content": [
            {"type": "text", "text": "what"},
            {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            {"type": "input_audio", "input_audio": {"data": "BBBB", "format": "mp3"}},
            {"type": "file", "file": {"file_id": "f1"}},
        ]},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "w", "arguments": '{"city":"Rome"}'}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]  # fmt: skip
    found = messages.input_messages(payload(messages=asked))
    assert found[0] == {"role": "developer", "parts": [text("rules")]}
    assert found[1] == {"role": "user", "name": "ann", "parts": [
        text("what"),
        {"type": "uri", "modality": "image", "uri": "https://x/y.png"},
        {"type": "blob", "modality": "image", "mime_type": "image/png", "content": "AAAA"},
        {"type": "blob", "modality": "audio", "mime_type": "audio/mp3", "content": "BBBB"},
        {"type": "file", "modality": "document", "file_id": "f1"},
    ]}  # fmt: skip
    assert found[2]["parts"] == [{"type": "tool_call", "id": "c1", "name": "w", "arguments": {"city": "Rome"}}]
    assert found[3] == {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "sunny"}]}


def test_a_chat_answer_with_a_tool_call_and_reasoning() -> None:
    answer = {"choices": [
        {"finish_reason": "tool_calls", "message": {"role": "assistant", "content": "", "reasoning_content": "hm",
         "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "not json"}}]}},
        {"finish_reason": "length", "message": {"role": "assistant", "content": None, "refusal": "no"}},
    ]}  # fmt: skip
    first, second = messages.output_messages(payload(response=answer))
    assert first == {"role": "assistant", "finish_reason": "tool_call", "parts": [
        {"type": "reasoning", "content": "hm"}, {"type": "tool_call", "id": "c", "name": "f", "arguments": "not json"},
    ]}  # fmt: skip
    assert second == {"role": "assistant", "finish_reason": "length", "parts": [text("no")]}
    assert messages.finish_reasons(payload(response=answer)) == ["tool_calls", "length"]


def test_responses() -> None:
    asked = [
        {"role": "system", "content": "rules"},
        {"role": "user", "content": [{"type": "input_text", "text": "q"}, {"type": "input_image", "image_url": "https://i"}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "42"},
    ]  # fmt: skip
    answer = {"id": "resp_1", "status": "completed", "model": "o3", "output": [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "thought"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
        {"type": "web_search_call", "id": "ws", "status": "completed"},
    ]}  # fmt: skip
    data = payload("responses", messages=asked, response=answer)
    assert messages.system_instructions(data) == [text("rules")]
    assert messages.input_messages(data) == [
        {"role": "user", "parts": [text("q"), {"type": "uri", "modality": "image", "uri": "https://i"}]},
        {"role": "assistant", "parts": [{"type": "tool_call", "id": "c1", "name": "f", "arguments": {}}]},
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "42"}]},
    ]
    (said,) = messages.output_messages(data)
    assert said["finish_reason"] == "stop"
    assert [part["type"] for part in said["parts"]] == ["reasoning", "text", "tool_call"]
    assert messages.finish_reasons(data) == ["completed"]


def test_anthropic_messages() -> None:
    asked = [
        {"role": "system", "content": [{"type": "text", "text": "rules", "cache_control": {}}]},
        {"role": "user", "content": [
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}},
            {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "42"}]},
            {"type": "document", "source": {"type": "url", "url": "https://d"}},
        ]},
    ]  # fmt: skip
    answer = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "stop_reason": "tool_use",
              "content": [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "text", "text": "a"},
        {"type": "tool_use", "id": "t2", "name": "f", "input": {"x": 1}},
    ]}  # fmt: skip
    data = payload("messages", messages=asked, response=answer)
    assert messages.system_instructions(data) == [text("rules")]
    assert messages.input_messages(data) == [{"role": "user", "parts": [
        {"type": "blob", "modality": "image", "mime_type": "image/png", "content": "AA"},
        {"type": "tool_call_response", "id": "t", "response": "42"},
        {"type": "uri", "modality": "document", "uri": "https://d"},
    ]}]  # fmt: skip
    assert messages.output_messages(data) == [{"role": "assistant", "finish_reason": "tool_call", "parts": [
        {"type": "reasoning", "content": "hm"}, text("a"),
        {"type": "tool_call", "id": "t2", "name": "f", "arguments": {"x": 1}}]}]  # fmt: skip
    assert messages.finish_reasons(data) == ["tool_use"]


def test_other_shapes() -> None:
    assert messages.input_messages(payload("embeddings", messages=["a", "b"])) == [
        {"role": "user", "parts": [text("a")]}, {"role": "user", "parts": [text("b")]}]  # fmt: skip
    assert messages.input_messages(payload("completions", messages="once")) == [
        {"role": "user", "parts": [text("once")]}
    ]
    assert messages.input_messages(payload(messages=None)) == []
    shortened = messages.input_messages(payload(messages={"truncated": True, "bytes": 9}))
    assert shortened[0]["parts"][0]["content"] == '{"truncated":true,"bytes":9}'
    assert messages.output_messages(payload(response={"object": "list", "data": [{"embedding": [1]}]})) == []
    assert messages.output_messages(payload(response="said")) == [
        {"role": "assistant", "parts": [text("said")], "finish_reason": "stop"}
    ]
    done = {"choices": [{"text": "upon a time", "finish_reason": "length"}]}
    assert messages.output_messages(payload("completions", response=done)) == [
        {"role": "assistant", "parts": [text("upon a time")], "finish_reason": "length"}
    ]


@pytest.mark.parametrize(
    "odd", [{"role": []}, {"role": {}, "content": {"a": []}}, {"type": [], "tool_calls": {}}, [[]], None]
)
def test_odd_messages_are_messages_still(odd: Any) -> None:
    for api in ("responses", "messages", "chat_completions"):
        data = payload(api, messages=[odd], response={"choices": [odd], "output": [odd], "content": [odd]})
        assert len(messages.input_messages(data)) == 1
        messages.output_messages(data)
        assert messages.system_instructions(data) == []


def test_tool_definitions() -> None:
    tools = [
        {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}},
        {"name": "g", "input_schema": {"type": "object"}},
        {"type": "web_search"},
    ]
    assert messages.tool_definitions(payload(model_parameters={"tools": tools})) == [
        {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}},
        {"type": "function", "name": "g", "parameters": {"type": "object"}},
        {"type": "web_search", "name": ""},
    ]


def test_what_was_redacted_stays_so() -> None:
    hidden = "redacted-by-litellm"
    data = payload(
        messages=[{"role": "user", "content": hidden}], response=hidden,
        model_parameters={"tools": hidden, "stop": hidden, "temperature": 0.1},
    )  # fmt: skip
    found = call_attributes(data, content=True, legacy=True)
    assert "gen_ai.tool.definitions" not in found
    assert "gen_ai.request.stop_sequences" not in found
    assert json.loads(str(found["gen_ai.input.messages"]))[0]["parts"] == [text(hidden)]


# --- histograms


def series(meter: Meter) -> dict[str, list[Any]]:
    return {found.name: found.points for found in meter.collect(10)}


def test_histograms_of_a_stream() -> None:
    ours = {**a_payload()["tianji"], "time_to_first_token": 0.4}
    meter = Meter(5)
    meter.observe(a_payload(tianji=ours))
    found = series(meter)
    assert sorted(found) == [
        "gen_ai.client.operation.duration", "gen_ai.client.operation.time_to_first_chunk",
        "gen_ai.client.response.duration", "gen_ai.client.token.usage", "gen_ai.server.request.duration",
        "gen_ai.server.time_per_output_token", "gen_ai.server.time_to_first_token", "gen_ai.usage.cost",
    ]  # fmt: skip
    assert found["gen_ai.client.operation.time_to_first_chunk"][0].total == 0.4
    # 0.42 seconds for the four tokens after the first one.
    assert found["gen_ai.server.time_per_output_token"][0].total == pytest.approx(0.105)
    tokens = {point.attributes["gen_ai.token.type"]: point.total for point in found["gen_ai.client.token.usage"]}
    assert tokens == {"input": 12, "output": 5}
    assert found["gen_ai.client.token.usage"][0].bounds[:3] == (1, 4, 16)
    assert found["gen_ai.client.token.usage"][0].bounds[-1] == 67108864
    assert found["gen_ai.client.operation.duration"][0].attributes == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-4o-mini",
        "gen_ai.response.model": "gpt-4o-mini-2024-07-18", "server.address": "api.openai.com", "server.port": 443,
    }  # fmt: skip


def test_earlier_names_of_histograms() -> None:
    ours = {**a_payload()["tianji"], "time_to_first_token": 0.4}
    new, old = Meter(5), Meter(5, legacy=True)
    for meter in (new, old):
        meter.observe(a_payload(tianji=ours))
    assert sorted(series(old).keys() - series(new).keys()) == [
        "gen_ai.client.response.time_per_output_token", "gen_ai.client.response.time_to_first_token",
        "gen_ai.client.token.cost",
    ]  # fmt: skip
    assert series(old)["gen_ai.client.token.cost"][0].total == 4.8e-06
    assert series(old)["gen_ai.usage.cost"][0].attributes["gen_ai.system"] == "openai"


def test_sums_grow_and_series_are_bounded() -> None:
    meter = Meter(5, max_series=3)
    for at in range(10):
        meter.observe(a_payload(model=f"m{at}"))
    points = series(meter)["gen_ai.client.operation.duration"]
    assert sum(sum(point.counts) for point in points) == 10
    assert [point.attributes for point in points if "otel.metric.overflow" in point.attributes] == [
        {"otel.metric.overflow": True}
    ]
    assert len(points) == 4
    meter.observe(a_payload(model="m0"))
    assert sum(sum(point.counts) for point in series(meter)["gen_ai.client.operation.duration"]) == 11
