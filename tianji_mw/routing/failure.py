"""What the failure of an attempt means: its kind, whether another may help, whether it speaks against a deployment.

Statuses decide, and the codes that `providers/classify.py` found. LiteLLM's rules with these changes: an upstream that
cannot be reached counts against it; 402 is tried elsewhere, as 401 is: another key may have credit; a parameter or API
that one provider lacks is tried at another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from tianji_mw import outgoing
from tianji_mw.errors import (
    InvalidRequest,
    NoDeployment,
    Overloaded,
    TianjiError,
    UnsupportedParams,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from tianji_mw.routing.retry_after import wait_s

if TYPE_CHECKING:
    from tianji_mw.call import Call
    from tianji_mw.routing.rules import Kind

#: Of a client that spoke wrong; no other deployment would understand it better.
_CLIENT: Final = frozenset({400, 405, 406, 411, 413, 414, 415, 422, 431})
_OTHER_KEY: Final = frozenset({401, 402, 403})
_AGAIN: Final = frozenset({408, 409, 425, 429})
_COOLS: Final = frozenset({401, 402, 404, 408, 429})
_KINDS: Final[Mapping[int, Kind]] = {
    401: "Authentication", 402: "Authentication", 403: "Authentication", 404: "NotFound", 408: "Timeout",
    429: "RateLimit", 502: "BadGateway", 503: "ServiceUnavailable", 504: "Timeout", 529: "ServiceUnavailable",
}  # fmt: skip
#: Timers ring late, never early; this is for what clocks round.
_SLACK_S: Final = 0.005
_POLICY: Final = frozenset({"content_filter", "content_policy_violation"})


class Failure(NamedTuple):
    """Why an attempt gave no answer."""

    kind: Kind
    status: int
    #: What the client gets when nothing else helps; None: the answer that is held back.
    error: TianjiError | None
    #: A further attempt may end better: anywhere, or only at another deployment.
    again: bool
    elsewhere: bool
    #: Another model group may help.
    falls_back: bool
    #: It speaks against the deployment.
    counts: bool
    #: It could not even be reached.
    unreachable: bool
    #: Seconds that the upstream asks to wait.
    wait_s: float | None

    @property
    def reason(self) -> str:
        """For people: the kind and the status."""
        return f"{self.kind} {self.status}"


def failure_of(
    error: BaseException | None, status: int, headers: Mapping[str, str], body: bytes, call: Call
) -> Failure:
    """What this error means; without one, what an app's answer with this status means."""
    if isinstance(error, UpstreamError):
        return _of_upstream(error, call)
    if isinstance(error, TianjiError):
        # Ours: the request is wrong or refused, and would be so everywhere, unless one provider cannot serve it.
        lacks = isinstance(error, UnsupportedParams) or (
            isinstance(error, InvalidRequest) and error.code == "unsupported_endpoint"
        )
        falls_back = lacks or isinstance(error, Overloaded)
        return Failure("BadRequest", error.status, error, lacks, lacks, falls_back, False, False, None)
    return _of_status(status, headers, body, None, call)


def _of_upstream(error: UpstreamError, call: Call) -> Failure:
    headers, body = error.headers, error.body
    if isinstance(error, NoDeployment):
        return Failure("RateLimit", error.status, error, False, False, True, False, False, wait_s(headers, b"", 0))
    if error.code == "context_length_exceeded":
        return Failure("ContextWindow", error.status, error, False, False, True, False, False, None)
    if error.code in _POLICY:
        return Failure("ContentPolicyViolation", error.status, error, False, False, True, False, False, None)
    failure = _of_status(error.status, headers, body, error, call)
    if isinstance(error, UpstreamTimeout) and (_out_of_time(call) or _own_timeout(call)):
        return failure._replace(counts=False)
    if isinstance(error, UpstreamUnreachable):
        return failure._replace(unreachable=True)
    return failure


def _of_status(status: int, headers: Mapping[str, str], body: bytes, error: TianjiError | None, call: Call) -> Failure:
    kind = _KINDS.get(status, "InternalServer" if status >= 500 else "BadRequest")
    other_key = status in _OTHER_KEY
    again = other_key or status in _AGAIN or status >= 500
    wished = headers.get("x-should-retry", "").lower()
    if wished in ("true", "false"):
        again = wished == "true"
    return Failure(
        kind,
        status,
        error,
        again,
        again and other_key,
        status not in _CLIENT,
        status in _COOLS or status >= 500,
        False,
        wait_s(headers, body, call.runtime.wall()),
    )


def _out_of_time(call: Call) -> bool:
    """Whether the call's time was over, and most of it had been spent before this attempt."""
    now, sent = call.runtime.clock(), call.timings.sent_upstream
    return 0 < call.due <= now + int(_SLACK_S * 1e9) and 2 * (now - sent) < call.due - call.timings.received


def _own_timeout(call: Call) -> bool:
    """Whether it was the client's patience that ended: that says nothing of the deployment."""
    try:
        asked = outgoing.asked_timeout(call, stream=call.stream and call.api.streams)
    except InvalidRequest:  # nobody heeded it
        return False
    return asked is not None and (call.runtime.clock() - call.timings.sent_upstream) / 1e9 >= asked - _SLACK_S
