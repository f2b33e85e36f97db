"""Langfuse: every call as an observation, by OTLP, or by the batch API of servers before version 4.

Source: Langfuse's OpenTelemetry and API documentation, its SDK 5, LiteLLM's `langfuse` and `langfuse_otel` callbacks.
"""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Literal

import orjson
from pydantic import Field, PrivateAttr, field_validator

from tianji_mw import redact
from tianji_mw.alerts import Alert
from tianji_mw.callbacks import langfuse_batch
from tianji_mw.callbacks._groups import Delivery, Item, built, groups, joined
from tianji_mw.callbacks.base import NotDelivered, Record
from tianji_mw.callbacks.otlp import genai
from tianji_mw.callbacks.otlp.exporter import Answered, Headers, OtlpCallback, own_version
from tianji_mw.callbacks.otlp.langfuse_attributes import Observation, attributes_of, observation_of, trace_attributes
from tianji_mw.callbacks.otlp.sampling import in_sample
from tianji_mw.callbacks.otlp.spans import ERROR, Attributes, Span, spans_of
from tianji_mw.callbacks.record import content
from tianji_mw.callbacks.service import is_address
from tianji_mw.errors import SetupError
from tianji_mw.redact import Secret
from tianji_mw.runtime import Runtime

log = logging.getLogger("tianji_mw.callbacks.langfuse")

Way = Literal["otlp", "ingestion"]
_ENVIRONMENT: Final = re.compile(r"(?!langfuse)[a-z0-9_-]{1,40}")
#: Servers before this one have no OTLP.
_OTLP_SINCE: Final = (3, 22)
#: What an event's status means for another attempt.
_LATER: Final = frozenset({0, 401, 403, 404, 408, 429})


