"""Spans, histograms and log records as OTLP: groups of (resource, scope, items) become one request. Pure.

Source: opentelemetry-proto 1.x; the JSON form after the OTLP specification, section "JSON Protobuf Encoding".
Needs the extra `otel`.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord as PbLogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, HistogramDataPoint
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric as PbMetric
from opentelemetry.proto.trace.v1.trace_pb2 import Span as PbSpan

from tianji_mw.callbacks.otlp.limits import LIMIT, clean, cut, json_text
from tianji_mw.callbacks.otlp.spans import Attributes, Span, Value

__all__ = [
    "ANSWERS", "DecodeError", "Histogram", "LogItem", "Message", "Point", "Scope",
    "any_value", "attributes", "logs", "metrics", "to_json", "traces",
]  # fmt: skip

#: An export request of any signal.
Message: TypeAlias = ExportTraceServiceRequest | ExportMetricsServiceRequest | ExportLogsServiceRequest

#: Parsers of the answers, by signal.
ANSWERS: Final[Mapping[str, Callable[[bytes], Any]]] = {
    "traces": ExportTraceServiceResponse.FromString,
    "metrics": ExportMetricsServiceResponse.FromString,
    "logs": ExportLogsServiceResponse.FromString,
}

_INT64: Final = 1 << 63
#: Levels of lists and maps that become values of their own; deeper ones become JSON.
_DEPTH: Final = 16
#: Flags of a span: sampled, and whether it is known that the parent is remote, and that it is.
_SAMPLED: Final = 0x001
_HAS_REMOTE: Final = 0x100
_REMOTE: Final = 0x200


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Who instruments: name and version."""

    name: str
    version: str = ""


@dataclass(slots=True, kw_only=True)
class LogItem:
    """One log record. `severity`: 9 INFO, 13 WARN, 17 ERROR."""

    event_name: str
    time_ns: int
    observed_ns: int
    severity: int = 9
    severity_text: str = "INFO"
    body: Value = None
    attributes: dict[str, Value] = field(default_factory=dict)
    trace_id: bytes = b""
    span_id: bytes = b""
    sampled: bool = True


@dataclass(slots=True, kw_only=True)
class Point:
    """One series of a histogram, cumulative."""

    attributes: Attributes
    start_ns: int
    time_ns: int
    bounds: Sequence[float]
    counts: Sequence[int]
    total: float
    low: float
    high: float


@dataclass(slots=True, kw_only=True)
class Histogram:
    """One histogram with all its series."""

    name: str
    unit: str
    description: str = ""
    points: list[Point] = field(default_factory=list)


def traces(groups: Iterable[tuple[Attributes, Scope, Iterable[Span]]]) -> ExportTraceServiceRequest:
    """The request of these spans."""
    request = ExportTraceServiceRequest()
    for resource, scope, spans in groups:
        whole = request.resource_spans.add()
        whole.resource.attributes.extend(attributes(resource))
        inner = whole.scope_spans.add(scope=_scope(scope))
        inner.spans.extend(_span(span) for span in spans)
    return request


def metrics(groups: Iterable[tuple[Attributes, Scope, Iterable[Histogram]]]) -> ExportMetricsServiceRequest:
    """The request of these histograms."""
    request = ExportMetricsServiceRequest()
    for resource, scope, histograms in groups:
        whole = request.resource_metrics.add()
        whole.resource.attributes.extend(attributes(resource))
        inner = whole.scope_metrics.add(scope=_scope(scope))
        inner.metrics.extend(_histogram(histogram) for histogram in histograms)
    return request


def logs(groups: Iterable[tuple[Attributes, Scope, Iterable[LogItem]]]) -> ExportLogsServiceRequest:
    """The request of these log records."""
    request = ExportLogsServiceRequest()
    for resource, scope, items in groups:
        whole = request.resource_logs.add()
        whole.resource.attributes.extend(attributes(resource))
        inner = whole.scope_logs.add(scope=_scope(scope))
        inner.log_records.extend(_log(item) for item in items)
    return request


def attributes(values: Attributes, limit: int = LIMIT) -> list[KeyValue]:
    """The attributes that have a value: without None, NaN, infinity and empty names; none is above `limit` bytes."""
    pairs = []
    for name, value in values.items():
        if not isinstance(name, str) or not name or value is None:
            continue
        if isinstance(value, float) and not math.isfinite(value):
            continue
        pairs.append(KeyValue(key=clean(name), value=any_value(value, limit)))
    return pairs


def any_value(value: Value, limit: int = LIMIT) -> AnyValue:
    """The value in its own type; what has none, or is nested too deep, as text."""
    simple = _simple(value, limit)
    if simple is not None:
        return simple
    if _size(value, limit, _DEPTH) > limit:
        return AnyValue(string_value=json_text(value, limit))
    return _nested(value, limit, _DEPTH)


