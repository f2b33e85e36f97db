"""The spans of a call: neutral, with ids that are the same whenever the record is sent. Pure.

What a span says about itself is its destination's: `OtlpCallback.attributes` fills it in.
Source: OpenTelemetry, trace data model; ids and times as in opentelemetry-proto 1.x.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from tianji_mw.records import Record

#: What an attribute may be. None and numbers that are not finite are left out.
Value: TypeAlias = "str | bool | int | float | bytes | Sequence[Any] | Mapping[str, Any] | None"
Attributes: TypeAlias = Mapping[str, Value]

#: What a span stands for: the call as the provider served it; one try at a provider; a guardrail; the request to us.
Role = Literal["call", "attempt", "guardrail", "server"]

INTERNAL: Final = 1
SERVER: Final = 2
CLIENT: Final = 3
UNSET: Final = 0
OK: Final = 1
ERROR: Final = 2

_TRACE: Final = re.compile(r"[0-9a-f]{32}")
_SPAN: Final = re.compile(r"[0-9a-f]{16}")
#: The end of the year 2261: what fits into 63 bits of nanoseconds.
_LATEST_S: Final = 9_190_000_000.0
_MESSAGE: Final = 4096


@dataclass(slots=True, kw_only=True)
class Event:
    """Something that happened at a moment of a span."""

    name: str
    time_ns: int
    attributes: dict[str, Value] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Span:
    """One span. Times are nanoseconds since 1970; ids 16 and 8 bytes."""

    trace_id: bytes
    span_id: bytes
    parent_id: bytes | None
    name: str
    kind: int = INTERNAL
    start_ns: int = 0
    end_ns: int = 0
    attributes: dict[str, Value] = field(default_factory=dict)
    status: int = UNSET
    status_message: str = ""
    events: list[Event] = field(default_factory=list)
    #: The trace's state of other vendors, and whether the client's trace is sampled.
    state: str = ""
    sampled: bool = True
    #: Whether the parent is another process's.
    remote_parent: bool = False
    role: Role = "call"
    #: What it was made of: an item of `tianji.attempts` or of `guardrail_information`; the record for others.
    source: Mapping[str, Any] = field(default_factory=dict)


def spans_of(record: Record, *, server: bool = False) -> list[Span]:
    """The spans of a record, the outermost first: the call (CLIENT), its attempts below it, and its guardrails.

    Attempts have spans when there were several, or when one failed. With `server` there is a SERVER span around all,
    and guardrails stand beside the call, as in LiteLLM's second tree. A field that is missing or odd harms no other.
    """
    data = record.data
    trace_id, parent = trace_id_of(data), parent_of(data)
    start, end = call_times(record)
    call = Span(
        trace_id=trace_id,
        span_id=span_id_of(record),
        parent_id=parent,
        name=name_of(data),
        kind=CLIENT,
        start_ns=start,
        end_ns=end,
        remote_parent=parent is not None,
        source=data,
    )
    ours = ours_of(data)
    call.sampled = ours.get("sampled") is not False
    call.state = text_of(ours.get("trace_state"))
    _set_status(call, data)
    spans = [call]
    above = call
    if server:
        above = _server(record, call)
        spans.insert(0, above)
    spans += _attempts(record, call)
    spans += _guardrails(record, call, above)
    return spans


def _server(record: Record, call: Span) -> Span:
    """The request to us, around the call; it takes the call's place below the client's span."""
    ours = ours_of(record.data)
    method, path = text_of(ours.get("method")) or "POST", text_of(ours.get("path"))
    status = ours.get("status_code")
    span = Span(
        trace_id=call.trace_id,
        span_id=derived_id(record.id, "server", 0),
        parent_id=call.parent_id,
        name=f"{method} {path}".strip(),
        kind=SERVER,
        start_ns=call.start_ns,
        end_ns=call.end_ns,
        sampled=call.sampled,
        state=call.state,
        remote_parent=call.remote_parent,
        role="server",
        source=record.data,
    )
    if call.status == ERROR and (not isinstance(status, int) or status >= 500):
        span.status, span.status_message = ERROR, call.status_message
    call.parent_id, call.remote_parent = span.span_id, False
    return span


def _attempts(record: Record, call: Span) -> list[Span]:
    attempts = dicts(ours_of(record.data).get("attempts"))
    if len(attempts) < 2 and not any(attempt.get("error") for attempt in attempts):
        return []
    spans = []
    for at, attempt in enumerate(attempts):
        start = ns(attempt.get("startTime")) or call.start_ns
        span = _below(call, call, derived_id(record.id, "attempt", at), "attempt", attempt)
        span.name = f"attempt {at + 1} {text_of(attempt.get('model'))}".strip()
        span.kind = CLIENT
        span.start_ns, span.end_ns = start, max(ns(attempt.get("endTime")) or call.end_ns, start)
        if error := attempt.get("error"):
            span.status, span.status_message = ERROR, text_of(error)
        span.attributes["tianji.attempt"] = at + 1
        spans.append(span)
    return spans


def _guardrails(record: Record, call: Span, above: Span) -> list[Span]:
    spans = []
    for at, run in enumerate(dicts(record.data.get("guardrail_information"))):
        start, end = ns(run.get("start_time")), ns(run.get("end_time"))
        if not start or not end:
            continue
        span = _below(call, above, derived_id(record.id, "guardrail", at), "guardrail", run)
        span.name = f"execute_guardrail {text_of(run.get('guardrail_name'))}".strip()
        span.start_ns, span.end_ns = start, max(start, end)
        if run.get("guardrail_status") == "guardrail_failed_to_respond":
            span.status, span.status_message = ERROR, "guardrail_failed_to_respond"
        spans.append(span)
    return spans


def _below(call: Span, above: Span, span_id: bytes, role: Role, source: Mapping[str, Any]) -> Span:
    return Span(
        trace_id=call.trace_id,
        span_id=span_id,
        parent_id=above.span_id,
        name=role,
        sampled=call.sampled,
        state=call.state,
        role=role,
        source=source,
    )


def _set_status(span: Span, data: Mapping[str, Any]) -> None:
    """An error for calls that failed; the conventions leave the status of others unset."""
    if data.get("status") == "failure":
        span.status = ERROR
        span.status_message = error_of(data)[1][:_MESSAGE]


# --- ids


def trace_id_of(data: Mapping[str, Any]) -> bytes:
    """The trace of a record: below a parent that of the parent, else the record's `trace_id`.

    32 hexadecimal digits are taken as they are; of others it is the beginning of their SHA-256.
    """
    ours = ours_of(data)
    known = text_of(ours.get("trace_id"))
    if parent_of(data) is not None and _real(known, _TRACE):
        return bytes.fromhex(known)
    given = text_of(data.get("trace_id")) or known or text_of(data.get("litellm_call_id"))
    if _real(given.lower(), _TRACE):
        return bytes.fromhex(given)
    return hashlib.sha256(given.encode("utf-8", "surrogatepass")).digest()[:16]


def span_id_of(record: Record) -> bytes:
    """The call's own span: the one that the upstream was told as its parent."""
    ours = text_of(ours_of(record.data).get("span_id")).lower()
    return bytes.fromhex(ours) if _real(ours, _SPAN) else derived_id(record.id, "call", 0)


