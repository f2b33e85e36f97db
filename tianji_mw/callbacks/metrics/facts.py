"""Reads a record for metrics: numbers that are numbers, and label values that nobody can make up at will. No plugin.

Any field may be missing or of another type. The name of a model is believed when something served the call; what
clients choose otherwise is `other`, or is no label at all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, get_args

from tianji_mw.callbacks.metrics.catalogue import OTHER
from tianji_mw.callbacks.metrics.tally import Example
from tianji_mw.callbacks.metrics.values import (
    APIS,
    Custom,
    address,
    between,
    class_name,
    items,
    mapping,
    number,
    route_of,
    status,
    text,
)
from tianji_mw.facts import Outcome

_OUTCOMES: Final = frozenset(get_args(Outcome))
_TIERS: Final = frozenset({"auto", "batch", "default", "flex", "priority", "scale", "standard", "standard_only"})
_TRACE: Final = re.compile(r"[0-9a-f]{32}")
#: Tokens in, and what prompts of so many are called.
_LENGTHS: Final = ((1_000, "0-1k"), (4_000, "1k-4k"), (16_000, "4k-16k"), (64_000, "16k-64k"))


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One request to a provider."""

    own: Mapping[str, str]
    theirs: Mapping[str, str]
    failed: bool
    seconds: float | None


@dataclass(slots=True, kw_only=True)
class Check:
    """What one guardrail did."""

    own: Mapping[str, str]
    theirs: Mapping[str, str]
    failed: float | None
    seconds: float | None


@dataclass(slots=True, kw_only=True)
class Facts:
    """A call. `own` and `theirs` are label values by label, for our metrics and for LiteLLM's."""

    own: Mapping[str, str]
    theirs: Mapping[str, str]
    example: Example | None
    well: bool
    streamed: bool
    seconds: float | None
    first_s: float | None
    #: From the last request to the provider: to its end, and to the first content.
    api_s: float | None
    api_first_s: float | None
    #: Before the request went on, with the guardrails before it; without any; and with those before and after.
    lead_s: float | None
    overhead_s: float | None
    overhead_guarded_s: float | None
    tokens: Mapping[str, float | None]
    cost: float | None
    bytes_out: float | None
    cache: str
    spare_requests: float | None
    spare_tokens: float | None
    attempts: tuple[Attempt, ...]
    checks: tuple[Check, ...]


def facts_of(data: Mapping[str, Any], custom: Custom) -> Facts:
    """The facts of a record."""
    ours, metadata = mapping(data.get("tianji")), mapping(data.get("metadata"))
    hidden, error = mapping(data.get("hidden_params")), mapping(data.get("error_information"))
    start, end, first = (number(data.get(name)) for name in ("startTime", "endTime", "completionStartTime"))
    well, streamed = data.get("status") == "success", data.get("stream") is True
    first_s = number(ours.get("time_to_first_token"))
    tokens = _tokens(data, metadata)
    theirs = _theirs(data, ours, metadata, error, tokens, well=well)
    theirs = {**dict(custom.values(data, metadata)), **theirs}
    attempts = tuple(_attempt(one, theirs) for one in items(ours.get("attempts")) if isinstance(one, dict))
    checks = tuple(_check(one) for one in items(data.get("guardrail_information")) if isinstance(one, dict))
    last = mapping(items(ours.get("attempts"))[-1]) if attempts else {}
    lead = _scaled(number(hidden.get("litellm_overhead_time_ms")), 0.001)
    before, after = _guarded(data.get("guardrail_information"))
    bare = None if lead is None else max(0.0, lead - before)
    limits, hit = mapping(hidden.get("additional_headers")), data.get("cache_hit")
    return Facts(
        own=_own(ours, theirs),
        theirs=theirs,
        example=_example(ours, data, end),
        well=well,
        streamed=streamed or first_s is not None,
        seconds=between(start, end),
        first_s=first_s,
        api_s=between(number(last.get("startTime")), number(last.get("endTime"))),
        api_first_s=between(number(last.get("startTime")), first),
        lead_s=lead,
        overhead_s=bare,
        overhead_guarded_s=None if lead is None or bare is None else max(lead, bare + before) + after,
        tokens=tokens,
        cost=number(data.get("response_cost")),
        bytes_out=number(ours.get("bytes_out")),
        cache="hit" if hit is True else "miss" if hit is False else "",
        spare_requests=number(limits.get("x_ratelimit_remaining_requests")),
        spare_tokens=number(limits.get("x_ratelimit_remaining_tokens")),
        attempts=attempts,
        checks=checks,
    )


# --- labels


def _theirs(
    data: Mapping[str, Any],
    ours: Mapping[str, Any],
    metadata: Mapping[str, Any],
    error: Mapping[str, Any],
    tokens: Mapping[str, float | None],
    *,
    well: bool,
) -> dict[str, str]:
    """The values of LiteLLM's labels."""
    served = bool(text(data.get("model_id"))) or bool(items(ours.get("attempts")))
    asked, model = text(data.get("model_group")), text(data.get("model"))
    code = status(ours.get("status_code")) if well else status(error.get("error_code") or ours.get("status_code"))
    if ours.get("outcome") == "client_gone":  # the answer may have begun with 200
        code = "499"
    response = mapping(data.get("response"))
    tier = text(response.get("service_tier") or mapping(data.get("model_parameters")).get("service_tier"))
    group = asked if served or not asked else OTHER
    return {
        "hashed_api_key": text(metadata.get("user_api_key_hash")),
        "api_key_alias": text(metadata.get("user_api_key_alias")),
        "team": text(metadata.get("user_api_key_team_id")),
        "team_alias": text(metadata.get("user_api_key_team_alias")),
        "user": text(metadata.get("user_api_key_user_id")),
        "user_email": text(metadata.get("user_api_key_user_email")),
        "end_user": text(data.get("end_user")),
        "client_ip": text(data.get("requester_ip_address")),
        "user_agent": text(data.get("user_agent")),
        "requested_model": group,
        "model_group": group,
        "model": model if served or not model else OTHER,
        "litellm_model_name": model if served or not model else OTHER,
        "model_id": text(data.get("model_id")),
        "api_base": address(data.get("api_base")),
        "api_provider": text(data.get("custom_llm_provider")),
        "service_tier": tier if tier in _TIERS or not tier else OTHER,
        "status_code": code,
        "exception_status": "" if well else code,
        "exception_class": "" if well else class_name(error.get("error_class")),
        "rate_limit_category": class_name(error.get("error_rate_limit_category")),
        "rate_limit_type": class_name(error.get("error_rate_limit_type")),
        "route": route_of(ours.get("api"), ours.get("path")),
        "stream": "True" if data.get("stream") is True else "False",
        "input_sequence_length": _length(tokens["input"]),
    }


