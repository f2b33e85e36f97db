"""Metrics, events, lines in files and on the console: what `otel` has beside spans."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsPartialSuccess,
    ExportLogsServiceResponse,
)

from tests.support.otel_started import answers, over, problem_of, started
from tests.support.otlp_receiver import OtlpReceiver, plain
from tests.support.records import a_failure, a_record
from tianji_mw.callbacks.base import Record
from tianji_mw.callbacks.otel import Otel


@pytest.fixture
async def receiver() -> AsyncIterator[OtlpReceiver]:
    async with OtlpReceiver() as found:
        yield found


# --- metrics and events


def histograms(message: Any) -> dict[str, Any]:
    (whole,) = message.resource_metrics
    return {metric.name: metric for metric in whole.scope_metrics[0].metrics}


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
async def test_metrics_are_sums_since_the_start(receiver: OtlpReceiver, protocol: str) -> None:
    async with started(otel := over(protocol, receiver, metrics=True)):
        await otel.write([a_record(), a_record()])
        await otel.write([a_failure()])
    first, second = receiver.of("metrics")
    before = histograms(first)["gen_ai.client.operation.duration"].histogram.data_points
    after = histograms(second)["gen_ai.client.operation.duration"].histogram.data_points
    assert [point.count for point in before] == [2]
    assert sorted(point.count for point in after) == [1, 2]
    assert {point.start_time_unix_nano for point in after} == {before[0].start_time_unix_nano}
    assert after[0].time_unix_nano >= before[0].time_unix_nano > before[0].start_time_unix_nano
    for point in after:
        names = plain(point.attributes)
        assert not [
            name for name in names if "tianji" in name or "key" in name or "trace" in name or name.endswith(".id")
        ]
    assert second.resource_metrics[0].scope_metrics[0].scope.name == "litellm"
    assert list(before[0].explicit_bounds)[:2] == [0.01, 0.02]


async def test_a_record_that_comes_again_counts_once(receiver: OtlpReceiver) -> None:
    receiver.script += [answers(503), answers(200), answers(200), answers(200), answers(200)]
    record = a_record()
    async with started(otel := over("http/protobuf", receiver, metrics=True)):
        await problem_of(otel, record)
        assert receiver.of("metrics") == []
        await otel.write([record])
        await otel.write([record])
    point = histograms(receiver.of("metrics")[-1])["gen_ai.client.operation.duration"].histogram.data_points[0]
    assert point.count == 1


async def test_metrics_that_failed_are_in_the_next_export(receiver: OtlpReceiver) -> None:
    receiver.script += [answers(200), answers(503)]
    async with started(otel := over("http/protobuf", receiver, metrics=True)):
        await otel.write([a_record()])
    # Closing sends what was not taken.
    failed, last = receiver.of("metrics")
    assert histograms(last).keys() == histograms(failed).keys()
    assert histograms(last)["gen_ai.client.token.usage"].histogram.data_points[0].count == 1


async def test_events(receiver: OtlpReceiver) -> None:
    async with started(otel := over("http/protobuf", receiver, events=True, content="EVENT_ONLY")):
        await otel.write([a_record(), a_failure("The provider failed.")])
    (message,) = receiver.of("logs")
    items = message.resource_logs[0].scope_logs[0].log_records
    assert [item.event_name for item in items] == [
        "gen_ai.client.inference.operation.details",
        "gen_ai.client.inference.operation.details",
        "gen_ai.client.operation.exception",
    ]
    spans = receiver.spans()
    assert (items[0].trace_id, items[0].span_id) == (spans[0].trace_id, spans[0].span_id)
    told = plain(items[0].attributes)
    assert json.loads(told["gen_ai.input.messages"])[1]["parts"][0]["content"] == "hi"
    assert told["gen_ai.usage.input_tokens"] == 12
    assert "gen_ai.input.messages" not in plain(spans[0].attributes)
    assert (items[2].severity_number, items[2].severity_text) == (13, "WARN")
    assert plain(items[2].attributes) == {
        "exception.type": "UpstreamError", "exception.message": "The provider failed.",
    }  # fmt: skip


@pytest.mark.parametrize("status", [404, 400, 501])
async def test_a_backend_without_logs_and_metrics_still_gets_traces(receiver: OtlpReceiver, status: int) -> None:
    receiver.script += [answers(200), answers(status), answers(status)]
    async with started(otel := over("http/protobuf", receiver, events=True, metrics=True)) as runtime:
        await otel.write([a_record()])
    assert [one.signal for one in receiver.received] == ["traces", "logs", "metrics"]
    assert runtime.counts["otlp_signal_lost", "OpenTelemetry logs"] == 1
    assert runtime.counts["otlp_signal_lost", "OpenTelemetry metrics"] == 1


async def test_events_that_fail_for_a_while_come_again(receiver: OtlpReceiver) -> None:
    receiver.script += [answers(200), answers(503, {"Retry-After": "2"})]
    record = a_record()
    async with started(otel := over("http/protobuf", receiver, events=True)):
        problem = await problem_of(otel, record)
        assert (problem.retry, problem.retry_after_s) == (True, 2.0)
        await otel.write([record])
    first, again = receiver.spans()
    assert first == again
    assert len(receiver.of("logs")) == 2


async def test_rejected_log_records_are_counted(receiver: OtlpReceiver) -> None:
    partial = ExportLogsServiceResponse(partial_success=ExportLogsPartialSuccess(rejected_log_records=1))
    kind = {"Content-Type": "application/x-protobuf"}
    receiver.script += [answers(200), answers(200, kind, partial.SerializeToString())]
    async with started(otel := over("http/protobuf", receiver, events=True)) as runtime:
        await otel.write([a_record()])
    assert runtime.counts["otlp_rejected", "OpenTelemetry logs"] == 1


# --- lines


async def test_a_file_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    for _ in range(2):
        async with started(otel := Otel(protocol="file", path=str(path), events=True, metrics=True)):
            await otel.write([a_record()])
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [next(iter(line)) for line in lines] == ["resourceSpans", "resourceLogs", "resourceMetrics"] * 2
    assert lines[0]["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["traceId"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_full_disk_is_no_loss() -> None:
    async with started(otel := Otel(protocol="file", path="/dev/full")):
        problem = await problem_of(otel, a_record())
    assert problem.retry
    assert "No space left" in problem.message


async def test_the_console(capsys: pytest.CaptureFixture[str]) -> None:
    async with started(otel := Otel()):
        await otel.write([a_record(messages=[{"role": "user", "content": "ünï"}])])
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["resourceSpans"]
    assert "ünï" in line


async def test_what_was_written_can_be_sent_again(tmp_path: Path, receiver: OtlpReceiver) -> None:
    """A line is the body of a request in OTLP's JSON."""
    import httpx

    path = tmp_path / "spans.jsonl"
    async with started(otel := Otel(protocol="file", path=str(path))):
        await otel.write([a_record()])
    async with httpx.AsyncClient() as client:
        headers = {"content-type": "application/json"}
        answer = await client.post(f"{receiver.url}/v1/traces", content=path.read_bytes().strip(), headers=headers)
    assert answer.status_code == 200
    assert receiver.received[0].message["resourceSpans"]


async def test_two_writes_at_once(receiver: OtlpReceiver) -> None:
    shared = [a_record() for _ in range(50)]
    again = [Record(record.id, record.raw) for record in shared]
    async with started(otel := over("http/protobuf", receiver, events=True, metrics=True)):
        # The same records, undecoded, at the same time: another destination may decode them meanwhile.
        await asyncio.gather(otel.write(again), otel.write(again), otel.write(shared))
    assert len(receiver.spans()) == 150
    point = histograms(receiver.of("metrics")[-1])["gen_ai.client.operation.duration"].histogram.data_points[0]
    assert point.count == 50
