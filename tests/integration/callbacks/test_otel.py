"""The `otel` destination against receivers that decode OTLP: HTTP and gRPC, answers of all kinds, three signals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import orjson
import pytest
from google.rpc import error_details_pb2, status_pb2
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from tests.support.otel_started import KEY, answers, over, problem_of, started
from tests.support.otlp_receiver import OtlpReceiver, plain
from tests.support.records import a_failure, a_record
from tianji_mw.callbacks.base import Record
from tianji_mw.callbacks.otel import Otel
from tianji_mw.callbacks.otlp.exporter import OtlpCallback
from tianji_mw.redact import Secret


@pytest.fixture
async def receiver() -> AsyncIterator[OtlpReceiver]:
    async with OtlpReceiver() as found:
        yield found


def aborts(code: grpc.StatusCode, details: str = "no", **info: Any) -> Callable[[Any], Any]:
    async def answer(context: Any) -> None:
        if info:
            status = status_pb2.Status(code=code.value[0], message=details)
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromMilliseconds(info["retry_ms"])
            status.details.add().Pack(retry)
            context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        await context.abort(code, details)

    return answer


@pytest.mark.parametrize("compression", ["gzip", "none"])
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
async def test_spans_arrive(receiver: OtlpReceiver, protocol: str, compression: str) -> None:
    otel = over(protocol, receiver, compression=compression)
    batch = [a_record(), a_failure()]
    async with started(otel):
        await otel.write(batch)
        await otel.write(batch[:1])
    first, again = receiver.received
    assert (first.signal, first.headers["authorization"], first.headers["x-a"]) == ("traces", KEY, "1")
    if protocol != "grpc":
        assert first.path == "/v1/traces"
        assert first.headers.get("content-encoding") == ("gzip" if compression == "gzip" else None)
    (whole,) = first.message.resource_spans
    assert plain(whole.resource.attributes)["service.name"] == "litellm"
    (scope,) = whole.scope_spans
    assert scope.scope.name == "litellm"
    assert [span.name for span in scope.spans] == ["chat gpt-4o-mini"] * 2 + ["attempt 1 gpt-4o-mini"]
    assert plain(scope.spans[0].attributes)["tianji.call.id"] == batch[0].id
    # The same record again is the same span again, byte for byte.
    assert again.message.resource_spans[0].scope_spans[0].spans[0] == scope.spans[0]


async def test_json(receiver: OtlpReceiver) -> None:
    otel = over("http/json", receiver, metrics=True, events=True)
    async with started(otel):
        await otel.write([a_record()])
    traces, logs, metrics = receiver.received[:3]
    span = traces.message["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    assert (span["traceId"], span["spanId"]) == ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")
    assert span["startTimeUnixNano"] == "1795376000100000000"
    assert traces.headers["content-type"] == "application/json"
    assert logs.message["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0]["spanId"] == "00f067aa0ba902b7"
    assert (
        metrics.message["resourceMetrics"][0]["scopeMetrics"][0]["metrics"][0]["histogram"]["aggregationTemporality"]
        == 2
    )


async def test_the_official_exporter_sends_the_same_request(receiver: OtlpReceiver) -> None:
    """Path, headers and outline of a request are those of OpenTelemetry's own exporter."""
    provider = TracerProvider()
    exporter = OTLPSpanExporter(f"{receiver.url}/v1/traces", headers={"x-a": "1"}, compression=_gzip())
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    await asyncio.to_thread(lambda: provider.get_tracer("t").start_span("s").end())
    await asyncio.to_thread(provider.shutdown)
    async with started(otel := over("http/protobuf", receiver)):
        await otel.write([a_record()])
    official, ours = receiver.received
    assert official.path == ours.path
    for name in ("content-type", "content-encoding", "x-a"):
        assert official.headers[name] == ours.headers[name]
    for message in (official.message, ours.message):
        assert len(message.resource_spans) == len(message.resource_spans[0].scope_spans) == 1


def _gzip() -> Any:
    from opentelemetry.exporter.otlp.proto.http import Compression

    return Compression.Gzip


# --- answers


