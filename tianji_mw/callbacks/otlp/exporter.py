"""`OtlpCallback`: the base of all destinations that speak OTLP, over HTTP (protobuf or JSON) or gRPC. It is no plugin.

One request for each set of headers, in it one group for each resource. There is no global provider and no other
pipeline: nothing of it meets an OpenTelemetry SDK in the same process.
"""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal
from urllib.parse import unquote

import orjson
from pydantic import Field, PrivateAttr, field_validator

from tianji_mw import redact
from tianji_mw.callbacks.base import NotDelivered, Record
from tianji_mw.callbacks.otlp import genai
from tianji_mw.callbacks.otlp.spans import Attributes, Span, spans_of
from tianji_mw.callbacks.service import HttpCallback, is_address, shown
from tianji_mw.errors import MissingExtra, SetupError
from tianji_mw.redact import Secret

if TYPE_CHECKING:
    from tianji_mw.callbacks.otlp.encode import Message, Scope
    from tianji_mw.callbacks.otlp.grpc_channel import GrpcChannel
    from tianji_mw.runtime import Runtime

log = logging.getLogger("tianji_mw.callbacks.otlp")

Protocol = Literal["http/protobuf", "http/json", "grpc"]
Signal = Literal["traces", "metrics", "logs"]
Headers = Mapping[str, "str | Secret"]

#: Answers after which another attempt may help: the specification's, those of a key or an address that somebody can
#: mend (the records wait for it, also for one that moved), and a server's own fault.
RETRYABLE: Final = frozenset({401, 403, 404, 407, 408, 425, 429, 500, 502, 503, 504})
_PATHS: Final = ("/v1/traces", "/v1/metrics", "/v1/logs")
#: What odd content can raise while spans are built.
ODD: Final = (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError, RecursionError)


class Answered(NotDelivered):
    """The service answered, with an error: `code` is an HTTP status, or the name of a gRPC code."""

    code: str = ""


@dataclass(slots=True)
class Group:
    """Records with the same headers: one request."""

    headers: Headers
    records: list[Record] = field(default_factory=list)
    #: The spans of each of them.
    made: list[Sequence[Span]] = field(default_factory=list)
    #: Resource and spans, by the resource's content.
    spans: dict[bytes, tuple[Attributes, list[Span]]] = field(default_factory=dict)


