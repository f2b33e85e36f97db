"""OpenTelemetry: traces, and where they are switched on metrics and events, by OTLP, into a file or on the console.

One pipeline of its own: it neither reads nor sets the process's global providers. LiteLLM's names of settings and
variables work. Source: OTLP specification 1.x, GenAI semantic conventions, LiteLLM's `otel` callback.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from pydantic import Field, PrivateAttr, field_validator

from tianji_mw.callbacks.base import NotDelivered, Record
from tianji_mw.callbacks.otlp import genai
from tianji_mw.callbacks.otlp.exporter import (
    Answered,
    Group,
    Headers,
    OtlpCallback,
    Signal,
    attempt,
    pairs,
    settle,
)
from tianji_mw.callbacks.otlp.lines import ConsoleLines, FileLines
from tianji_mw.callbacks.otlp.metrics import Meter
from tianji_mw.callbacks.otlp.spans import Attributes, Span, Value, spans_of, trace_id_of
from tianji_mw.errors import SetupError

if TYPE_CHECKING:
    from tianji_mw.runtime import Runtime

log = logging.getLogger("tianji_mw.callbacks.otel")

Content = Literal["NO_CONTENT", "SPAN_ONLY", "EVENT_ONLY", "SPAN_AND_EVENT"]

#: The token of OTEL_SEMCONV_STABILITY_OPT_IN with which earlier names are left out.
LATEST: Final = "gen_ai_latest_experimental"
#: The destination has no such signal: what was to go there is dropped and counted, and traces go on.
_ABSENT: Final = frozenset({"404", "405", "501", "UNIMPLEMENTED", "NOT_FOUND"})
#: Records whose numbers were added, so that one that comes again is not added again.
_SEEN: Final = 20_000
#: Records that are added at once; calls go on in between.
_SLICE: Final = 64
#: Seconds for the last export of the histograms.
_LAST_S: Final = 3.0


class Otel(OtlpCallback):
    """Sends spans, histograms and log records of calls to a collector or a backend.

    >>> Otel(endpoint="http://collector:4318", metrics=True)
    """

    title: ClassVar[str] = "OpenTelemetry"
    needs: ClassVar[tuple[str, ...]] = ()
    aliases: ClassVar[Mapping[str, str]] = {
        "exporter": "protocol",
        "capture_message_content": "content",
        "enable_metrics": "metrics",
        "enable_events": "events",
        "deployment_environment": "environment",
        "baggage_metadata_keys": "metadata_keys",
        "baggage_team_metadata_keys": "team_metadata_keys",
    }
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "endpoint": ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_ENDPOINT"),
        "protocol": ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER"),
        "headers": ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_HEADERS"),
        "insecure": ("OTEL_EXPORTER_OTLP_INSECURE",),
        "compression": ("OTEL_EXPORTER_OTLP_COMPRESSION",),
        "service_name": ("OTEL_SERVICE_NAME",),
        "environment": ("OTEL_ENVIRONMENT_NAME",),
        "model_id": ("OTEL_MODEL_ID",),
        "resource_attributes": ("OTEL_RESOURCE_ATTRIBUTES",),
        "tracer_name": ("OTEL_TRACER_NAME",),
        "meter_name": ("LITELLM_METER_NAME",),
        "logger_name": ("LITELLM_LOGGER_NAME",),
        "metrics": ("LITELLM_OTEL_INTEGRATION_ENABLE_METRICS",),
        "events": ("LITELLM_OTEL_INTEGRATION_ENABLE_EVENTS",),
        "content": ("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT",),
        "semconv": ("OTEL_SEMCONV_STABILITY_OPT_IN",),
        "ignore_context": ("OTEL_IGNORE_CONTEXT_PROPAGATION",),
        "server_span": ("LITELLM_OTEL_V2",),
        "metadata_keys": ("LITELLM_OTEL_BAGGAGE_METADATA_KEYS",),
        "team_metadata_keys": ("LITELLM_OTEL_BAGGAGE_TEAM_METADATA_KEYS",),
    }

    #: Left out: OTLP over HTTP where there is an endpoint, else `console`: lines of OTLP JSON on the standard output.
    protocol: Literal["", "http/protobuf", "http/json", "grpc", "console", "file"] = ""  # type: ignore[assignment]
    #: Of `file`: where the lines go. The file grows without end.
    path: str = ""
    service_name: str = "litellm"
    environment: str = "production"
    #: `model_id` of the resource; the service's name where it is left out.
    model_id: str = ""
    #: Also as one text, `name=value,name2=value2`. The three above win.
    resource_attributes: dict[str, str] = Field(default_factory=dict)
    tracer_name: str = "litellm"
    meter_name: str = "litellm"
    logger_name: str = "litellm"
    metrics: bool = False
    events: bool = False
    #: Where content goes: true and false mean everywhere and nowhere.
    content: Content = "SPAN_AND_EVENT"
    #: Tokens, separated by commas.
    semconv: str = ""
    #: Every call is a trace of its own.
    ignore_context: bool = False
    #: A SERVER span around each call, with its guardrails beside it.
    server_span: bool = False
    #: Of the record's metadata and of the key's: what becomes attributes; a path, such as `requester_metadata.tenant`.
    metadata_keys: list[str] = Field(default_factory=list)
    team_metadata_keys: list[str] = Field(default_factory=list)

    _lines: Any = PrivateAttr(default=None)
    _meter: Meter | None = PrivateAttr(default=None)
    _seen: dict[str, None] = PrivateAttr(default_factory=dict)
    _instance: str = PrivateAttr(default="")
    #: Whether there are sums that were not exported.
    _wanted: bool = PrivateAttr(default=False)

    @field_validator("content", mode="before")
    @classmethod
    def _mode(cls, value: Any) -> Any:
        text = str(value).upper() if isinstance(value, (bool, str)) else value
        return {"TRUE": "SPAN_AND_EVENT", "FALSE": "NO_CONTENT"}.get(text, text)

    @field_validator("resource_attributes", mode="before")
    @classmethod
    def _resource_pairs(cls, value: Any) -> Any:
        return pairs(value) if isinstance(value, str) else value

    @field_validator("metadata_keys", "team_metadata_keys", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return [name for part in value.split(",") if (name := part.strip())] if isinstance(value, str) else value

    @property
    def legacy(self) -> bool:
        """Whether earlier names of attributes are sent too."""
        return LATEST not in {token.strip() for token in self.semconv.split(",")}

    # --- life

    async def start(self, runtime: Runtime) -> None:
        console = self.protocol == "console" or not (self.protocol or self.endpoint)
        if self.protocol == "file":
            self._lines = self._opened()
        elif console:
            self._lines = ConsoleLines()
        elif not self.endpoint:
            variables = " or ".join(self.env_fields["endpoint"])
            raise SetupError(f"{self.title}: endpoint is missing; set it in the config, or the variable {variables}.")
        await super().start(runtime)
        self._instance = runtime.new_id()
        self._meter = Meter(int(runtime.wall() * 1e9), legacy=self.legacy) if self.metrics else None

    def _opened(self) -> FileLines:
        if not self.path:
            raise SetupError(f"{self.title}: path is missing; the protocol `file` needs one.")
        try:
            return FileLines(self.path)
        except OSError as error:
            raise SetupError(f"{self.title}: {self.path} cannot be opened: {error.strerror}.") from None

    async def aclose(self) -> None:
        if self._wanted:
            try:
                async with asyncio.timeout(_LAST_S):
                    await self._export_metrics()
            except TimeoutError:
                pass
        lines, self._lines = self._lines, None
        if lines is not None:
            lines.close()
        await super().aclose()

    # --- what is sent

    def resource(self, record: Record) -> Attributes:
        return self._resource()

    def _resource(self) -> Attributes:
        return {
            **self.resource_attributes,
            "service.name": self.service_name,
            "service.instance.id": self._instance,
            "deployment.environment": self.environment,
            "deployment.environment.name": self.environment,
            "model_id": self.model_id or self.service_name,
            "telemetry.sdk.name": "tianji_mw",
            "telemetry.sdk.language": "python",
            "telemetry.sdk.version": self._version,
        }

    def spans(self, record: Record) -> Sequence[Span]:
        spans = spans_of(record, server=self.server_span)
        for span in spans:
            span.attributes = dict(self.attributes(span, record))
            if self.ignore_context:
                _alone(span, record)
        return spans

    def attributes(self, span: Span, record: Record) -> Attributes:
        if span.role != "call":
            return super().attributes(span, record)
        if event := genai.exception_event(span, record.data):
            span.events.append(event)
        return self._call(record, content=self.content in ("SPAN_ONLY", "SPAN_AND_EVENT"))

    def _call(self, record: Record, *, content: bool) -> dict[str, Value]:
        data = record.data
        found = genai.call_attributes(data, content=content, legacy=self.legacy)
        metadata = genai.metadata_of(data)
        for prefix, names, given in (
            ("metadata", self.metadata_keys, metadata),
            ("team.metadata", self.team_metadata_keys, metadata.get("user_api_key_auth_metadata")),
        ):
            for name in names:
                if (value := _at(given, name)) is not None:
                    found[f"tianji.{prefix}.{name}"] = value
                    if self.legacy:
                        found[f"litellm.{prefix}.{name}"] = value
        return found

    # --- delivery

    async def write(self, batch: Sequence[Record]) -> None:
        """Traces, then events, then what the histograms have become.

        Events that fail for a while let their records come again, traces and all: ids are the same.
        """
        groups, odd = await asyncio.to_thread(self.grouped, batch)
        sent = []
        for group in groups:
            problem = await attempt(self.send_spans(group))
            if problem is None and self.events:
                problem = self._of_a_signal("logs", await attempt(self._send_events(group)))
            sent.append((group.records, problem))
        problem = None
        try:
            settle(batch, sent, odd)
        except NotDelivered as found:
            problem = found
        if self._meter is not None:
            await self._observe(self._meter, batch, problem)
            await self._export_metrics()
        if problem is not None:
            raise problem

    def scope_of(self, signal: Signal) -> Any:
        name = {"traces": self.tracer_name, "metrics": self.meter_name, "logs": self.logger_name}[signal]
        return self._encode_module.Scope(name=name, version=self._version)

    async def send(self, signal: Signal, message: Any, headers: Headers | None = None) -> None:
        if self._lines is None:
            await super().send(signal, message, headers)
            return
        line = await asyncio.to_thread(self._encode_module.to_json, message)
        await asyncio.to_thread(self._lines.write, line)

    async def _send_events(self, group: Group) -> None:
        await self.send("logs", await asyncio.to_thread(self._log_message, group), group.headers)

    def _log_message(self, group: Group) -> Any:
        items = []
        for record, spans in zip(group.records, group.made, strict=True):
            for span in spans:
                items += self._events_of(record, span) if span.role == "call" else []
        return self._encode_module.logs([(self._resource(), self.scope_of("logs"), items)])

    def _events_of(self, record: Record, span: Span) -> list[Any]:
        content = self.content in ("EVENT_ONLY", "SPAN_AND_EVENT")
        item = self._encode_module.LogItem
        common: dict[str, Any] = {
            "time_ns": span.end_ns,
            "observed_ns": span.end_ns,
            "trace_id": span.trace_id,
            "span_id": span.span_id,
            "sampled": span.sampled,
        }
        details = self._call(record, content=content)
        found = [item(event_name="gen_ai.client.inference.operation.details", attributes=details, **common)]
        if event := genai.exception_event(span, record.data):
            common |= {"severity": 13, "severity_text": "WARN"}
            name = "gen_ai.client.operation.exception"
            found.append(item(event_name=name, attributes=event.attributes, **common))
        return found

    def _of_a_signal(self, signal: Signal, problem: NotDelivered | None) -> NotDelivered | None:
        """The problem, if its records shall come again for it; counted otherwise."""
        if problem is None:
            return None
        absent = isinstance(problem, Answered) and problem.code in _ABSENT
        if problem.retry and not absent:
            return problem
        if self._runtime.counts.get(("otlp_signal_lost", f"{self.title} {signal}")) is None:
            log.warning("%s are not taken: %s", signal, problem.message)
        self._runtime.count("otlp_signal_lost", f"{self.title} {signal}")
        return None

    async def _observe(self, meter: Meter, batch: Sequence[Record], problem: NotDelivered | None) -> None:
        """Add the records that do not come again, each once."""
        for at, record in enumerate(_settled(batch, problem), 1):
            if at % _SLICE == 0:
                await asyncio.sleep(0)
            if record.id in self._seen:
                continue
            self._seen[record.id] = None
            if len(self._seen) > _SEEN:
                del self._seen[next(iter(self._seen))]
            meter.observe(record.data)
            self._wanted = True

    async def _export_metrics(self) -> None:
        """Send the histograms. A failure is made good by the next export, as they are sums."""
        if self._meter is None or not self._wanted:
            return
        self._wanted = False
        histograms = self._meter.collect(int(self._runtime.wall() * 1e9))
        group = (self._resource(), self.scope_of("metrics"), histograms)
        message = await asyncio.to_thread(self._encode_module.metrics, [group])
        problem = await attempt(self.send("metrics", message))
        if self._of_a_signal("metrics", problem) is not None:
            self._wanted = True


def _alone(span: Span, record: Record) -> None:
    """Move the span into a trace that is this call's only."""
    if span.remote_parent:
        span.parent_id, span.remote_parent = None, False
    span.trace_id = trace_id_of({"trace_id": record.id.replace("-", "")})
    span.state, span.sampled = "", True


def _at(value: Any, path: str) -> Any:
    """What stands at a path such as `requester_metadata.tenant`; None where nothing does."""
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _settled(batch: Sequence[Record], problem: NotDelivered | None) -> Sequence[Record]:
    """The records that are delivered, or refused for ever."""
    if problem is None:
        return batch
    if problem.failed is not None:
        again = {id(record) for record in problem.failed}
        return [record for record in batch if id(record) not in again]
    return batch if not problem.retry and len(batch) == 1 else ()