@pytest.mark.parametrize(
    ("status", "headers", "retry", "pause"),
    [
        (429, {"Retry-After": "7"}, True, 7.0),
        (503, {"Retry-After": "99999999"}, True, 3600.0),
        (502, {}, True, None),
        (504, {"Retry-After": "soon"}, True, None),
        (500, {}, True, None),
        (401, {}, True, None),
        (403, {}, True, None),
        (404, {}, True, None),
        (400, {}, False, None),
        (402, {}, False, None),
        (413, {}, False, None),
        (415, {}, False, None),
        (422, {}, False, None),
        (501, {}, False, None),
        (302, {"Location": "http://127.0.0.1:1/"}, True, None),
    ],
)
async def test_http_errors(
    receiver: OtlpReceiver, status: int, headers: dict[str, str], retry: bool, pause: float | None
) -> None:
    receiver.script.append(answers(status, headers, f"your key {KEY} is wrong".encode()))
    async with started(otel := over("http/protobuf", receiver)):
        problem = await problem_of(otel, a_record(), a_record())
        assert (problem.retry, problem.retry_after_s, problem.failed, problem.refused) == (retry, pause, None, ())
        assert f"OpenTelemetry answered {status}" in problem.message
        await otel.write([a_record()])


async def test_retry_after_as_a_date(receiver: OtlpReceiver) -> None:
    receiver.script.append(answers(503, {"Retry-After": "Fri, 01 Jan 2100 00:00:00 GMT"}))
    async with started(otel := over("http/protobuf", receiver)):
        assert (await problem_of(otel, a_record())).retry_after_s == 3600.0


@pytest.mark.parametrize(
    ("code", "info", "retry", "pause"),
    [
        ("UNAVAILABLE", {}, True, None),
        ("UNAVAILABLE", {"retry_ms": 1500}, True, 1.5),
        ("RESOURCE_EXHAUSTED", {}, False, None),
        ("RESOURCE_EXHAUSTED", {"retry_ms": 2000}, True, 2.0),
        ("DEADLINE_EXCEEDED", {}, True, None),
        ("ABORTED", {}, True, None),
        ("OUT_OF_RANGE", {}, True, None),
        ("CANCELLED", {}, True, None),
        ("DATA_LOSS", {}, True, None),
        ("UNAUTHENTICATED", {}, True, None),
        ("PERMISSION_DENIED", {}, True, None),
        ("UNIMPLEMENTED", {}, True, None),
        ("INVALID_ARGUMENT", {}, False, None),
        ("INTERNAL", {}, False, None),
        ("UNKNOWN", {}, False, None),
        ("FAILED_PRECONDITION", {}, False, None),
    ],
)
async def test_grpc_errors(
    receiver: OtlpReceiver, code: str, info: dict[str, int], retry: bool, pause: float | None
) -> None:
    receiver.script.append(aborts(grpc.StatusCode[code], f"key {KEY} is wrong", **info))
    async with started(otel := over("grpc", receiver)):
        problem = await problem_of(otel, a_record(), a_record())
        assert (problem.retry, problem.retry_after_s, problem.failed) == (retry, pause, None)
        assert f"OpenTelemetry answered {code}" in problem.message
        await otel.write([a_record()])


@pytest.mark.parametrize("protocol", ["http/protobuf", "http/json", "grpc"])
async def test_a_partial_success_is_counted_and_not_sent_again(receiver: OtlpReceiver, protocol: str) -> None:
    partial = ExportTraceServiceResponse(
        partial_success=ExportTracePartialSuccess(rejected_spans=2, error_message="hi is no good content")
    )

    async def grpc_answer(context: Any) -> Any:
        return partial

    in_json = orjson.dumps({"partialSuccess": {"rejectedSpans": "2", "errorMessage": "x"}})
    if protocol == "grpc":
        receiver.script.append(grpc_answer)
    elif protocol == "http/json":
        receiver.script.append(answers(200, {"Content-Type": "application/json"}, in_json))
    else:
        receiver.script.append(answers(200, {"Content-Type": "application/x-protobuf"}, partial.SerializeToString()))
    async with started(otel := over(protocol, receiver)) as runtime:
        await otel.write([a_record(), a_record()])
    assert runtime.counts["otlp_rejected", "OpenTelemetry traces"] == 2
    assert len(receiver.received) == 1


