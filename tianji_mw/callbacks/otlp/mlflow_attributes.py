"""A record as MLflow's trace: the attributes of its spans, and `trace_info`, which its servers keep beside them. Pure.

Source: MLflow's tracing documentation, and what its SDK 3.17 sends.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from tianji_mw.callbacks.otlp import genai
from tianji_mw.callbacks.otlp.limits import cut, json_text
from tianji_mw.callbacks.otlp.spans import ERROR, OK, UNSET, Span, Value, call_times, model_of, ours_of
from tianji_mw.callbacks.record import content
from tianji_mw.records import Record

_TYPES: Final[Mapping[str, str]] = {
    "chat_completions": "CHAT_MODEL",
    "embeddings": "EMBEDDING",
    "messages": "CHAT_MODEL",
    "rerank": "RERANKER",
    "responses": "CHAT_MODEL",
}
_FORMATS: Final[Mapping[str, str]] = {"messages": "anthropic"}
#: Characters of a preview; bytes of a tag's key and value, and of an entry of `trace_metadata`.
_PREVIEW: Final = 1000
_KEY: Final = 250
_TAG: Final = 4096
_METADATA: Final = 8000


def trace_id_of(span: Span) -> str:
    """MLflow's id of a span's trace."""
    return f"tr-{span.trace_id.hex()}"


def span_attributes(span: Span, record: Record) -> dict[str, Value]:
    """The attributes of any span of a record; an error's event and the status go to the span itself."""
    common: dict[str, Value] = {"mlflow.traceRequestId": orjson.dumps(trace_id_of(span)).decode()}
    if span.role != "call":
        guards = span.role == "guardrail"
        told = genai.guardrail_attributes(span) if guards else genai.attempt_attributes(span)
        return {**common, "mlflow.spanType": _quoted("GUARDRAIL" if guards else "CHAIN"), **told}
    if event := genai.exception_event(span, record.data):
        span.events.append(event)
    elif span.status == UNSET:
        span.status = OK
    return {**common, **call_attributes(record)}


def call_attributes(record: Record) -> dict[str, Value]:
    """The attributes of the call; each is JSON in a text, as MLflow keeps them."""
    api = str(ours_of(record.data).get("api") or "")
    tools = content.model_parameters(record).get("tools")
    found = {
        "mlflow.spanType": _quoted(_TYPES.get(api, "LLM")),
        "mlflow.spanInputs": json_text(inputs_of(record)),
        "mlflow.spanOutputs": None if (out := record.data.get("response")) is None else json_text(out),
        "mlflow.chat.tokenUsage": _json(token_usage(record)),
        "mlflow.chat.tools": json_text(tools) if isinstance(tools, list) and tools else None,
        "mlflow.llm.model": _json(genai.response_model(record.data) or model_of(record.data)),
        "mlflow.llm.provider": _json(record.data.get("custom_llm_provider")),
        "mlflow.llm.cost": _json(cost(record)),
        "mlflow.message.format": _quoted(_FORMATS.get(api, "openai")),
        "tianji.call": json_text(content.facts(record)),
    }
    return {name: value for name, value in found.items() if value is not None}


def inputs_of(record: Record) -> dict[str, Any]:
    """The request: `messages` (or `input`, of embeddings and the like) and its parameters."""
    asked = record.data.get("messages")
    chat = isinstance(asked, list) and all(isinstance(item, dict) for item in asked)
    return {"messages" if chat else "input": asked, **content.model_parameters(record)}


def token_usage(record: Record) -> dict[str, int]:
    """Tokens in MLflow's names; empty where none were counted."""
    used = content.usage(record)
    if not used.input and not used.output:
        return {}
    found = {"input_tokens": used.input, "output_tokens": used.output, "total_tokens": used.total}
    if used.cache_read:
        found["cache_read_input_tokens"] = used.cache_read
    if used.cache_write:
        found["cache_creation_input_tokens"] = used.cache_write
    return found


def cost(record: Record) -> dict[str, float]:
    """US dollars; empty where the record has no price."""
    total = content.number(record.data.get("response_cost"))
    if total is None:
        return {}
    parts = content.mapping(record.data.get("cost_breakdown"))
    found = {
        "input_cost": content.number(parts.get("input_cost")),
        "output_cost": content.number(parts.get("output_cost")),
    }
    return {**{name: float(value) for name, value in found.items() if value is not None}, "total_cost": float(total)}


def tags_of(record: Record) -> dict[str, str]:
    """The request's tags; one with a colon is a name and a value, as in LiteLLM."""
    found = {}
    for tag in content.tags(record):
        name, _, value = tag.partition(":")
        if name.strip() and not name.startswith("mlflow."):
            found[cut(name.strip(), _KEY)] = cut(value.strip(), _TAG)
    return found


def trace_metadata(record: Record) -> dict[str, str]:
    """What MLflow shows in its columns. Tokens and cost are not in it: the server adds up those of all spans."""
    data = record.data
    who = content.mapping(data.get("metadata"))
    output = data.get("response")
    found = {
        "mlflow.trace_schema.version": "3",
        "mlflow.traceInputs": json_text(inputs_of(record), _METADATA),
        "mlflow.traceOutputs": None if output is None else json_text(output, _METADATA),
        "mlflow.trace.user": content.word(data.get("end_user")) or content.word(who.get("user_api_key_user_id")),
        "mlflow.trace.session": content.session_id(record),
        "tianji.call_id": record.id,
    }
    return {name: cut(value, _METADATA) for name, value in found.items() if value}


def trace_info(root: Span, record: Record, experiment_id: str) -> dict[str, Any]:
    """The body of `POST /api/3.0/mlflow/traces`. `root`: the call's own span."""
    start, end = call_times(record)
    said = content.output_messages(record)
    asked = content.input_messages(record)
    when = datetime.fromtimestamp(start // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    info = {
        "trace_id": trace_id_of(root),
        "trace_location": {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment_id}},
        "request_time": f"{when}.{start // 1_000_000 % 1000:03d}Z",
        "execution_duration": f"{(end - start) / 1e9:.3f}s",
        "state": "ERROR" if root.status == ERROR else "OK",
        "trace_metadata": trace_metadata(record),
        "tags": {**tags_of(record), "mlflow.traceName": cut(root.name, _TAG)},
        "request_preview": _preview(content.text_of(asked[-1])) if asked else "",
        "response_preview": _preview(content.text_of(said[0])) if said else "",
    }
    return {"trace": {"trace_info": info}}


def _preview(text: str) -> str:
    return cut(text, 4 * _PREVIEW)[:_PREVIEW]


def _json(value: Any) -> str | None:
    return json_text(value) if value else None


def _quoted(text: str) -> str:
    return f'"{text}"'
