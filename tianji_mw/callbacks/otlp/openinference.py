"""The attributes of OpenInference, which Arize and Phoenix read; lists are flattened: `llm.input_messages.0...`. Pure.

Source: openinference-semantic-conventions 0.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import orjson

from tianji_mw.callbacks.otlp import genai, messages
from tianji_mw.callbacks.otlp.limits import json_text
from tianji_mw.callbacks.otlp.spans import OK, UNSET, Attributes, Span, Value, model_of, ours_of
from tianji_mw.callbacks.record import content
from tianji_mw.callbacks.record.redaction import MARKER
from tianji_mw.records import Record

Found = dict[str, Value]

#: What OpenInference writes in the place of content that is not told.
REDACTED: Final = "__REDACTED__"
JSON_TYPE: Final = "application/json"
TEXT_TYPE: Final = "text/plain"

_KINDS: Final[Mapping[str, str]] = {"embeddings": "EMBEDDING", "rerank": "RERANKER", "moderations": "GUARDRAIL"}
#: `llm.provider` and `llm.system` where they are not our name of the provider.
_PROVIDERS: Final[Mapping[str, tuple[str, str]]] = {
    "azure": ("azure", "openai"),
    "azure_ai": ("azure", ""),
    "bedrock": ("aws", "amazon"),
    "gemini": ("google", "vertexai"),
    "mistral": ("mistralai", "mistralai"),
    "vertex_ai": ("google", "vertexai"),
}
_SYSTEMS: Final = frozenset({"anthropic", "cohere", "openai"})
#: Messages, documents and texts that get attributes of their own; `input.value` has them all.
_MESSAGES: Final = 256
_ITEMS: Final = 64
_VECTORS: Final = 8


def span_attributes(span: Span, record: Record) -> Attributes:
    """The attributes of any span of a record; an error's event and the status go to the span itself."""
    if span.role == "attempt":
        return {"openinference.span.kind": "CHAIN", **genai.attempt_attributes(span)}
    if span.role == "guardrail":
        return {"openinference.span.kind": "GUARDRAIL", **genai.guardrail_attributes(span)}
    if event := genai.exception_event(span, record.data):
        span.events.append(event)
    elif span.status == UNSET:
        span.status = OK
    return call_attributes(record)


def call_attributes(record: Record) -> Found:
    """The attributes of the call."""
    api = str(ours_of(record.data).get("api") or "")
    found: Found = {"openinference.span.kind": _KINDS.get(api, "LLM"), **_values(record), **_who(record)}
    if api == "embeddings":
        found |= _embedding(record)
    elif api == "rerank":
        found |= _rerank(record)
    else:
        found |= _llm(record)
    found |= {**_tokens(record), **_cost(record)}
    return {name: value for name, value in found.items() if value is not None and value != ""}


# --- what every kind of span has


def _values(record: Record) -> Found:
    asked, answer = record.data.get("messages"), record.data.get("response")
    found: Found = {}
    if asked is not None:
        found["input.value"], found["input.mime_type"] = _value(asked)
    if isinstance(answer, dict) and _is_plain_answer(said := content.output_messages(record)):
        answer = content.text_of(said[0])
    if answer is not None:
        found["output.value"], found["output.mime_type"] = _value(answer)
    return found


def _is_plain_answer(said: list[content.Message]) -> bool:
    return len(said) == 1 and isinstance(said[0].get("content"), str) and "tool_calls" not in said[0]


def _value(value: Any) -> tuple[str, str]:
    if isinstance(value, str):
        return (REDACTED if value == MARKER else value), TEXT_TYPE
    if isinstance(value, list) and len(value) == 1 and content.mapping(value[0]).get("content") == MARKER:
        return REDACTED, TEXT_TYPE
    return json_text(value), JSON_TYPE


def _who(record: Record) -> Found:
    data = record.data
    who = content.mapping(data.get("metadata"))
    told = content.facts(record)
    if asked := content.requester_metadata(record):
        told["requester_metadata"] = asked
    return {
        "session.id": content.session_id(record),
        "user.id": content.word(data.get("end_user")) or content.word(who.get("user_api_key_user_id")),
        "metadata": json_text(told),
        "tag.tags": content.tags(record) or None,
    }


def _tokens(record: Record) -> Found:
    used = content.usage(record)
    if not used.input and not used.output:
        return {}
    found: Found = {"prompt": used.input, "completion": used.output, "total": used.total}
    found |= {
        "prompt_details.cache_read": used.cache_read or None,
        "prompt_details.cache_write": used.cache_write or None,
        "prompt_details.audio": used.audio_input or None,
        "completion_details.reasoning": used.reasoning or None,
        "completion_details.audio": used.audio_output or None,
    }
    return {f"llm.token_count.{name}": value for name, value in found.items()}


def _cost(record: Record) -> Found:
    parts = content.mapping(record.data.get("cost_breakdown"))
    return {
        "llm.cost.prompt": content.number(parts.get("input_cost")),
        "llm.cost.completion": content.number(parts.get("output_cost")),
        "llm.cost.total": content.number(record.data.get("response_cost")),
    }


# --- chat and completions