@pytest.mark.parametrize("body", [b"OK", b"\xff\xff", b"{}", b"[1]", b'{"partialSuccess":{"rejectedSpans":"x"}}', b""])
@pytest.mark.parametrize("kind", ["application/json", "text/plain"])
async def test_any_answer_of_200_is_success(receiver: OtlpReceiver, body: bytes, kind: str) -> None:
    receiver.script.append(answers(200, {"Content-Type": kind}, body))
    async with started(otel := over("http/protobuf", receiver)):
        await otel.write([a_record()])


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
async def test_silence_is_worth_another_attempt(receiver: OtlpReceiver, protocol: str) -> None:
    async def never(*_: Any) -> Any:
        await asyncio.sleep(30)

    receiver.script.append(never)
    async with started(otel := over(protocol, receiver, timeout_s=0.2)):
        assert (await problem_of(otel, a_record())).retry


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
async def test_nobody_listens(protocol: str) -> None:
    otel = Otel.model_validate({"protocol": protocol, "endpoint": "http://127.0.0.1:1", "headers": f"a={KEY}"})
    async with started(otel):
        assert (await problem_of(otel, a_record())).retry


async def test_a_batch_with_odd_and_large_records(receiver: OtlpReceiver) -> None:
    large = a_record(messages=[{"role": "user", "content": "ü" * 600_000}])
    empty = Record.of("019a0c5f-1111-7222-8333-944455556666", {})
    nulls = Record.of("019a0c5f-1111-7222-8333-944455556667", dict.fromkeys(a_record().data))
    async with started(otel := over("http/protobuf", receiver, events=True, metrics=True)):
        await otel.write([large, empty, nulls, a_record()])
    spans = receiver.spans()
    assert len(spans) == 4
    assert len({span.span_id for span in spans}) == 4 - 1  # the two plain records have the same span id by default
    assert spans[0].ByteSize() < 70_000
    assert spans[1].start_time_unix_nano > 0


# --- groups


class Routed(OtlpCallback):
    """A vendor with a key for each team and a project as resource."""

    title = "Routed"

    def resource(self, record: Record) -> dict[str, Any]:
        return {"project": record.data["metadata"]["user_api_key_team_id"]}

    def extra_headers(self, record: Record) -> dict[str, Any]:
        return {"x-key": Secret(f"sk-very-secret-{record.data['metadata']['user_api_key_org_id']}")}


def of_team(team: str, key: str) -> Record:
    return a_record(metadata={"user_api_key_team_id": team, "user_api_key_org_id": key})


async def test_records_are_grouped_by_headers_and_resources(receiver: OtlpReceiver) -> None:
    a1, b1, a2, other = of_team("a", "1"), of_team("b", "1"), of_team("a", "1"), of_team("a", "2")
    receiver.script += [answers(200), answers(400, {}, b"bad key sk-very-secret-2")]
    async with started(routed := Routed(endpoint=receiver.url)):
        problem = await problem_of(routed, a1, b1, other, a2)
    first, second = receiver.received
    assert (first.headers["x-key"], second.headers["x-key"]) == ("sk-very-secret-1", "sk-very-secret-2")
    projects = [plain(whole.resource.attributes)["project"] for whole in first.message.resource_spans]
    assert projects == ["a", "b"]
    assert [len(whole.scope_spans[0].spans) for whole in first.message.resource_spans] == [2, 1]
    # Only the record of the request that was refused.
    assert (problem.failed, problem.refused) == ([], [other])


async def test_of_several_requests_only_those_that_failed_come_again(receiver: OtlpReceiver) -> None:
    first, second, third = of_team("a", "1"), of_team("a", "2"), of_team("a", "2")
    receiver.script += [answers(200), answers(429, {"Retry-After": "3"})]
    async with started(routed := Routed(endpoint=receiver.url)):
        problem = await problem_of(routed, first, second, third)
    assert (problem.failed, problem.refused, problem.retry_after_s) == ([second, third], [], 3.0)


async def test_a_request_above_the_receivers_limit_is_halved_by_the_outbox(receiver: OtlpReceiver) -> None:
    """A gRPC server takes 4 MB; what is larger it refuses with RESOURCE_EXHAUSTED and no RetryInfo."""
    content = [{"role": "user", "content": "x" * 30_000}, {"role": "user", "content": "y" * 30_000}]
    batch = [a_record(messages=content) for _ in range(100)]
    async with started(otel := over("grpc", receiver, max_batch_bytes=16 << 20)):
        problem = await problem_of(otel, *batch)
        assert "RESOURCE_EXHAUSTED" in problem.message
        assert (problem.retry, problem.failed) == (False, None)
        await otel.write(batch[:50])
    assert len(receiver.spans()) == 50
