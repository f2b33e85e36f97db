"""Spans of records: ids, the tree, times and statuses; whatever stands in a record."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.otlp_receiver import plain
from tests.support.records import START, a_failure, a_payload, a_record
from tianji_mw.callbacks.base import Record
from tianji_mw.callbacks.otlp import encode, genai
from tianji_mw.callbacks.otlp.spans import CLIENT, ERROR, INTERNAL, SERVER, UNSET, Span, call_times, ns, spans_of

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALL = "019a0c5f-1111-7222-8333-944455556666"
RUN = {
    "guardrail_name": "pii", "guardrail_provider": "presidio", "guardrail_mode": "pre_call",
    "guardrail_status": "success", "start_time": START + 0.01, "end_time": START + 0.02, "side": "input", "asked": 1,
}  # fmt: skip


def ours(**changes: Any) -> dict[str, Any]:
    return {**a_payload()["tianji"], **changes}


def attempts(*errors: str | None) -> list[dict[str, Any]]:
    base = a_payload()["tianji"]["attempts"][0]
    return [
        {**base, "model": f"m{at}", "error": error, "status_code": 500 if error else 200, "startTime": START + at / 10,
         "endTime": START + (at + 1) / 10}
        for at, error in enumerate(errors)
    ]  # fmt: skip


def test_a_call_that_went_well_is_one_client_span() -> None:
    (span,) = spans_of(a_record())
    assert (span.trace_id.hex(), span.span_id.hex(), span.parent_id) == (TRACE, "00f067aa0ba902b7", None)
    assert (span.name, span.kind, span.status, span.role) == ("chat gpt-4o-mini", CLIENT, UNSET, "call")
    assert span.start_ns == round(START * 1e9)
    assert span.end_ns - span.start_ns == pytest.approx(0.82e9, abs=1000)


@pytest.mark.parametrize("given_", ["my-session", "ABC", "0" * 32, TRACE + "0", "käse \ud800"])
def test_other_trace_ids_are_hashed(given_: str) -> None:
    data = a_payload(trace_id=given_)
    record = Record(CALL, b"")
    record._data = data
    assert spans_of(record)[0].trace_id == hashlib.sha256(given_.encode("utf-8", "surrogatepass")).digest()[:16]


def test_capital_hexadecimal_digits_are_the_same_trace() -> None:
    assert spans_of(a_record(trace_id=TRACE.upper()))[0].trace_id.hex() == TRACE


def test_without_any_trace_id_the_call_is_its_own_trace() -> None:
    record = a_record(trace_id=None, litellm_call_id=CALL)
    assert spans_of(record)[0].trace_id == hashlib.sha256(CALL.encode()).digest()[:16]


def test_below_a_client_span_the_trace_is_the_clients_whatever_groups_the_calls() -> None:
    record = a_record(trace_id="session-9", tianji=ours(parent_span_id="b7ad6b7169203331", trace_id=TRACE))
    (span,) = spans_of(record)
    assert (span.trace_id.hex(), span.parent_id, span.remote_parent) == (TRACE, bytes.fromhex("b7ad6b7169203331"), True)
    assert genai.call_attributes(record.data)["tianji.trace.id"] == "session-9"


def test_attempts_are_children_when_there_were_several() -> None:
    record = a_record(tianji=ours(attempts=attempts("UpstreamError", None)))
    call, first, second = spans_of(record)
    assert call.status == UNSET
    assert {first.parent_id, second.parent_id} == {call.span_id}
    assert len({call.span_id, first.span_id, second.span_id}) == 3
    assert (first.name, first.status, first.status_message) == ("attempt 1 m0", ERROR, "UpstreamError")
    assert (second.name, second.status, second.attributes) == ("attempt 2 m1", UNSET, {"tianji.attempt": 2})
    told = genai.attempt_attributes(first)
    assert told["error.type"] == "UpstreamError"
    assert told["http.response.status_code"] == 500
    assert not [name for name in told if "usage" in name or "cost" in name or name.startswith("gen_ai.")]


def test_a_single_attempt_has_a_span_only_if_it_failed() -> None:
    assert len(spans_of(a_record(tianji=ours(attempts=attempts(None))))) == 1
    assert [span.role for span in spans_of(a_failure())] == ["call", "attempt"]


def test_a_failure_is_an_error_with_its_message() -> None:
    span = spans_of(a_failure("The provider 'openai' answered 500."))[0]
    assert (span.status, span.status_message) == (ERROR, "The provider 'openai' answered 500.")
    event = genai.exception_event(span, a_failure().data)
    assert event is not None
    assert event.attributes["exception.type"] == "UpstreamError"
    assert genai.call_attributes(a_failure().data)["error.type"] == "UpstreamError"


def test_a_client_that_left_is_named_so() -> None:
    record = a_failure(tianji=ours(outcome="client_gone"))
    assert genai.call_attributes(record.data)["error.type"] == "client_disconnect"


def test_guardrails_with_times_are_spans() -> None:
    late = {**RUN, "guardrail_name": "x", "start_time": None}
    down = {**RUN, "guardrail_name": "lakera", "guardrail_status": "guardrail_failed_to_respond"}
    call, pii, lakera = spans_of(a_record(guardrail_information=[RUN, late, down]))
    assert (pii.name, pii.kind, pii.parent_id, pii.status) == ("execute_guardrail pii", INTERNAL, call.span_id, UNSET)
    assert (lakera.status, lakera.role) == (ERROR, "guardrail")
    told = genai.guardrail_attributes(pii)
    assert told["tianji.guardrail.name"] == "pii"
    assert told["tianji.guardrail.mode"] == "pre_call"
    assert told["tianji.guardrail.asked"] == 1


def test_with_a_server_span_guardrails_stand_beside_the_call() -> None:
    record = a_record(guardrail_information=[RUN], tianji=ours(parent_span_id="b7ad6b7169203331", trace_id=TRACE))
    server, call, guardrail = spans_of(record, server=True)
    assert (server.name, server.kind, server.remote_parent) == ("POST /v1/chat/completions", SERVER, True)
    assert server.parent_id == bytes.fromhex("b7ad6b7169203331")
    assert (call.parent_id, call.remote_parent, guardrail.parent_id) == (server.span_id, False, server.span_id)
    assert call.span_id.hex() == "00f067aa0ba902b7"
    assert genai.server_attributes(record.data)["http.response.status_code"] == 200


def test_spans_are_the_same_whenever_the_record_is_sent() -> None:
    record = a_failure(guardrail_information=[RUN])
    again = Record(record.id, record.raw)
    assert spans_of(record, server=True) == spans_of(again, server=True)
    assert spans_of(record)[1].span_id != spans_of(a_failure(guardrail_information=[RUN]))[1].span_id


@pytest.mark.parametrize("odd", [None, "1", True, -1.0, 0, math.nan, math.inf, 1e30, [], {}])
def test_odd_times_are_none(odd: Any) -> None:
    assert ns(odd) == 0
    record = Record(CALL, b"")
    record._data = a_payload(startTime=odd, endTime=odd)
    start, end = call_times(record)
    # The UUIDv7's own time.
    assert start == end == int("019a0c5f1111", 16) * 1_000_000


def test_a_call_never_ends_before_it_starts() -> None:
    (span,) = spans_of(a_record(startTime=START, endTime=START - 5))
    assert span.start_ns == span.end_ns == ns(START)


def test_a_span_id_that_is_none_is_made_from_the_call() -> None:
    for odd in (None, "", "0" * 16, "xyz", 5):
        record = a_record(tianji=ours(span_id=odd))
        first, again = spans_of(record)[0].span_id, spans_of(record)[0].span_id
        assert first == again
        assert len(first) == 8
        assert any(first)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8) | st.just(RUN),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["role", "content", "type", "text", "tool_calls", "function", "arguments", "output", "choices", "message",
             "attempts", "error", "startTime", "name", "source", "image_url", "input", "usage_object", "tools", "api"]
        ), inner, max_size=4,
    ),
    max_leaves=25,
)  # fmt: skip
FIELDS = sorted(a_payload())
APIS = ("responses", "messages", "chat_completions")


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=6),
    st.sampled_from(["responses", "messages", "chat_completions"]),
)
def test_no_record_is_too_odd(changes: dict[str, Any], api: str) -> None:
    data = a_payload(**{"tianji": ours(api=api), **changes})
    record = Record(CALL, b"")
    record._data = data
    spans = spans_of(record, server=True)
    for span in spans:
        _fill(span, record)
        assert span.end_ns >= span.start_ns > 0
        assert len(span.trace_id) == 16
        assert len(span.span_id) == 8
    message = encode.traces([({"service.name": "x"}, encode.Scope(name="s"), spans)])
    message.SerializeToString()
    json.loads(encode.to_json(message))
    for value in plain(message.resource_spans[0].scope_spans[0].spans[1].attributes).values():
        assert value is not None


def _fill(span: Span, record: Record) -> None:
    if span.role == "call":
        span.attributes = genai.call_attributes(record.data, content=True, legacy=True)
        event = genai.exception_event(span, record.data)
        span.events = [event] if event else []
    elif span.role == "attempt":
        span.attributes = genai.attempt_attributes(span)
    elif span.role == "guardrail":
        span.attributes = genai.guardrail_attributes(span)
    else:
        span.attributes = genai.server_attributes(record.data)
