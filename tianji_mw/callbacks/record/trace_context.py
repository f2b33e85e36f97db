"""W3C trace context: where a call stands in its trace, read from `traceparent` and written for the upstream.

It makes no spans. Source: W3C Trace Context, https://www.w3.org/TR/trace-context/, sections 3.2 and 3.3.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from tianji_mw.headers import RequestHeaders

#: Version, trace, parent, flags; versions to come may have more after a dash.
_PARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_MEMBER: Final = re.compile(
    r"(?:[a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13})"
    r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)
_HEADER: Final = frozenset({b"traceparent"})
#: Of `tracestate`: members at most, and characters that everybody passes on.
_MEMBERS: Final = 32
_STATE: Final = 512
_NO_TRACE: Final = "0" * 32
_NO_SPAN: Final = "0" * 16


class TraceContext(NamedTuple):
    """Ids in lower-case hexadecimal: 32 digits of the trace, 16 of our span and of its parent."""

    trace_id: str
    span_id: str
    parent_id: str | None = None
    sampled: bool = True
    state: str = ""


class Parent(NamedTuple):
    """The span above ours."""

    trace_id: str
    span_id: str
    sampled: bool = True
    state: str = ""


def trace_context(headers: RequestHeaders, call_id: str, current: Parent | None = None) -> TraceContext:
    """The context of a call, below `current`, else below the client's span; a header that is not valid counts as none.

    `call_id` is a UUID, of which the ids are made where there are no others: all 32 digits for the trace, and the
    last 16, which are random, for our span.
    """
    digits = call_id.replace("-", "")
    if current is None:
        if headers.isdisjoint(_HEADER):
            return TraceContext(digits, digits[16:])
        current = parent_of(headers)
        if current is None:
            return TraceContext(digits, digits[16:])
    return TraceContext(current.trace_id, digits[16:], current.span_id, current.sampled, current.state)


def trace_of(traceparent: str | None, call_id: str, state: str = "") -> TraceContext:
    """The same of one header's value."""
    digits = call_id.replace("-", "")
    found = _parent(traceparent, state) if traceparent else None
    if found is None:
        return TraceContext(digits, digits[16:])
    return TraceContext(found.trace_id, digits[16:], found.span_id, found.sampled, found.state)


def parent_of(headers: RequestHeaders) -> Parent | None:
    """The client's span; None without a valid `traceparent`. Two of them are none."""
    given = headers.getlist("traceparent")
    if len(given) != 1:
        return None
    return _parent(given[0], ",".join(headers.getlist("tracestate")) if "tracestate" in headers else "")


def _parent(traceparent: str, state: str) -> Parent | None:
    found = _PARENT.fullmatch(traceparent.strip(" \t"))
    if found is None or found[1] == "ff" or (found[1] == "00" and found[5]):
        return None
    if found[2] == _NO_TRACE or found[3] == _NO_SPAN:
        return None
    return Parent(found[2], found[3], bool(int(found[4], 16) & 1), _state(state) if state else "")


def current_span() -> Parent | None:
    """OpenTelemetry's current span, where the process uses it: an instrumentation's server span, which is then our
    parent, and itself a child of the client's. Nothing is imported for it.
    """
    trace = sys.modules.get("opentelemetry.trace")
    get = getattr(trace, "get_current_span", None)
    if get is None:
        return None
    found = get().get_span_context()
    if not found.is_valid:
        return None
    state = found.trace_state.to_header() if found.trace_state else ""
    sampled = bool(found.trace_flags & 1)
    return Parent(f"{found.trace_id:032x}", f"{found.span_id:016x}", sampled, state)


def outgoing(context: TraceContext) -> dict[str, str]:
    """The headers that make whoever comes next a child of our span."""
    headers = {"traceparent": f"00-{context.trace_id}-{context.span_id}-{int(context.sampled):02x}"}
    if context.state:
        headers["tracestate"] = context.state
    return headers


def _state(given: str) -> str:
    """The members of a `tracestate` in their order. Empty where one is not valid, or a key stands twice.

    Beyond 512 characters the last ones are left out, each as a whole.
    """
    members = [member for part in given.split(",") if (member := part.strip(" \t"))]
    keys = {member.partition("=")[0] for member in members}
    if len(members) > _MEMBERS or len(keys) < len(members) or not all(map(_MEMBER.fullmatch, members)):
        return ""
    while members and sum(map(len, members)) + len(members) - 1 > _STATE:
        members.pop()
    return ",".join(members)