def _simple(value: Any, limit: int) -> AnyValue | None:
    if isinstance(value, str):
        return AnyValue(string_value=cut(value, limit))
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        if -_INT64 <= value < _INT64:
            return AnyValue(int_value=value)
        return AnyValue(string_value=json_text(value).strip('"'))
    if isinstance(value, float):
        return AnyValue(double_value=value) if math.isfinite(value) else AnyValue()
    if isinstance(value, bytes):
        return AnyValue(bytes_value=value[:limit])
    if value is None:
        return AnyValue()
    if isinstance(value, (Mapping, list, tuple)):
        return None
    return AnyValue(string_value=cut(str(value), limit))


def _nested(value: Any, limit: int, depth: int) -> AnyValue:
    simple = _simple(value, limit)
    if simple is not None:
        return simple
    if depth == 0:
        return AnyValue(string_value=json_text(value, limit))
    found = AnyValue()
    if isinstance(value, Mapping):
        found.kvlist_value.SetInParent()
        pairs = (KeyValue(key=clean(str(k)), value=_nested(v, limit, depth - 1)) for k, v in value.items())
        found.kvlist_value.values.extend(pairs)
    else:
        found.array_value.SetInParent()
        found.array_value.values.extend(_nested(item, limit, depth - 1) for item in value)
    return found


def _size(value: Any, limit: int, depth: int) -> int:
    """About how many bytes the value has; counts no further than `limit`."""
    if isinstance(value, str):
        return 4 + (len(value) if value.isascii() else len(value.encode("utf-8", "replace")))
    if isinstance(value, bytes):
        return len(value) + 4
    if depth == 0 or not isinstance(value, (Mapping, list, tuple)):
        return 12
    total = 4
    items = value.items() if isinstance(value, Mapping) else value
    for item in items:
        total += _size(item, limit, depth - (not isinstance(item, tuple)))
        if total > limit:
            break
    return total


def _scope(scope: Scope) -> InstrumentationScope:
    return InstrumentationScope(name=clean(scope.name), version=clean(scope.version))


def _span(span: Span) -> PbSpan:
    remote = _REMOTE if span.remote_parent else 0
    kind: Any = span.kind
    status: Any = span.status
    found = PbSpan(
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_span_id=span.parent_id or b"",
        trace_state=clean(span.state),
        name=cut(span.name, 1024),
        kind=kind,
        start_time_unix_nano=span.start_ns,
        end_time_unix_nano=span.end_ns,
        attributes=attributes(span.attributes),
        flags=(_SAMPLED if span.sampled else 0) | _HAS_REMOTE | remote,
    )
    for event in span.events:
        found.events.add(name=clean(event.name), time_unix_nano=event.time_ns, attributes=attributes(event.attributes))
    if span.status:
        found.status.code = status
        found.status.message = cut(span.status_message, 4096)
    return found


def _log(item: LogItem) -> PbLogRecord:
    severity: Any = item.severity
    return PbLogRecord(
        time_unix_nano=item.time_ns,
        observed_time_unix_nano=item.observed_ns,
        severity_number=severity,
        severity_text=item.severity_text,
        body=any_value(item.body) if item.body is not None else None,
        attributes=attributes(item.attributes),
        flags=_SAMPLED if item.sampled else 0,
        trace_id=item.trace_id,
        span_id=item.span_id,
        event_name=item.event_name,
    )


def _histogram(histogram: Histogram) -> PbMetric:
    found = PbMetric(name=histogram.name, unit=histogram.unit, description=histogram.description)
    found.histogram.aggregation_temporality = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
    for point in histogram.points:
        found.histogram.data_points.append(
            HistogramDataPoint(
                attributes=attributes(point.attributes),
                start_time_unix_nano=point.start_ns,
                time_unix_nano=point.time_ns,
                count=sum(point.counts),
                sum=point.total,
                bucket_counts=point.counts,
                explicit_bounds=point.bounds,
                min=point.low,
                max=point.high,
            )
        )
    return found


# --- JSON

#: Fields that hold an id; everywhere else bytes are base64.
_IDS: Final = frozenset({"traceId", "spanId", "parentSpanId"})


def to_json(message: Message) -> bytes:
    """The request in OTLP's JSON: ids in hexadecimal, enums as numbers, 64-bit numbers as text."""
    found = MessageToDict(message, use_integers_for_enums=True)
    _hexadecimal(found)
    return json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode()


def _hexadecimal(request: dict[str, Any]) -> None:
    """Rewrite the ids. They stand at known places only: an attribute of the same name is somebody's text."""
    for whole in request.get("resourceSpans", []):
        for scope in whole.get("scopeSpans", []):
            for span in scope.get("spans", []):
                _rewrite(span)
    for whole in request.get("resourceLogs", []):
        for scope in whole.get("scopeLogs", []):
            for item in scope.get("logRecords", []):
                _rewrite(item)


def _rewrite(item: dict[str, Any]) -> None:
    for name in _IDS & item.keys():
        item[name] = base64.b64decode(item[name]).hex()
