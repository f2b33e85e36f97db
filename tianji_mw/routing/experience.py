"""What `adaptive` has learned of a deployment, and of its model group: pure arithmetic, no choice.

Times are milliseconds here, apart from moments, which are nanoseconds of the runtime's clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Container, Mapping
from math import exp, sqrt
from typing import TYPE_CHECKING, Any, Final

from tianji_mw.routing.lengths import Length

if TYPE_CHECKING:
    from tianji_mw.facts import Attempt
    from tianji_mw.routing.base import Deployment

_MS: Final = 1_000_000
_S: Final = 1_000_000_000
#: What a worse sample weighs, and a better one at least; after `_TAU_S` without a sample it weighs 63 %.
_UP: Final = 0.2
_DOWN: Final = 0.1
_TAU_S: Final = 10.0
#: A bad opinion fades to what is usual: by 63 % in `_TAU_S`, and in so many calls of the group at least.
_CALLS: Final = 40.0
#: More load than usual makes slower in proportion, with so many calls beside those that are counted.
_BASE: Final = 4.0
#: Steps of a group's figures; twice as large down as up, so that half of the deployments may be slow.
_LONGER: Final = 1.02
_SHORTER: Final = 0.96
#: Slower than what the group's calls usually take by this factor is an outlier.
_OUTLIER: Final = 2.5
#: A failure makes a deployment count as so many times slower.
_FAILURE: Final = 20.0
_FAIL_WEIGHT: Final = 0.2
_NEGLIGIBLE: Final = 0.005
#: Failing more often than this it is in doubt, until it fails less often than that.
_DOUBTED: Final = 0.3
_TRUSTED: Final = 0.1
#: What a good answer of a doubtful deployment weighs.
_AGAIN: Final = 0.5
#: Tokens of an answer that speeds are compared by; tokens that the first one is taken to be worth.
_MANY: Final = 100
_START: Final = 20
#: Milliseconds; less says that the clock is too coarse.
_LEAST: Final = 1e-3
#: Seconds until a doubtful deployment is probed; doubles with each probe that goes wrong.
_PROBE_S: Final = 2.0
_LONGEST_PROBE_S: Final = 120.0
#: Calls of the group between two probes.
_PROBE_EVERY: Final = 150
#: Good answers that follow one another sooner are not all learned from.
_OFTEN_NS: Final = 1_000_000
#: Answers of a request's own fault.
_CALLERS: Final = frozenset({400, 405, 406, 411, 413, 414, 415, 422})


class Group:
    """A model group: what its calls usually take, and which of its deployments are in doubt."""

    __slots__ = ("_numbers", "_probed", "calls", "doubtful", "length", "tpot", "ttft")

    def __init__(self) -> None:
        self.length = Length()
        self.ttft = 0.0
        self.tpot = 0.0
        #: (when to probe it, number, what is known of it)
        self.doubtful: list[tuple[int, int, Experience]] = []
        self._numbers = self._probed = 0
        #: Choices that were made in it.
        self.calls = 0

    def typical(self, answer: float) -> float:
        """Milliseconds of a call with so many tokens to write; 1 where nobody knows."""
        return (self.ttft + self.tpot * answer) or 1.0

    def learn(self, ttft: float, tpot: float) -> None:
        """A call that went well: a small step towards it, so that a third of the calls is faster than the figures."""
        self.ttft = (self.ttft * (_LONGER if ttft > self.ttft else _SHORTER)) if self.ttft else max(ttft, _LEAST)
        if tpot:
            self.tpot = (self.tpot * (_LONGER if tpot > self.tpot else _SHORTER)) if self.tpot else tpot

    def doubt(self, seen: Experience, when: int) -> None:
        """Have it probed then, and not when it was said before."""
        self._numbers += 1
        seen.probe_at = when
        heapq.heappush(self.doubtful, (when, self._numbers, seen))

    def hurry(self, seen: Experience, now: int) -> None:
        """A probe went well: the next one may follow at once."""
        self._probed = self.calls - _PROBE_EVERY
        self.doubt(seen, now)

    def probe(self, now: int, allowed: Container[Deployment]) -> Deployment | None:
        """The doubtful deployment whose turn it is, at most one for many calls."""
        if self.calls - self._probed < _PROBE_EVERY or self.doubtful[0][0] > now:
            return None
        when, _, seen = heapq.heappop(self.doubtful)
        if when != seen.probe_at:
            return None
        seen.probe_at = 0
        if not seen.doubted:
            return None
        seen.pause_s = min(2 * seen.pause_s, _LONGEST_PROBE_S)
        self.doubt(seen, now + int(seen.pause_s * _S))
        if seen.inflight or seen.deployment not in allowed:
            return None
        self._probed = self.calls
        return seen.deployment


class Experience:
    """One deployment."""

    __slots__ = (
        "_call", "_flying", "_seen", "_waiting", "deployment", "doubted", "elsewhere", "failing", "group", "inflight",
        "pause_s", "probe_at", "tpot", "ttft", "usual",
    )  # fmt: skip

    def __init__(self, deployment: Deployment, group: Group) -> None:
        self.deployment, self.group = deployment, group
        #: 0: not known.
        self.ttft = self.tpot = 0.0
        #: Requests in flight that the figures were learned with.
        self.usual = 0.0
        #: Part of the calls that fail.
        self.failing = 0.0
        self.inflight = self.elsewhere = 0
        #: When the last one ended that says anything, and how many choices had been made then.
        self._seen = self._call = 0
        self.doubted = False
        #: When it will be probed (0: it is not waiting for that), and how long after that again.
        self.probe_at = 0
        self.pause_s = _PROBE_S
        #: The load that attempts came upon.
        self._flying: dict[Attempt, float] = {}
        #: Nanoseconds that those without content yet may take.
        self._waiting: dict[Attempt, float] = {}

    def cost(self, now: int, answer: float, typical: float) -> float:
        """Milliseconds that a call with so many tokens to write will take, failures reckoned in.

        Of one that was never tried the best is expected, so that it is tried; by one call, until that has ended.
        """
        if not (self.ttft or self._seen or self.inflight):
            return 0.0
        load = self.inflight + self.elsewhere
        factor = (_BASE + load) / (_BASE + self.usual)
        if load:  # of equally fast ones the one with less is better (the root), even if load has never made it slower
            factor *= sqrt(sqrt(1.0 + load))
        predicted = self.ttft + self.tpot * answer if self.ttft else typical
        failing = self.failing
        if failing > _NEGLIGIBLE or (predicted > typical and not self.inflight):
            # What is old may be so no more; of the doubtful ones probes tell.
            fade = 1.0
            if not self.doubted:
                fade = exp(max((self._seen - now) / (_TAU_S * _S), (self._call - self.group.calls) / _CALLS))
            if failing > _NEGLIGIBLE:
                factor *= 1.0 + _FAILURE * failing * fade
            if predicted > typical and not self.inflight:
                predicted = typical + (predicted - typical) * fade
        if self._waiting:
            factor *= self._late(now)
        return predicted * factor

    def _late(self, now: int) -> float:
        """How much longer than expected the oldest attempt without content waits; 1: it does not."""
        waiting = self._waiting
        while waiting:
            oldest = next(iter(waiting))
            if not oldest.first:
                may, age = waiting[oldest], now - oldest.started
                return age / may if age > may else 1.0
            del waiting[oldest]
        return 1.0

    def begin(self, attempt: Attempt, answer: float, *, stream: bool) -> None:
        """An attempt with so many tokens to write begins."""
        load = self.inflight + self.elsewhere
        self.inflight += 1
        self._flying[attempt] = load
        known = self if self.ttft else self.group
        expected = known.ttft if stream else known.ttft + known.tpot * answer
        if expected:
            self._waiting[attempt] = expected * max((1.0 + load) / (1.0 + self.usual), 1.0) * _MS

    def end(self, attempt: Attempt, *, stream: bool) -> None:
        """It has ended."""
        load, may = self._flying.pop(attempt, None), self._waiting.pop(attempt, 0.0) / _MS
        if load is None:
            return
        self.inflight -= 1
        well = attempt.error is None and not attempt.abandoned
        if well and attempt.ended - self._seen < _OFTEN_NS and self.failing < _NEGLIGIBLE and not self.doubted:
            return
        self.group.length.learn(attempt)
        if attempt.failed and attempt.status in _CALLERS:
            return
        total, now = (attempt.ended - attempt.started) / _MS, attempt.ended
        if well:
            self.failing *= 1.0 - (_AGAIN if self.doubted else _FAIL_WEIGHT)
            ttft, tpot = self._sample(attempt, total, stream=stream)
            self.group.learn(ttft, tpot)
            self._learn(ttft, tpot, load, now)
            if self.doubted and not self._slow(ttft, tpot):
                self.group.hurry(self, now)
            elif self.failing < _NEGLIGIBLE:
                self.pause_s = _PROBE_S
        else:
            if total > may > 0.0 and not attempt.first:
                # It took longer than this, nobody knows how long.
                known, late = self if self.ttft else self.group, total / may
                self._learn(*((total, known.tpot) if stream else (known.ttft * late, known.tpot * late)), load, now)
            if attempt.failed:
                self.failing += _FAIL_WEIGHT * (1.0 - self.failing)
            if attempt.failed or not self._seen:  # it is no new one any more, also for a client that gave up waiting
                self._seen, self._call = now, self.group.calls
        self._judge(now)

    def _sample(self, attempt: Attempt, total: float, *, stream: bool) -> tuple[float, float]:
        """Time to the first token and per token; a plain answer only tells their sum."""
        tokens = attempt.output_tokens
        if stream and attempt.first:
            ttft = (attempt.first - attempt.started) / _MS
            return ttft, (total - ttft) / (tokens - 1) if tokens > 1 else self.tpot
        known = self if self.ttft else self.group
        expected = known.ttft + known.tpot * tokens
        if not expected:
            each = total / (tokens + _START)
            return _START * each, each if tokens else 0.0
        return known.ttft * total / expected, known.tpot * total / expected

    def _learn(self, ttft: float, tpot: float, load: float, now: int) -> None:
        if not self.ttft:
            self.ttft, self.tpot, self.usual = max(ttft, _LEAST), tpot, load
        else:
            better = ttft + tpot * _MANY <= self.ttft + self.tpot * _MANY
            weight = (_AGAIN if self.doubted else _DOWN) if better else _UP
            if now - self._seen > _S:  # before that it weighs less than any of these
                weight = max(weight, 1.0 - exp((self._seen - now) / (_TAU_S * _S)))
            self.ttft = max(self.ttft + weight * (ttft - self.ttft), _LEAST)
            self.tpot += weight * (tpot - self.tpot)
            self.usual += weight * (load - self.usual)
        self._seen, self._call = now, self.group.calls

    def _judge(self, now: int) -> None:
        """Whether it is an outlier: much slower than its group, or failing often."""
        self.doubted = self._slow(self.ttft, self.tpot) or self.failing > (_TRUSTED if self.doubted else _DOUBTED)
        if self.doubted and not self.probe_at:
            self.group.doubt(self, now + int(self.pause_s * _S))

    def _slow(self, ttft: float, tpot: float) -> bool:
        return self.group.ttft > 0 and ttft + tpot * _MANY > _OUTLIER * self.group.typical(_MANY)

    def report(self) -> Mapping[str, Any]:
        """For people."""
        return {
            "ttft_ms": round(self.ttft, 1),
            "ms_per_output_token": round(self.tpot, 2),
            "failing": round(self.failing, 3),
            "inflight": self.inflight,
            "inflight_elsewhere": self.elsewhere,
            "usual_inflight": round(self.usual, 1),
            "doubted": self.doubted,
        }
