"""The encoder: byte for byte what OpenTelemetry's own makes of the same spans, and sound whatever the values are."""

from __future__ import annotations

import math
from typing import Any

import orjson
import pytest
from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from tests.support.otlp_receiver import plain, value_of
from tests.support.records import a_payload
from tianji_mw.callbacks.otlp import encode
from tianji_mw.callbacks.otlp.limits import LIMIT, cut, json_text
from tianji_mw.callbacks.otlp.metrics import INSTRUMENTS, Meter
from tianji_mw.callbacks.otlp.retry_info import retry_delay_s
from tianji_mw.callbacks.otlp.spans import CLIENT, ERROR, Event, Span

TRACE, PARENT = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7
ATTRIBUTES: dict[str, Any] = {
    "text": "käse", "yes": True, "no": False, "whole": -5, "big": (1 << 63) - 1, "part": 0.25, "list": ["a", "b"],
    "numbers": [1, 2], "empty": "", "none at all": [],
}  # fmt: skip


def a_span(**changes: Any) -> Span:
    fields: dict[str, Any] = {
        "trace_id": TRACE.to_bytes(16, "big"), "span_id": b"12345678", "parent_id": None, "name": "chat m",
        "start_ns": 5, "end_ns": 9,
    }  # fmt: skip
    return Span(**{**fields, **changes})


def one_span(request: ExportTraceServiceRequest) -> Any:
    return request.resource_spans[0].scope_spans[0].spans[0]


def test_a_span_is_byte_for_byte_what_the_official_encoder_makes() -> None:
    memory = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({"service.name": "x"}))
    provider.add_span_processor(SimpleSpanProcessor(memory))
    remote = NonRecordingSpan(SpanContext(TRACE, PARENT, is_remote=True, trace_flags=TraceFlags(1)))
    span = provider.get_tracer("lib", "1.2").start_span(
        "chat m", set_span_in_context(remote), SpanKind.CLIENT, ATTRIBUTES, start_time=1_795_376_000_100_000_000
    )
    span.add_event("exception", {"exception.type": "E"}, 1_795_376_000_200_000_000)
    span.set_status(Status(StatusCode.ERROR, "it failed"))
    span.end(1_795_376_000_300_000_000)
    official = encode_spans(memory.get_finished_spans())

    ours = a_span(
        span_id=span.get_span_context().span_id.to_bytes(8, "big"),
        parent_id=PARENT.to_bytes(8, "big"),
        kind=CLIENT,
        start_ns=1_795_376_000_100_000_000,
        end_ns=1_795_376_000_300_000_000,
        attributes=ATTRIBUTES,
        status=ERROR,
        status_message="it failed",
        events=[Event(name="exception", time_ns=1_795_376_000_200_000_000, attributes={"exception.type": "E"})],
        remote_parent=True,
    )
    built = encode.traces([({"service.name": "x"}, encode.Scope(name="lib", version="1.2"), [ours])])
    # The SDK adds attributes of its own to the resource.
    del official.resource_spans[0].resource.attributes[:]
    assert plain(built.resource_spans[0].resource.attributes) == {"service.name": "x"}
    del built.resource_spans[0].resource.attributes[:]
    # Bits 0 to 7 are the trace flags of W3C; the SDK leaves them empty.
    assert one_span(built).flags == one_span(official).flags | 1
    one_span(built).flags &= ~1
    assert built.SerializeToString(deterministic=True) == official.SerializeToString(deterministic=True)


def test_a_histogram_is_what_the_official_sdk_makes() -> None:
    reader = InMemoryMetricReader()
    what = INSTRUMENTS["duration"]
    meter = MeterProvider([reader]).get_meter("m")
    histogram = meter.create_histogram(
        what.name, what.unit, what.description, explicit_bucket_boundaries_advisory=what.bounds
    )
    ours = Meter(7)
    # Values on a boundary, below, above, and beyond the last.
    for seconds in (0.01, 0.005, 0.011, 81.92, 1000.0, 0.64):
        histogram.record(seconds, {"a": "b"})
        ours.observe(a_payload(startTime=1000.0, endTime=1000.0 + seconds))
    official = encode_metrics(reader.get_metrics_data()).resource_metrics[0].scope_metrics[0].metrics[0]
    built = (
        encode.metrics([({}, encode.Scope(name="m"), ours.collect(9))]).resource_metrics[0].scope_metrics[0].metrics[0]
    )
    assert (built.name, built.unit, built.description) == (official.name, official.unit, official.description)
    assert built.histogram.aggregation_temporality == official.histogram.aggregation_temporality
    left, right = built.histogram.data_points[0], official.histogram.data_points[0]
    assert list(left.bucket_counts) == list(right.bucket_counts)
    assert list(left.explicit_bounds) == list(right.explicit_bounds)
    assert left.count == right.count == 6
    assert left.sum == pytest.approx(right.sum)
    assert (left.min, left.max) == (pytest.approx(right.min), pytest.approx(right.max))
    assert (left.start_time_unix_nano, left.time_unix_nano) == (7, 9)


