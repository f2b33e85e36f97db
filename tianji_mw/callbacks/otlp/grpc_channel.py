"""OTLP over gRPC: one channel, requests that are bytes already, and the codes after which another attempt helps.

Source: OTLP specification, "OTLP/gRPC Response" and "OTLP/gRPC Throttling".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Self
from urllib.parse import urlsplit

from tianji_mw import redact
from tianji_mw.callbacks.base import NotDelivered
from tianji_mw.callbacks.otlp.exporter import Answered, Headers, Signal
from tianji_mw.callbacks.otlp.retry_info import retry_delay_s
from tianji_mw.callbacks.service import shown
from tianji_mw.errors import MissingExtra, SetupError
from tianji_mw.redact import Secret

_SERVICE: Final[Mapping[str, str]] = {
    "traces": "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    "metrics": "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    "logs": "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
}
#: The specification's list, and what somebody can mend: a key, an address.
_RETRYABLE: Final = frozenset(
    {
        "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "CANCELLED", "DATA_LOSS",
        "UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED", "NOT_FOUND",
    }
)  # fmt: skip
_OPTIONS: Final = (("grpc.enable_retries", 0), ("grpc.max_receive_message_length", 4 << 20))
_SHOWN: Final = 200
_MAX_PAUSE_S: Final = 3600.0


class GrpcChannel:
    """A channel to one endpoint. It connects at the first export."""

    def __init__(self, title: str, grpc: Any, channel: Any) -> None:
        self._title = title
        self._grpc = grpc
        self._channel = channel
        self._calls = {signal: channel.unary_unary(method) for signal, method in _SERVICE.items()}

    @classmethod
    def open(cls, title: str, endpoint: str, *, insecure: bool | None, zipped: bool) -> Self:
        """Raises MissingExtra, and SetupError for an endpoint that is none."""
        try:
            import grpc
            import grpc.aio
        except ImportError:
            raise MissingExtra("grpcio", "otel") from None
        try:
            target, tls = host_of(endpoint)
        except ValueError:
            target, tls = "", None
        if not target or target.startswith(":"):
            raise SetupError(f"{title}: endpoint is no address; write it as https://host:4317 or host:4317.")
        plain = not tls if insecure is None and tls is not None else bool(insecure)
        compression = grpc.Compression.Gzip if zipped else grpc.Compression.NoCompression
        if plain:
            channel = grpc.aio.insecure_channel(target, options=_OPTIONS, compression=compression)
        else:
            credentials = grpc.ssl_channel_credentials()
            channel = grpc.aio.secure_channel(target, credentials, options=_OPTIONS, compression=compression)
        return cls(title, grpc, channel)

    async def export(self, signal: Signal, message: bytes, headers: Headers, timeout_s: float) -> bytes:
        """One request; the answer's bytes. Raises NotDelivered."""
        metadata = tuple((name.lower(), shown(value)) for name, value in headers.items())
        try:
            answer: bytes = await self._calls[signal](message, metadata=metadata, timeout=timeout_s)
        except self._grpc.aio.AioRpcError as error:
            raise self._failure(error, headers) from None
        except (ValueError, TypeError, UnicodeError) as error:  # metadata that gRPC does not send
            raise NotDelivered(f"{self._title}: a header cannot be sent ({type(error).__name__})") from None
        return answer

    def _failure(self, error: Any, headers: Headers) -> Answered:
        code = error.code().name
        pause = None
        for name, value in error.trailing_metadata() or ():
            if name == "grpc-status-details-bin" and isinstance(value, bytes):
                pause = retry_delay_s(value)
        retry = code in _RETRYABLE or (code == "RESOURCE_EXHAUSTED" and pause is not None)
        secrets = [value for value in headers.values() if isinstance(value, Secret)]
        said = redact.text((error.details() or "")[:_SHOWN], secrets)
        message = f"{self._title} answered {code}" + (f": {said}" if said else "")
        pause = None if pause is None else min(pause, _MAX_PAUSE_S)
        answered = Answered(message, retry=retry, retry_after_s=pause)
        answered.code = code
        return answered

    async def aclose(self) -> None:
        """Close the channel; what is on its way fails."""
        await self._channel.close(None)


def host_of(endpoint: str) -> tuple[str, bool | None]:
    """`host:port` of an endpoint, and whether its scheme says TLS; None where it says nothing. Raises ValueError."""
    if "://" not in endpoint:
        return endpoint.split("/")[0], None
    parts = urlsplit(endpoint)
    host = parts.netloc.rpartition("@")[2]
    return host if parts.port else f"{host}:4317", parts.scheme in ("https", "grpcs")