class OtlpCallback(HttpCallback):
    """Subclasses write `resource`, and `attributes`, `spans` or `extra_headers` where theirs are others.

    Two records whose `resource` is equal share a group, two whose `extra_headers` are equal share a request.
    """

    needs: ClassVar[tuple[str, ...]] = ("endpoint",)
    #: Name of the instrumentation scope.
    scope: ClassVar[str] = "tianji_mw"

    max_batch_bytes: int = Field(default=2 << 20, ge=1024, le=1 << 30)
    #: `otlp_http` and `otlp_grpc` are LiteLLM's names of the first and the last.
    protocol: Protocol = "http/protobuf"
    #: Base address; `/v1/traces` and its like are appended unless it ends so. gRPC: `host:port`, or with a scheme.
    endpoint: str = ""
    #: Also as one text, `name=value,name2=value2`, with values that are URL-encoded.
    headers: dict[str, Secret] = Field(default_factory=dict)
    compression: Literal["gzip", "none"] = "gzip"
    #: gRPC without TLS; as the scheme says where it is left out.
    insecure: bool | None = None

    _encode: Any = PrivateAttr(default=None)
    _channel: GrpcChannel | None = PrivateAttr(default=None)
    _runtime: Any = PrivateAttr(default=None)
    _version: str = PrivateAttr(default="")

    @field_validator("protocol", mode="before")
    @classmethod
    def _ours(cls, value: Any) -> Any:
        names = {"otlp_http": "http/protobuf", "http": "http/protobuf", "otlp_grpc": "grpc", "http_json": "http/json"}
        return names.get(value, value) if isinstance(value, str) else value

    @field_validator("headers", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        if isinstance(value, Secret):
            value = value.reveal()
        return pairs(value) if isinstance(value, str) else value

    # --- what subclasses say

    @abstractmethod
    def resource(self, record: Record) -> Attributes:
        """The resource of this record's spans."""

    def spans(self, record: Record) -> Sequence[Span]:
        """The record's spans, with their attributes."""
        spans = spans_of(record)
        for span in spans:
            span.attributes = dict(self.attributes(span, record))
        return spans

    def attributes(self, span: Span, record: Record) -> Attributes:
        """The attributes of one span; content is in them, as far as the record has any."""
        if span.role == "attempt":
            return genai.attempt_attributes(span)
        if span.role == "guardrail":
            return genai.guardrail_attributes(span)
        if span.role == "server":
            return genai.server_attributes(record.data)
        if event := genai.exception_event(span, record.data):
            span.events.append(event)
        return genai.call_attributes(record.data, content=True)

    def extra_headers(self, record: Record) -> Headers:
        """Headers for this record beside `headers`: credentials of a team, the name of a project."""
        return {}

    # --- life

    async def start(self, runtime: Runtime) -> None:
        try:
            from tianji_mw.callbacks.otlp import encode
        except ImportError:
            raise MissingExtra("opentelemetry-proto", "otel") from None
        self._encode, self._runtime, self._version = encode, runtime, own_version()
        await super().start(runtime)
        if self.protocol == "grpc":
            from tianji_mw.callbacks.otlp.grpc_channel import GrpcChannel

            self._channel = GrpcChannel.open(
                self.title, self.endpoint, insecure=self.insecure, zipped=self.compression == "gzip"
            )
        elif self.endpoint and not is_address(self.endpoint):
            raise SetupError(f"{self.title}: endpoint is no address; write it as https://host.")

    async def aclose(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.aclose()
        await super().aclose()

    # --- delivery

    async def write(self, batch: Sequence[Record]) -> None:
        # Half a millisecond for each record: calls must not wait for hundreds of them.
        groups, odd = await asyncio.to_thread(self.grouped, batch)
        settle(batch, [(group.records, await attempt(self.send_spans(group))) for group in groups], odd)

    def scope_of(self, signal: Signal) -> Scope:
        """The instrumentation scope of a signal."""
        found: Scope = self._encode_module.Scope(name=self.scope, version=self._version)
        return found

    async def send_spans(self, group: Group) -> None:
        """One export of traces. Raises NotDelivered."""
        scope = self.scope_of("traces")
        spans = [(resource, scope, spans) for resource, spans in group.spans.values()]
        message = await asyncio.to_thread(self._encode_module.traces, spans)
        await self.send("traces", message, group.headers)

    def grouped(self, batch: Sequence[Record]) -> tuple[list[Group], list[Record]]:
        """The batch by headers and resources, and the records of which no spans can be made."""
        groups: dict[tuple[tuple[str, str], ...], Group] = {}
        odd = []
        for record in batch:
            try:
                headers = dict(self.extra_headers(record))
                resource, spans = self.resource(record), self.spans(record)
                known = orjson.dumps(resource, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS, default=str)
            except ODD as error:
                self._runtime.count("otlp_odd_record", f"{self.title} {type(error).__name__}")
                odd.append(record)
                continue
            key = tuple(sorted((name, shown(value)) for name, value in headers.items()))
            group = groups.setdefault(key, Group(headers))
            group.records.append(record)
            group.made.append(spans)
            group.spans.setdefault(known, (resource, []))[1].extend(spans)
        return list(groups.values()), odd

    async def send(self, signal: Signal, message: Message, headers: Headers | None = None) -> None:
        """One export of a signal: one attempt. Counts what was rejected of it. Raises NotDelivered."""
        sent = {**self.headers, **(headers or {})}
        if self.protocol == "grpc":
            if self._channel is None:
                raise NotDelivered(f"{self.title} was not started")
            answer = await self._channel.export(signal, message.SerializeToString(), sent, self.timeout_s)
        else:
            response = await self._sent(signal, message, sent)
            answer = response.content
            if "json" in response.headers.get("content-type", ""):
                self._note_json(signal, answer)
                return
        self._note(signal, answer)

    async def _sent(self, signal: Signal, message: Message, headers: Headers) -> Any:
        as_json = self.protocol == "http/json"
        encode = self._encode_module.to_json if as_json else type(message).SerializeToString
        body = await asyncio.to_thread(encode, message)
        kind = "application/json" if as_json else "application/x-protobuf"
        url, zipped = self.url_of(signal), self.compression == "gzip"
        try:
            return await self.post(url, body, headers, content_type=kind, zipped=zipped)
        except NotDelivered as problem:
            secrets = [value for value in headers.values() if isinstance(value, Secret)]
            problem.message = redact.text(problem.message, secrets)
            problem.args = (problem.message,)
            raise

    def url_of(self, signal: Signal) -> str:
        """The address of a signal."""
        base, query, rest = self.endpoint.partition("?")
        base = base.rstrip("/")
        for path in _PATHS:
            base = base.removesuffix(path)
        return f"{base}/v1/{signal}{query}{rest}"

    def failure(self, response: Any) -> NotDelivered:
        problem = super().failure(response)
        status = response.status_code
        message = problem.message
        if "protobuf" in response.headers.get("content-type", ""):
            message = f"{self.title} answered {status}"
        answered = Answered(message, retry=status < 400 or status in RETRYABLE, retry_after_s=problem.retry_after_s)
        answered.code = str(status)
        return answered

    @property
    def _encode_module(self) -> Any:
        if self._encode is None:
            raise NotDelivered(f"{self.title} was not started")
        return self._encode

    def _note(self, signal: Signal, answer: bytes) -> None:
        """Count what a `partialSuccess` says was rejected: for good, as the specification has it."""
        try:
            found = self._encode_module.ANSWERS[signal](answer).partial_success
        except self._encode_module.DecodeError:  # 200 with another answer is no failure
            return
        rejected = next((getattr(found, name) for name in _REJECTED.values() if hasattr(found, name)), 0)
        self._rejected(signal, rejected, found.error_message)

    def _note_json(self, signal: Signal, answer: bytes) -> None:
        try:
            found = orjson.loads(answer)
            found = found.get("partialSuccess") if isinstance(found, dict) else None
            if isinstance(found, dict):
                name = _REJECTED[signal].title().replace("_", "")
                rejected = found.get(name[0].lower() + name[1:], 0)
                self._rejected(signal, int(rejected), str(found.get("errorMessage", "")))
        except (ValueError, TypeError):
            return

    def _rejected(self, signal: Signal, count: int, message: str) -> None:
        if count > 0:
            self._runtime.count("otlp_rejected", f"{self.title} {signal}", count)
            # The message is the server's and may quote attributes: its length only.
            log.warning("%s rejected %d items of %s (%d characters of reason)", self.title, count, signal, len(message))


#: The field of `partialSuccess`, by signal.
_REJECTED: Final[Mapping[Signal, str]] = {
    "traces": "rejected_spans",
    "metrics": "rejected_data_points",
    "logs": "rejected_log_records",
}


async def attempt(sending: Awaitable[None]) -> NotDelivered | None:
    """Await it; what went wrong, if anything did."""
    try:
        await sending
    except NotDelivered as problem:
        return problem
    return None


def settle(
    batch: Sequence[Record], sent: Sequence[tuple[Sequence[Record], NotDelivered | None]], odd: Sequence[Record]
) -> None:
    """Say which records of several requests were not taken. Raises NotDelivered unless all were.

    A request that was refused as a whole is tried again alone, so that the outbox finds the record whose fault it is.
    """
    problems = [(records, problem) for records, problem in sent if problem is not None]
    if not problems and not odd:
        return
    if len(problems) == 1 and not odd and len(problems[0][0]) == len(batch):
        raise problems[0][1]
    failed: list[Record] = []
    refused = list(odd)
    for records, problem in problems:
        alone = not problem.retry and len(records) == 1
        (refused if alone else failed).extend(records)
    pauses = [problem.retry_after_s for _, problem in problems if problem.retry_after_s is not None]
    message = problems[0][1].message if problems else f"no spans can be made of {len(odd)} records"
    raise NotDelivered(message, failed=failed, refused=refused, retry_after_s=max(pauses, default=None))


def own_version() -> str:
    """The suite's version; empty where it runs without being installed."""
    try:
        return metadata.version("tianji-mw")
    except metadata.PackageNotFoundError:
        return ""


def pairs(text: str) -> dict[str, str]:
    """`name=value,name2=value2`: values are URL-encoded, and what has no name is left out (W3C Baggage's form)."""
    found = {}
    for pair in text.split(","):
        name, _, value = pair.partition("=")
        if name.strip():
            found[unquote(name.strip())] = unquote(value.strip())
    return found
