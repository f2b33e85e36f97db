"""The events that a record becomes in Braintrust: one for the call, and one for each of several attempts. Pure.

An event's id is the record's: what is inserted again replaces what is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from tianji_mw.apis.base import JSON
from tianji_mw.callbacks.record import content
from tianji_mw.records import Record

#: Of a request's metadata: these name things, and are no metadata themselves.
_NAMES: Final = frozenset({"project_id", "project_name", "span_name", "span_id", "root_span_id", "span_parents"})
_TITLES: Final[Mapping[str, str]] = {
    "chat_completions": "Chat Completion",
    "completions": "Completion",
    "embeddings": "Embedding",
    "messages": "Message",
    "moderations": "Moderation",
    "rerank": "Rerank",
    "responses": "Response",
}


def events_of(record: Record, *, brief: bool = False) -> list[dict[str, Any]]:
    """The events of a call, its own first. `brief`: without what was said and without attempts, for huge records."""
    attempts = content.attempts(record)
    several = len(attempts) > 1 and not brief
    asked = content.requester_metadata(record)
    api = content.as_text(content.ours(record).get("api"))
    name = content.word(asked.get("span_name")) or _TITLES.get(api, "LLM Call")
    failure = content.failure(record)
    start, end = content.times(record)
    place = _place(record, asked)
    root: dict[str, Any] = {
        "id": record.id,
        "created": _moment(start),
        **_said(record, brief=brief),
        "metadata": _metadata(record),
        "metrics": _metrics(record, start, end, used=not several),
        "span_attributes": {"name": name, "type": "task" if several else "llm"},
        **place,
    }
    if failure is not None:
        root["error"] = f"{failure.kind}: {failure.message}"
    if not place["span_parents"]:
        root["tags"] = list(dict.fromkeys(content.tags(record)))
    if not several:
        return [root]
    return [root, *(_attempt(record, attempts, at, place) for at in range(len(attempts)))]


def _attempt(
    record: Record, attempts: Sequence[Mapping[str, Any]], at: int, parent: Mapping[str, Any]
) -> dict[str, Any]:
    """One request upstream. The last one gave the answer, if any did, and was billed."""
    attempt = attempts[at]
    last = at + 1 == len(attempts)
    start, end = content.attempt_times(record, attempt)
    named = ("model", "custom_llm_provider", "model_id", "api_base", "status_code")
    event: dict[str, Any] = {
        "id": f"{record.id}-{at + 1}",
        "created": _moment(start),
        **(_said(record) if last else {"input": None, "output": None}),
        "metadata": {"attempt": at + 1, **{key: attempt[key] for key in named if attempt.get(key) is not None}},
        "metrics": _metrics(record, start, end, used=last),
        "span_attributes": {"name": f"attempt {at + 1}", "type": "llm"},
        "span_id": f"{parent['span_id']}-{at + 1}",
        "root_span_id": parent["root_span_id"],
        "span_parents": [parent["span_id"]],
    }
    status = content.count(attempt.get("status_code"))
    if error := content.word(attempt.get("error")) or (f"status {status}" if status >= 400 else None):
        event["error"] = error
    return event


def _place(record: Record, asked: Mapping[str, JSON]) -> dict[str, Any]:
    """Where the event stands: all three fields, always. A child needs its root and parents, or it is none."""
    span_id = content.word(asked.get("span_id")) or record.id
    root, parents = content.word(asked.get("root_span_id")), _parents(asked.get("span_parents"))
    if root is None or root == span_id:
        return {"span_id": span_id, "root_span_id": root or span_id, "span_parents": []}
    return {"span_id": span_id, "root_span_id": root, "span_parents": parents or [root]}


def _parents(value: JSON) -> list[str]:
    found = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
    return [one.strip() for one in found if isinstance(one, str) and one.strip()]


def _said(record: Record, *, brief: bool = False) -> dict[str, Any]:
    if brief:
        return {"input": None, "output": f"left out: {len(record.raw)} bytes are too much for one event"}
    answers = content.output_messages(record)
    return {"input": content.input_messages(record), "output": answers or None}


def _metadata(record: Record) -> dict[str, Any]:
    # What we know ourselves goes before what a client says.
    out = content.said_of_call(record, _NAMES)
    out |= {**content.model_parameters(record), **content.facts(record)}
    out["provider"] = record.data.get("custom_llm_provider")
    if (session := content.session_id(record)) is not None:
        out["session_id"] = session
    return {key: value for key, value in out.items() if value is not None}


def _metrics(record: Record, start: float, end: float, *, used: bool) -> dict[str, Any]:
    """Times in seconds. Tokens and cost stand in one event of a call alone, since sums are made over all of them."""
    metrics: dict[str, Any] = {"start": start, "end": end}
    if used:
        tokens = content.usage(record)
        metrics |= {
            "prompt_tokens": tokens.input,
            "completion_tokens": tokens.output,
            "tokens": tokens.total,
            "prompt_cached_tokens": tokens.cache_read,
            "prompt_cache_creation_tokens": tokens.cache_write,
            "completion_reasoning_tokens": tokens.reasoning,
            "estimated_cost": content.cost(record),
        }
        if (first := content.time_to_first_token(record)) is not None:
            metrics["time_to_first_token"] = first
    return metrics


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()
