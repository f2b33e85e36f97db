"""Makes the record of a call out of its snapshot: LiteLLM's StandardLoggingPayload, with more of our own in `tianji`.

This happens when a record is delivered, outside of the call's path, once for all destinations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from tianji_mw.apis.assemble import assemble, first_content, usage_in
from tianji_mw.apis.base import JSON
from tianji_mw.callbacks.record.base64_cut import DEFAULT_KEPT, holds_base64, shortened
from tianji_mw.callbacks.record.redaction import without_content, without_error_text, without_key_info
from tianji_mw.callbacks.record.snapshot import Snapshot, apart, counted
from tianji_mw.callbacks.record.trace_context import TraceContext, trace_of
from tianji_mw.callbacks.record.who import metadata_of
from tianji_mw.records import Record

#: LiteLLM's names of what was called.
_CALL_TYPES: Final[Mapping[str, str]] = {
    "chat_completions": "acompletion",
    "completions": "atext_completion",
    "embeddings": "aembedding",
    "messages": "anthropic_messages",
    "moderations": "amoderation",
    "rerank": "arerank",
    "responses": "aresponses",
    "passthrough": "pass_through_endpoint",
}
#: What a request may say about how it is served; everything else in it is content, or nobody's business.
_PARAMS: Final = frozenset(
    {
        "temperature", "top_p", "top_k", "n", "stream", "stream_options", "stop", "stop_sequences", "max_tokens",
        "max_completion_tokens", "max_output_tokens", "presence_penalty", "frequency_penalty", "logit_bias", "seed",
        "tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "response_format", "logprobs",
        "top_logprobs", "modalities", "prediction", "service_tier", "store", "reasoning_effort", "reasoning",
        "thinking", "verbosity", "web_search_options", "dimensions", "encoding_format", "input_type", "truncation",
        "text", "include", "background", "max_tool_calls", "top_n",
    }
)  # fmt: skip
_OK: Final = frozenset({"ok", "cached"})
_CACHE: Final = (
    "status", "kind", "key", "age_s", "shared", "similarity", "reason", "saved_tokens", "saved_cost",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRules:
    """How records look, for all destinations."""

    key_info: bool = True
    #: Texts of errors, in which a provider may quote what was asked.
    error_messages: bool = True
    user_agent_tags: bool = True
    #: Headers whose values become tags, lower case.
    tag_headers: tuple[str, ...] = ()
    #: LiteLLM's `request_correlation_in_logs`: fills `session_id`, and the trace's id goes before the session's.
    correlation: bool = False
    base64_kept: int = DEFAULT_KEPT


def record_of(record_id: str, raw: bytes, rules: RecordRules) -> Record:
    """The record of a snapshot. Raises ValueError for bytes that are none."""
    taken = _counted(apart(raw))
    request = orjson.loads(taken.request) if taken.request else {}
    data = _payload(taken, request if isinstance(request, dict) else {}, rules)
    if not taken.facts["content"]:
        data = without_content(data)
    if not rules.key_info:
        data = without_key_info(data)
    if not rules.error_messages:
        data = without_error_text(data)
    return Record.of(record_id, data)


def _counted(taken: Snapshot) -> Snapshot:
    """With the usage that stands in the answer, where no layer has read it: in an app of somebody's own."""
    facts = taken.facts
    if facts["usage"][5] == "none" and taken.answer:
        found = usage_in(facts["api"], taken.answer, events=facts["form"] == "sse")
        if found is not None:
            facts["usage"] = counted(found)
    return taken


def _payload(taken: Snapshot, request: Mapping[str, JSON], rules: RecordRules) -> dict[str, JSON]:
    facts = taken.facts
    asked_about, headers = _metadata(request), facts["headers"]
    trace = _trace(facts)
    response = _answer(taken, rules)
    attempts = _attempts(facts)
    last = attempts[-1] if attempts else {}
    times = _times(taken)
    asked_model = request["model"] if isinstance(request.get("model"), str) else None
    return {
        "id": _answer_id(response) or facts["id"],
        "litellm_call_id": facts["id"],
        "trace_id": _trace_id(request, asked_about, headers, rules) or trace.trace_id,
        "session_id": _session(request, asked_about, headers) if rules.correlation else "",
        "call_type": _CALL_TYPES.get(facts["api"], facts["api"]),
        "stream": True if facts.get("form") == "sse" and facts["complete"] else None,
        **_end(facts),
        "custom_llm_provider": last.get("custom_llm_provider"),
        "model": last.get("model") or asked_model or "",
        "model_group": asked_model,
        "model_id": last.get("model_id"),
        "api_base": last.get("api_base") or "",
        **_counts(facts),
        **times,
        **_cached(facts),
        "request_tags": _tags(facts, request, asked_about, rules),
        "end_user": _end_user(request, asked_about, facts["api"]),
        "requester_ip_address": facts["client"] or None,
        "user_agent": headers.get("user-agent"),
        "messages": _asked(facts, request),
        "response": response,
        "model_parameters": {key: request[key] for key in request.keys() & _PARAMS},
        "metadata": metadata_of(facts, asked_about),
        "hidden_params": _hidden(facts, last),
        "model_map_information": None,
        "standard_built_in_tools_params": None,
        "tianji": _ours(facts, trace, attempts, times),
    }


