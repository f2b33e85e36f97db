"""Builds the record of a call, once, at its end: LiteLLM's StandardLoggingPayload, and more of our own in `tianji`.

The bytes of a stream are taken into it as they are: `finish.py` makes an answer of them when the record is delivered,
which is no part of the call any more. What is redacted for everybody is not in it from the start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from tianji_mw.apis.base import JSON
from tianji_mw.callbacks.base64_cut import DEFAULT_KEPT, holds_base64, shortened
from tianji_mw.callbacks.collected import Collected
from tianji_mw.callbacks.guardrail_info import guardrail_information
from tianji_mw.callbacks.redaction import MARKED_MESSAGES, without_answer, without_content, without_key_info
from tianji_mw.callbacks.who import who_called
from tianji_mw.errors import TianjiError, UpstreamError
from tianji_mw.tags import tags_of

if TYPE_CHECKING:
    from tianji_mw.call import Call
    from tianji_mw.callbacks.trace_context import TraceContext
    from tianji_mw.facts import Attempt

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
#: The key under which the events of a stream stand until `finish.py` has made an answer of them; the last of all.
EVENTS: Final = "_events"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRules:
    """What goes into records, for all destinations."""

    content: bool = True
    key_info: bool = True
    user_agent_tags: bool = True
    #: Headers whose values become tags.
    tag_headers: tuple[str, ...] = ()
    #: LiteLLM's `request_correlation_in_logs`: fills `session_id`, and the trace id goes before the session's.
    correlation: bool = False
    base64_kept: int = DEFAULT_KEPT
    #: Bytes of a request or an answer that are logged; of longer ones a marker with their size.
    max_content_bytes: int = 1 << 20


def record_of(call: Call, trace: TraceContext, rules: RecordRules, *, content: bool) -> tuple[str, bytes]:
    """The record's kind in the journal (`call`, or `stream` where events wait to become an answer), and its bytes."""
    answer = call.notes.get(Collected)
    collected = answer if isinstance(answer, Collected) else Collected()
    clock_at = call.runtime.wall() - call.runtime.clock() / 1e9
    data = _payload(call, trace, rules, collected, clock_at)
    if content:
        data["messages"] = _asked(call, rules)
        data["response"], events = _answered(call, collected, rules)
    else:
        data["messages"], events = MARKED_MESSAGES, None
        data["response"] = without_answer(_whole(call, collected)) if collected.form == "whole" else None
        data = without_content(data)
    if not rules.key_info:
        data = without_key_info(data)
    if events is not None:
        data[EVENTS] = events
    raw = orjson.dumps(data, default=str, option=orjson.OPT_NON_STR_KEYS)
    return ("call" if events is None else "stream"), raw


def _payload(
    call: Call, trace: TraceContext, rules: RecordRules, collected: Collected, clock_at: float
) -> dict[str, JSON]:
    timings, usage, deployment = call.timings, call.usage, call.deployment
    start, end = clock_at + timings.received / 1e9, clock_at + timings.end / 1e9
    streamed = collected.form == "sse"
    first = clock_at + (collected.first or timings.first_client_byte or timings.end) / 1e9 if streamed else end
    well = call.outcome in _OK
    provider = deployment.provider if deployment is not None else None
    model_id = deployment.id if deployment is not None else None
    model = deployment.upstream_model(call.model) if deployment is not None else call.model
    base = provider.base if provider is not None else ""
    status, guardrails = guardrail_information(call, clock_at)
    error, session = call.error, ""
    trace_id = _trace_id(call, trace, rules)
    if rules.correlation:
        session = _session(call)
    return {
        "id": _answer_id(call, collected) or call.id,
        "litellm_call_id": call.id,
        "trace_id": trace_id,
        "session_id": session,
        "call_type": _CALL_TYPES.get(call.api.name, call.api.name),
        "stream": True if streamed and call.complete else None,
        "status": "success" if well else "failure",
        "status_fields": {"llm_api_status": "success" if well else "failure", "guardrail_status": status},
        "custom_llm_provider": provider.name if provider is not None else None,
        "model": model,
        "model_group": call.model or None,
        "model_id": model_id,
        "api_base": base,
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "response_cost": 0.0,
        "cost_breakdown": None,
        "saved_cache_cost": 0.0,
        "response_cost_failure_debug_info": None,
        "startTime": start,
        "endTime": end,
        "completionStartTime": first,
        "response_time": (first if streamed else end) - start,
        "cache_hit": True if call.outcome == "cached" else None,
        "cache_key": None,
        "request_tags": _tags(call, rules),
        "end_user": _end_user(call),
        "requester_ip_address": call.client or None,
        "user_agent": call.headers.get("user-agent"),
        "messages": None,
        "response": None,
        "model_parameters": {key: call.request[key] for key in call.request.keys() & _PARAMS},
        "error_str": None if well else _error_text(error, call),
        "error_information": None if well else _error_information(error, call),
        "metadata": who_called(call),
        "hidden_params": {
            "model_id": model_id,
            "cache_key": None,
            "api_base": base,
            "response_cost": 0.0,
            "litellm_overhead_time_ms": _overhead_ms(call),
            "additional_headers": collected.limits,
            "litellm_model_name": model,
            "usage_object": None,
        },
        "model_map_information": None,
        "guardrail_information": guardrails,
        "standard_built_in_tools_params": None,
        "tianji": {
            "outcome": call.outcome,
            "status_code": call.status,
            "method": call.method,
            "path": call.path,
            "api": call.api.name,
            "trace_id": trace.trace_id,
            "span_id": trace.span_id,
            "parent_span_id": trace.parent_id,
            "sampled": trace.sampled,
            "time_to_first_token": first - start if streamed else None,
            "bytes_out": call.bytes_out,
            "usage_source": usage.source,
            "attempts": [_attempt(call, at, clock_at) for at in range(len(call.attempts))],
        },
    }


