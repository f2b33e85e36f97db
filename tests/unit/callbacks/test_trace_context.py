"""W3C trace context: what is taken, what is ignored, what goes on; and OpenTelemetry's current span."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tianji_mw.callbacks.record.trace_context import (
    Parent,
    TraceContext,
    current_span,
    outgoing,
    parent_of,
    trace_context,
    trace_of,
)
from tianji_mw.headers import RequestHeaders

CALL = "019a0c5f-1111-7222-8333-944455556666"
OWN = TraceContext("019a0c5f111172228333944455556666", "8333944455556666")
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"


def headers(*pairs: tuple[str, str]) -> RequestHeaders:
    return RequestHeaders([(name.encode(), value.encode("latin-1")) for name, value in pairs])


def test_without_a_header_the_ids_are_the_calls() -> None:
    assert trace_context(headers(("host", "x")), CALL) == OWN


def test_our_span_is_a_child_of_the_clients() -> None:
    context = trace_context(headers(("traceparent", GOOD), ("tracestate", "rojo=00f067aa0ba902b7,congo=t61")), CALL)
    assert context == TraceContext(TRACE, OWN.span_id, SPAN, True, "rojo=00f067aa0ba902b7,congo=t61")
    assert outgoing(context) == {
        "traceparent": f"00-{TRACE}-{OWN.span_id}-01",
        "tracestate": "rojo=00f067aa0ba902b7,congo=t61",
    }


def test_not_sampled_goes_on_as_such() -> None:
    context = trace_context(headers(("traceparent", f"00-{TRACE}-{SPAN}-00")), CALL)
    assert not context.sampled
    assert outgoing(context) == {"traceparent": f"00-{TRACE}-{OWN.span_id}-00"}


@pytest.mark.parametrize(
    "value",
    [
        "", "00", GOOD[:-1], GOOD + "0", GOOD + "-x", f"ff-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01", GOOD.upper(), GOOD.replace("-", "_"), f"00-{TRACE[:-1]}g-{SPAN}-01",
        f"0-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-1", f"00-{SPAN}-{TRACE}-01", f"01-{TRACE}-{SPAN}-01x", GOOD + "\n",
    ],
)  # fmt: skip
def test_what_is_no_traceparent_is_ignored_and_its_state_with_it(value: str) -> None:
    assert trace_context(headers(("traceparent", value), ("tracestate", "a=1")), CALL) == OWN
    assert trace_of(value, CALL, "a=1") == OWN


@pytest.mark.parametrize("value", [f" {GOOD}\t", f"01-{TRACE}-{SPAN}-01", f"cc-{TRACE}-{SPAN}-01-what-comes"])
def test_blanks_around_and_versions_to_come_are_taken(value: str) -> None:
    assert trace_context(headers(("traceparent", value)), CALL).parent_id == SPAN


def test_other_flags_do_not_count_as_sampled() -> None:
    assert not trace_of(f"00-{TRACE}-{SPAN}-fe", CALL).sampled
    assert trace_of(f"00-{TRACE}-{SPAN}-03", CALL).sampled


def test_two_traceparents_are_none() -> None:
    assert trace_context(headers(("traceparent", GOOD), ("traceparent", GOOD)), CALL) == OWN


@pytest.mark.parametrize(
    ("given_", "kept"),
    [
        (("a=1", "b=2"), "a=1,b=2"),
        ((" a=1 , ,b=2\t",), "a=1,b=2"),
        (("fw529a3039@dt=FfAAA,0t@v=x",), "fw529a3039@dt=FfAAA,0t@v=x"),
        (("a=1,a=2",), ""),
        (("A=1",), ""),
        (("a=1,b",), ""),
        (("a=\x01",), ""),
        (("a=1,é=2",), ""),
        ((",".join(f"k{at}=v" for at in range(33)),), ""),
        ((",".join(f"k{at}={'v' * 100}" for at in range(6)),), ",".join(f"k{at}={'v' * 100}" for at in range(4))),
    ],
)
def test_tracestate(given_: tuple[str, ...], kept: str) -> None:
    pairs = [("traceparent", GOOD), *(("tracestate", value) for value in given_)]
    assert trace_context(headers(*pairs), CALL).state == kept


def test_the_current_span_goes_before_the_header() -> None:
    context = trace_context(headers(("traceparent", GOOD)), CALL, Parent("a" * 32, "b" * 16, False, "x=1"))
    assert context == TraceContext("a" * 32, OWN.span_id, "b" * 16, False, "x=1")


@given(st.text(max_size=80))
def test_any_text_gives_a_context_that_is_valid_again(text: str) -> None:
    context = trace_of(text, CALL)
    again = parent_of(headers(*outgoing(context).items()))
    assert again is not None
    assert (again.trace_id, again.span_id) == (context.trace_id, OWN.span_id)


def test_current_span_of_opentelemetry() -> None:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    assert current_span() is None
    with TracerProvider().get_tracer("t").start_as_current_span("server") as span:
        found = span.get_span_context()
        assert current_span() == Parent(f"{found.trace_id:032x}", f"{found.span_id:016x}", True, "")
    state = trace.TraceState([("a", "1"), ("b", "2")])
    remote = trace.SpanContext(int(TRACE, 16), int(SPAN, 16), True, trace.TraceFlags(0), state)
    with trace.use_span(trace.NonRecordingSpan(remote)):
        assert current_span() == Parent(TRACE, SPAN, False, "a=1,b=2")


def test_opentelemetry_is_not_imported_for_it() -> None:
    code = (
        "import sys; from tianji_mw.callbacks.record.trace_context import current_span; assert current_span() is None;"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
