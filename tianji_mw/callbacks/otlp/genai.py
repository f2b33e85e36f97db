"""A record as attributes of the OpenTelemetry GenAI conventions, and our own under `tianji.`. Pure and total.

Content only where it is asked for. `legacy` adds the names that the conventions had before, and LiteLLM's.
Source: open-telemetry/semantic-conventions-genai (status: Development), spans; LiteLLM's `otel` callback.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from tianji_mw.callbacks.otlp import messages
from tianji_mw.callbacks.otlp.limits import json_text
from tianji_mw.callbacks.otlp.spans import (
    Event,
    Span,
    Value,
    dicts,
    error_of,
    model_of,
    operation_of,
    ours_of,
    text_of,
)
from tianji_mw.callbacks.record.redaction import MARKER

Found = dict[str, Value]

#: `gen_ai.provider.name` where it is not our own name of the provider.
_PROVIDERS: Final[Mapping[str, str]] = {
    "azure": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "moonshot": "moonshot_ai",
    "vertex_ai": "gcp.vertex_ai",
    "watsonx": "ibm.watsonx.ai",
    "xai": "x_ai",
}
#: Params that are numbers in the conventions.
_FLOATS: Final = ("temperature", "top_p", "frequency_penalty", "presence_penalty", "top_k")
_LENGTHS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_WHO: Final = (
    ("tianji.key.hash", "user_api_key_hash"),
    ("tianji.key.alias", "user_api_key_alias"),
    ("tianji.team.id", "user_api_key_team_id"),
    ("tianji.team.alias", "user_api_key_team_alias"),
    ("tianji.user.id", "user_api_key_user_id"),
    ("tianji.org.id", "user_api_key_org_id"),
)


def call_attributes(data: Mapping[str, Any], *, content: bool = False, legacy: bool = False) -> Found:
    """The attributes of the call's span."""
    found = {**_about(data), **_asked(data), **_answered(data), **usage(data), **_own(data)}
    if content:
        found |= content_attributes(data)
    if legacy:
        found |= _before(data, found)
    return {name: value for name, value in found.items() if value is not None}


def attempt_attributes(span: Span) -> Found:
    """The attributes of a try at a provider. No tokens and no cost: those are the call's, and count once."""
    attempt = span.source
    found: Found = {
        **span.attributes,
        "tianji.attempt.model": text_of(attempt.get("model")) or None,
        "tianji.attempt.model_id": text_of(attempt.get("model_id")) or None,
        "tianji.attempt.provider": provider_of(attempt) or None,
        "http.response.status_code": _whole(attempt.get("status_code")),
        "error.type": text_of(attempt.get("error")) or None,
        **server_of(attempt.get("api_base")),
    }
    return {name: value for name, value in found.items() if value is not None}


def guardrail_attributes(span: Span) -> Found:
    """The attributes of a guardrail's span: what it decided and how much it saw; none of the texts."""
    run = span.source
    found: Found = {**span.attributes}
    for field in (
        "guardrail_name", "guardrail_provider", "guardrail_status", "guardrail_action", "side", "unscanned_reason",
    ):  # fmt: skip
        if text := text_of(run.get(field)):
            found[f"tianji.guardrail.{field.removeprefix('guardrail_')}"] = text
    mode = run.get("guardrail_mode")
    found["tianji.guardrail.mode"] = [str(one) for one in mode] if isinstance(mode, list) else text_of(mode) or None
    for field in ("asked", "failed", "scanned_characters", "delivered_characters"):
        found[f"tianji.guardrail.{field}"] = _whole(run.get(field))
    masked, harms = run.get("masked_entity_count"), run.get("violation_categories")
    if isinstance(masked, dict) and masked:
        found["tianji.guardrail.masked"] = json_text(masked)
    if isinstance(harms, list) and harms:
        found["tianji.guardrail.categories"] = [str(harm) for harm in harms]
    return {name: value for name, value in found.items() if value is not None}


