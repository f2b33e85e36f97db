"""The `prometheus` callback: what is counted, names and labels, limits, odd records, and records that come again."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.support.prometheus_pages import OPENMETRICS, running, shown
from tests.support.records import START, a_failure, a_payload, a_record
from tianji_mw.callbacks.base import Callback, NotDelivered, Record
from tianji_mw.callbacks.metrics.catalogue import LITELLM, Metric
from tianji_mw.callbacks.metrics.choice import label_name
from tianji_mw.callbacks.metrics.store import StoreError
from tianji_mw.callbacks.prometheus import Prometheus
from tianji_mw.errors import SetupError
from tianji_mw.plugins import find
from tianji_mw.runtime import Runtime

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


# --- names


def test_it_is_found_by_its_name() -> None:
    assert find("callbacks", "prometheus", Callback) is Prometheus


def total(metric: Metric) -> str:
    suffix = {"histogram": "_bucket", "counter": "" if metric.name.endswith("_total") else "_total"}
    return metric.name + suffix.get(metric.kind, "")


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


# --- settings


async def test_the_config_of_metrics_and_labels() -> None:
    config = [
        {"group": "spend", "metrics": ["litellm_spend_metric"], "include_labels": ["team", "user_agent"]},
        {"group": "more", "metrics": ["litellm_requests_metric", "litellm_total_users"]},
    ]
    async with running(prometheus_metrics_config=config, prometheus_exclude_labels=["model_id"]) as prometheus:
        await prometheus.write([served()])
        page = await shown(prometheus)
    assert {name for name in page.names() if name.startswith("litellm_")} == {
        "litellm_spend_metric_total",
        "litellm_requests_metric_total",
    }
    assert page.labels("litellm_spend_metric_total") == {"team", "user_agent"}
    assert "model_id" not in page.labels("litellm_requests_metric_total")
    assert page.sum("tianji_requests_total") == 1


async def test_metrics_and_labels_that_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    async with running(
        prometheus_exclude_metrics=["litellm_spend_metric", "tianji_tokens_total", "litellm_teams_count"],
        prometheus_exclude_labels=["hashed_api_key", "team"],
        key_label=True,
    ) as prometheus:
        await prometheus.write([served()])
        page = await shown(prometheus)
    assert not {"litellm_spend_metric_total", "tianji_tokens_total"} & page.names()
    assert "hashed_api_key" not in page.text
    assert page.labels("tianji_requests_total") == {"api", "model", "provider", "outcome", "status", "key"}
    # One series, not one for each value of a label that is not there.
    assert page.labels("litellm_requests_metric_total") >= {"team_alias", "api_key_alias"}
    assert "litellm_teams_count" in caplog.text


async def test_a_label_left_out_adds_series_together() -> None:
    records = [a_record(metadata=metadata(user_api_key_hash=f"{n:064x}", user_api_key_alias=None)) for n in range(5)]
    async with running(exclude_labels=["hashed_api_key"]) as prometheus:
        await prometheus.write(records)
        assert [one.value for one in (await shown(prometheus)).of("litellm_requests_metric_total")] == [5]


async def test_custom_labels() -> None:
    said = metadata(
        requester_metadata={"project": "from the request", "deep": {"x": "y"}, "number": 7},
        user_api_key_auth_metadata={"project": "from the key"},
    )
    async with running(
        custom_prometheus_metadata_labels=["metadata.project", "metadata.deep.x", "metadata.number", "model"],
        custom_prometheus_tags=["team:ml", "User-Agent: cur*", "a[b]?"],
        prometheus_emit_stream_label="true",
        prometheus_emit_input_sequence_length_label=True,
    ) as prometheus:
        await prometheus.write([a_record(metadata=said)])
        page = await shown(prometheus)
    (one,) = page.of("litellm_requests_metric_total")
    assert {name: one.labels[name] for name in ("metadata_project", "metadata_deep_x", "metadata_number", "model")} == {
        "metadata_project": "from the key", "metadata_deep_x": "y", "metadata_number": "None", "model": "gpt-4o-mini",
    }  # fmt: skip
    assert [one.labels[name] for name in ("tag_team_ml", "tag_User_Agent__cur_", "tag_a_b__")] == [
        "true", "true", "false",
    ]  # fmt: skip
    assert page.sum("litellm_proxy_total_requests_metric_total", stream="False") == 1
    assert page.sum("litellm_llm_api_latency_metric_count", input_sequence_length="0-1k") == 1
    assert "input_sequence_length" not in page.labels("litellm_spend_metric_total")
    assert "metadata_project" not in page.labels("litellm_deployment_state")


@pytest.mark.parametrize(("text", "name"), [("metadata.a-b", "metadata_a_b"), ("1x", "_1x"), ("", "_"), ("le", "_le"),
                                            ("__name__", "_name__"), ("ü", "_")])  # fmt: skip
def test_names_of_labels(text: str, name: str) -> None:
    assert label_name(text) == name


async def test_buckets() -> None:
    async with running(prometheus_latency_buckets=["0.5", 1, "inf"]) as prometheus:
        await prometheus.write([served()])
        page = await shown(prometheus)
    found = {name: {one.labels["le"] for one in page.of(f"{name}_bucket")} for name in (
        "litellm_request_total_latency_metric", "tianji_request_duration_seconds")}  # fmt: skip
    assert set(map(frozenset, found.values())) == {frozenset({"0.5", "1.0", "+Inf"})}


@pytest.mark.parametrize(
    "options",
    [
        {"latency_buckets": []},
        {"latency_buckets": [1, 1]},
        {"latency_buckets": [2, 1]},
        {"latency_buckets": [-1, 1]},
        {"latency_buckets": ["nan"]},
        {"max_series": 0},
        {"metrics_config": [{"group": "x"}]},
        {"max_series": 5, "prometheus_metrics_max_series_per_metric": 5},
        {"prometheus_metrics_ttl_seconds": 5},
    ],
)
def test_settings_that_are_wrong(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Prometheus(**options)


def test_no_limit_is_the_usual_limit() -> None:
    assert Prometheus(prometheus_metrics_max_series_per_metric=None).max_series == 1_000


# --- records that come again, and odd ones


async def test_a_record_counts_once() -> None:
    record, other = served(), served()
    async with running() as prometheus:
        await prometheus.write([record, record])
        await prometheus.write([other, record])
        await prometheus.write([Record(record.id, record.raw)])
        page = await shown(prometheus)
    assert page.sum("tianji_requests_total") == 2
    assert page.sum("tianji_metrics_records_total", result="counted") == 2
    assert page.sum("tianji_metrics_records_total", result="duplicate") == 3


async def test_a_write_that_fails_counts_nothing_and_the_next_attempt_all(tmp_path: Path) -> None:
    records = [served(), served()]
    async with running(multiproc_dir=tmp_path) as prometheus:
        await prometheus.write([served()])
        (file,) = tmp_path.glob("*.sqlite3")
        with sqlite3.connect(file, isolation_level=None) as other:
            other.execute("CREATE TRIGGER full BEFORE INSERT ON cells BEGIN SELECT RAISE(ABORT, 'disk'); END")
            with pytest.raises(NotDelivered, match="cannot be stored") as caught:
                await prometheus.write(records)
            other.execute("DROP TRIGGER full")
        assert caught.value.failed is None
        assert caught.value.retry
        assert (await shown(prometheus)).sum("tianji_requests_total") == 1
        await prometheus.write(records)
        assert (await shown(prometheus)).sum("tianji_requests_total") == 3


async def test_a_write_that_was_given_up_but_arrives_counts_once(tmp_path: Path) -> None:
    records = [served(), served()]
    async with running(multiproc_dir=tmp_path) as prometheus:
        await prometheus.write([served()])
        (file,) = tmp_path.glob("*.sqlite3")
        with sqlite3.connect(file, isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await prometheus.write(records)
            # The thread still waits for its turn, and gets it.
            other.execute("COMMIT")
        async with asyncio.timeout(10):
            while (await shown(prometheus)).sum("tianji_requests_total") < 3:
                await asyncio.sleep(0.02)
        await prometheus.write(records)
        assert (await shown(prometheus)).sum("tianji_requests_total") == 3


async def test_while_another_process_holds_the_file_nothing_is_lost_and_the_page_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tianji_mw.callbacks.metrics.store._BUSY_S", 0.05)
    runtime = Runtime()
    async with running(runtime, multiproc_dir=tmp_path) as prometheus:
        await prometheus.write([served()])
        (file,) = tmp_path.glob("*.sqlite3")
        with sqlite3.connect(file, isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            record = served()
            with pytest.raises(NotDelivered, match="locked"):
                await prometheus.write([record])
            runtime.count("calls", "messages ok")
            assert (await shown(prometheus)).sum("tianji_requests_total") == 1
            assert "locked" in runtime.degraded["prometheus"]
            other.execute("ROLLBACK")
        await prometheus.write([record])
        page = await shown(prometheus)
        assert page.sum("tianji_requests_total") == 2
        assert page.sum("tianji_calls_total") == 1


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


async def test_odd_records_break_nothing() -> None:
    async with running(client_labels=True, end_user_label=True, metadata_labels=["metadata.a.b"]) as prometheus:
        await prometheus.write([served(), *(odd(data) for data in ODD), served()])
        page = await shown(prometheus)
        await shown(prometheus, OPENMETRICS)
    assert page.sum("tianji_requests_total") == len(ODD) + 2
    assert page.sum("tianji_requests_total", model="fast") == 2
    assert "hunter2" not in page.text
    assert "x" * 300 not in page.text
    assert not [sample for sample in page.samples if sample.value != sample.value]
    assert page.sum("litellm_spend_metric_total", requested_model="fast") == pytest.approx(9.6e-06)


async def test_what_is_no_record_is_refused_and_the_others_count() -> None:
    bad = [Record("a", b"{"), Record("b", b"[1]"), Record("c", b"")]
    good = [served(), served()]
    async with running() as prometheus:
        with pytest.raises(NotDelivered) as caught:
            await prometheus.write([bad[0], good[0], bad[1], good[1], bad[2]])
        page = await shown(prometheus)
    assert list(caught.value.refused) == bad
    assert caught.value.failed == []
    assert page.sum("tianji_requests_total") == 2
    assert page.sum("tianji_metrics_records_total", result="unreadable") == 3


async def test_the_event_loop_gets_its_turn() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with running() as prometheus:
        other = asyncio.create_task(others())
        await prometheus._counted([served() for _ in range(160)])
        other.cancel()
    assert turns >= 10


# --- the page


async def test_openmetrics_has_exemplars_with_the_trace() -> None:
    unsampled = served(tianji=tianji(sampled=False, attempts=[]), endTime=START + 100)
    async with running() as prometheus:
        await prometheus.write([served(), unsampled])
        _, content_type = await asyncio.to_thread(prometheus.render, OPENMETRICS)
        page = await shown(prometheus, OPENMETRICS)
        plain = await shown(prometheus)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert page.text.endswith("# EOF\n")
    (one,) = [sample for sample in page.of("tianji_request_duration_seconds_bucket") if sample.exemplar]
    assert one.labels["le"] == "1.0"
    assert one.exemplar is not None
    assert one.exemplar.labels == {"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736"}
    assert one.exemplar.value == pytest.approx(0.82, abs=1e-5)
    assert one.exemplar.timestamp is not None
    assert float(one.exemplar.timestamp) == pytest.approx(START + 0.82, abs=1e-3)
    assert "trace_id" not in plain.text


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        # Prometheus 2 and 3.
        (f"{OPENMETRICS},*/*;q=0.1", "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        (
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=1.0.0;q=0.4",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        ),
    ],
)
async def test_the_format_is_the_one_that_was_asked_for(accept: str, content_type: str) -> None:
    async with running() as prometheus:
        body, found = await asyncio.to_thread(prometheus.render, accept)
    assert found == content_type
    assert body.endswith(b"# EOF\n") == ("openmetrics" in found)


async def test_a_page_is_made_once_for_all_who_ask_at_once() -> None:
    async with running() as prometheus:
        first, _ = await asyncio.to_thread(prometheus.render)
        await prometheus.write([served()])
        again, _ = await asyncio.to_thread(prometheus.render)
        other, _ = await asyncio.to_thread(prometheus.render, OPENMETRICS)
    assert again is first
    assert b"tianji_requests_total" in other


async def test_the_page_over_http() -> None:
    import httpx
    from starlette.applications import Starlette
    from starlette.routing import Mount, Route

    async with running() as prometheus:
        await prometheus.write([served()])
        metrics = prometheus.metrics_app()
        app = Starlette(routes=[Route("/metrics", metrics), Mount("/sub", metrics)])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client:
            for path in ("/metrics", "/sub/"):
                response = await client.get(path)
                assert response.status_code == 200
                assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
                assert "tianji_requests_total" in response.text
            await prometheus.aclose()
            prometheus._pages = {}
            assert (await client.get("/metrics")).status_code == 503


async def test_it_is_nothing_before_its_start_and_after_its_end() -> None:
    prometheus = Prometheus()
    with pytest.raises(NotDelivered, match="not started"):
        await prometheus.write([served()])
    with pytest.raises(StoreError, match="not running"):
        prometheus.render()
    await prometheus.aclose()


def test_nothing_is_imported_or_registered_before_the_start() -> None:
    code = (
        "import sys; from tianji_mw.callbacks.prometheus import Prometheus; Prometheus();"
        "sys.exit('prometheus_client' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


async def test_nothing_is_global() -> None:
    from prometheus_client import REGISTRY

    async with running() as one, running() as two:
        await one.write([served()])
        assert (await shown(two)).sum("tianji_requests_total") == 0
    assert not [name for name in REGISTRY._names_to_collectors if re.match("tianji|litellm", name)]


# --- several processes


async def test_several_share_a_folder_and_each_shows_the_sum(tmp_path: Path) -> None:
    now = [START]
    runtimes = [Runtime(wall=lambda: now[0]) for _ in range(3)]
    async with (
        running(runtimes[0], multiproc_dir=tmp_path) as one,
        running(runtimes[1], multiproc_dir=tmp_path) as two,
    ):
        async with running(runtimes[2], multiproc_dir=tmp_path) as three:
            for runtime, prometheus in zip(runtimes, (one, two, three), strict=True):
                runtime.inflight = 2
                runtime.count("calls", "messages ok", 3)
                runtime.report("cache", "slow")
                await prometheus.write([served(), a_failure()])
                await shown(prometheus)
            for prometheus in (one, two, three):
                page = await shown(prometheus)
                assert page.sum("tianji_requests_total") == 6
                assert page.sum("tianji_calls_total") == 9
                assert page.sum("tianji_request_duration_seconds_count") == 6
                assert page.sum("tianji_inflight_calls") == 6
                assert page.sum("tianji_degraded", who="cache") == 1
        page = await shown(one)
        assert page.sum("tianji_requests_total") == 6
        assert page.sum("tianji_inflight_calls") == 4
        # The second one says nothing any more, as if it had been killed.
        two._told_at = now[0] = START + 60
        page = await shown(one)
        assert page.sum("tianji_inflight_calls") == 2
        assert page.sum("tianji_calls_total") == 9


async def test_another_config_begins_anew_and_damaged_files_are_left_aside(tmp_path: Path) -> None:
    async with running(multiproc_dir=tmp_path) as prometheus:
        await prometheus.write([served()])
    async with running(multiproc_dir=tmp_path, latency_buckets=[1, 2]) as prometheus:
        assert (await shown(prometheus)).sum("tianji_requests_total") == 0
    async with running(multiproc_dir=tmp_path) as prometheus:
        assert (await shown(prometheus)).sum("tianji_requests_total") == 1
    for file in tmp_path.iterdir():
        file.write_bytes(b"not a database at all" * 100)
    async with running(multiproc_dir=tmp_path) as prometheus:
        await prometheus.write([served()])
        assert (await shown(prometheus)).sum("tianji_requests_total") == 1
    # prometheus-client would read these as its own.
    assert not list(tmp_path.glob("*.db"))


async def test_a_folder_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="folder of the metrics"):
        async with running(multiproc_dir=tmp_path / "file"):
            pass


async def test_ids_are_forgotten_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tianji_mw.callbacks.metrics.store.REMEMBERED", 3)
    records = [served() for _ in range(5)]
    async with running() as prometheus:
        await prometheus.write(records)
        store = prometheus._store
        assert store is not None
        assert store.fresh([record.id for record in records]) == {record.id for record in records[:2]}
