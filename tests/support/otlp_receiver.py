"""An OTLP receiver over HTTP and gRPC: decodes with opentelemetry-proto, keeps what came, answers by a script."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
import grpc.aio
import orjson
from aiohttp import web
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb2

SIGNALS = {
    "traces": (trace_pb2.ExportTraceServiceRequest, trace_pb2.ExportTraceServiceResponse, "trace"),
    "metrics": (metrics_pb2.ExportMetricsServiceRequest, metrics_pb2.ExportMetricsServiceResponse, "metrics"),
    "logs": (logs_pb2.ExportLogsServiceRequest, logs_pb2.ExportLogsServiceResponse, "logs"),
}  # fmt: skip


@dataclass(frozen=True)
class Received:
    signal: str
    path: str
    headers: dict[str, str]
    #: Decoded: a message, or of JSON a dict.
    message: Any


@dataclass
class OtlpReceiver:
    """`script`: for each request to come, a function that gives the answer; then all is well."""

    received: list[Received] = field(default_factory=list)
    #: HTTP: (status, headers, body). gRPC: a coroutine that gets the context.
    script: list[Callable[..., Any]] = field(default_factory=list)
    url: str = ""
    target: str = ""

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/{rest:.*}", self._post)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
        self._grpc = grpc.aio.server()
        for signal, (asked, answered, name) in SIGNALS.items():
            handler = grpc.unary_unary_rpc_method_handler(
                self._handler(signal, answered),
                request_deserializer=asked.FromString,
                response_serializer=answered.SerializeToString,
            )
            service = f"opentelemetry.proto.collector.{name}.v1.{name.capitalize()}Service"
            self._grpc.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {"Export": handler})])
        self.target = f"127.0.0.1:{self._grpc.add_insecure_port('127.0.0.1:0')}"
        await self._grpc.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._grpc.stop(None)
        await self._runner.cleanup()

    def of(self, signal: str) -> list[Any]:
        return [one.message for one in self.received if one.signal == signal]

    def spans(self) -> list[Any]:
        return [
            span
            for message in self.of("traces")
            for whole in message.resource_spans
            for scope in whole.scope_spans
            for span in scope.spans
        ]

    async def _post(self, request: web.Request) -> web.Response:
        body = await request.read()
        signal = request.path.rsplit("/", 1)[-1]
        asked, answered, _ = SIGNALS[signal]
        json = request.content_type == "application/json"
        assert json or request.content_type == "application/x-protobuf"
        headers = {name.lower(): value for name, value in request.headers.items()}
        message = orjson.loads(body) if json else asked.FromString(body)
        self.received.append(Received(signal, request.path_qs, headers, message))
        if self.script:
            found = self.script.pop(0)()
            status, more, body = await found if hasattr(found, "__await__") else found
            return web.Response(status=status, headers=more, body=body)
        return web.Response(body=answered().SerializeToString(), content_type="application/x-protobuf")

    def _handler(self, signal: str, answered: Any) -> Any:
        async def export(request: Any, context: Any) -> Any:
            headers = {name: value for name, value in context.invocation_metadata()}
            self.received.append(Received(signal, "", headers, request))
            if self.script:
                return await self.script.pop(0)(context) or answered()
            return answered()

        return export


def plain(values: Any) -> dict[str, Any]:
    """Attributes of a message as a dict."""
    return {pair.key: value_of(pair.value) for pair in values}


def value_of(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    found = getattr(value, kind)
    if kind == "array_value":
        return [value_of(item) for item in found.values]
    return plain(found.values) if kind == "kvlist_value" else found