def parent_of(data: Mapping[str, Any]) -> bytes | None:
    """The client's span."""
    parent = text_of(ours_of(data).get("parent_span_id")).lower()
    return bytes.fromhex(parent) if _real(parent, _SPAN) else None


def derived_id(record_id: str, what: str, at: int) -> bytes:
    """A span id that is the same whenever the record is sent."""
    found = hashlib.sha256(f"{record_id}:{what}:{at}".encode("utf-8", "surrogatepass")).digest()[:8]
    return found if any(found) else b"\x01" * 8


def _real(digits: str, form: re.Pattern[str]) -> bool:
    return form.fullmatch(digits) is not None and digits.strip("0") != ""


# --- fields of a record


def name_of(data: Mapping[str, Any]) -> str:
    """`chat gpt-4o-mini`: the operation and the model."""
    return f"{operation_of(data)} {model_of(data)}".strip()


#: The conventions' operations by our API; the last two are none of theirs.
_OPERATIONS: Final[Mapping[str, str]] = {
    "chat_completions": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
    "messages": "chat",
    "moderations": "moderation",
    "rerank": "rerank",
    "responses": "chat",
}


def operation_of(data: Mapping[str, Any]) -> str:
    """`gen_ai.operation.name`."""
    api = text_of(ours_of(data).get("api"))
    return _OPERATIONS.get(api) or api or text_of(data.get("call_type")) or "chat"


def model_of(data: Mapping[str, Any]) -> str:
    """The model that the provider was asked for; the client's name for it where none was."""
    return text_of(data.get("model")) or text_of(data.get("model_group"))


def error_of(data: Mapping[str, Any]) -> tuple[str, str]:
    """The class and the text of a failure; empty where there was none."""
    if data.get("status") != "failure":
        return "", ""
    found = data.get("error_information")
    found = found if isinstance(found, dict) else {}
    outcome = text_of(ours_of(data).get("outcome"))
    if outcome == "client_gone":
        kind = "client_disconnect"
    else:
        kind = text_of(found.get("error_class")) or text_of(found.get("error_code")) or outcome or "_OTHER"
    return kind, text_of(found.get("error_message")) or text_of(data.get("error_str")) or kind


def call_times(record: Record) -> tuple[int, int]:
    """Start and end of the call in nanoseconds; never 0, and never backwards."""
    start, end = ns(record.data.get("startTime")), ns(record.data.get("endTime"))
    start = start or end or _born(record.id)
    return start, max(start, end)


def _born(record_id: str) -> int:
    """When a UUIDv7 was made; 1 for other ids."""
    head = record_id.replace("-", "")[:12]
    try:
        return min(int(head, 16), int(_LATEST_S * 1000)) * 1_000_000 or 1
    except ValueError:
        return 1


def ns(seconds: Any) -> int:
    """Seconds since 1970 as nanoseconds; 0 for what is no time."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        return 0
    if not (math.isfinite(seconds) and 0 < seconds < _LATEST_S):
        return 0
    return round(seconds * 1e9)


def ours_of(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The record's `tianji`."""
    found = data.get("tianji")
    return found if isinstance(found, dict) else {}


def text_of(value: Any) -> str:
    """A text; empty for everything else."""
    return value if isinstance(value, str) else ""


def dicts(value: Any) -> list[dict[str, Any]]:
    """The objects of a list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
