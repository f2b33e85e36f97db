"""What each failure means: whether it is tried again, elsewhere, in another group, and counts against a deployment."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.routing_core import Clock, S, call_of, runtime_of
from tianji_mw.call import Call
from tianji_mw.errors import (
    Blocked,
    InvalidRequest,
    NoDeployment,
    Overloaded,
    PermissionDenied,
    UnknownModel,
    UnsupportedParams,
    UpstreamError,
    UpstreamMalformed,
    UpstreamTimeout,
    UpstreamTruncated,
    UpstreamUnreachable,
)
from tianji_mw.routing.failure import Failure, failure_of


def a_call(**request: Any) -> Call:
    return call_of(runtime_of(Clock()), **request)


def of(error: BaseException | None, status: int = 0, **headers: str) -> Failure:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return failure_of(error, status or getattr(error, "status", 500), named, b"", a_call())


#: Status: kind, again, elsewhere, falls back, counts.
STATUSES: dict[int, tuple[str, bool, bool, bool, bool]] = {
    400: ("BadRequest", False, False, False, False),
    401: ("Authentication", True, True, True, True),
    402: ("Authentication", True, True, True, True),
    403: ("Authentication", True, True, True, False),
    404: ("NotFound", False, False, True, True),
    405: ("BadRequest", False, False, False, False),
    408: ("Timeout", True, False, True, True),
    409: ("BadRequest", True, False, True, False),
    413: ("BadRequest", False, False, False, False),
    422: ("BadRequest", False, False, False, False),
    425: ("BadRequest", True, False, True, False),
    429: ("RateLimit", True, False, True, True),
    500: ("InternalServer", True, False, True, True),
    501: ("InternalServer", True, False, True, True),
    502: ("BadGateway", True, False, True, True),
    503: ("ServiceUnavailable", True, False, True, True),
    504: ("Timeout", True, False, True, True),
    529: ("ServiceUnavailable", True, False, True, True),
    599: ("InternalServer", True, False, True, True),
}


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("own", [True, False], ids=["upstream", "app"])
def test_statuses(status: int, own: bool) -> None:
    found = of(UpstreamError("x", status=status) if own else None, status)
    assert (found.kind, found.again, found.elsewhere, found.falls_back, found.counts) == STATUSES[status]
    assert found.status == status
    assert not found.unreachable
    assert (found.error is None) is not own


@pytest.mark.parametrize("code", ["context_length_exceeded", "content_filter", "content_policy_violation"])
@pytest.mark.parametrize("status", [400, 413, 500])
def test_the_codes_of_typed_failures_go_before_their_status(code: str, status: int) -> None:
    found = of(UpstreamError("x", status=status, code=code))
    assert found.kind == ("ContextWindow" if code == "context_length_exceeded" else "ContentPolicyViolation")
    assert (found.again, found.falls_back, found.counts) == (False, True, False)


@pytest.mark.parametrize(
    ("error", "again", "elsewhere", "falls_back"),
    [
        (InvalidRequest("x"), False, False, False),
        (UnknownModel("x"), False, False, False),
        (PermissionDenied("x"), False, False, False),
        (Blocked("x"), False, False, False),
        (Overloaded("x"), False, False, True),
        (UnsupportedParams("x"), True, True, True),
        (InvalidRequest("x", code="unsupported_endpoint"), True, True, True),
        (NoDeployment("x"), False, False, True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_ours_never_count(error: Exception, again: bool, elsewhere: bool, falls_back: bool) -> None:
    found = of(error)
    assert (found.again, found.elsewhere, found.falls_back) == (again, elsewhere, falls_back)
    assert not found.counts
    assert found.error is error


@pytest.mark.parametrize(
    ("error", "kind", "unreachable"),
    [
        (UpstreamUnreachable("x"), "BadGateway", True),
        (UpstreamTruncated("x"), "BadGateway", False),
        (UpstreamMalformed("x"), "BadGateway", False),
        (UpstreamTimeout("x"), "Timeout", False),
    ],
)
def test_the_wire(error: UpstreamError, kind: str, unreachable: bool) -> None:
    found = of(error)
    assert (found.kind, found.unreachable, found.again, found.counts) == (kind, unreachable, True, True)


@pytest.mark.parametrize(
    ("status", "wished", "again"),
    [(400, "true", True), (500, "false", False), (400, "TRUE", True), (401, "false", False), (500, "maybe", True)],
)
def test_an_upstream_may_say_itself(status: int, wished: str, again: bool) -> None:
    found = of(UpstreamError("x", status=status, headers={"x-should-retry": wished}))
    assert found.again is again
    assert of(None, status, x_should_retry=wished).again is again


def test_it_says_how_long_to_wait() -> None:
    assert of(UpstreamError("x", status=429, headers={"retry-after": "7"})).wait_s == 7
    assert of(None, 503, retry_after="7").wait_s == 7
    assert of(NoDeployment("x", headers={"retry-after": "7"})).wait_s == 7
    assert of(UpstreamError("x", status=429, body=b'{"error":{"details":[{"retryDelay":"3s"}]}}')).wait_s == 3


# --- whose time was over


def late(call: Call, after_s: float) -> Failure:
    """The upstream gave nothing for so long."""
    call.timings.sent_upstream = call.runtime.clock()
    clock = call.runtime.clock
    assert isinstance(clock, Clock)
    clock.wait(after_s)
    return failure_of(UpstreamTimeout("x"), 408, {}, b"", call)


@pytest.mark.parametrize("field", ["timeout", "stream_timeout"])
def test_a_clients_patience_says_nothing_of_the_deployment(field: str) -> None:
    more: dict[str, Any] = {field: 2, "stream": field == "stream_timeout"}
    assert not late(a_call(**more), 2.0).counts
    assert late(a_call(**more), 1.0).counts  # it was the deployment's own limit
    assert late(a_call(**{**more, field: 1e308}), 60.0).counts


def test_a_clients_patience_in_a_header() -> None:
    call = call_of(runtime_of(Clock()), headers=[(b"x-litellm-timeout", b"2")])
    assert not late(call, 2.0).counts
    for wrong in (b"x", b"nan", b"-1", b"inf"):
        call = call_of(runtime_of(Clock()), headers=[(b"x-litellm-timeout", wrong)])
        assert late(call, 2.0).counts


@pytest.mark.parametrize(("spent_s", "counts"), [(0.0, True), (4.0, True), (6.0, False), (9.9, False)])
def test_an_attempt_that_had_hardly_any_time_says_nothing(spent_s: float, counts: bool) -> None:
    call = a_call()
    call.due = call.timings.received + 10 * S
    clock = call.runtime.clock
    assert isinstance(clock, Clock)
    clock.wait(spent_s)
    assert late(call, 10.0 - spent_s).counts is counts
    # Its own limit ended it, although the call's was set.
    call = a_call()
    call.due = call.timings.received + 1000 * S
    assert late(call, 1.0).counts


# --- anything


@given(
    st.integers(100, 999), st.dictionaries(st.sampled_from(["retry-after", "x-should-retry"]), st.text()), st.binary()
)
def test_total(status: int, headers: dict[str, str], body: bytes) -> None:
    for error in (None, UpstreamError("x", status=status, headers=headers, body=body)):
        found = failure_of(error, status, headers, body, a_call())
        assert found.again or not found.elsewhere
        assert found.reason == f"{found.kind} {status}"
        assert not found.counts or status in (401, 402, 404, 408, 429) or status >= 500
