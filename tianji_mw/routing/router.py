"""`Router`: one process's knowledge of its deployments, and a call's way through it: `depart`, then `arrive`.

It chooses, reserves and counts. Who sends the request, and what follows a failure, is decided in `failover.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tianji_mw.counters.base import Holds, Windows
from tianji_mw.errors import NoDeployment
from tianji_mw.facts import Attempt
from tianji_mw.routing.affinity import Pins
from tianji_mw.routing.base import Candidates, Deployment, Picker
from tianji_mw.routing.blocks import Blocks
from tianji_mw.routing.budget import Budgets
from tianji_mw.routing.cooldown import Cooldowns
from tianji_mw.routing.demand import demand_of
from tianji_mw.routing.failure import Failure, failure_of
from tianji_mw.routing.headers import Told
from tianji_mw.routing.hedge import Hedging
from tianji_mw.routing.limits import Limits
from tianji_mw.routing.parallel import Parallel, Turn
from tianji_mw.routing.retries import RetryBudget
from tianji_mw.routing.rules import RoutingRules
from tianji_mw.routing.selector import Selector
from tianji_mw.routing.table import Deployments
from tianji_mw.routing.vacancy import Vacancy
from tianji_mw.runtime import Runtime

if TYPE_CHECKING:
    from tianji_mw.call import Call
    from tianji_mw.routing.shared import Shared

#: Bytes of a stream for one token of its text, as OpenAI writes chunks; of a plain answer.
_STREAM_BYTES: Final = 180
_PLAIN_BYTES: Final = 5
_SETTLE_S: Final = 2.0
_NO_TAGS: Final[frozenset[str]] = frozenset()


@dataclass(slots=True, eq=False)
class Trip:
    """One attempt on its way, and what was reserved for it."""

    attempt: Attempt
    #: Tokens of its `tpm`; None where nothing was counted.
    reserved: int | None = None
    #: Of the budgets it holds; None where it holds none.
    tags: frozenset[str] | None = None
    hold_id: str = ""
    #: It tries a deployment after its cooldown.
    probe: bool = False


@dataclass(slots=True, eq=False)
class Counts:
    """What a router did since the start, for metrics."""

    retries: dict[tuple[str, str], int] = field(default_factory=dict)
    fallbacks: dict[tuple[str, str, str], int] = field(default_factory=dict)
    picked: dict[Deployment, int] = field(default_factory=dict)

    def retried(self, group: str, kind: str) -> None:
        """An attempt follows a failure of this kind. Groups are named by `Deployments.label`."""
        self.retries[group, kind] = self.retries.get((group, kind), 0) + 1

    def fell_back(self, group: str, target: str, kind: str) -> None:
        """Another group is tried after this one."""
        self.fallbacks[group, target, kind] = self.fallbacks.get((group, target, kind), 0) + 1


class Router:
    """Makes no connection itself; what `shared` gives is that of all processes."""

    def __init__(
        self,
        table: Deployments,
        picker: Picker,
        rules: RoutingRules,
        runtime: Runtime,
        windows: Windows,
        holds: Holds,
        shared: Shared | None = None,
    ) -> None:
        self.table, self.picker, self.rules, self.runtime = table, picker, rules, runtime
        self.shared = shared
        self.blocks = Blocks(runtime)
        self.cooldowns = Cooldowns(rules, self.blocks, runtime, shared.cooled if shared is not None else None)
        self.parallel = Parallel(self.blocks, rules.max_parallel)
        limited = frozenset(d for d in table.all if rules.enforce_limits or picker.of(d.model_name).limits)
        self.limits = Limits(windows, self.blocks, runtime, limited)
        self.budgets = Budgets(table, rules, holds, self.blocks, runtime)
        self.selector = Selector(table, rules, self.blocks)
        self.vacancy = Vacancy(self.selector, self.blocks, self.parallel, runtime, rules)
        self.hedging = Hedging(rules.hedge) if rules.hedge is not None else None
        self.pins = Pins(rules, runtime, shared, self.parallel.inflight)
        #: Deployments whose calls are counted for limits or budgets.
        self._counted = frozenset(d for d in table.all if self.limits.holds_for(d) or self.budgets.holds_for(d))
        #: Whether tokens are counted for limits or budgets, so that streams must tell their usage.
        self.counts_tokens = bool(
            self.budgets.of or rules.tag_budgets or any(self.limits.holds_for(d) and d.tpm for d in table.all)
        )
        self.counts = Counts()
        self.told = Told()
        #: Groups whose retries have been paid for, by their labels.
        self.strained: dict[str, RetryBudget] = {}
        #: Deployments that are alone in their group: a strategy has nothing to choose there, nor to learn.
        self._alone = frozenset(d for d in table.all if table.alone(d))
        self._settling: set[asyncio.Task[None]] = set()

    # --- the way of an attempt

    async def depart(self, call: Call, name: str, failed: Collection[Deployment] = (), *, waits: bool = True) -> Trip:
        """Choose a deployment for `name`, reserve what it takes, and begin an attempt at it.

        `waits`: for a place, where everybody is full. Raises UnknownModel, PermissionDenied, NoDeployment and
        Overloaded (with `retry-after`), and UpstreamError (400) for a prompt that no context window takes.
        """
        turn: Turn | None = None
        try:
            while True:
                candidates = self.selector.candidates(call, name, failed)
                if candidates:
                    trip = await self._entered(call, name, failed, candidates)
                    if trip is not None:
                        return trip
                elif not waits or (turn := await self.vacancy.wait(call, name, failed, turn)) is None:
                    raise self.vacancy.refusal(call, name, failed)
        except BaseException:
            if turn is not None:
                self.parallel.pass_on(turn)
            raise

    async def _entered(
        self, call: Call, name: str, failed: Collection[Deployment], candidates: Candidates
    ) -> Trip | None:
        """A trip to one of these; None when nothing is left of what it takes.

        Its place is taken before anything is waited for, so that calls at the same time cannot take the same one.
        """
        pinned = await self.pins.of(call, self.table.group(name), candidates) if self.pins.used else None
        if pinned is not None and self.shared is not None:  # Redis was asked: that takes time
            candidates = self.selector.candidates(call, name, failed)
            if not candidates:
                return None
            pinned = pinned if pinned in candidates else None
        deployment = pinned or (candidates[0] if candidates[0] in self._alone else self._picked(call, candidates))
        trip = Trip(Attempt(deployment, self.runtime.clock()))
        self.parallel.began(deployment)
        trip.probe = self.cooldowns.began(deployment)
        if deployment in self._counted:
            reserved = False
            try:
                reserved = await self._reserved(trip, call)
            finally:
                if not reserved:
                    self.parallel.ended(deployment)
                    self.cooldowns.abandoned(deployment, probe=trip.probe)
            if not reserved:
                return None
        self._begin(trip, call)
        return trip

    def _picked(self, call: Call, candidates: Candidates) -> Deployment:
        """The strategy's choice. One that was down a moment ago gets only a part of its load."""
        deployment = self.picker.pick(candidates, call)
        if self.cooldowns.returning and len(candidates) > 1:
            share = self.cooldowns.share(deployment)
            if share < 1.0 and self.runtime.rng.random() > share:
                others: Candidates | None = candidates.memo.get(("without", deployment))
                if others is None:  # kept with them, so that a strategy need not learn them anew for each call
                    others = Candidates(d for d in candidates if d is not deployment)
                    candidates.memo["without", deployment] = others
                return self.picker.pick(others, call)
        return deployment

    async def _reserved(self, trip: Trip, call: Call) -> bool:
        """Reserve what the trip takes; False when that is used up, and the deployment blocked."""
        deployment = trip.attempt.deployment
        if self.limits.holds_for(deployment):
            trip.reserved = await self.limits.take(deployment, call)
            if trip.reserved is None:
                return False
        if not self.budgets.holds_for(deployment):
            return True
        tags = self.selector.tags(call) if self.rules.tag_budgets else _NO_TAGS
        trip.hold_id = self.runtime.new_id()
        purse = None
        try:
            purse = await self.budgets.hold(deployment, call, tags, trip.hold_id)
            trip.tags = tags if purse is None else None
        finally:
            if trip.tags is None and trip.reserved is not None:
                self._later(self.limits.give_back(deployment, trip.reserved, trip.attempt))
            if trip.tags is None and purse is None:  # the client left: nobody knows what was held
                self._later(self.budgets.settle(deployment, tags, trip.hold_id, trip.attempt))
        if purse is not None and purse.kind == "tag":
            text = f"The budget of the tag '{purse.name}' is spent: ${purse.budget.limit:g}."
            raise NoDeployment(text)
        return purse is None

    def _begin(self, trip: Trip, call: Call) -> None:
        deployment = trip.attempt.deployment
        call.deployment = deployment
        call.attempts.append(trip.attempt)
        if deployment not in self._alone:
            self.picker.sent(trip.attempt, call)
        self.counts.picked[deployment] = self.counts.picked.get(deployment, 0) + 1

    def arrive(self, trip: Trip, call: Call, failure: Failure | None, *, abandoned: bool = False) -> None:
        """The attempt has ended; once for each that departed."""
        attempt, deployment = trip.attempt, trip.attempt.deployment
        attempt.ended, attempt.abandoned = self.runtime.clock(), abandoned
        if failure is None or attempt.status == 200:  # beside one that failed, another may have counted
            attempt.input_tokens, attempt.output_tokens = call.usage.input_tokens, call.usage.output_tokens
        if attempt.status == 200 and (trip.reserved is not None or trip.tags is not None):
            self._estimate(attempt, call)
        self.parallel.ended(deployment)
        if deployment not in self._alone:
            self.picker.observe(attempt, call)
        if abandoned:
            self.cooldowns.abandoned(deployment, probe=trip.probe)
        elif failure is None:
            self.cooldowns.succeeded(deployment)
        else:
            self.cooldowns.failed(deployment, failure, alone=self.table.alone(deployment))
        if trip.reserved is not None:
            self._later(self.limits.settle(deployment, trip.reserved, attempt))
        if trip.tags is not None:
            self.budgets.learn(deployment, call, attempt)
            self._later(self.budgets.settle(deployment, trip.tags, trip.hold_id, attempt))

    def arrive_unread(self, trip: Trip, call: Call) -> None:
        """The end of an attempt whose body passed through."""
        error = trip.attempt.error
        failed = error is not None and not call.gone
        failure = failure_of(error, call.status, {}, b"", call) if failed else None
        self.arrive(trip, call, failure, abandoned=call.gone)

    def _estimate(self, attempt: Attempt, call: Call) -> None:
        """Tokens of an answer that nobody counted, as one that broke off: by what left.

        Embeddings, scores and files have no tokens, however many bytes they are.
        """
        if attempt.output_tokens or (call.usage.source != "none" and attempt.error is None and not attempt.abandoned):
            return
        attempt.input_tokens = attempt.input_tokens or demand_of(call).input_tokens
        if call.api.streams:
            attempt.output_tokens = call.bytes_out // (_STREAM_BYTES if call.stream else _PLAIN_BYTES)

    def figures(self, deployment: Deployment) -> Mapping[str, Any]:
        """What the strategy knows of it; nothing of one that is alone."""
        return {} if deployment in self._alone else self.picker.report(deployment)

    # --- accounts

    def succeeded(self, label: str) -> None:
        """A call of this group was answered."""
        budget = self.strained.get(label)
        if budget is not None:
            budget.succeeded()

    def retry_left(self, label: str, *, first: bool) -> bool:
        """Whether the group may afford one more retry, which is spent then. `first`: it is the call's first one."""
        share = self.rules.retry_budget
        if share is None:
            return True
        budget = self.strained.get(label)
        if budget is None:  # kept from the first failure on: before that, everything is left
            budget = self.strained[label] = RetryBudget(share)
        if first:
            budget.failed()
        return budget.spend()

    def _later(self, settling: Coroutine[Any, Any, None]) -> None:
        """Count it when there is time: the client has its answer."""
        task = asyncio.ensure_future(settling)
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def aclose(self) -> None:
        """Let everything be counted that has ended."""
        if self._settling:
            await asyncio.wait(self._settling, timeout=_SETTLE_S)
