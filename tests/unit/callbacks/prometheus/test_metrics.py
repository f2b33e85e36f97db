"""Metrics of the callback `prometheus`: names, values, labels."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.prometheus_cases import CONTRACT, served, tianji, total
from tests.support.prometheus_pages import running, shown
from tests.support.records import a_failure, a_record
from tianji_mw.callbacks.base import Callback
from tianji_mw.callbacks.metrics.catalogue import LITELLM
from tianji_mw.callbacks.prometheus import Prometheus
from tianji_mw.plugins import find
from tianji_mw.runtime import Runtime

# --- names


def test_it_is_found_by_its_name() -> None:
    assert find("callbacks", "prometheus", Callback) is Prometheus


async def test_litellms_names_and_labels_are_those_of_the_contract() -> None:
    runtime = Runtime()
    runtime.count("log_dropped", "s3 refused", 2)
    async with running(runtime, client_labels=True, end_user_label=True) as prometheus:
        await prometheus.write([served(), a_failure(), served(cache_hit=True), served(cache_hit=False)])
        page = await shown(prometheus)
    assert {metric.name.removeprefix("litellm_") for metric in LITELLM} == set(CONTRACT)
    for metric in LITELLM:
        expected = set(CONTRACT[metric.name.removeprefix("litellm_")].split())
        assert page.of(total(metric)), metric.name
        assert page.labels(total(metric)) - {"le"} == expected, metric.name
    assert {float(one.labels["le"]) for one in page.of("litellm_request_total_latency_metric_bucket")} == {
        0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 420, 600, float("inf"),
    }  # fmt: skip


async def test_what_clients_choose_is_no_label_by_default() -> None:
    async with running() as prometheus:
        await prometheus.write([served(), a_failure()])
        page = await shown(prometheus)
    found = {label for sample in page.samples for label in sample.labels}
    assert not found & {"client_ip", "user_agent", "user_email", "end_user", "key"}
    assert "203.0.113.9" not in page.text
    assert "customer-7" not in page.text
    assert "curl" not in page.text


async def test_only_our_names() -> None:
    async with running(litellm_metrics="false") as prometheus:
        await prometheus.write([served()])
        page = await shown(prometheus)
    assert not [name for name in page.names() if name.startswith("litellm_")]
    assert page.sum("tianji_requests_total") == 1


# --- values


async def test_a_call_that_went_well() -> None:
    async with running() as prometheus:
        await prometheus.write([served()])
        page = await shown(prometheus)
    one = page.of("tianji_requests_total")
    assert [sample.labels for sample in one] == [
        {
            "api": "chat_completions",
            "model": "fast",
            "provider": "openai",
            "outcome": "ok",
            "status": "200",
            "team": "ml",
        }
    ]
    assert page.sum("tianji_request_duration_seconds_sum") == pytest.approx(0.82, abs=1e-5)
    assert page.sum("tianji_request_duration_seconds_bucket", le="0.5") == 0
    assert page.sum("tianji_request_duration_seconds_bucket", le="1.0") == 1
    assert page.sum("tianji_time_to_first_token_seconds_sum") == pytest.approx(0.201)
    assert page.sum("tianji_overhead_seconds_sum") == pytest.approx(0.0012)
    assert page.sum("tianji_tokens_total", type="input") == 12
    assert page.sum("tianji_tokens_total", type="output") == 5
    assert {sample.labels["type"]: sample.value for sample in page.of("tianji_token_details_total")} == {
        "input_cached": 4, "input_cache_write": 6, "input_audio": 3, "output_reasoning": 2, "output_audio": 1,
    }  # fmt: skip
    assert page.sum("tianji_cost_usd_total") == pytest.approx(4.8e-06)
    assert page.sum("tianji_response_bytes_total") == 312
    assert page.sum("tianji_upstream_attempts_total", status="200", deployment="d-19") == 1
    assert page.sum("tianji_upstream_duration_seconds_sum") == pytest.approx(0.818, abs=1e-5)
    assert page.sum("tianji_guardrail_runs_total", guardrail="pii", side="input", status="error") == 1
    assert page.sum("tianji_guardrail_failures_total") == 1


async def test_litellms_values() -> None:
    async with running() as prometheus:
        await prometheus.write([served()])
        page = await shown(prometheus)
    caller = {"api_key_alias": "ci", "team": "t1", "team_alias": "ml", "user": "u1", "model_id": "d-19"}
    assert page.sum("litellm_proxy_total_requests_metric_total", status_code="200", route="/v1/chat/completions") == 1
    assert page.sum("litellm_requests_metric_total", model="gpt-4o-mini", requested_model="fast", **caller) == 1
    assert page.sum("litellm_spend_metric_total", service_tier="default", **caller) == pytest.approx(4.8e-06)
    assert page.sum("litellm_total_tokens_metric_total", **caller) == 17
    assert page.sum("litellm_input_cache_creation_tokens_metric_total") == 6
    assert page.sum("litellm_provider_cache_read_input_tokens_metric_total") == 4
    assert page.sum("litellm_llm_api_latency_metric_sum") == pytest.approx(0.818, abs=1e-5)
    assert page.sum("litellm_llm_api_time_to_first_token_metric_sum") == pytest.approx(0.2, abs=1e-5)
    assert page.sum("litellm_deployment_latency_per_output_token_sum") == pytest.approx(0.818 / 5, abs=1e-5)
    assert page.sum("litellm_remaining_requests_metric", model_group="fast") == 99
    assert page.sum("litellm_remaining_tokens_metric") == 1000
    # 1.2 ms before the request went on, of which the guardrail took 1.
    assert page.sum("litellm_overhead_latency_metric_sum") == pytest.approx(0.0002, abs=1e-5)
    assert page.sum("litellm_overhead_with_guardrails_latency_metric_sum") == pytest.approx(0.0012, abs=1e-5)
    assert page.sum("litellm_guardrail_errors_total", guardrail_name="pii", hook_type="pre_call") == 1


async def test_a_call_that_failed_after_two_attempts() -> None:
    attempt = a_failure().data["tianji"]["attempts"][0]
    second = {**attempt, "model_id": "d-20", "status_code": None, "error": "UpstreamTimeout"}
    failed = a_failure(tianji={**a_failure().data["tianji"], "attempts": [attempt, second]}, model_id="d-20")
    async with running(rate_limit_labels=True) as prometheus:
        await prometheus.write([failed, served()])
        page = await shown(prometheus)
    assert page.sum("tianji_requests_total", outcome="upstream_error", status="502") == 1
    assert page.sum("tianji_upstream_attempts_total", deployment="d-19", status="500", error="UpstreamError") == 1
    assert page.sum("tianji_upstream_attempts_total", deployment="d-20", status="", error="UpstreamTimeout") == 1
    one = page.of("litellm_proxy_failed_requests_metric_total", exception_status="502", exception_class="UpstreamError")
    assert [sample.labels["rate_limit_category"] for sample in one] == ["None"]
    assert page.sum("litellm_proxy_total_requests_metric_total", status_code="502") == 1
    assert page.sum("litellm_deployment_failure_responses_total", model_id="d-20", exception_status="None") == 1
    assert page.sum("litellm_deployment_total_requests_total", model_id="d-19") == 2
    assert page.sum("litellm_deployment_success_responses_total", model_id="d-19") == 1
    assert page.sum("litellm_deployment_state", model_id="d-19") == 0
    assert page.sum("litellm_deployment_state", model_id="d-20") == 1
    assert page.sum("litellm_requests_metric_total") == 1


async def test_a_client_that_left_is_499() -> None:
    gone = a_failure(error_information=None, tianji=tianji(outcome="client_gone", status_code=200))
    async with running() as prometheus:
        await prometheus.write([gone])
        page = await shown(prometheus)
    assert page.sum("tianji_requests_total", outcome="client_gone", status="200") == 1
    assert page.sum("litellm_proxy_failed_requests_metric_total", exception_status="499") == 1


async def test_the_cache() -> None:
    async with running() as prometheus:
        await prometheus.write([served(cache_hit=True), served(cache_hit=True), served(cache_hit=False), served()])
        page = await shown(prometheus)
    assert page.sum("tianji_cache_requests_total", result="hit") == 2
    assert page.sum("tianji_cache_requests_total", result="miss") == 1
    assert page.sum("litellm_cached_tokens_metric_total") == 34


async def test_what_a_process_counts_and_does_is_on_the_page() -> None:
    runtime = Runtime()
    async with running(runtime) as prometheus:
        runtime.inflight = 3
        runtime.count("calls", "chat_completions ok", 5)
        runtime.count("log_dropped", "s3_v2 refused", 2)
        runtime.report("cache", "is gone")
        prometheus.watch_edge(lambda: {"too many headers": 4})
        assert (await shown(prometheus)).sum("tianji_calls_total", api="chat_completions", outcome="ok") == 5
        runtime.count("calls", "chat_completions ok")
        page = await shown(prometheus)
    assert page.sum("tianji_calls_total") == 6
    assert page.sum("tianji_events_total", event="log_dropped", detail="s3_v2 refused") == 2
    assert page.sum("litellm_callback_logging_failures_metric_total", callback_name="s3_v2") == 2
    assert page.sum("tianji_edge_total", reason="too many headers") == 4
    assert page.sum("tianji_inflight_calls") == page.sum("litellm_in_flight_requests") == 3
    assert page.sum("tianji_degraded", who="cache") == 1
    assert page.sum("process_max_resident_memory_bytes") > 1e6


# --- labels that nobody can make up


async def test_a_model_that_nothing_served_is_other() -> None:
    unknown = [a_record(model_group=f"made-up-{n}", model=f"made-up-{n}", model_id=None, status="failure",
                        tianji=tianji(attempts=[], status_code=404, outcome="error")) for n in range(50)]  # fmt: skip
    async with running() as prometheus:
        await prometheus.write(unknown)
        page = await shown(prometheus)
    assert "made-up" not in page.text
    assert page.sum("tianji_requests_total", model="other", status="404") == 50
    assert page.sum("litellm_proxy_failed_requests_metric_total", requested_model="other") == 50


async def test_series_beyond_the_limit_are_other_and_none_is_lost() -> None:
    async with running(max_series=10) as prometheus:
        for n in range(40):
            await prometheus.write([a_record(model_group=f"m{n}"), a_record(model_group="m3"), a_failure()])
        page = await shown(prometheus)
    assert page.sum("tianji_requests_total") == 120
    models = {sample.labels["model"] for sample in page.of("tianji_requests_total")}
    # Ten that came first, one of them the failures', and `other`.
    assert len(page.of("tianji_requests_total")) == 11
    assert "other" in models
    assert page.sum("tianji_requests_total", model="m3") == 41
    # What we chose stays: sums by outcome are right.
    assert page.sum("tianji_requests_total", outcome="upstream_error") == 40
    assert page.sum("tianji_request_duration_seconds_count") == 120
    assert page.sum("tianji_metrics_folded_total", metric="tianji_requests_total") == 31
    assert page.sum("tianji_metrics_series", metric="tianji_requests_total") == 11
    assert page.sum("litellm_requests_metric_total") == 80
    # Token kinds are ours, not the clients': each has its own `other`.
    assert page.sum("tianji_tokens_total", type="input") == 80 * 12


async def test_series_with_end_users_have_a_limit_of_their_own() -> None:
    records = [a_record(end_user=f"u{n}") for n in range(30)]
    async with running(max_series=5, max_end_user_series=20, end_user_label=True) as prometheus:
        await prometheus.write(records)
        page = await shown(prometheus)
    assert len(page.of("litellm_requests_metric_total")) == 21
    assert page.sum("litellm_requests_metric_total", end_user="other") == 10
    async with running(enable_end_user_cost_tracking_prometheus_only=True, no_end_user_label=True) as prometheus:
        await prometheus.write(records)
        assert "end_user" not in (await shown(prometheus)).labels("litellm_requests_metric_total")


@pytest.mark.parametrize(
    ("path", "api", "route"),
    [
        ("/v1/chat/completions", "chat_completions", "/v1/chat/completions"),
        ("/tenant/a/v1/chat/completions/", "chat_completions", "/v1/chat/completions"),
        ("/openai/deployments/secret-name/embeddings", "embeddings", "/deployments/{id}/embeddings"),
        ("/v1/files/file-abc/content", "passthrough", "/v1/files/{id}/content"),
        ("/anything", "chat_completions", "other"),
        ("/anything", "unheard-of", "other"),
        (None, None, "None"),
    ],
)
async def test_routes_have_no_ids(path: Any, api: Any, route: str) -> None:
    async with running() as prometheus:
        await prometheus.write([a_record(tianji=tianji(path=path, api=api))])
        page = await shown(prometheus)
    assert page.sum("litellm_proxy_total_requests_metric_total", route=route) == 1
