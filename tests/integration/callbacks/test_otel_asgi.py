"""Beside OpenTelemetry's own ASGI instrumentation, the span of a call is a child of its server span."""

from __future__ import annotations

from typing import Any

import httpx
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from tests.support.records import a_payload, a_record
from tianji_mw.callbacks.otlp.spans import spans_of
from tianji_mw.callbacks.record.trace_context import TraceContext, current_span, outgoing, trace_context
from tianji_mw.headers import RequestHeaders

CALL = "019a0c5f-1111-7222-8333-944455556666"
TRACE, CLIENT_SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


async def called(headers: dict[str, str]) -> tuple[TraceContext, Any]:
    """Our context of one request below the instrumentation, and its server span."""
    found: list[TraceContext] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        found.append(trace_context(RequestHeaders(scope["headers"]), CALL, current_span()))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    memory = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    # A provider of its own: the process's global one stays as it is.
    wrapped = OpenTelemetryMiddleware(app, tracer_provider=provider)
    transport = httpx.ASGITransport(app=wrapped)
    async with httpx.AsyncClient(transport=transport, base_url="http://gw") as client:
        assert (await client.post("/v1/chat/completions", headers=headers)).status_code == 200
    (server,) = [span for span in memory.get_finished_spans() if span.kind is SpanKind.SERVER]
    return found[0], server


async def test_our_span_is_a_child_of_the_server_span_which_is_a_child_of_the_clients() -> None:
    context, server = await called({"traceparent": f"00-{TRACE}-{CLIENT_SPAN}-01", "tracestate": "a=1"})
    assert f"{server.parent.span_id:016x}" == CLIENT_SPAN
    assert context.parent_id == f"{server.context.span_id:016x}"
    assert (context.trace_id, context.sampled, context.state) == (TRACE, True, "a=1")
    assert outgoing(context)["traceparent"] == f"00-{TRACE}-{context.span_id}-01"
    ours = {**a_payload()["tianji"], "trace_id": context.trace_id, "span_id": context.span_id,
            "parent_span_id": context.parent_id}  # fmt: skip
    (span,) = spans_of(a_record(tianji=ours))
    assert span.trace_id == server.context.trace_id.to_bytes(16, "big")
    assert span.parent_id == server.context.span_id.to_bytes(8, "big")


async def test_without_a_client_span_the_trace_is_the_instrumentations() -> None:
    context, server = await called({})
    assert server.parent is None
    assert context.trace_id == f"{server.context.trace_id:032x}"
    assert context.parent_id == f"{server.context.span_id:016x}"