def _attempt(call: Call, at: int, clock_at: float) -> dict[str, JSON]:
    attempt: Attempt = call.attempts[at]
    last = at + 1 == len(call.attempts)
    ended = call.timings.end if last else call.attempts[at + 1].started
    deployment = attempt.deployment
    return {
        "model_id": deployment.id,
        "model": deployment.upstream_model(call.model),
        "custom_llm_provider": deployment.provider.name,
        "api_base": deployment.provider.base,
        "startTime": clock_at + attempt.started / 1e9,
        "endTime": clock_at + ended / 1e9,
        "status_code": attempt.status or None,
        "error": None if attempt.error is None else type(attempt.error).__name__,
    }


# --- content


def _asked(call: Call, rules: RecordRules) -> JSON:
    """What was asked, with the system prompt as its first message."""
    request = call.request
    if not request:
        return None
    if len(call.body) > rules.max_content_bytes:
        return {"truncated": True, "bytes": len(call.body)}
    asked: JSON = request.get("messages")
    if asked is None:
        asked = next((request[key] for key in ("input", "prompt", "query") if key in request), None)
        if "documents" in request:
            asked = {"query": asked, "documents": request["documents"]}
    system = request.get("system") or request.get("instructions")
    if system and call.api.name in ("messages", "responses"):
        rest = asked if isinstance(asked, list) else [{"role": "user", "content": asked}]
        asked = [{"role": "system", "content": system}, *rest]
    return shortened(asked, rules.base64_kept) if holds_base64(call.body) else asked


def _answered(call: Call, collected: Collected, rules: RecordRules) -> tuple[JSON, str | None]:
    """The answer, or the events that it will be made of."""
    if collected.left_out:
        return {"truncated": True, "bytes": collected.size + collected.left_out}, None
    if collected.form == "sse" and call.status < 400:
        return None, b"".join(collected.parts).decode("utf-8", "replace")
    if collected.form != "whole" or call.status >= 400:
        return None, None
    raw = b"".join(collected.parts)
    whole = collected.whole
    if whole is None:
        return None, None
    if holds_base64(raw):
        return shortened(whole, rules.base64_kept), None
    return orjson.Fragment(raw), None


def _whole(call: Call, collected: Collected) -> JSON:
    return collected.whole if call.status < 400 else None


def _answer_id(call: Call, collected: Collected) -> str | None:
    found = collected.opening
    if call.status >= 400 or not isinstance(found, dict):
        return None
    for holder in (found, found.get("message"), found.get("response")):
        if isinstance(holder, dict) and isinstance(holder.get("id"), str):
            return str(holder["id"])
    return None


# --- who and what for


def _metadata(call: Call) -> Mapping[str, JSON]:
    for field in ("metadata", "litellm_metadata"):
        found = call.request.get(field)
        if isinstance(found, dict):
            return found
    return {}


def _trace_id(call: Call, trace: TraceContext, rules: RecordRules) -> str:
    """What groups calls: the names that LiteLLM looks for, in its order; else the trace that we are in."""
    request, metadata, headers = call.request, _metadata(call), call.headers
    session = request.get("litellm_session_id") or headers.get("x-litellm-session-id")
    given = request.get("litellm_trace_id") or headers.get("x-litellm-trace-id")
    order = (session, given, metadata.get("session_id"), metadata.get("trace_id"))
    if rules.correlation:
        order = (given, session, metadata.get("trace_id"), metadata.get("session_id"))
    return next((found for found in order if isinstance(found, str) and found), trace.trace_id)


def _session(call: Call) -> str:
    found = call.request.get("litellm_session_id") or call.headers.get("x-litellm-session-id")
    found = found or _metadata(call).get("session_id")
    return found if isinstance(found, str) else ""


def _tags(call: Call, rules: RecordRules) -> list[str]:
    tags = tags_of(call)
    agent = call.headers.get("user-agent")
    if agent and rules.user_agent_tags:
        product = agent.partition("/")[0]
        tags += [f"User-Agent: {product}", f"User-Agent: {agent}"] if product != agent else [f"User-Agent: {agent}"]
    for name in rules.tag_headers:
        if value := call.headers.get(name):
            tags.append(f"{name}: {value}")
    return tags


def _end_user(call: Call) -> str | None:
    user = call.request.get("user")
    if user is None and call.api.name == "messages":
        user = _metadata(call).get("user_id")
    return user if isinstance(user, str) else None


def _overhead_ms(call: Call) -> float | None:
    """What passed before the request went upstream."""
    sent = call.timings.sent_upstream
    return (sent - call.timings.received) / 1e6 if sent else None


# --- failures


def _error_text(error: BaseException | None, call: Call) -> str:
    if isinstance(error, TianjiError):
        return error.message
    return f"{call.outcome}: {type(error).__name__}" if error is not None else str(call.outcome)


def _error_information(error: BaseException | None, call: Call) -> dict[str, Any]:
    status = error.status if isinstance(error, TianjiError) else call.status or None
    limited = status == 429
    return {
        "error_code": str(status) if status else "",
        "error_class": type(error).__name__ if error is not None else str(call.outcome),
        "llm_provider": error.provider if isinstance(error, UpstreamError) else "",
        "traceback": "",
        "error_message": _error_text(error, call),
        "error_rate_limit_category": _category(error) if limited else None,
        "outcome": call.outcome,
    }


def _category(error: BaseException | None) -> str:
    return "vendor_rate_limit" if isinstance(error, UpstreamError) else "litellm_rate_limit"
