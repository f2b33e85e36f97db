"""The deployment with the lowest mean latency, LiteLLM's `latency-based-routing`. It knows nothing of load.

Latency is the time to the first token for streams, else seconds per token of the answer; a timeout counts 1,000 s.
One that nobody knows yet is tried first. Unlike LiteLLM's: not by everybody at once, and not again and again when it
fails. A `lowest_latency_buffer` of 0 sends everything to one deployment: 0.3 to 0.5 spread the load.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Final

from pydantic import Field

from tianji_mw.errors import UpstreamTimeout
from tianji_mw.routing.base import Candidates, Deployment, Picker
from tianji_mw.routing.ranking import Figures

if TYPE_CHECKING:
    from tianji_mw.call import Call
    from tianji_mw.facts import Attempt

_SECOND: Final = 1_000_000_000
_TIMEOUT_S: Final = 1000.0
#: Seconds after which a deployment that failed before it was known may be tried first again.
_FORGIVEN_S: Final = 60.0


class Latency(Picker):
    """`routing_strategy: latency-based-routing`."""

    names: ClassVar[tuple[str, ...]] = ("latency-based-routing", "lowest-latency")
    limits: ClassVar[bool] = True

    #: Seconds after which a deployment without new samples is unknown again.
    ttl: float = Field(3600.0, gt=0)
    #: How much slower than the fastest one a deployment may be and still be chosen: 0.5 is half as slow again.
    lowest_latency_buffer: float = Field(0.0, ge=0)
    #: Samples of a deployment that are averaged.
    max_latency_list_size: int = Field(10, ge=1)
    #: Compare streams by this percentile of their first tokens, 0 to 1, and not by their mean.
    ttft_percentile: float | None = Field(None, ge=0, le=1)

    # A pydantic private attribute costs twenty times as much to read.
    @cached_property
    def _state(self) -> _State:
        return _State()

    def pick(self, deployments: Candidates, call: Call) -> Deployment:
        """One of the fastest."""
        if len(deployments) == 1:
            return deployments[0]
        state, runtime = self._state, call.runtime
        if state.due and state.due[0][0] <= (now := runtime.clock()):
            state.forget(now)
        figures = state.streams if call.stream else state.plain
        return figures.least(deployments, runtime.rng, self.lowest_latency_buffer)

    def sent(self, attempt: Attempt, call: Call) -> None:
        """An unknown deployment that is being tried is not the first any more."""
        state = self._state
        seen = state.of(attempt.deployment)
        seen.inflight += 1
        if not (seen.first_tokens and seen.per_token):
            state.rank(attempt.deployment, seen)

    def observe(self, attempt: Attempt, call: Call) -> None:
        """Learn from how long it took."""
        state, deployment = self._state, attempt.deployment
        seen = state.of(deployment)
        seen.inflight = max(seen.inflight - 1, 0)
        if isinstance(attempt.error, UpstreamTimeout) and not attempt.abandoned:
            self._learn(seen, _TIMEOUT_S, _TIMEOUT_S)
        elif attempt.error is None and not attempt.abandoned:
            waited = (attempt.first - attempt.started) / _SECOND if call.stream and attempt.first else None
            self._learn(seen, waited, (attempt.ended - attempt.started) / _SECOND / max(attempt.output_tokens, 1))
        elif attempt.failed and not (seen.first_tokens if call.stream else seen.per_token):
            seen.failed = True
        keep_s = self.ttl if seen.per_token else min(self.ttl, _FORGIVEN_S)
        state.keep(deployment, seen, attempt.ended + int(keep_s * _SECOND))
        state.rank(deployment, seen)

    def _learn(self, seen: _Seen, first_token: float | None, per_token: float) -> None:
        size = self.max_latency_list_size
        if first_token is not None and first_token >= 0:
            seen.first_tokens.append(first_token)
            if len(seen.first_tokens) > size:
                seen.first_tokens.popleft()
            seen.first_token = _average(seen.first_tokens, self.ttft_percentile)
        if per_token >= 0:
            seen.failed = False
            seen.per_token.append(per_token)
            if len(seen.per_token) > size:
                seen.per_token.popleft()
            seen.each_token = _average(seen.per_token, None)

    def report(self, deployment: Deployment) -> Mapping[str, Any]:
        """The figures that are compared; null: not known."""
        seen = self._state.of(deployment)
        return {
            "ttft_s": round(seen.first_token, 4) if seen.first_tokens else None,
            "s_per_output_token": round(seen.each_token, 5) if seen.per_token else None,
            "samples": len(seen.per_token),
            "inflight": seen.inflight,
        }


class _Seen:
    """What is known of a deployment."""

    __slots__ = ("each_token", "failed", "first_token", "first_tokens", "inflight", "kept_until", "per_token")

    def __init__(self) -> None:
        self.first_tokens: deque[float] = deque()
        self.per_token: deque[float] = deque()
        self.first_token = self.each_token = 0.0
        self.inflight = 0
        #: Failed before anything was known.
        self.failed = False
        #: 0: nothing to forget.
        self.kept_until = 0


class _State:
    __slots__ = ("_kept", "_seen", "due", "plain", "streams")

    def __init__(self) -> None:
        self._seen: dict[Deployment, _Seen] = {}
        self.streams = Figures(default=0.0)
        self.plain = Figures(default=0.0)
        #: When to look whether something is too old; each deployment stands in it once.
        self.due: list[tuple[int, int, Deployment]] = []
        self._kept = 0

    def of(self, deployment: Deployment) -> _Seen:
        seen = self._seen.get(deployment)
        if seen is None:
            seen = self._seen[deployment] = _Seen()
        return seen

    def rank(self, deployment: Deployment, seen: _Seen) -> None:
        """Unknown is 0, the best there is; unknown and in use or failed is the worst."""
        unknown = math.inf if seen.inflight or seen.failed else 0.0
        self.streams.set(deployment, seen.first_token if seen.first_tokens else unknown)
        self.plain.set(deployment, seen.each_token if seen.per_token else unknown)

    def keep(self, deployment: Deployment, seen: _Seen, until: int) -> None:
        if not seen.kept_until:
            self._kept += 1
            heapq.heappush(self.due, (until, self._kept, deployment))
        seen.kept_until = until

    def forget(self, now: int) -> None:
        """What is too old makes a deployment unknown again."""
        while self.due and self.due[0][0] <= now:
            _, number, deployment = heapq.heappop(self.due)
            seen = self._seen[deployment]
            if seen.kept_until > now:
                heapq.heappush(self.due, (seen.kept_until, number, deployment))
                continue
            seen.kept_until = 0
            seen.failed = False
            seen.first_tokens.clear()
            seen.per_token.clear()
            self.rank(deployment, seen)


def _average(samples: deque[float], percentile: float | None) -> float:
    if percentile is None:
        return sum(samples) / len(samples)
    # The smallest sample that is not exceeded by this part of them.
    return sorted(samples)[max(math.ceil(percentile * len(samples)) - 1, 0)]