def _own(ours: Mapping[str, Any], theirs: Mapping[str, str]) -> dict[str, str]:
    api, outcome = ours.get("api"), ours.get("outcome")
    return {
        "api": api if isinstance(api, str) and api in APIS else OTHER,
        "model": theirs["requested_model"],
        "provider": theirs["api_provider"],
        "outcome": outcome if isinstance(outcome, str) and outcome in _OUTCOMES else OTHER,
        "status": status(ours.get("status_code")),
        "team": theirs["team_alias"] or theirs["team"],
        "key": theirs["api_key_alias"],
    }


def _attempt(data: Mapping[str, Any], call: Mapping[str, str]) -> Attempt:
    code, error = status(data.get("status_code")), class_name(data.get("error"))
    failed = bool(error) or code[:1] in ("4", "5")
    provider, deployment = text(data.get("custom_llm_provider")), text(data.get("model_id"))
    return Attempt(
        own={"provider": provider, "deployment": deployment, "status": code, "error": error},
        theirs={
            **call,
            "litellm_model_name": text(data.get("model")),
            "model_id": deployment,
            "api_base": address(data.get("api_base")),
            "api_provider": provider,
            "exception_status": code if failed else "",
            "exception_class": error,
        },
        failed=failed,
        seconds=between(number(data.get("startTime")), number(data.get("endTime"))),
    )


#: The words of a record, and LiteLLM's in its metrics.
_STATUSES: Final = {
    "success": "success",
    "guardrail_intervened": "intervened",
    "guardrail_failed_to_respond": "error",
    "not_run": "not_run",
}


def _check(data: Mapping[str, Any]) -> Check:
    name, side, mode = text(data.get("guardrail_name")), data.get("side"), data.get("guardrail_mode")
    said = data.get("guardrail_status")
    verdict = _STATUSES.get(said, OTHER) if isinstance(said, str) else OTHER
    modes = [text(one) for one in (mode if isinstance(mode, list) else [mode])]
    side = side if side in ("input", "output") else OTHER
    return Check(
        own={"guardrail": name, "side": side, "status": verdict},
        theirs={
            "guardrail_name": name,
            "status": verdict,
            "error_type": "no_verdict" if verdict == "error" else "none",
            "hook_type": ",".join(one for one in modes if one),
        },
        failed=number(data.get("failed")),
        seconds=number(data.get("duration")),
    )


def _length(tokens: float | None) -> str:
    if tokens is None:
        return "unknown"
    return next((name for most, name in _LENGTHS if tokens < most), "64k+")


def _example(ours: Mapping[str, Any], data: Mapping[str, Any], at: float | None) -> Example | None:
    """The trace, where it was recorded."""
    if at is None or ours.get("sampled") is False:
        return None
    found = next((one for one in (ours.get("trace_id"), data.get("trace_id")) if isinstance(one, str)), "")
    return Example(found, at) if _TRACE.fullmatch(found) else None


def _tokens(data: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, float | None]:
    """Tokens by kind. Providers name the details in the usage of their answers."""
    usage = mapping(metadata.get("usage_object"))
    answered = mapping(mapping(data.get("response")).get("usage"))

    def detail(group: str, *names: str) -> float | None:
        holders = [holder for found in (usage, answered) for holder in (mapping(found.get(group)), found)]
        return next((amount for holder in holders for name in names if (amount := number(holder.get(name)))), None)

    return {
        "input": number(data.get("prompt_tokens")),
        "output": number(data.get("completion_tokens")),
        "total": number(data.get("total_tokens")),
        "input_cached": detail("prompt_tokens_details", "cached_tokens", "cache_read_input_tokens"),
        "input_cache_write": detail("prompt_tokens_details", "cache_creation_input_tokens"),
        "input_audio": number(mapping(answered.get("prompt_tokens_details")).get("audio_tokens")),
        "output_reasoning": detail("completion_tokens_details", "reasoning_tokens"),
        "output_audio": number(mapping(answered.get("completion_tokens_details")).get("audio_tokens")),
    }


def _guarded(runs: Any) -> tuple[float, float]:
    """Seconds of guardrails before the request went on, together; and after the answer. `during_call` takes none."""
    before: list[tuple[float, float]] = []
    after = 0.0
    for run in items(runs):
        seconds, start = number(mapping(run).get("duration")), number(mapping(run).get("start_time"))
        if seconds is None or start is None:
            continue
        mode = run.get("guardrail_mode")
        if "pre_call" in (mode if isinstance(mode, list) else [mode]) and run.get("side") == "input":
            before.append((start, start + seconds))
        elif run.get("side") == "output":
            after += seconds
    spent, reached = 0.0, 0.0
    for start, end in sorted(before):  # some run side by side
        spent += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return spent, after


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
