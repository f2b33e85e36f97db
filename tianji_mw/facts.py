"""The plain facts about a call: its bounds, counters and times, and what was tried upstream for it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tianji_mw.call import Call
    from tianji_mw.routing.base import Deployment

Outcome = Literal[
    "ok", "cached", "blocked", "refused", "client_gone", "upstream_error", "truncated", "timeout", "error"
]


@dataclass(slots=True, frozen=True, kw_only=True)
class Limits:
    """Bounds of one call. All are hard: past them the call ends with an error that names the limit."""

    max_body_bytes: int = 32 << 20
    receive_timeout_s: float = 60.0
    max_event_bytes: int = 1 << 20
    max_answer_bytes: int = 256 << 20


@dataclass(slots=True)
class Counters:
    """How often the expensive things were done; tests hold them to one, one and zero."""

    parsed: int = 0
    decoded: int = 0
    encoded: int = 0


@dataclass(slots=True)
class Timings:
    """Monotonic nanoseconds; 0 where the point was not reached."""

    received: int = 0
    sent_upstream: int = 0
    first_upstream_byte: int = 0
    first_client_byte: int = 0
    end: int = 0


@dataclass(slots=True, eq=False)
class Attempt:
    """One request upstream, and how it went. Times are nanoseconds of the runtime's clock, 0 where not reached."""

    deployment: Deployment
    started: int
    #: The model group that it was made in, where that is not the one that was asked for.
    group: str = ""
    #: When its request went out.
    sent: int = 0
    #: The HTTP status that the provider answered with; 0 without an answer.
    status: int = 0
    error: BaseException | None = None
    #: When the first content of its answer came; what comes before says that it began, not that it works.
    first: int = 0
    ended: int = 0
    #: Tokens that it read and wrote, where the provider told.
    input_tokens: int = 0
    output_tokens: int = 0
    #: Given up although nothing was wrong with it: another one was faster, or the client left.
    abandoned: bool = False

    def answered(self, status: int, call: Call) -> None:
        """The provider's head has come, with this status."""
        self.status = status
        call.timings.first_upstream_byte = call.runtime.clock()

    @property
    def failed(self) -> bool:
        """Whether it ended, and gave no answer."""
        return self.error is not None and not self.abandoned


@dataclass(slots=True, eq=False)
class CacheUse:
    """What the cache did for a call."""

    #: `hit` and `stale` answered it; `partial` answered some of its items; `bypass`: it was not asked.
    status: Literal["hit", "stale", "partial", "miss", "bypass"] = "miss"
    kind: Literal["exact", "semantic"] = "exact"
    key: str = ""
    #: Seconds since a provider gave the answer.
    age_s: float = 0.0
    #: The answer came from a call that is being served at this moment.
    shared: bool = False
    #: Cosine to the nearest request that was asked before; None where none was looked for.
    similarity: float | None = None
    #: Why it was not asked.
    reason: str = ""
    #: Tokens that no provider had to read and write for it.
    saved_tokens: int = 0
    #: What they would have cost, in US dollars; 0 where there are no prices.
    saved_cost: float = 0.0

    @property
    def answered(self) -> bool:
        """Whether no provider was asked."""
        return self.status in ("hit", "stale")


class ClientGone(Exception):  # a state of the connection, not a fault
    """The client disconnected; nobody is left to answer."""


def outcome_of(error: BaseException) -> Outcome:
    """How a call ended that failed with this error."""
    from tianji_mw import errors

    if isinstance(error, ClientGone | asyncio.CancelledError):
        return "client_gone"
    if isinstance(error, errors.UpstreamTimeout):
        return "timeout"
    if isinstance(error, errors.UpstreamTruncated):
        return "truncated"
    if isinstance(error, errors.UpstreamError):
        return "upstream_error"
    if isinstance(error, errors.Blocked):
        return "blocked"
    if isinstance(error, errors.Refusal | errors.RequestError):
        return "refused"
    return "error"
