"""Counts a call: from its facts to the metrics, ours and LiteLLM's. No plugin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tianji_mw.callbacks.metrics.facts import Attempt, Facts
from tianji_mw.callbacks.metrics.tally import Tally, Writer
from tianji_mw.callbacks.metrics.values import text

_DETAILS: Final = ("input_cached", "input_cache_write", "input_audio", "output_reasoning", "output_audio")


def count_call(tally: Tally, facts: Facts, *, litellm: bool) -> None:
    """Add one call to a tally."""
    _count_ours(tally, facts)
    if litellm:
        _count_theirs(tally, facts)


def _count_ours(tally: Tally, facts: Facts) -> None:
    call = tally.writer(facts.own, facts.example)
    call.add("tianji_requests_total", 1)
    call.add("tianji_request_duration_seconds", facts.seconds)
    call.add("tianji_time_to_first_token_seconds", facts.first_s)
    call.add("tianji_overhead_seconds", facts.lead_s)
    call.count("tianji_cost_usd_total", facts.cost)
    call.count("tianji_response_bytes_total", facts.bytes_out)
    for kind in ("input", "output"):
        call.count("tianji_tokens_total", facts.tokens[kind], type=kind)
    for kind in _DETAILS:
        call.count("tianji_token_details_total", facts.tokens[kind], type=kind)
    if facts.cache:
        call.add("tianji_cache_requests_total", 1, result=facts.cache)
    for attempt in facts.attempts:
        tried = tally.writer(attempt.own, facts.example)
        tried.add("tianji_upstream_attempts_total", 1)
        tried.add("tianji_upstream_duration_seconds", attempt.seconds)
    for check in facts.checks:
        guard = tally.writer(check.own, facts.example)
        guard.add("tianji_guardrail_runs_total", 1)
        guard.count("tianji_guardrail_failures_total", check.failed)
        guard.add("tianji_guardrail_duration_seconds", check.seconds)


def _count_theirs(tally: Tally, facts: Facts) -> None:
    call = tally.writer(facts.theirs, facts.example)
    call.add("litellm_proxy_total_requests_metric", 1)
    if facts.well:
        _count_success(call, facts)
    else:
        call.add("litellm_proxy_failed_requests_metric", 1)
    for attempt in facts.attempts:
        _count_attempt(tally.writer(attempt.theirs, facts.example), attempt)
    for check in facts.checks:
        guard = tally.writer(check.theirs, facts.example)
        guard.add("litellm_guardrail_requests_total", 1)
        guard.add("litellm_guardrail_latency_seconds", check.seconds)
        if check.theirs["status"] == "error":
            guard.add("litellm_guardrail_errors_total", 1)


def _count_success(call: Writer, facts: Facts) -> None:
    """What LiteLLM counts of calls that went well."""
    tokens = facts.tokens
    call.add("litellm_requests_metric", 1)
    call.count("litellm_spend_metric", facts.cost)
    for kind in ("total", "input", "output"):
        call.count(f"litellm_{kind}_tokens_metric", tokens[kind])
    for kind in _DETAILS:
        call.count(f"litellm_{kind.replace('cache_write', 'cache_creation')}_tokens_metric", tokens[kind])
    call.count("litellm_provider_cache_read_input_tokens_metric", tokens["input_cached"])
    call.count("litellm_provider_cache_creation_input_tokens_metric", tokens["input_cache_write"])
    call.add("litellm_request_total_latency_metric", facts.seconds)
    call.add("litellm_llm_api_latency_metric", facts.api_s)
    if facts.streamed:
        call.add("litellm_llm_api_time_to_first_token_metric", facts.api_first_s)
    call.add("litellm_overhead_latency_metric", facts.overhead_s)
    call.add("litellm_overhead_with_guardrails_latency_metric", facts.overhead_guarded_s)
    if facts.api_s is not None and (out := tokens["output"]):
        call.add("litellm_deployment_latency_per_output_token", facts.api_s / out)
    call.add("litellm_remaining_requests_metric", facts.spare_requests)
    call.add("litellm_remaining_tokens_metric", facts.spare_tokens)
    if facts.cache == "hit":
        call.add("litellm_cache_hits_metric", 1)
        call.count("litellm_cached_tokens_metric", tokens["total"])
    elif facts.cache == "miss":
        call.add("litellm_cache_misses_metric", 1)


def _count_attempt(tried: Writer, attempt: Attempt) -> None:
    tried.add("litellm_deployment_total_requests", 1)
    tried.add("litellm_deployment_state", float(attempt.failed))
    outcome = "failure" if attempt.failed else "success"
    tried.add(f"litellm_deployment_{outcome}_responses", 1)


def count_events(tally: Tally, counts: Mapping[tuple[str, str], int]) -> None:
    """Add what a process counted (the growth of `Runtime.counts`, and `edge`) to a tally."""
    for (event, detail), times in counts.items():
        first, _, rest = detail.partition(" ")
        values = {"event": event, "detail": text(detail), "api": text(first), "outcome": text(rest)}
        events = tally.writer({**values, "reason": values["detail"]})
        events.count(f"tianji_{event}_total" if event in ("calls", "edge") else "tianji_events_total", times)
        if event == "log_dropped":
            events.count("litellm_callback_logging_failures_metric", times, callback_name=text(first))