def _trace(facts: Mapping[str, Any]) -> TraceContext:
    if "trace" in facts:
        return TraceContext(*facts["trace"])
    headers = facts["headers"]
    return trace_of(headers.get("traceparent"), facts["id"], headers.get("tracestate", ""))


def _end(facts: Mapping[str, Any]) -> dict[str, JSON]:
    """How the call ended."""
    well = facts["outcome"] in _OK
    status = "success" if well else "failure"
    guardrail_status, guardrails = facts.get("guardrails") or ("not_run", None)
    failed = None if well else _failure(facts)
    return {
        "status": status,
        "status_fields": {"llm_api_status": status, "guardrail_status": guardrail_status},
        "error_str": failed["error_message"] if failed else None,
        "error_information": failed,
        "guardrail_information": guardrails,
    }


def _counts(facts: Mapping[str, Any]) -> dict[str, JSON]:
    """Tokens; what they cost is not known here."""
    inputs, outputs = facts["usage"][:2]
    return {
        "prompt_tokens": inputs,
        "completion_tokens": outputs,
        "total_tokens": inputs + outputs,
        "response_cost": 0.0,
        "cost_breakdown": None,
        "response_cost_failure_debug_info": None,
    }


def _cached(facts: Mapping[str, Any]) -> dict[str, JSON]:
    """What the cache did, in LiteLLM's names; nothing is known where it was not asked."""
    cache = _cache(facts)
    asked = cache is not None and cache["status"] != "bypass"
    return {
        "cache_hit": cache["status"] in ("hit", "stale") if cache is not None and asked else None,
        "cache_key": cache["key"] or None if cache is not None else None,
        "saved_cache_cost": cache["saved_cost"] if cache is not None else 0.0,
    }


