"""The spans that a record becomes in Datadog's LLM Observability: one for the call, one for each of several attempts.

Pure. Ids are made of the record's own, so that sending it again gives the same spans.
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from tianji_mw.callbacks.record import content
from tianji_mw.records import Record

#: Kinds of the APIs; the others are `llm`.
_KINDS: Final[Mapping[str, str]] = {"embeddings": "embedding", "rerank": "retrieval", "moderations": "task"}
_NAME: Final = "litellm_llm_call"
_TRACE: Final = re.compile(r"[0-9a-f]{32}")
#: Characters of a message in a span that would else be too large, and messages of it.
_CUT_TO: Final = 10_000
_CUT_COUNT: Final = 40


class Shape(enum.Enum):
    """How much of what was said is in a span: all, the beginnings of the last messages, or nothing."""

    WHOLE = enum.auto()
    CUT = enum.auto()
    BARE = enum.auto()


def spans_of(record: Record, tags: Sequence[str], shape: Shape = Shape.WHOLE) -> list[dict[str, Any]]:
    """The spans of a call, the parent first."""
    attempts = content.attempts(record)
    several = len(attempts) > 1 and shape is not Shape.BARE
    start, end = content.times(record)
    kind = _KINDS.get(content.as_text(content.ours(record).get("api")), "llm")
    root = {
        **_head(record, _digest(record.id), "undefined", start, end),
        "name": _NAME,
        "tags": [*tags],
        "meta": {
            **_said(record, "workflow" if several else kind, shape),
            "metadata": _metadata(record, record.data),
        },
        "metrics": {} if several else _metrics(record),
        "status": "ok",
    }
    if (failure := content.failure(record)) is not None:
        root["status"] = "error"
        told = content.mapping(record.data.get("error_information"))
        trace = content.as_text(told.get("traceback"))
        root["meta"]["error"] = {"message": failure.message[:_CUT_TO], "type": failure.kind, "stack": trace[:_CUT_TO]}
    if not several:
        return [root]
    return [root, *(_attempt(record, attempts, at, kind, shape, tags) for at in range(len(attempts)))]


def _attempt(
    record: Record, attempts: Sequence[Mapping[str, Any]], at: int, kind: str, shape: Shape, tags: Sequence[str]
) -> dict[str, Any]:
    """One request upstream. The last one gave the answer, if any did, and was billed."""
    attempt = attempts[at]
    last = at + 1 == len(attempts)
    start, end = content.attempt_times(record, attempt)
    span_id = _digest(f"{record.id} attempt {at + 1}")
    span = {
        **_head(record, span_id, _digest(record.id), start, end),
        "name": f"attempt {at + 1}",
        "tags": [*tags, f"attempt:{at + 1}"],
        "meta": {**_said(record, kind, shape if last else Shape.BARE), "metadata": _metadata(record, attempt)},
        "metrics": _metrics(record) if last else {},
        "status": "ok",
    }
    status = content.count(attempt.get("status_code"))
    if error := content.word(attempt.get("error")) or (f"status {status}" if status >= 400 else None):
        span["status"] = "error"
        span["meta"]["error"] = {"message": error, "type": error, "stack": ""}
    return span


def _head(record: Record, span_id: str, parent_id: str, start: float, end: float) -> dict[str, Any]:
    head = {
        "trace_id": _trace_id(record),
        "span_id": span_id,
        "parent_id": parent_id,
        "start_ns": round(start * 1e9),
        "duration": round((end - start) * 1e9),
    }
    session = content.session_id(record)
    return head if session is None else {**head, "session_id": session}


def _trace_id(record: Record) -> str:
    """32 hexadecimal digits: the record's trace, whatever its form."""
    given = content.word(record.data.get("trace_id")) or record.id
    digits = given.replace("-", "").lower()
    if _TRACE.fullmatch(digits):
        return digits
    return hashlib.sha256(given.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _metadata(record: Record, of: Mapping[str, Any]) -> dict[str, Any]:
    """Model, provider, parameters and who called; `of` is the record, or one of its attempts."""
    params = {
        key: value for key, value in content.model_parameters(record).items() if key not in ("tools", "functions")
    }
    facts = content.facts(record) if of is record.data else {}
    own = {"model_name": of.get("model"), "model_provider": of.get("custom_llm_provider")}
    return {key: value for key, value in {**facts, **params, **own}.items() if value is not None}


def _said(record: Record, kind: str, shape: Shape) -> dict[str, Any]:
    """Input and output: messages of models, a text of everything else."""
    meta: dict[str, Any] = {"kind": kind}
    asked = [] if shape is Shape.BARE else content.input_messages(record)
    answered = [] if shape is Shape.BARE else content.output_messages(record)
    if kind == "llm":
        meta["input"] = {"messages": _cut([_message(one) for one in asked], shape)}
        meta["output"] = {"messages": _cut([_message(one) for one in answered], shape)}
        if shape is Shape.WHOLE and (tools := content.tool_definitions(record)):
            meta["tool_definitions"] = tools
        return meta
    limit = _CUT_TO if shape is Shape.CUT else None
    meta["input"] = {"value": "\n".join(map(content.text_of, asked))[:limit]}
    meta["output"] = {"value": "\n".join(map(content.text_of, answered))[:limit]}
    return meta


def _message(message: content.Message) -> dict[str, Any]:
    said: dict[str, Any] = {"role": message["role"], "content": content.text_of(message)}
    if thought := message.get("reasoning_content"):
        said["reasoning_content"] = thought
    if calls := message.get("tool_calls"):
        said["tool_calls"] = [
            {
                "name": call["function"]["name"],
                "arguments": _arguments(call["function"]["arguments"]),
                "tool_id": call["id"],
                "type": call["type"],
            }
            for call in calls
        ]
    if message["role"] == "tool":
        result = {"name": message.get("name", ""), "result": said["content"], "type": "function"}
        said["tool_results"] = [{**result, "tool_id": message.get("tool_call_id", "")}]
    return said


def _arguments(text: str) -> dict[str, Any]:
    """The arguments of a call as an object; what is none is kept as a text in one."""
    try:
        found = orjson.loads(text) if text else {}
    except orjson.JSONDecodeError:
        found = text
    return found if isinstance(found, dict) else {"arguments": found}


def _cut(messages: list[dict[str, Any]], shape: Shape) -> list[dict[str, Any]]:
    if shape is not Shape.CUT:
        return messages
    return [{"role": one["role"], "content": one["content"][:_CUT_TO]} for one in messages[-_CUT_COUNT:]]


def _metrics(record: Record) -> dict[str, float | int]:
    used = content.usage(record)
    metrics: dict[str, float | int] = {
        "input_tokens": used.input,
        "output_tokens": used.output,
        "total_tokens": used.total,
        "total_cost": content.cost(record),
    }
    cached = {
        "cache_read_input_tokens": used.cache_read,
        "cache_write_input_tokens": used.cache_write,
        "non_cached_input_tokens": max(used.input - used.cache_read - used.cache_write, 0) if used.cache_read else 0,
        "reasoning_output_tokens": used.reasoning,
    }
    metrics |= {name: tokens for name, tokens in cached.items() if tokens}
    first = content.time_to_first_token(record)
    if first is not None:
        start, end = content.times(record)
        metrics["time_to_first_token"] = first
        if used.output > 1 and end - start > first:
            metrics["time_per_output_token"] = (end - start - first) / (used.output - 1)
    return metrics
