"""From a config in LiteLLM's spelling and in ours, over real calls, to spans at an OTLP receiver."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from tests.support.otlp_receiver import OtlpReceiver, plain
from tests.support.stack import ANSWER, CHAT, STREAM, Serve, stream_of
from tianji_mw.stack import Stack
from tianji_mw.testing import FakeLLM, Reply, drive

MODELS = """
model_list:
  - model_name: gpt-4o
    litellm_params: {{model: openai/gpt-4o-2024, api_base: '{url}/v1', api_key: sk-key}}
"""
LITELLM = """
litellm_settings:
  num_retries: 0
  callbacks: ["otel"]
callback_settings:
  otel: {{message_logging: false, flush_interval_s: 0.02}}
"""
OURS = """
settings:
  num_retries: 0
  callback_configs:
    - type: otel
      endpoint: '{otlp}'
      protocol: {protocol}
      headers: {{x-key: os.environ/COLLECTOR_KEY}}
      service_name: gateway
      metrics: true
      events: true
      flush_interval_s: 0.02
"""
TRACE, CLIENT_SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADERS = {"traceparent": f"00-{TRACE}-{CLIENT_SPAN}-01"}


def stack_of(folder: Path, text: str, env: Mapping[str, str] | None = None) -> Any:
    path = folder / "config.yaml"
    path.write_text(text)
    return Stack.from_config(path, env=env or {"COLLECTOR_KEY": "sk-collector"}).app


async def arrived(otlp: OtlpReceiver, spans: int, *signals: str) -> list[Any]:
    async with asyncio.timeout(20):
        while len(otlp.spans()) < spans or not all(otlp.of(signal) for signal in signals):
            await asyncio.sleep(0.02)
    return otlp.spans()


async def test_litellms_config_and_variables(tmp_path: Path, serve: Serve) -> None:
    async with FakeLLM() as llm, OtlpReceiver() as otlp:
        llm.replies.append(Reply.json(ANSWER))
        env = {
            "OTEL_EXPORTER": "otlp_http",
            "OTEL_ENDPOINT": otlp.url,
            "OTEL_HEADERS": "x-key=sk-collector",
            "OTEL_SERVICE_NAME": "shop",
            "OTEL_ENVIRONMENT_NAME": "test",
            "OTEL_RESOURCE_ATTRIBUTES": "service.version=7",
            "OTEL_SEMCONV_STABILITY_OPT_IN": "gen_ai_latest_experimental",
        }
        app = await serve(stack_of(tmp_path, (MODELS + LITELLM).format(url=llm.url), env))
        answer = await drive(app, CHAT, headers=HEADERS)
        (span,) = await arrived(otlp, 1)
    assert answer.status == 200
    (received,) = otlp.received
    assert received.headers["x-key"] == "sk-collector"
    resource = plain(received.message.resource_spans[0].resource.attributes)
    assert (resource["service.name"], resource["deployment.environment"]) == ("shop", "test")
    assert resource["service.version"] == "7"
    assert (span.name, span.trace_id.hex(), span.parent_span_id.hex()) == ("chat gpt-4o-2024", TRACE, CLIENT_SPAN)
    found = plain(span.attributes)
    assert found["gen_ai.usage.input_tokens"] == 3
    assert "gen_ai.system" not in found
    assert "Hello you" not in str(received.message)
    assert "sk-key" not in str(received.message)


async def test_our_config_with_all_signals_streams_and_failures(tmp_path: Path, serve: Serve) -> None:
    async with FakeLLM() as llm, OtlpReceiver() as otlp:
        llm.replies += [
            Reply.events(*stream_of("Hello", " you")),
            Reply.json({"error": {"message": "busy"}}, status=500),
        ]
        text = (MODELS + OURS).format(url=llm.url, otlp=f"http://{otlp.target}", protocol="grpc")
        app = await serve(stack_of(tmp_path, text))
        for body in (STREAM, CHAT):
            await drive(app, body)
        spans = await arrived(otlp, 3, "metrics", "logs")
    assert {received.headers["x-key"] for received in otlp.received} == {"sk-collector"}
    stream = next(span for span in spans if not span.status.code)
    found = plain(stream.attributes)
    assert found["gen_ai.request.stream"] is True
    assert found["gen_ai.response.time_to_first_chunk"] >= 0
    assert json.loads(found["gen_ai.output.messages"])[0]["parts"] == [{"type": "text", "content": "Hello you"}]
    failed, attempt = (span for span in spans if span.status.code == 2)
    assert attempt.parent_span_id == failed.span_id
    assert plain(failed.attributes)["error.type"]
    assert failed.events[0].name == "exception"


async def test_the_collector_is_down_and_comes_back(tmp_path: Path, serve: Serve) -> None:
    async with FakeLLM() as llm, OtlpReceiver() as otlp:
        llm.replies += [Reply.json(ANSWER), Reply.json(ANSWER)]
        otlp.script += [lambda: (503, {}, b""), lambda: (400, {}, b"")]
        text = (MODELS + OURS).format(url=llm.url, otlp=otlp.url, protocol="http/protobuf")
        app = await serve(stack_of(tmp_path, text))
        await drive(app, CHAT)
        # 503 is tried again; then 400 refuses the one record for ever.
        async with asyncio.timeout(20):
            while otlp.script:
                await asyncio.sleep(0.02)
        await drive(app, CHAT)
        spans = await arrived(otlp, 3)
    assert spans[0].span_id == spans[1].span_id != spans[2].span_id


async def test_below_opentelemetrys_instrumentation(tmp_path: Path, serve: Serve) -> None:
    memory = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    async with FakeLLM() as llm, OtlpReceiver() as otlp:
        llm.replies.append(Reply.json(ANSWER))
        text = (MODELS + OURS).format(url=llm.url, otlp=otlp.url, protocol="http/protobuf")
        app = await serve(stack_of(tmp_path, text))
        await drive(OpenTelemetryMiddleware(app, tracer_provider=provider), CHAT, headers=HEADERS)
        (span,) = await arrived(otlp, 1)
    (server,) = [one for one in memory.get_finished_spans() if one.kind is SpanKind.SERVER]
    assert f"{server.parent.span_id:016x}" == CLIENT_SPAN
    assert span.trace_id.hex() == TRACE
    assert span.parent_span_id == server.context.span_id.to_bytes(8, "big")
