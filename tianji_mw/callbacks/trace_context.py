"""W3C trace context: where a call stands in its trace, read from `traceparent` and written for the upstream.

Source: W3C Trace Context, https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tianji_mw.headers import RequestHeaders

_PARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_HEADER: Final = frozenset({b"traceparent"})


@dataclass(frozen=True, slots=True)
class TraceContext:
    """Ids in lower-case hexadecimal: 32 digits of the trace, 16 of our span and of its parent."""

    trace_id: str
    span_id: str
    parent_id: str | None = None
    sampled: bool = True
    state: str = ""


def trace_context(headers: RequestHeaders, call_id: str) -> TraceContext:
    """The context of a call, from its headers."""
    if headers.isdisjoint(_HEADER):
        return trace_of(None, call_id)
    return trace_of(headers["traceparent"], call_id, headers.get("tracestate") or "")


def trace_of(parent: str | None, call_id: str, state: str = "") -> TraceContext:
    """The context below this `traceparent`; one of its own, with ids of the call's, where that is none."""
    digits = call_id.replace("-", "")
    found = _PARENT.fullmatch(parent.strip()) if parent else None
    wrong = found is None or found[1] == "ff" or (found[1] == "00" and found[5])
    if found is None or wrong or not int(found[2], 16) or not int(found[3], 16):
        return TraceContext(digits, digits[16:])
    return TraceContext(found[2], digits[16:], found[3], bool(int(found[4], 16) & 1), state)


def outgoing(context: TraceContext) -> dict[str, str]:
    """The headers that make whoever comes next a child of our span."""
    headers = {"traceparent": f"00-{context.trace_id}-{context.span_id}-{int(context.sampled):02x}"}
    if context.state:
        headers["tracestate"] = context.state
    return headers
