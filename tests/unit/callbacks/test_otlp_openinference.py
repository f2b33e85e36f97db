"""Records of all APIs as attributes of OpenInference."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.records import a_failure, a_payload, a_record
from tianji_mw.callbacks.otlp import encode, openinference
from tianji_mw.callbacks.otlp.spans import ERROR, OK, spans_of
from tianji_mw.callbacks.record.redaction import MARKER, without_content
from tianji_mw.records import Record


def ours(api: str) -> dict[str, Any]:
    return {**a_payload()["tianji"], "api": api}


def of(**changes: Any) -> dict[str, Any]:
    return openinference.call_attributes(a_record(**changes))


def test_a_chat() -> None:
    record = a_record()
    found = openinference.call_attributes(record)
    told = json.loads(found.pop("metadata"))  # type: ignore[arg-type]
    assert (told["litellm_call_id"], told["user_api_key_alias"]) == (record.id, "ci")
    assert told["requester_metadata"] == {"trace_name": "greeting"}
    assert found == {
        "openinference.span.kind": "LLM",
        "input.value": json.dumps(record.data["messages"], separators=(",", ":")),
        "input.mime_type": "application/json",
        "output.value": "hello",
        "output.mime_type": "text/plain",
        "user.id": "customer-7",
        "tag.tags": ["team:ml", "User-Agent: curl"],
        "llm.model_name": "gpt-4o-mini-2024-07-18",
        "llm.provider": "openai",
        "llm.system": "openai",
        "llm.invocation_parameters": '{"temperature":0.5,"max_tokens":100}',
        "llm.finish_reason": "stop",
        "llm.input_messages.0.message.role": "system",
        "llm.input_messages.0.message.content": "Be brief.",
        "llm.input_messages.1.message.role": "user",
        "llm.input_messages.1.message.content": "hi",
        "llm.output_messages.0.message.role": "assistant",
        "llm.output_messages.0.message.content": "hello",
        "llm.token_count.prompt": 12,
        "llm.token_count.completion": 5,
        "llm.token_count.total": 17,
        "llm.token_count.prompt_details.cache_read": 4,
        "llm.token_count.completion_details.reasoning": 2,
        "llm.cost.prompt": 1.8e-06,
        "llm.cost.completion": 3.0e-06,
        "llm.cost.total": 4.8e-06,
    }


CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}
CHAT = {"choices": [{"finish_reason": "tool_calls", "message": {"role": "assistant", "tool_calls": [CALL]}}]}
RESPONSES = {
    "output": [{"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city":"Oslo"}'}],
    "status": "completed",
}
ANTHROPIC = {
    "role": "assistant",
    "content": [{"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Oslo"}}],
    "stop_reason": "tool_use",
}


@pytest.mark.parametrize(
    ("api", "answer"), [("chat_completions", CHAT), ("responses", RESPONSES), ("messages", ANTHROPIC)]
)
def test_calls_of_tools_are_the_same_from_all_apis(api: str, answer: dict[str, Any]) -> None:
    found = of(tianji=ours(api), response=answer)
    before = "llm.output_messages.0.message.tool_calls.0.tool_call"
    assert found[f"{before}.id"] == "c1"
    assert found[f"{before}.function.name"] == "weather"
    assert json.loads(found[f"{before}.function.arguments"]) == {"city": "Oslo"}
    assert found["output.mime_type"] == "application/json"


@pytest.mark.parametrize(
    ("api", "result"),
    [
        ("chat_completions", {"role": "tool", "tool_call_id": "c1", "content": "rain"}),
        ("responses", {"type": "function_call_output", "call_id": "c1", "output": "rain"}),
        ("messages", {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "rain"}]}),
    ],
)
def test_results_of_tools(api: str, result: dict[str, Any]) -> None:
    found = of(tianji=ours(api), messages=[result])
    assert found["llm.input_messages.0.message.role"] == "tool"
    assert found["llm.input_messages.0.message.tool_call_id"] == "c1"
    assert found["llm.input_messages.0.message.content"] == "rain"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "https://x.io/a.png"}},
        {"type": "input_image", "image_url": "https://x.io/a.png"},
        {"type": "image", "source": {"type": "url", "url": "https://x.io/a.png"}},
    ],
)
def test_images(part: dict[str, Any]) -> None:
    found = of(messages=[{"role": "user", "content": [{"type": "text", "text": "what?"}, part]}])
    before = "llm.input_messages.0.message.contents"
    assert found[f"{before}.0.message_content.type"] == "text"
    assert found[f"{before}.0.message_content.text"] == "what?"
    assert found[f"{before}.1.message_content.type"] == "image"
    assert found[f"{before}.1.message_content.image.image.url"] == "https://x.io/a.png"


def test_embeddings_and_rerank() -> None:
    answer = {"model": "e-3", "data": [{"embedding": [0.25, 1.0]}, {"embedding": [0.5, 0.5]}]}
    found = of(tianji=ours("embeddings"), messages=["a", "b"], response=answer)
    assert found["openinference.span.kind"] == "EMBEDDING"
    assert found["embedding.model_name"] == "e-3"
    assert found["embedding.embeddings.1.embedding.text"] == "b"
    assert found["embedding.embeddings.1.embedding.vector"] == [0.5, 0.5]
    assert not [name for name in found if name.startswith("llm.input")]
    asked = {"query": "q", "documents": ["x", {"text": "y"}], "top_n": 1}
    found = of(tianji=ours("rerank"), messages=asked, response={"results": [{"index": 1, "relevance_score": 0.5}]})
    assert (found["openinference.span.kind"], found["reranker.query"]) == ("RERANKER", "q")
    assert found["reranker.input_documents.1.document.content"] == "y"
    assert found["reranker.output_documents.0.document.content"] == "y"
    assert found["reranker.output_documents.0.document.score"] == 0.5


def test_tools_and_who() -> None:
    tool = {"type": "function", "function": {"name": "weather"}}
    found = of(model_parameters={"tools": [tool]}, session_id="s-1", end_user=None)
    assert json.loads(found["llm.tools.0.tool.json_schema"]) == tool
    assert (found["session.id"], found["user.id"]) == ("s-1", "u1")


def test_content_that_is_not_logged() -> None:
    record = a_record()
    found = openinference.call_attributes(Record.of(record.id, without_content(record.data)))
    assert found["input.value"] == found["output.value"] == "__REDACTED__"
    assert found["llm.input_messages.0.message.content"] == "__REDACTED__"
    assert MARKER not in str(found)
    assert "hello" not in str(found)
    assert "Be brief" not in str(found)


def test_a_failure() -> None:
    record = a_failure()
    call, attempt = spans_of(record)
    found = openinference.span_attributes(call, record)
    assert call.status == ERROR
    assert call.events[0].attributes["exception.message"] == "The provider 'openai' answered 500."
    assert "output.value" not in found
    assert openinference.span_attributes(attempt, record)["openinference.span.kind"] == "CHAIN"
    good = a_record()
    (call,) = spans_of(good)
    openinference.span_attributes(call, good)
    assert call.status == OK


def test_long_conversations_keep_the_first_and_the_last_messages() -> None:
    asked = [{"role": "system", "content": "s"}, *({"role": "user", "content": str(n)} for n in range(1000))]
    found = of(messages=asked)
    assert found["llm.input_messages.0.message.role"] == "system"
    assert found["llm.input_messages.255.message.content"] == "999"
    assert "llm.input_messages.256.message.content" not in found


@pytest.mark.parametrize(
    "odd",
    [
        {"messages": None, "response": None, "metadata": None, "tianji": None},
        {"messages": "text", "response": "text", "model_parameters": None, "request_tags": None},
        {"messages": [1, 2], "response": [1], "cost_breakdown": 5, "response_cost": "x"},
        {"messages": [{"role": None, "content": {"a": 1}}], "response": {"choices": [None, {"message": 1}]}},
        {"messages": {"query": 5, "documents": {}}, "tianji": {"api": "rerank"}, "response": {"results": 1}},
        {"messages": 5, "tianji": {"api": "embeddings"}, "response": {"data": [None, {"embedding": "b64"}]}},
        {"messages": [{"role": "user", "content": "\U0001f600" * 200_000}], "model_parameters": {"tools": [1]}},
        {"messages": [{"role": "user", "content": [None, 1, {"type": None}]}], "model_parameters": {"tools": "x"}},
    ],
)
def test_odd_records(odd: dict[str, Any]) -> None:
    assert encode.attributes(of(**odd))


def test_half_pairs_of_surrogates() -> None:
    data = a_payload(messages=[{"role": "user", "content": "a\ud800b"}])
    record = Record("r-1", b"{}")
    record._data = data
    assert encode.attributes(openinference.call_attributes(record))
