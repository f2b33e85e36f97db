"""Arize's settings: endpoints, protocols, samples."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from tests.support.records import a_failure, a_record
from tianji_mw.callbacks.arize import Arize

KEYS: dict[str, Any] = {"arize_space_key": "space-1", "arize_api_key": "ak-secret"}


@pytest.mark.parametrize(
    ("given", "protocol", "url"),
    [
        ({}, "grpc", "https://otlp.arize.com/v1/traces"),
        ({"arize_otlp_protocol": "otlp_http"}, "http/protobuf", "https://otlp.arize.com/v1/traces"),
        ({"arize_http_endpoint": "https://eu.x/v1/traces"}, "http/protobuf", "https://eu.x/v1/traces"),
        ({"http_endpoint": "https://eu.x/v1"}, "http/protobuf", "https://eu.x/v1/traces"),
        (
            {"http_endpoint": "https://eu.x", "protocol": "grpc", "endpoint": "https://g.x"},
            "grpc",
            "https://g.x/v1/traces",
        ),
    ],
)
def test_where_spans_go(given: dict[str, str], protocol: str, url: str) -> None:
    arize = Arize(**KEYS, **given)
    assert (arize.protocol, arize.url_of("traces")) == (protocol, url)


def test_samples_agree_by_trace() -> None:
    arize = Arize(**KEYS, arize_success_sampling_rate="0.5", arize_error_sampling_rate=1)
    records = [a_record(trace_id=uuid.uuid5(uuid.NAMESPACE_OID, str(n)).hex) for n in range(400)]
    kept = [record for record in records if arize.keeps(record)]
    assert 140 < len(kept) < 260
    again = [a_record(trace_id=record.data["trace_id"]) for record in kept]
    assert all(arize.keeps(record) for record in again)
    assert all(arize.keeps(a_failure(trace_id=record.data["trace_id"])) for record in records)
    assert not Arize(**KEYS, success_sampling_rate=0).keeps(records[0])


@pytest.mark.parametrize("bad", ["x", 2, -1, "nan", [], "1e999"])
def test_a_bad_rate_sends_all(bad: Any) -> None:
    assert Arize(**KEYS, success_sampling_rate=bad).success_sampling_rate == 1.0


def test_keys_are_not_shown() -> None:
    assert "ak-secret" not in repr(Arize(**KEYS))
    assert "space-1" not in repr(Arize(**KEYS))
