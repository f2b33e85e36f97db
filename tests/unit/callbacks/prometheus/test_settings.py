"""Settings of `prometheus`; records that come again, and odd ones."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.support.prometheus_cases import ODD, metadata, odd, served
from tests.support.prometheus_pages import OPENMETRICS, running, shown
from tests.support.records import a_record
from tianji_mw.callbacks.base import NotDelivered, Record
from tianji_mw.callbacks.metrics.choice import label_name
from tianji_mw.callbacks.prometheus import Prometheus
from tianji_mw.runtime import Runtime

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
