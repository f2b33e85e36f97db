"""Log records as the `Callbacks` layer builds them, for tests of destinations."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import pytest

from tianji_mw.callbacks.base import Callback, NotDelivered, Record

START = 1795376000.10


def a_payload(**changes: Any) -> dict[str, Any]:
    """The content of a record: a plain chat call that went well; `changes` replace top-level fields."""
    payload: dict[str, Any] = {
        "id": "chatcmpl-77",
        "litellm_call_id": "019a0c5f-1111-7222-8333-944455556666",
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "session_id": "",
        "call_type": "acompletion",
        "stream": None,
        "status": "success",
        "status_fields": {"llm_api_status": "success", "guardrail_status": "not_run"},
        "custom_llm_provider": "openai",
        "model": "gpt-4o-mini",
        "model_group": "fast",
        "model_id": "d-19",
        "api_base": "https://api.openai.com/v1",
        "prompt_tokens": 12,
        "completion_tokens": 5,
        "total_tokens": 17,
        "response_cost": 4.8e-06,
        "cost_breakdown": {"input_cost": 1.8e-06, "output_cost": 3.0e-06, "total_cost": 4.8e-06},
        "saved_cache_cost": 0.0,
        "response_cost_failure_debug_info": None,
        "startTime": START,
        "endTime": START + 0.82,
        "completionStartTime": START + 0.82,
        "response_time": 0.82,
        "cache_hit": None,
        "cache_key": None,
        "request_tags": ["team:ml", "User-Agent: curl"],
        "end_user": "customer-7",
        "requester_ip_address": "203.0.113.9",
        "user_agent": "curl/8.5",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
        "response": {
            "id": "chatcmpl-77",
            "object": "chat.completion",
            "created": 1795376000,
            "model": "gpt-4o-mini-2024-07-18",
            "choices": [
                {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello"}},
            ],
            "usage": {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17},
        },
        "model_parameters": {"temperature": 0.5, "max_tokens": 100},
        "error_str": None,
        "error_information": None,
        "metadata": {
            "user_api_key_hash": "9f2c" * 16,
            "user_api_key_alias": "ci",
            "user_api_key_user_id": "u1",
            "user_api_key_user_email": None,
            "user_api_key_team_id": "t1",
            "user_api_key_team_alias": "ml",
            "user_api_key_org_id": None,
            "user_api_key_end_user_id": "customer-7",
            "user_api_key_request_route": "/v1/chat/completions",
            "user_api_key_auth_metadata": {},
            "spend_logs_metadata": None,
            "requester_ip_address": "203.0.113.9",
            "user_agent": "curl/8.5",
            "requester_metadata": {"trace_name": "greeting"},
            "requester_custom_headers": {},
            "prompt_management_metadata": None,
            "applied_guardrails": [],
            "usage_object": {
                "prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17,
                "prompt_tokens_details": {"cached_tokens": 4},
                "completion_tokens_details": {"reasoning_tokens": 2},
            },
        },
        "hidden_params": {
            "model_id": "d-19", "cache_key": None, "api_base": "https://api.openai.com/v1", "response_cost": 4.8e-06,
            "litellm_overhead_time_ms": 1.2, "additional_headers": None, "litellm_model_name": "gpt-4o-mini",
            "usage_object": None,
        },
        "model_map_information": None,
        "guardrail_information": None,
        "standard_built_in_tools_params": None,
        "tianji": {
            "outcome": "ok",
            "status_code": 200,
            "method": "POST",
            "path": "/v1/chat/completions",
            "api": "chat_completions",
            "span_id": "00f067aa0ba902b7",
            "parent_span_id": None,
            "sampled": True,
            "time_to_first_token": None,
            "bytes_out": 312,
            "attempts": [
                {
                    "model_id": "d-19", "model": "gpt-4o-mini", "custom_llm_provider": "openai",
                    "api_base": "https://api.openai.com/v1", "startTime": START + 0.001, "endTime": START + 0.819,
                    "status_code": 200, "error": None,
                },
            ],
        },
    }  # fmt: skip
    return {**payload, **changes}


def a_record(**changes: Any) -> Record:
    """A record of its own id."""
    payload = a_payload(**changes)
    if "litellm_call_id" not in changes:
        payload["litellm_call_id"] = str(uuid.uuid4())
    return Record.of(payload["litellm_call_id"], payload)


def a_failure(message: str = "The provider 'openai' answered 500.", **changes: Any) -> Record:
    """A call that failed at its provider."""
    attempt = {**a_payload()["tianji"]["attempts"][0], "status_code": 500, "error": "UpstreamError"}
    ours = {**a_payload()["tianji"], "outcome": "upstream_error", "status_code": 502, "attempts": [attempt]}
    failed: dict[str, Any] = {
        "status": "failure",
        "status_fields": {"llm_api_status": "failure", "guardrail_status": "not_run"},
        "response": None,
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "total_tokens": 0,
        "response_cost": 0.0,
        "cost_breakdown": None,
        "error_str": message,
        "error_information": {
            "error_code": "502", "error_class": "UpstreamError", "llm_provider": "openai", "traceback": "",
            "error_message": message,
        },
        "tianji": ours,
    }  # fmt: skip
    return a_record(**{**failed, **changes})


async def undelivered(callback: Callback, batch: Sequence[Record], hidden: str = "") -> NotDelivered:
    """How the delivery of a batch fails; `hidden` is in no part of that."""
    with pytest.raises(NotDelivered) as caught:
        await callback.write(batch)
    assert not hidden or hidden not in f"{caught.value.message} {caught.value!r}"
    return caught.value
