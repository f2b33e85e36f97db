"""Cooldowns: a deployment that fails is left out for a while, then tried by one call, then used more and more again.

LiteLLM's rules, with what it lacks: an upstream that only fails is out after a few failures even when it worked well
for a minute before; cooldowns grow when the first call after one fails too; load comes back over half a minute. A
deployment that mostly works, or of which too little is known, is left out only while another one is there (`soft`):
with 30% random failures everywhere all would be out for most of the time, and with a few 429 at the start, at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from tianji_mw.routing.base import Deployment
from tianji_mw.routing.blocks import Block, Blocks
from tianji_mw.routing.failure import Failure
from tianji_mw.routing.rules import Kind, RoutingRules
from tianji_mw.runtime import Runtime

_SLICE_NS: Final = 10_000_000_000
_SLICES: Final = 6
#: Share of failures in a minute, and the calls it takes to say so; LiteLLM's figures.
_SHARE: Final = 0.5
_ENOUGH: Final = 5
#: A deployment that is alone is only taken out when so many calls failed and none succeeded.
_ENOUGH_ALONE: Final = 1_000
#: Failures in a row.
_ROW: Final = 5
_ROW_UNREACHABLE: Final = 3
_LONGEST_S: Final = 300.0
#: An upstream may ask for more, up to this: one call an hour finds out whether it meant it.
_LONGEST_ASKED_S: Final = 3600.0
#: Cooldowns double so often at most; far above what it takes to reach the longest.
_DOUBLINGS: Final = 20
_RAMP_NS: Final = 30_000_000_000
#: A call that tries a deployment after its cooldown holds others off for so long at most.
_PROBE_NS: Final = 60_000_000_000
#: Statuses that no later attempt would change.
_LASTING: Final = frozenset({401, 402, 404})


class Minute:
    """Counts of the last minute, in slices of ten seconds."""

    __slots__ = ("_calls", "_failures", "_slice")

    def __init__(self) -> None:
        self._slice = 0
        self._calls = [0] * _SLICES
        self._failures = [0] * _SLICES

    def note(self, now: int, *, failed: bool) -> None:
        at = self._at(now)
        self._calls[at] += 1
        self._failures[at] += failed

    def worked(self, now: int) -> None:
        """A call that did not fail."""
        number = now // _SLICE_NS
        self._calls[number % _SLICES if number == self._slice else self._at(now)] += 1

    def counts(self, now: int) -> tuple[int, int]:
        """Calls and failures."""
        self._at(now)
        return sum(self._calls), sum(self._failures)

    def clear(self) -> None:
        self._calls, self._failures = [0] * _SLICES, [0] * _SLICES

    def _at(self, now: int) -> int:
        number = now // _SLICE_NS
        if number == self._slice:
            return number % _SLICES
        for passed in range(max(self._slice + 1, number - _SLICES + 1), number + 1):
            self._calls[passed % _SLICES] = self._failures[passed % _SLICES] = 0
        self._slice = max(self._slice, number)
        return number % _SLICES


State = Literal["closed", "open", "half_open"]


@dataclass(slots=True, eq=False)
class Circuit:
    """What the attempts at one deployment told of it."""

    minute: Minute = field(default_factory=Minute)
    #: Failures in a row.
    row: int = 0
    by_kind: dict[Kind, Minute] = field(default_factory=dict)
    #: It was taken out, and no call has succeeded since.
    tripped: bool = False
    #: Cooldowns that ended with a failed call.
    repeats: int = 0
    until: int = 0
    reason: str = ""
    #: Left out only while another deployment is there.
    soft: bool = False
    #: Nanoseconds at which it came back; 0: it carries its whole load.
    back: int = 0


class Cooldowns:
    """The circuits of all deployments. `told` hears of each cooldown that begins here: deployment, seconds, block."""

    def __init__(
        self,
        rules: RoutingRules,
        blocks: Blocks,
        runtime: Runtime,
        told: Callable[[Deployment, float, Block], None] | None = None,
    ) -> None:
        self._rules, self._blocks, self._runtime, self._told = rules, blocks, runtime, told
        self._circuits: dict[Deployment, Circuit] = {}
        #: Hears of each deployment whose first call after a cooldown went well.
        self.told_closed: Callable[[Deployment], None] | None = None
        #: Deployments that carry only a part of their load again.
        self.returning: set[Deployment] = set()

    # --- what happens

    def began(self, deployment: Deployment) -> bool:
        """A call is on its way; True: it tries a deployment after its cooldown, alone until it is known how it ends."""
        circuit = self._circuits.get(deployment)
        if circuit is not None and circuit.tripped and circuit.until <= (now := self._runtime.clock()):
            self._blocks.put(deployment, Block("probe", now + _PROBE_NS, circuit.reason, circuit.soft))
            return True
        return False

    def succeeded(self, deployment: Deployment) -> None:
        circuit = self._circuits.get(deployment)
        if circuit is None:
            circuit = self._circuits[deployment] = Circuit()
        now = self._runtime.clock()
        circuit.minute.worked(now)
        circuit.row = 0
        if circuit.tripped and circuit.until <= now:
            self._close(deployment, circuit, now)
            if self.told_closed is not None:
                self.told_closed(deployment)

    def failed(self, deployment: Deployment, failure: Failure, *, alone: bool) -> bool:
        """Whether it is out of use now. `alone`: no other deployment serves its group."""
        circuit = self._circuits.setdefault(deployment, Circuit())
        now = self._runtime.clock()
        probe = circuit.tripped and circuit.until <= now
        if probe:
            self._blocks.lift(deployment, "probe")
        if not failure.counts or not self._rules.cooldowns:
            return False
        circuit.minute.note(now, failed=True)
        circuit.by_kind.setdefault(failure.kind, Minute()).note(now, failed=True)
        circuit.row += 1
        if circuit.tripped and not probe:
            self._harden(deployment, circuit, failure, now)
            return True
        if not (probe or self._too_many(deployment, circuit, failure, now, alone=alone)):
            return False
        circuit.repeats = circuit.repeats + 1 if probe else 0
        first = self._seconds(deployment, failure)
        seconds = min(first * 2.0 ** min(circuit.repeats, _DOUBLINGS), max(_LONGEST_S, first))
        if seconds <= 0:
            circuit.tripped = False
            return False
        self._trip(deployment, circuit, failure, seconds, now)
        return True

    def abandoned(self, deployment: Deployment, *, probe: bool) -> None:
        """A call was given up before it could tell anything. `probe`: what `began` said of it."""
        if probe:
            self._blocks.lift(deployment, "probe")

    # --- what happens elsewhere

    def heard(self, deployment: Deployment, seconds: float, block: Block) -> None:
        """Another process took it out."""
        if not self._rules.cooldowns:
            return
        circuit = self._circuits.setdefault(deployment, Circuit())
        now = self._runtime.clock()
        until = now + int(seconds * 1e9)
        if until <= circuit.until:
            return
        if circuit.tripped and circuit.until <= now:
            # The call that tried it there failed; what one that tries it here finds now counts no more.
            circuit.repeats += 1
            self._blocks.lift(deployment, "probe")
        circuit.tripped, circuit.until, circuit.reason = True, until, block.detail
        # One process whose network is broken must not take everything from those where calls go well.
        calls, failures = circuit.minute.counts(now)
        circuit.soft = block.soft or (calls > 0 and failures * 2 <= calls)
        self._blocks.put(deployment, Block("cooldown", until, block.detail, circuit.soft))

    def closed(self, deployment: Deployment) -> None:
        """Another process used it with success after its cooldown. One that began since then goes on."""
        circuit = self._circuits.get(deployment)
        now = self._runtime.clock()
        if circuit is not None and circuit.tripped and circuit.until <= now:
            self._close(deployment, circuit, now)

    def _close(self, deployment: Deployment, circuit: Circuit, now: int) -> None:
        circuit.tripped, circuit.repeats, circuit.row, circuit.back = False, 0, 0, now
        self.returning.add(deployment)
        circuit.minute.clear()
        self._blocks.lift(deployment, "probe")

    # --- the rules

    def _too_many(self, deployment: Deployment, circuit: Circuit, failure: Failure, now: int, *, alone: bool) -> bool:
        allowed = self._allowed(deployment, failure)
        if allowed is not None:
            counted = circuit.by_kind[failure.kind] if self._has_policy(deployment, failure) else circuit.minute
            return not alone and counted.counts(now)[1] > allowed
        calls, failures = circuit.minute.counts(now)
        if alone:
            return failures == calls >= _ENOUGH_ALONE
        if failure.status in _LASTING or failure.status == 429:
            return True
        return self._in_a_row(circuit, failure) or (calls >= _ENOUGH and failures > calls * _SHARE)

    def _in_a_row(self, circuit: Circuit, failure: Failure) -> bool:
        return circuit.row >= (_ROW_UNREACHABLE if failure.unreachable else _ROW)

    def _allowed(self, deployment: Deployment, failure: Failure) -> int | None:
        """Failures in a minute that are allowed by the config; None where it says nothing."""
        for policy in (deployment.allowed_fails_policy, self._rules.allowed_fails_policy):
            if (found := policy.get(failure.kind)) is not None:
                return found
        return deployment.allowed_fails if deployment.allowed_fails is not None else self._rules.allowed_fails

    def _has_policy(self, deployment: Deployment, failure: Failure) -> bool:
        return failure.kind in deployment.allowed_fails_policy or failure.kind in self._rules.allowed_fails_policy

    def _seconds(self, deployment: Deployment, failure: Failure) -> float:
        """Of the first cooldown of a row."""
        if deployment.cooldown_s is not None:
            return deployment.cooldown_s
        return min(failure.wait_s, _LONGEST_ASKED_S) if failure.wait_s else self._rules.cooldown_s

    def _may_work(self, circuit: Circuit, failure: Failure, now: int) -> bool:
        """It mostly works, or too few calls were made to say and it does not ask for a long time itself."""
        if failure.status in _LASTING:
            return False
        calls, failures = circuit.minute.counts(now)
        if failures <= calls * _SHARE:
            return True
        asks_for_long = failure.wait_s is not None and failure.wait_s > self._rules.cooldown_s
        return calls < _ENOUGH and not asks_for_long and not self._in_a_row(circuit, failure)

    def _trip(self, deployment: Deployment, circuit: Circuit, failure: Failure, seconds: float, now: int) -> None:
        circuit.tripped, circuit.until, circuit.reason = True, now + int(seconds * 1e9), failure.reason
        circuit.soft = self._may_work(circuit, failure, now)
        block = Block("cooldown", circuit.until, failure.reason, circuit.soft)
        self._blocks.put(deployment, block)
        self._runtime.count("cooldowns", failure.kind)
        if self._told is not None:
            self._told(deployment, seconds, block)

    def _harden(self, deployment: Deployment, circuit: Circuit, failure: Failure, now: int) -> None:
        """One that is out failed again: it was sent before, or used since nobody else was left."""
        if circuit.soft and not self._may_work(circuit, failure, now):
            circuit.soft = False
            self._blocks.put(deployment, Block("cooldown", circuit.until, circuit.reason))

    # --- what it says

    def state(self, deployment: Deployment) -> State:
        circuit = self._circuits.get(deployment)
        if circuit is None or not circuit.tripped:
            return "closed"
        return "open" if circuit.until > self._runtime.clock() else "half_open"

    def counts(self, deployment: Deployment) -> tuple[int, int]:
        """Attempts and failures in the last minute."""
        circuit = self._circuits.get(deployment)
        return circuit.minute.counts(self._runtime.clock()) if circuit is not None else (0, 0)

    def share(self, deployment: Deployment) -> float:
        """How much of its load a deployment that is back should carry: grows from a tenth to 1 in half a minute."""
        circuit = self._circuits.get(deployment)
        if circuit is None or not circuit.back:
            return 1.0
        since = self._runtime.clock() - circuit.back
        if since >= _RAMP_NS:
            circuit.back = 0
            self.returning.discard(deployment)
            return 1.0
        return max(0.1, since / _RAMP_NS)
