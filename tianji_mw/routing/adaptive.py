"""Our own strategy: of a few deployments drawn at random, and the best one of the draw before, the one where this call
will probably end first.

Predicted is time to the first token and time per token of the answer (fast to rise, slow to fall), for the load that
there is now compared with the load that it was learned under, times what failures cost. It asks nobody: what it knows
it learned from calls. Explicit weights are the operator's will: then it only shuffles.

After Finagle's peak EWMA, "The Power of Two Choices" (Mitzenmacher 2001), "Load Balancing with Memory" (FOCS 2002)
and Prequal (NSDI 2024).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, Final

from pydantic import Field

from tianji_mw.routing.base import Candidates, Deployment, Picker
from tianji_mw.routing.demand import demand_of
from tianji_mw.routing.experience import Experience, Group
from tianji_mw.routing.shuffle import shuffled

if TYPE_CHECKING:
    from tianji_mw.call import Call
    from tianji_mw.facts import Attempt

#: So many are all compared.
_FEW: Final = 5
#: Further deployments that are looked at when all those drawn are bad.
_MORE: Final = 4
#: Costs above what is usual by this factor are bad.
_BAD: Final = 3.0


class Adaptive(Picker):
    """`routing_strategy: adaptive`."""

    names: ClassVar[tuple[str, ...]] = ("adaptive", "p2c-ewma")

    #: Deployments that are compared for each call.
    choices: int = Field(4, ge=2, le=32)
    #: Deployments that are so little slower than the best one drawn count as equal.
    tolerance: float = Field(0.15, ge=0)

    # A pydantic private attribute costs twenty times as much to read.
    @cached_property
    def _state(self) -> _State:
        return _State()

    def pick(self, deployments: Candidates, call: Call) -> Deployment:
        """One of them; now and then one that was bad, to see whether it still is."""
        if len(deployments) == 1:
            return deployments[0]
        state = self._state
        field: _Field | None = deployments.memo.get(state)
        if field is None:
            field = deployments.memo[state] = _Field([state.of(deployment) for deployment in deployments])
        if field.weighted:
            return shuffled(deployments, call)
        runtime, group = call.runtime, field.group
        now, random = runtime.clock(), runtime.rng.random
        group.calls += 1
        probe = group.probe(now, field.members) if group.doubtful else None
        if probe is not None:
            return probe
        answer = demand_of(call).output(group.length.usual)
        typical = group.typical(answer)
        drawn = field.draw(random, self.choices)
        costs, best = _costs(drawn, now, answer, typical)
        if costs[best] > _BAD * typical and len(drawn) < len(deployments):
            drawn = [*drawn, *field.draw(random, _MORE)]
            costs, best = _costs(drawn, now, answer, typical)
        field.best = drawn[best]
        most, near = costs[best] * (1.0 + self.tolerance), []
        for seen, cost in zip(drawn, costs, strict=True):
            if cost <= most:
                near.append(seen)
        return (near[0] if len(near) == 1 else field.one_of(near, random)).deployment

    def sent(self, attempt: Attempt, call: Call) -> None:
        """One more in flight there."""
        seen = self._state.of(attempt.deployment)
        seen.begin(attempt, demand_of(call).output(seen.group.length.usual), stream=call.stream)

    def observe(self, attempt: Attempt, call: Call) -> None:
        """Learn from how it went."""
        self._state.of(attempt.deployment).end(attempt, stream=call.stream)

    def elsewhere(self, deployment: Deployment, inflight: int) -> None:
        """Calls of other processes are load like our own."""
        self._state.of(deployment).elsewhere = inflight

    def report(self, deployment: Deployment) -> Mapping[str, Any]:
        """What a call there is expected to take, and why."""
        return self._state.of(deployment).report()


def _costs(drawn: Sequence[Experience], now: int, answer: float, typical: float) -> tuple[list[float], int]:
    """What each of them costs, and which one costs the least."""
    costs, best, least = [], 0, inf
    for at, seen in enumerate(drawn):
        cost = seen.cost(now, answer, typical)
        costs.append(cost)
        if cost < least:
            best, least = at, cost
    return costs, best


class _State:
    __slots__ = ("_groups", "_seen")

    def __init__(self) -> None:
        self._groups: dict[str, Group] = {}
        self._seen: dict[Deployment, Experience] = {}

    def of(self, deployment: Deployment) -> Experience:
        seen = self._seen.get(deployment)
        if seen is None:
            group = self._groups.get(deployment.model_name)
            if group is None:
                group = self._groups[deployment.model_name] = Group()
            seen = self._seen[deployment] = Experience(deployment, group)
        return seen


class _Field:
    """What stays the same for exactly these deployments."""

    __slots__ = ("_all", "_sums", "best", "group", "members", "weighted")

    def __init__(self, seen: list[Experience]) -> None:
        self.weighted = any(one.deployment.weight is not None for one in seen)
        self.group = seen[0].group
        self.members = frozenset(one.deployment for one in seen)
        self._all = seen
        #: Of those compared for the last call; with random ones alone, the best of many would mostly be missed.
        self.best: Experience | None = None
        capacities = _capacities([one.deployment for one in seen])
        #: None: all the same.
        self._sums = list(accumulate(capacities)) if len(set(capacities)) > 1 else None

    def draw(self, random: Callable[[], float], count: int) -> list[Experience]:
        """All where they are few, else so many at random and `best`; those with much capacity more often."""
        everything, sums = self._all, self._sums
        size = len(everything)
        if size <= _FEW:
            return everything
        if sums is None:
            drawn = [everything[int(random() * size)] for _ in range(count)]
        else:
            drawn = [everything[bisect_right(sums, random() * sums[-1])] for _ in range(count)]
        if self.best is not None:
            drawn.append(self.best)
        return drawn

    def one_of(self, near: list[Experience], random: Callable[[], float]) -> Experience:
        """One of those that are equally good, by capacity as well; what was drawn at random is in random order."""
        everything, sums = self._all, self._sums
        if len(everything) > _FEW:
            return near[0]
        if sums is None:
            return near[int(random() * len(near))]
        for _ in range(_FEW):
            one = everything[bisect_right(sums, random() * sums[-1])]
            if one in near:
                return one
        return near[0]


def _capacities(deployments: Sequence[Deployment]) -> list[float]:
    """By `rpm`, else `tpm`, else equal; 1 is the mean. One that says nothing counts as the mean of the others."""
    for family in ("rpm", "tpm"):
        given = [value for deployment in deployments if (value := getattr(deployment, family))]
        if given:
            mean = sum(given) / len(given)
            return [(getattr(deployment, family) or mean) / mean for deployment in deployments]
    return [1.0] * len(deployments)