def _llm(record: Record) -> Found:
    provider = str(record.data.get("custom_llm_provider") or "")
    hosted, system = _PROVIDERS.get(provider, (provider, provider if provider in _SYSTEMS else ""))
    params = {k: v for k, v in content.model_parameters(record).items() if k not in ("tools", "functions")}
    ends = messages.finish_reasons(record.data)
    found: Found = {
        "llm.model_name": genai.response_model(record.data) or model_of(record.data),
        "llm.provider": hosted,
        "llm.system": system,
        "llm.invocation_parameters": json_text(params) if params else None,
        "llm.finish_reason": ends[0] if ends else None,
    }
    for at, tool in enumerate(content.model_parameters(record).get("tools") or ()):
        if at < _ITEMS and isinstance(tool, dict):
            found[f"llm.tools.{at}.tool.json_schema"] = json_text(tool)
    found |= _messages("llm.input_messages", content.input_messages(record))
    found |= _messages("llm.output_messages", content.output_messages(record))
    return found


def _messages(prefix: str, said: list[content.Message]) -> Found:
    """The first message, which is mostly the system's, and the last ones."""
    if len(said) > _MESSAGES:
        said = [said[0], *said[1 - _MESSAGES :]]
    found: Found = {}
    for at, message in enumerate(said):
        found |= {f"{prefix}.{at}.message.{name}": value for name, value in _message(message)}
    return found


def _message(message: content.Message) -> Iterable[tuple[str, Value]]:
    yield "role", str(message["role"])
    said = message.get("content")
    if isinstance(said, list):
        for at, part in enumerate(said):
            for name, value in _part(content.mapping(part)):
                yield f"contents.{at}.message_content.{name}", value
    elif said:
        yield "content", REDACTED if said == MARKER else content.as_text(said)
    for name in ("name", "tool_call_id"):
        if message.get(name):
            yield name, message[name]
    for at, call in enumerate(message.get("tool_calls", ())):
        before = f"tool_calls.{at}.tool_call"
        yield f"{before}.id", call["id"]
        yield f"{before}.function.name", call["function"]["name"]
        yield f"{before}.function.arguments", call["function"]["arguments"]


def _part(part: Mapping[str, Any]) -> Iterable[tuple[str, Value]]:
    kind = content.as_text(part.get("type"))
    if kind == "text":
        yield "type", "text"
        yield "text", content.as_text(part.get("text"))
        return
    if url := _image(part, kind):
        yield "type", "image"
        yield "image.image.url", url
        return
    yield "type", kind or "unknown"


def _image(part: Mapping[str, Any], kind: str) -> str:
    if kind in ("image_url", "input_image"):
        held = part.get("image_url")
        return content.as_text(content.mapping(held).get("url") if isinstance(held, dict) else held)
    source = content.mapping(part.get("source"))
    if kind == "image" and source.get("type") == "base64":
        return f"data:{content.as_text(source.get('media_type'))};base64,{content.as_text(source.get('data'))}"
    return content.as_text(source.get("url")) if kind == "image" else ""


# --- embeddings and rerank


def _embedding(record: Record) -> Found:
    params = content.model_parameters(record)
    found: Found = {
        "embedding.model_name": genai.response_model(record.data) or model_of(record.data),
        "embedding.invocation_parameters": orjson.dumps(params, default=str).decode() if params else None,
    }
    asked = record.data.get("messages")
    for at, text in enumerate(asked if isinstance(asked, list) else [asked]):
        if at < _ITEMS and isinstance(text, str):
            found[f"embedding.embeddings.{at}.embedding.text"] = REDACTED if text == MARKER else text
    answer = content.mapping(record.data.get("response")).get("data")
    for at, item in enumerate(answer if isinstance(answer, list) else ()):
        vector = content.mapping(item).get("embedding")
        if at < _VECTORS and isinstance(vector, list):
            found[f"embedding.embeddings.{at}.embedding.vector"] = vector
    return found


def _rerank(record: Record) -> Found:
    asked, answer = content.mapping(record.data.get("messages")), content.mapping(record.data.get("response"))
    found: Found = {
        "reranker.model_name": model_of(record.data),
        "reranker.query": content.word(asked.get("query")),
        "reranker.top_k": content.number(asked.get("top_n", content.model_parameters(record).get("top_n"))),
    }
    given = asked.get("documents")
    documents = given if isinstance(given, list) else []
    for at, document in enumerate(documents[:_ITEMS]):
        found[f"reranker.input_documents.{at}.document.content"] = _document(document)
    results = answer.get("results")
    for at, result in enumerate(results[:_ITEMS] if isinstance(results, list) else ()):
        before, result = f"reranker.output_documents.{at}.document", content.mapping(result)
        index = result.get("index")
        if isinstance(index, int) and 0 <= index < len(documents):
            found[f"{before}.id"] = str(index)
            found[f"{before}.content"] = _document(documents[index])
        found[f"{before}.score"] = content.number(result.get("relevance_score"))
    return found


def _document(document: Any) -> str:
    text = content.mapping(document).get("text", document)
    return text if isinstance(text, str) else json_text(text)