def test_json_has_hexadecimal_ids_numbers_of_enums_and_texts_of_long_numbers() -> None:
    span = a_span(kind=CLIENT, attributes={"traceId": "not touched", "n": 5}, parent_id=b"\xff" * 8, status=ERROR)
    message = encode.traces([({}, encode.Scope(name="s"), [span])])
    found = orjson.loads(encode.to_json(message))["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    assert found["traceId"] == f"{TRACE:032x}"
    assert found["spanId"] == b"12345678".hex()
    assert found["parentSpanId"] == "ff" * 8
    assert found["kind"] == 3
    assert found["status"] == {"code": 2}
    assert found["startTimeUnixNano"] == "5"
    assert found["attributes"] == [
        {"key": "traceId", "value": {"stringValue": "not touched"}},
        {"key": "n", "value": {"intValue": "5"}},
    ]
    logs = encode.logs([({}, encode.Scope(name="s"), [_log()])])
    item = orjson.loads(encode.to_json(logs))["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0]
    assert item["traceId"] == f"{TRACE:032x}"
    assert item["spanId"] == b"12345678".hex()
    assert item["severityNumber"] == 13
    assert item["eventName"] == "e"


def _log() -> encode.LogItem:
    return encode.LogItem(
        event_name="e", time_ns=1, observed_ns=2, severity=13, trace_id=TRACE.to_bytes(16, "big"), span_id=b"12345678"
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec=None)), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(st.characters(codec=None)), JSON | st.binary(), max_size=5))
def test_any_value_encodes_and_comes_back(values: dict[str, Any]) -> None:
    message = encode.traces([(values, encode.Scope(name="s"), [a_span(attributes=values)])])
    again = ExportTraceServiceRequest.FromString(message.SerializeToString())
    assert again == message
    orjson.loads(encode.to_json(message))
    found = plain(one_span(again).attributes)
    for name, value in values.items():
        missing = not name or value is None or (isinstance(value, float) and not math.isfinite(value))
        if missing or any(0xD800 <= ord(letter) < 0xE000 for letter in name):
            continue
        if isinstance(value, bool | float) or (isinstance(value, int) and -(1 << 63) <= value < 1 << 63):
            assert found[name] == value
            assert type(found[name]) is type(value)
        elif isinstance(value, int):
            assert found[name] == str(value)
        assert name in found


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_what_is_no_number_is_left_out(value: float | None) -> None:
    assert encode.attributes({"a": value, "": "no name", "b": [value, 1]})[0].key == "b"
    assert value_of(encode.any_value([value, 1])) == [None, 1]


def test_deep_values_become_text() -> None:
    value: Any = "bottom"
    for _ in range(200):
        value = [value]
    message = encode.traces([({}, encode.Scope(name="s"), [a_span(attributes={"deep": value})])])
    assert one_span(ExportTraceServiceRequest.FromString(message.SerializeToString())).attributes[0].key == "deep"
    orjson.loads(encode.to_json(message))


@pytest.mark.parametrize("text", ["a" * 70_000, "ä" * 40_000, "𝄞" * 17_000, "\ud800" * 70_000])
def test_no_attribute_is_above_its_limit(text: str) -> None:
    found = value_of(encode.any_value(text))
    assert len(found.encode()) <= LIMIT
    assert "(truncated, " in found
    nested = encode.any_value([text, {"b": text}])
    assert nested.ByteSize() <= LIMIT + 100


def test_a_text_at_the_limit_stays_whole() -> None:
    assert cut("a" * LIMIT) == "a" * LIMIT
    assert cut("a" * (LIMIT + 1)).endswith(f"...(truncated, {LIMIT + 1} bytes)")


@settings(max_examples=100, deadline=None)
@given(JSON, st.integers(300, 3000))
def test_json_text_is_json_within_its_limit(value: Any, limit: int) -> None:
    raw = json_text([value, "x" * 5000, value], limit)
    assert len(raw.encode()) <= limit
    orjson.loads(raw)


def test_of_a_long_conversation_the_first_and_the_last_messages_stay() -> None:
    messages = [{"role": "user", "parts": [{"type": "text", "content": f"{at} " + "x" * 200}]} for at in range(2000)]
    found = orjson.loads(json_text(messages))
    assert found[0]["parts"][0]["content"].startswith("0 ")
    assert found[-1]["parts"][0]["content"].startswith("1999 ")
    assert "items truncated" in found[1]["parts"][0]["content"]


@pytest.mark.parametrize(("seconds", "nanos"), [(0, 0), (5, 0), (1, 500_000_000), (-5, 0), (86400 * 365, 1), (0, 1)])
def test_retry_info_is_read_as_google_writes_it(seconds: int, nanos: int) -> None:
    info = error_details_pb2.RetryInfo()
    info.retry_delay.seconds, info.retry_delay.nanos = seconds, nanos
    status = status_pb2.Status(code=8, message="too much")
    status.details.add().Pack(error_details_pb2.DebugInfo(detail="x"))
    status.details.add().Pack(info)
    assert retry_delay_s(status.SerializeToString()) == pytest.approx(max(seconds + nanos / 1e9, 0.0))


def test_without_retry_info_there_is_no_delay() -> None:
    assert retry_delay_s(b"") is None
    assert retry_delay_s(status_pb2.Status(code=8, message="m").SerializeToString()) is None
    status = status_pb2.Status()
    status.details.add().Pack(error_details_pb2.RetryInfo())
    assert retry_delay_s(status.SerializeToString()) == 0.0


@given(st.binary(max_size=60))
def test_bytes_of_no_sense_give_no_delay_or_one(raw: bytes) -> None:
    found = retry_delay_s(raw)
    assert found is None or found >= 0


def test_the_receivers_json_parser_reads_ours() -> None:
    """json_format wants base64, OTLP has hexadecimal: everything else is protobuf's own JSON."""
    message = encode.traces([({"a": 1}, encode.Scope(name="s"), [a_span(attributes=ATTRIBUTES)])])
    raw = encode.to_json(message).decode().replace(f"{TRACE:032x}", "S/kvNXezTaajzpKdDg5HNg==")
    raw = raw.replace(b"12345678".hex(), "MTIzNDU2Nzg=")
    assert json_format.Parse(raw, ExportTraceServiceRequest()) == message