class Langfuse(OtlpCallback):
    """Sends calls to Langfuse.

    >>> Langfuse(public_key="pk-lf-...", secret_key="sk-lf-...")
    """

    title: ClassVar[str] = "Langfuse"
    needs: ClassVar[tuple[str, ...]] = ("public_key", "secret_key", "endpoint")
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "public_key": ("LANGFUSE_PUBLIC_KEY",),
        "secret_key": ("LANGFUSE_SECRET_KEY",),
        "endpoint": ("LANGFUSE_OTEL_HOST", "LANGFUSE_HOST", "LANGFUSE_BASE_URL"),
        "traces_path": ("LANGFUSE_OTEL_TRACES_EXPORT_PATH",),
        "environment": ("LANGFUSE_TRACING_ENVIRONMENT",),
        "release": ("LANGFUSE_RELEASE",),
        "trace_sample_rate": ("LANGFUSE_SAMPLE_RATE",),
        "batch_size": ("LANGFUSE_FLUSH_AT",),
        "flush_interval_s": ("LANGFUSE_FLUSH_INTERVAL",),
        "timeout_s": ("LANGFUSE_TIMEOUT",),
    }
    aliases: ClassVar[Mapping[str, str]] = {
        "langfuse_public_key": "public_key",
        "langfuse_secret_key": "secret_key",
        "langfuse_secret": "secret_key",
        "langfuse_host": "endpoint",
        "host": "endpoint",
        "base_url": "endpoint",
        "langfuse_environment": "environment",
        "langfuse_span_scope": "span_scope",
        "langfuse_release": "release",
    }

    public_key: Secret | None = None
    secret_key: Secret | None = None
    #: Address without a path; USA: https://us.cloud.langfuse.com.
    endpoint: str = "https://cloud.langfuse.com"
    traces_path: str = "/api/public/otel/v1/traces"
    protocol: Literal["http/protobuf"] = "http/protobuf"
    #: `ingestion` is the batch API of servers before version 4; `auto` asks the server for its version.
    mode: Literal["otlp", "ingestion", "auto"] = "otlp"
    #: `full` adds spans of attempts and guardrails, which Langfuse bills too.
    span_scope: Literal["llm_only", "full"] = "llm_only"
    #: Small letters, digits, `-` and `_`, and not `langfuse...`.
    environment: str = ""
    release: str = ""
    #: Share of traces that are sent.
    trace_sample_rate: float = Field(default=1.0, ge=0, le=1)

    @field_validator("environment")
    @classmethod
    def _named(cls, value: str) -> str:
        if value and not _ENVIRONMENT.fullmatch(value):
            raise ValueError(
                "environment has small letters, digits, - and _, 40 at most, and does not begin with langfuse"
            )
        return value

    _way: Way | None = PrivateAttr(default=None)

    async def start(self, runtime: Runtime) -> None:
        if self.endpoint and not is_address(self.endpoint):
            raise SetupError(f"{self.title}: endpoint is no address; write it as https://host.")
        await super().start(runtime)
        self._way = None if self.mode == "auto" else self.mode

    # --- what is sent

    def resource(self, record: Record) -> Attributes:
        found = {"service.name": "tianji-mw", "telemetry.sdk.name": "tianji_mw", "telemetry.sdk.language": "python"}
        if self.environment:
            found["langfuse.environment"] = self.environment
        return {**found, "langfuse.release": self.release} if self.release else found

    def spans(self, record: Record) -> Sequence[Span]:
        seen = observation_of(record)
        spans = spans_of(record)
        if self.span_scope == "llm_only":
            spans = [span for span in spans if span.role == "call"]
        ids = {span.span_id: bytes.fromhex(seen.span_id) for span in spans if span.role == "call"}
        for span in spans:
            span.trace_id = bytes.fromhex(seen.trace_id)
            if span.role == "call":
                span.name, span.span_id = seen.name, bytes.fromhex(seen.span_id)
                span.parent_id = bytes.fromhex(seen.parent_id) if seen.parent_id else None
                span.remote_parent = span.parent_id is not None
                span.attributes = attributes_of(seen, environment=self.environment, release=self.release)
            else:
                span.parent_id = ids.get(span.parent_id or b"", span.parent_id)
                span.attributes = self._of_part(span, seen)
        return spans

    def _of_part(self, span: Span, seen: Observation) -> dict[str, Any]:
        """The attributes of an attempt or a guardrail."""
        guards = span.role == "guardrail"
        told = genai.guardrail_attributes(span) if guards else genai.attempt_attributes(span)
        return {
            "langfuse.observation.type": "guardrail" if guards else "span",
            "langfuse.observation.level": "ERROR" if span.status == ERROR else "DEFAULT",
            **trace_attributes(seen, environment=self.environment, release=self.release),
            **told,
        }

    def extra_headers(self, record: Record) -> Headers:
        public = self.public_key.reveal() if self.public_key is not None else ""
        return {
            **self._login(),
            "x-langfuse-ingestion-version": "4",
            "x-langfuse-sdk-name": "tianji-mw",
            "x-langfuse-sdk-version": own_version(),
            "x-langfuse-public-key": public,
        }

    def _login(self) -> Headers:
        if self.public_key is None or self.secret_key is None:
            return {}
        pair = f"{self.public_key.reveal()}:{self.secret_key.reveal()}".encode()
        return {"authorization": Secret(f"Basic {base64.b64encode(pair).decode()}")}

    def failure(self, response: Any) -> NotDelivered:
        """Servers may quote a login; it is in no message."""
        problem = super().failure(response)
        hidden = [value for value in (self.secret_key, *self._login().values()) if isinstance(value, Secret)]
        problem.message = redact.text(problem.message, hidden)
        problem.args = (problem.message,)
        return problem

    def url_of(self, signal: Any) -> str:
        base = self.endpoint.rstrip("/").removesuffix("/v1/traces").removesuffix("/api/public/otel")
        return f"{base}/{self.traces_path.lstrip('/')}"

    # --- delivery

    async def write(self, batch: Sequence[Record]) -> None:
        kept = [record for record in batch if in_sample(record.data, self.trace_sample_rate)]
        if not kept:
            return
        if self._way is None:
            self._way = await self._probed()
        if self._way == "ingestion":
            await self._ingest(kept)
            return
        try:
            await super().write(kept)
        except Answered as problem:
            if self.mode != "auto" or problem.code != "404":
                raise
            # No OTLP there, whatever its version says.
            self._way = "ingestion"
            await self._ingest(kept)

    async def _probed(self) -> Way:
        """What the server's version speaks. Raises NotDelivered when it does not answer."""
        url = self.endpoint.rstrip("/") + "/api/public/health"
        try:
            answer = await self.post(url, b"", self._login(), method="GET")
            version = content.word(content.mapping(orjson.loads(answer.content)).get("version")) or ""
            found = tuple(int(part) for part in version.split("-")[0].split(".")[:2])
        except Answered:
            return "otlp"  # a server that hides it, and new ones have OTLP
        except ValueError:
            return "otlp"
        return "ingestion" if found and found < _OTLP_SINCE else "otlp"

    async def _ingest(self, batch: Sequence[Record]) -> None:
        """The batch API: in requests of at most 3.5 MB, with an answer for each event."""

        def build(record: Record) -> list[bytes]:
            return langfuse_batch.events_of(record, environment=self.environment, release=self.release)

        items, refused = await built(batch, build, langfuse_batch.LIMITS)
        delivery = Delivery(self.title, refused)

        async def send(group: list[Item]) -> None:
            body = b'{"batch":[%b],"metadata":%b}' % (joined(group), self._about(len(group)))
            url = self.endpoint.rstrip("/") + "/api/public/ingestion"
            answer = await self.post(url, body, self._login())
            if answer.status_code == 207:
                self._judge(group, answer.content, delivery)

        await delivery.send(groups(items, langfuse_batch.LIMITS), send)
        if self._way == "otlp":
            # It takes no such events any more: all of them once again, by OTLP.
            await super().write(batch)
            return
        delivery.done()

    def _about(self, count: int) -> bytes:
        public = self.public_key.reveal() if self.public_key is not None else ""
        about = {"batch_size": count * 2, "sdk_name": "tianji-mw", "sdk_version": own_version(), "public_key": public}
        return orjson.dumps(about)

    def _judge(self, group: list[Item], answer: bytes, delivery: Delivery) -> None:
        """Sort the records of a 207 answer. Raises NotDelivered when it cannot be read."""
        try:
            failed = langfuse_batch.failures(answer)
        except ValueError:
            raise NotDelivered(f"{self.title} answered 207 without a list of errors") from None
        ids = {item.record.id: langfuse_batch.event_ids(item.record) for item in group}
        events = [event for pair in ids.values() for event in pair]
        if self.mode == "auto" and all(failed.get(event) == 400 for event in events):
            self._switch()
            return
        again, never = [], []
        for item in group:
            statuses = [failed[event] for event in ids[item.record.id] if event in failed]
            if any(status in _LATER or status >= 500 for status in statuses):
                again.append(item.record)
            elif statuses:
                never.append(item.record)
        if never:
            delivery.missed(
                never, NotDelivered(f"{self.title} refused {len(never)} records of {len(group)}", retry=False)
            )
        if again:
            delivery.missed(again, NotDelivered(f"{self.title} did not take {len(again)} records of {len(group)}"))

    def _switch(self) -> None:
        self._way = "otlp"
        self._runtime.count("langfuse_switched", "otlp")
        message = "Langfuse takes no events by its batch API any more; calls are sent by OTLP from now on."
        log.warning(message)
        self._runtime.alert(Alert(kind="callback_failing", message=message))
