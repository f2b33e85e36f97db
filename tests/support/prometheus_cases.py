"""What the tests of `prometheus` share."""

from __future__ import annotations

from typing import Any

from tests.support.records import START, a_payload, a_record
from tianji_mw.callbacks.base import Record
from tianji_mw.callbacks.metrics.catalogue import Metric

#: The table of the contract, section 11: what of it has facts in a record.
K, T, U, E = "hashed_api_key api_key_alias", "team team_alias", "user", "end_user"


D = "litellm_model_name model_id api_base api_provider"


TOKENS = f"{E} {K} model {T} {U} user_email requested_model model_id api_provider"


LATENCY = f"model_group model {K} {T} requested_model {E} {U} model_id api_provider service_tier"


CACHE = f"model {K} {T} {E} {U} model_id api_provider"


DEPLOYMENT = f"model_group requested_model {D} {K} {T} client_ip user_agent"


GUARDRAIL = "guardrail_name status error_type hook_type"


OVERHEAD = f"model_group api_provider api_base litellm_model_name {K} model_id"


CONTRACT = {
    "proxy_total_requests_metric": (
        f"{E} {K} requested_model {T} {U} status_code user_email route client_ip user_agent model_id api_provider"
    ),
    "proxy_failed_requests_metric": (
        f"{E} {K} requested_model {T} {U} user_email exception_status exception_class route client_ip user_agent"
        " model_id api_provider"
    ),
    "requests_metric": f"{E} {K} model {T} {U} user_email client_ip user_agent requested_model model_id api_provider",
    "spend_metric": (
        f"{E} {K} model {T} {U} user_email client_ip user_agent requested_model model_id api_provider service_tier"
    ),
    "total_tokens_metric": TOKENS,
    "input_tokens_metric": TOKENS,
    "output_tokens_metric": TOKENS,
    "input_cached_tokens_metric": TOKENS,
    "input_cache_creation_tokens_metric": TOKENS,
    "input_audio_tokens_metric": TOKENS,
    "output_reasoning_tokens_metric": TOKENS,
    "output_audio_tokens_metric": TOKENS,
    "request_total_latency_metric": LATENCY,
    "llm_api_latency_metric": LATENCY,
    "llm_api_time_to_first_token_metric": LATENCY,
    "overhead_latency_metric": OVERHEAD,
    "overhead_with_guardrails_latency_metric": OVERHEAD,
    "deployment_latency_per_output_token": f"model_group {D} {K} {T}",
    "remaining_requests_metric": f"model_group {D} {K}",
    "remaining_tokens_metric": f"model_group {D} {K}",
    "deployment_total_requests": DEPLOYMENT,
    "deployment_success_responses": DEPLOYMENT,
    "deployment_failure_responses": f"{DEPLOYMENT} exception_status exception_class",
    "deployment_state": D,
    "cache_hits_metric": CACHE,
    "cache_misses_metric": CACHE,
    "cached_tokens_metric": CACHE,
    "provider_cache_read_input_tokens_metric": CACHE,
    "provider_cache_creation_input_tokens_metric": CACHE,
    "guardrail_latency_seconds": GUARDRAIL,
    "guardrail_requests_total": GUARDRAIL,
    "guardrail_errors_total": GUARDRAIL,
    "callback_logging_failures_metric": "callback_name",
    "in_flight_requests": "",
}


GUARDRAIL_RUN = {
    "guardrail_name": "pii", "guardrail_provider": "presidio", "guardrail_mode": "pre_call", "side": "input",
    "guardrail_status": "guardrail_failed_to_respond", "start_time": START, "end_time": START + 0.001,
    "duration": 0.001, "asked": 1, "failed": 1,
}  # fmt: skip


def served(**changes: Any) -> Record:
    """A call with everything that metrics are made of."""
    answer = a_payload()["response"]
    usage = {
        "prompt_tokens_details": {"audio_tokens": 3, "cached_tokens": 4},
        "completion_tokens_details": {"audio_tokens": 1},
    }
    metadata = a_payload()["metadata"]
    metadata["usage_object"]["cache_creation_input_tokens"] = 6
    hidden = {
        **a_payload()["hidden_params"],
        "additional_headers": {"x_ratelimit_remaining_requests": 99, "x_ratelimit_remaining_tokens": "1000"},
    }
    full: dict[str, Any] = {
        "stream": True,
        "completionStartTime": START + 0.201,
        "response": {**answer, "usage": usage, "service_tier": "default"},
        "metadata": metadata,
        "hidden_params": hidden,
        "guardrail_information": [GUARDRAIL_RUN],
        "tianji": {**a_payload()["tianji"], "time_to_first_token": 0.201},
    }
    return a_record(**{**full, **changes})


def metadata(**changes: Any) -> dict[str, Any]:
    return {**a_payload()["metadata"], **changes}


def tianji(**changes: Any) -> dict[str, Any]:
    return {**a_payload()["tianji"], **changes}


def total(metric: Metric) -> str:
    suffix = {"histogram": "_bucket", "counter": "" if metric.name.endswith("_total") else "_total"}
    return metric.name + suffix.get(metric.kind, "")


ODD: list[dict[str, Any]] = [
    {},
    {"tianji": None, "metadata": None, "hidden_params": None, "startTime": None},
    {"tianji": [], "metadata": "text", "hidden_params": 5, "response": "text", "guardrail_information": "no"},
    {"tianji": {"attempts": [None, 5, {}, {"status_code": [], "error": {}, "startTime": "x"}], "api": [], "path": {}}},
    {"guardrail_information": [None, 7, {}, {"guardrail_mode": ["pre_call", None], "guardrail_status": []}]},
    {"startTime": float("inf"), "endTime": -1, "response_cost": float("nan"), "total_tokens": 10**400},
    {"prompt_tokens": -5, "completion_tokens": True, "response_cost": "12"},
    {"startTime": 5.0, "endTime": 3.0},
    {"model": "x" * 5000, "model_group": 'a"b\\c\nd\u2028\x00', "model_id": "\ud800\udfff", "api_base": ["u"]},
    {"request_tags": "no", "end_user": {"a": 1}, "stream": "yes", "status": "???", "cache_hit": "maybe"},
    {"error_information": {"error_code": "50x", "error_class": "A\n B", "error_rate_limit_category": 5}},
    {"api_base": "https://user:hunter2@host/v1?key=hunter2", "model_id": "d"},
    {"api_base": "https://[::1/x?key=hunter2", "model_id": "d"},
    {"model_parameters": {"service_tier": "made up"}, "response": {"usage": [1], "service_tier": {}}},
]


def odd(data: dict[str, Any]) -> Record:
    """A record as it is in memory; not all of these could be JSON."""
    record = a_record()
    record._data = data
    return record