def _cache(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    return dict(zip(_CACHE, facts["cache"], strict=True)) if "cache" in facts else None


def _times(taken: Snapshot) -> dict[str, float]:
    """Seconds since 1970; of a stream, `response_time` is the time to its first content, as LiteLLM has it."""
    facts = taken.facts
    start, end = facts["zero"] + facts["received"] / 1e9, facts["zero"] + facts["end"] / 1e9
    first = _first(taken) if facts.get("form") == "sse" else end
    return {"startTime": start, "endTime": end, "completionStartTime": first, "response_time": first - start}


def _hidden(facts: Mapping[str, Any], last: Mapping[str, JSON]) -> dict[str, JSON]:
    return {
        "model_id": last.get("model_id"),
        "cache_key": facts["cache"][2] or None if "cache" in facts else None,
        "api_base": last.get("api_base") or "",
        "response_cost": 0.0,
        "litellm_overhead_time_ms": (facts["sent"] - facts["received"]) / 1e6 if facts["sent"] else None,
        "additional_headers": _limits(facts),
        "litellm_model_name": last.get("model") or "",
        "usage_object": None,
    }


def _ours(
    facts: Mapping[str, Any], trace: TraceContext, attempts: Sequence[JSON], times: Mapping[str, float]
) -> dict[str, JSON]:
    """What LiteLLM's record has no place for."""
    return {
        "outcome": facts["outcome"],
        "status_code": facts["status"],
        "method": facts["method"],
        "path": facts["path"],
        "api": facts["api"],
        "trace_id": trace.trace_id,
        "span_id": trace.span_id,
        "parent_span_id": trace.parent_id,
        "sampled": trace.sampled,
        "trace_state": trace.state,
        "time_to_first_token": times["response_time"] if facts.get("form") == "sse" else None,
        "bytes_out": facts["bytes_out"],
        "usage_source": facts["usage"][5],
        "attempts": list(attempts),
        "cache": _cache(facts),
    }


def _attempts(facts: Mapping[str, Any]) -> list[dict[str, JSON]]:
    found, zero = [], facts["zero"]
    tried = facts["attempts"]
    for at, (model_id, model, provider, base, started, status, error) in enumerate(tried):
        ended = tried[at + 1][4] if at + 1 < len(tried) else facts["end"]
        found.append(
            {
                "model_id": model_id,
                "model": model,
                "custom_llm_provider": provider,
                "api_base": base,
                "startTime": zero + started / 1e9,
                "endTime": zero + ended / 1e9,
                "status_code": status or None,
                "error": error,
            }
        )
    return found


def _failure(facts: Mapping[str, Any]) -> dict[str, JSON]:
    error = facts["error"]
    upstream = bool(error["provider"])
    limited = ("vendor_rate_limit" if upstream else "litellm_rate_limit") if error["status"] == 429 else None
    return {
        "error_code": str(error["status"] or ""),
        "error_class": error["class"],
        "llm_provider": error["provider"],
        "traceback": "",
        "error_message": error["message"],
        "error_rate_limit_category": limited,
    }


# --- content


def _asked(facts: Mapping[str, Any], request: Mapping[str, JSON]) -> JSON:
    """What was asked, with the system prompt as its first message."""
    if size := facts.get("request_bytes"):
        return {"truncated": True, "bytes": size}
    asked: JSON = request.get("messages")
    if asked is None:
        asked = next((request[key] for key in ("input", "prompt", "query", "texts") if key in request), None)
    if "documents" in request:
        asked = {"query": asked, "documents": request["documents"]}
    system = request.get("system") or request.get("instructions")
    if system and facts["api"] in ("messages", "responses"):
        rest = asked if isinstance(asked, list) else [{"role": "user", "content": asked}]
        asked = [{"role": "system", "content": system}, *rest]
    return asked


def _answer(taken: Snapshot, rules: RecordRules) -> JSON:
    facts = taken.facts
    if size := facts.get("answer_bytes"):
        return {"truncated": True, "bytes": size}
    if not taken.answer or facts["status"] >= 400:
        return None
    if facts["form"] == "sse":
        answer: JSON = assemble(facts["api"], taken.answer)
    else:
        try:
            answer = orjson.loads(taken.answer)
        except orjson.JSONDecodeError:
            answer = taken.answer.decode("utf-8", "replace")
    return shortened(answer, rules.base64_kept) if holds_base64(taken.answer) else answer


def _answer_id(response: JSON) -> str | None:
    found = response.get("id") if isinstance(response, dict) else None
    return found if isinstance(found, str) and found else None


def _first(taken: Snapshot) -> float:
    """When the first content of a stream left, in seconds since 1970; the answer's first byte where that is unknown."""
    facts = taken.facts
    size = first_content(facts["api"], taken.answer) or 1
    times = [moment for moment, sent in facts["times"] if sent >= size] or [facts["first"] or facts["end"]]
    return float(facts["zero"] + times[0] / 1e9)


def _limits(facts: Mapping[str, Any]) -> dict[str, JSON] | None:
    """The provider's rate limits, in LiteLLM's names: `x_ratelimit_remaining_tokens`."""
    found = facts.get("limits")
    if not found:
        return None
    named = {name.removeprefix("llm_provider-").replace("-", "_"): value for name, value in found.items()}
    return {name: int(value) if value.isdecimal() and len(value) < 19 else value for name, value in named.items()}


# --- who and what for


def _metadata(request: Mapping[str, JSON]) -> Mapping[str, JSON]:
    for field in ("metadata", "litellm_metadata"):
        if isinstance(found := request.get(field), dict):
            return found
    return {}


def _trace_id(
    request: Mapping[str, JSON], metadata: Mapping[str, JSON], headers: Mapping[str, str], rules: RecordRules
) -> str:
    """What groups calls: the names that LiteLLM looks for, in its order; empty where none is given."""
    session = request.get("litellm_session_id") or headers.get("x-litellm-session-id")
    given = request.get("litellm_trace_id") or headers.get("x-litellm-trace-id")
    order = (session, given, metadata.get("session_id"), metadata.get("trace_id"))
    if rules.correlation:
        order = (given, session, metadata.get("trace_id"), metadata.get("session_id"))
    return next((found for found in order if isinstance(found, str) and found), "")


def _session(request: Mapping[str, JSON], metadata: Mapping[str, JSON], headers: Mapping[str, str]) -> str:
    found = request.get("litellm_session_id") or headers.get("x-litellm-session-id") or metadata.get("session_id")
    return found if isinstance(found, str) else ""


def _tags(
    facts: Mapping[str, Any], request: Mapping[str, JSON], metadata: Mapping[str, JSON], rules: RecordRules
) -> list[str]:
    headers = facts["headers"]
    listed = (headers.get("x-litellm-tags") or headers.get("x-tianji-tags") or "").split(",")
    asked = [tags for tags in (request.get("tags"), metadata.get("tags")) if isinstance(tags, list)]
    tags = [*facts.get("identity", {}).get("tags", ()), *(tag for one in asked for tag in one), *map(str.strip, listed)]
    tags = [tag for tag in dict.fromkeys(tag for tag in tags if isinstance(tag, str)) if tag]
    agent = headers.get("user-agent")
    if agent and rules.user_agent_tags:
        product = agent.partition("/")[0]
        tags += [f"User-Agent: {product}", f"User-Agent: {agent}"] if product != agent else [f"User-Agent: {agent}"]
    return [*tags, *(f"{name}: {headers[name]}" for name in rules.tag_headers if name in headers)]


def _end_user(request: Mapping[str, JSON], metadata: Mapping[str, JSON], api: str) -> str | None:
    user = request.get("user")
    if user is None and api == "messages":
        user = metadata.get("user_id")
    return user if isinstance(user, str) else None
