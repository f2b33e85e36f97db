"""A record as MLflow's trace, and sums of records for a run."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.records import a_failure, a_payload, a_record
from tianji_mw.callbacks.mlflow_runs import Totals
from tianji_mw.callbacks.otlp import encode, mlflow_attributes
from tianji_mw.callbacks.otlp.spans import spans_of


@pytest.mark.parametrize(
    ("api", "kind"),
    [
        ("chat_completions", "CHAT_MODEL"),
        ("messages", "CHAT_MODEL"),
        ("embeddings", "EMBEDDING"),
        ("rerank", "RERANKER"),
        ("completions", "LLM"),
    ],
)
def test_types(api: str, kind: str) -> None:
    found = mlflow_attributes.call_attributes(a_record(tianji={**a_payload()["tianji"], "api": api}))
    assert json.loads(str(found["mlflow.spanType"])) == kind


def test_trace_info() -> None:
    record = a_record(session_id="s-1", messages=[{"role": "user", "content": "x" * 5000}])
    (root,) = spans_of(record)
    info = mlflow_attributes.trace_info(root, record, "7")["trace"]["trace_info"]
    assert info["trace_id"] == f"tr-{record.data['trace_id']}"
    assert info["trace_location"] == {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "7"}}
    assert (info["request_time"], info["execution_duration"]) == ("2026-11-22T19:33:20.100Z", "0.820s")
    assert (info["state"], len(info["request_preview"]), info["response_preview"]) == ("OK", 1000, "hello")
    assert info["trace_metadata"]["mlflow.trace.session"] == "s-1"
    assert info["tags"] == {"team": "ml", "User-Agent": "curl", "mlflow.traceName": "chat gpt-4o-mini"}


@pytest.mark.parametrize(
    "odd",
    [
        {"messages": None, "response": None, "metadata": None, "tianji": None, "cost_breakdown": 1},
        {"messages": [1], "response": [None], "model_parameters": {"tools": 5}, "request_tags": [None, "", ":"]},
        {"startTime": None, "endTime": "x", "response_cost": "x", "error_information": 5},
    ],
)
def test_odd_records(odd: dict[str, Any]) -> None:
    record = a_record(**odd)
    for span in spans_of(record):
        assert encode.attributes(mlflow_attributes.span_attributes(span, record))
    assert json.dumps(mlflow_attributes.trace_info(spans_of(record)[0], record, "1"))


def test_totals_count_a_record_once() -> None:
    totals = Totals()
    record = a_record()
    for one in (record, record, a_failure(), a_record(model=None, model_group=None)):
        totals.add(one)
    found = {metric["key"]: metric["value"] for metric in totals.metrics(1000)}
    assert (found["calls"], found["failures"], found["model/unknown/calls"]) == (3, 1, 1)
    assert found["response_time_mean_s"] == pytest.approx(0.82, abs=1e-5)
    assert totals.metrics(2000)[0]["step"] == 2


def test_a_batch_of_metrics_is_below_the_limit() -> None:
    totals = Totals()
    for n in range(300):
        totals.add(a_record(model=f"m-{n}"))
    found = totals.metrics(1)
    assert len(found) <= 1000
    assert {metric["key"]: metric["value"] for metric in found}["model/other/calls"] == 200