def server_attributes(data: Mapping[str, Any]) -> Found:
    """The attributes of the request to us; names of the HTTP conventions."""
    ours = ours_of(data)
    path, agent, client = text_of(ours.get("path")), data.get("user_agent"), data.get("requester_ip_address")
    status = _whole(ours.get("status_code"))
    found: Found = {
        "http.request.method": text_of(ours.get("method")) or "POST",
        "http.route": path or None,
        "url.path": path or None,
        "http.response.status_code": status,
        "user_agent.original": text_of(agent) or None,
        "client.address": text_of(client) or None,
        "error.type": str(status) if status is not None and status >= 500 else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def content_attributes(data: Mapping[str, Any]) -> Found:
    """What was asked and answered: JSON in texts, as spans have no other."""
    found: Found = {}
    for name, value in (
        ("gen_ai.input.messages", messages.input_messages(data)),
        ("gen_ai.output.messages", messages.output_messages(data)),
        ("gen_ai.system_instructions", messages.system_instructions(data)),
        ("gen_ai.tool.definitions", messages.tool_definitions(data)),
    ):
        if value:
            found[name] = json_text(value)
    return found


def exception_event(span: Span, data: Mapping[str, Any]) -> Event | None:
    """The event of a call that failed."""
    kind, message = error_of(data)
    if not kind:
        return None
    info = data.get("error_information")
    trace = text_of(info.get("traceback")) if isinstance(info, dict) else ""
    told: Found = {"exception.type": kind, "exception.message": message}
    if trace:
        told["exception.stacktrace"] = trace
    return Event(name="exception", time_ns=span.end_ns, attributes=told)


def usage(data: Mapping[str, Any]) -> Found:
    """Tokens. `input_tokens` has the cached ones in it."""
    prompt, answer = counts(data)
    raw = raw_usage(data)
    inputs, outputs = _dict(raw.get("prompt_tokens_details")), _dict(raw.get("completion_tokens_details"))
    found: Found = {
        "gen_ai.usage.input_tokens": prompt,
        "gen_ai.usage.output_tokens": answer,
        "gen_ai.usage.cache_read.input_tokens": cached(data)[0] or None,
        "gen_ai.usage.cache_creation.input_tokens": cached(data)[1] or None,
        "gen_ai.usage.reasoning.output_tokens": _whole(outputs.get("reasoning_tokens")) or None,
    }
    for kind in ("text", "image", "audio", "video"):
        found[f"gen_ai.usage.{kind}.input_tokens"] = _whole(inputs.get(f"{kind}_tokens")) or None
    for kind in ("text", "audio"):
        found[f"gen_ai.usage.{kind}.output_tokens"] = _whole(outputs.get(f"{kind}_tokens")) or None
    return found


def counts(data: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Tokens that were asked and answered; None where the record has no number, or none were counted at all."""
    prompt, answer = _whole(data.get("prompt_tokens")), _whole(data.get("completion_tokens"))
    return (None, None) if not prompt and not answer else (prompt, answer)


def cached(data: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens that the provider's cache had, and that were written into it."""
    raw = raw_usage(data)
    details = _dict(raw.get("prompt_tokens_details"))
    read = _whole(raw.get("cache_read_input_tokens")) or _whole(details.get("cached_tokens")) or 0
    return read, _whole(raw.get("cache_creation_input_tokens")) or 0


def raw_usage(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The record's `metadata.usage_object`."""
    return _dict(metadata_of(data).get("usage_object"))


def metadata_of(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The record's metadata."""
    return _dict(data.get("metadata"))


def requester_metadata(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the client sent as `metadata`."""
    return _dict(metadata_of(data).get("requester_metadata"))


def conversation_of(data: Mapping[str, Any]) -> str:
    """The session's id: the record's, or what the client's metadata say."""
    return text_of(data.get("session_id")) or text_of(requester_metadata(data).get("session_id"))


def provider_of(data: Mapping[str, Any]) -> str:
    """`gen_ai.provider.name`, of a record or of one of its attempts."""
    name = text_of(data.get("custom_llm_provider"))
    return _PROVIDERS.get(name, name)


def response_model(data: Mapping[str, Any]) -> str:
    """The model that answered, by its own account."""
    answer = data.get("response")
    return text_of(answer.get("model")) if isinstance(answer, dict) else ""


def first_chunk_s(data: Mapping[str, Any]) -> float | None:
    """Seconds to the first content of a stream; None for plain answers."""
    found = ours_of(data).get("time_to_first_token")
    return found if isinstance(found, float) and math.isfinite(found) and found >= 0 else None


def cost_of(data: Mapping[str, Any]) -> float | None:
    """US dollars; None where the record has no price."""
    return _number(data.get("response_cost"))


def server_of(base: Any) -> Found:
    """`server.address` and `server.port` of an address."""
    try:
        parts = urlsplit(text_of(base))
        host, port = parts.hostname, parts.port
    except ValueError:
        return {}
    if not host:
        return {}
    return {"server.address": host, "server.port": port or (80 if parts.scheme == "http" else 443)}


# --- the call


def _about(data: Mapping[str, Any]) -> Found:
    return {
        "gen_ai.operation.name": operation_of(data),
        # Required by the conventions; a call that was answered or refused before any provider has none.
        "gen_ai.provider.name": provider_of(data) or "unknown",
        "gen_ai.request.model": model_of(data) or None,
        "gen_ai.conversation.id": conversation_of(data) or None,
        "error.type": error_of(data)[0] or None,
        **server_of(data.get("api_base")),
    }


def _asked(data: Mapping[str, Any]) -> Found:
    params = _dict(data.get("model_parameters"))
    found: Found = {f"gen_ai.request.{name}": _number(params.get(name)) for name in _FLOATS}
    found["gen_ai.request.max_tokens"] = next((n for name in _LENGTHS if (n := _whole(params.get(name)))), None)
    found["gen_ai.request.seed"] = _whole(params.get("seed"))
    choices = _whole(params.get("n"))
    found["gen_ai.request.choice.count"] = choices if choices is not None and choices != 1 else None
    found["gen_ai.request.stream"] = True if params.get("stream") is True or data.get("stream") is True else None
    stop = params.get("stop", params.get("stop_sequences"))
    stop = None if stop == MARKER else stop
    found["gen_ai.request.stop_sequences"] = [stop] if isinstance(stop, str) else _texts(stop)
    form = params.get("encoding_format")
    found["gen_ai.request.encoding_formats"] = [form] if isinstance(form, str) else None
    found["gen_ai.embeddings.dimension.count"] = _whole(params.get("dimensions"))
    found["gen_ai.output.type"] = _output_type(params)
    found["openai.request.service_tier"] = text_of(params.get("service_tier")) or None
    return found


def _output_type(params: Mapping[str, Any]) -> str | None:
    form = _dict(params.get("response_format")) or _dict(_dict(params.get("text")).get("format"))
    kind = text_of(form.get("type"))
    if kind.startswith("json"):
        return "json"
    if kind == "text":
        return "text"
    wanted = params.get("modalities")
    return "speech" if isinstance(wanted, list) and "audio" in wanted else None


def _answered(data: Mapping[str, Any]) -> Found:
    answer = _dict(data.get("response"))
    return {
        "gen_ai.response.id": text_of(answer.get("id")) or None,
        "gen_ai.response.model": response_model(data) or None,
        "gen_ai.response.finish_reasons": messages.finish_reasons(data) or None,
        "gen_ai.response.time_to_first_chunk": first_chunk_s(data),
        "openai.response.service_tier": text_of(answer.get("service_tier")) or None,
        "openai.response.system_fingerprint": text_of(answer.get("system_fingerprint")) or None,
    }


def _own(data: Mapping[str, Any]) -> Found:
    ours, who = ours_of(data), metadata_of(data)
    found: Found = {name: text_of(who.get(field)) or None for name, field in _WHO}
    tags = _texts(data.get("request_tags"))
    return {
        **found,
        "tianji.call.id": text_of(data.get("litellm_call_id")) or None,
        "tianji.trace.id": text_of(data.get("trace_id")) or None,
        "tianji.route": text_of(ours.get("path")) or None,
        "tianji.outcome": text_of(ours.get("outcome")) or None,
        "tianji.model.group": text_of(data.get("model_group")) or None,
        "tianji.model.id": text_of(data.get("model_id")) or None,
        "tianji.end_user.id": text_of(data.get("end_user")) or None,
        "tianji.cost.total": cost_of(data),
        "tianji.cache.hit": True if data.get("cache_hit") is True else None,
        "tianji.attempts": len(dicts(ours.get("attempts"))),
        "tianji.tags": tags or None,
    }


#: LiteLLM's and earlier names of attributes that we send anyway.
_ALIASES: Final[Mapping[str, tuple[str, ...]]] = {
    "gen_ai.provider.name": ("gen_ai.system",),
    "gen_ai.usage.input_tokens": ("gen_ai.usage.prompt_tokens",),
    "gen_ai.usage.output_tokens": ("gen_ai.usage.completion_tokens",),
    "openai.request.service_tier": ("gen_ai.openai.request.service_tier",),
    "openai.response.service_tier": ("gen_ai.openai.response.service_tier",),
    "openai.response.system_fingerprint": ("gen_ai.openai.response.system_fingerprint",),
    "tianji.call.id": ("litellm.call_id",),
    "tianji.cost.total": ("gen_ai.cost.total_cost", "litellm.cost.total"),
    "tianji.key.hash": ("metadata.user_api_key_hash",),
    "tianji.key.alias": ("metadata.user_api_key_alias",),
    "tianji.team.id": ("metadata.user_api_key_team_id",),
    "tianji.team.alias": ("metadata.user_api_key_team_alias",),
    "tianji.user.id": ("metadata.user_api_key_user_id",),
    "tianji.org.id": ("metadata.user_api_key_org_id",),
    "tianji.route": ("metadata.user_api_key_request_route",),
}
_COSTS: Final = ("input_cost", "output_cost", "tool_usage_cost", "original_cost", "discount_amount")


def _before(data: Mapping[str, Any], found: Mapping[str, Value]) -> Found:
    old: Found = {alias: found.get(name) for name, aliases in _ALIASES.items() for alias in aliases}
    total = _whole(data.get("total_tokens"))
    old["gen_ai.usage.total_tokens"] = total or None
    old["llm.request.type"] = text_of(data.get("call_type")) or None
    old["llm.is_streaming"] = str(data.get("stream") is True)
    breakdown = _dict(data.get("cost_breakdown"))
    return old | {f"gen_ai.cost.{name}": _number(breakdown.get(name)) for name in _COSTS}


# --- values


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _texts(value: Any) -> list[str] | None:
    return [item for item in value if isinstance(item, str)] or None if isinstance(value, list) else None
