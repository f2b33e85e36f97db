"""`Router`: one process's knowledge of its deployments, and a call's way through it: `depart`, then `arrive`.

It chooses, reserves and counts. Who sends the request, and what follows a failure, is decided in `failover.py`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tianji_mw.counters.base import Holds, Windows
from tianji_mw.errors import NoDeployment, Overloaded
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
from tianji_mw.routing.parallel import LONGEST_WAIT_S, Parallel
from tianji_mw.routing.retries import RetryBudget
from tianji_mw.routing.rules import RoutingRules
from tianji_mw.routing.selector import Selector, Trace
from tianji_mw.routing.table import Deployments
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
        self.limits = Limits(windows, self.blocks, runtime, limited=picker.limits or rules.enforce_limits)
        self.budgets = Budgets(table, rules, holds, self.blocks, runtime)
        self.selector = Selector(table, rules, self.blocks)
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
        self._retry_budgets: dict[str, RetryBudget] = {}
        self._settling: set[asyncio.Task[None]] = set()

    # --- the way of an attempt

    async def depart(self, call: Call, name: str, failed: Collection[Deployment] = ()) -> Trip:
        """Choose a deployment for `name`, reserve what it takes, and begin an attempt at it.

        Raises UnknownModel, PermissionDenied, NoDeployment and Overloaded (with `retry-after`), and UpstreamError (400)
        for a prompt that no context window takes.
        """
        waits_since = 0
        while True:
            candidates = self.selector.candidates(call, name, failed)
            if not candidates:
                waits_since = await self._place(call, name, failed, waits_since)
                if waits_since:
                    continue
                raise self._nobody(call, name, failed)
            pinned = await self.pins.of(call, self.table.group(name), candidates) if self.pins.used else None
            deployment = pinned or self._picked(call, candidates)
            if deployment in self._counted:
                trip = await self._reserved(deployment, call)
                if trip is None:
                    continue
            else:
                trip = Trip(Attempt(deployment, self.runtime.clock()))
            self._begin(trip, call)
            return trip

    def _picked(self, call: Call, candidates: Candidates) -> Deployment:
        """The strategy's choice. One that was down a moment ago gets only a part of its load."""
        deployment = self.picker.pick(candidates, call)
        if self.cooldowns.returning and len(candidates) > 1:
            share = self.cooldowns.share(deployment)
            if share < 1.0 and self.runtime.rng.random() > share:
                others = [d for d in candidates if d is not deployment]
                return self.picker.pick(Candidates(others), call)
        return deployment

    async def _reserved(self, deployment: Deployment, call: Call) -> Trip | None:
        """A trip with what it takes reserved; None when that is used up, and the deployment blocked."""
        trip = Trip(Attempt(deployment, self.runtime.clock()))
        if self.limits.holds_for(deployment):
            trip.reserved = await self.limits.take(deployment, call)
            if trip.reserved is None:
                return None
        if self.budgets.holds_for(deployment):
            tags = self.selector.tags(call) if self.rules.tag_budgets else _NO_TAGS
            trip.hold_id = self.runtime.new_id()
            purse = await self.budgets.hold(deployment, call, tags, trip.hold_id)
            if purse is not None:
                if trip.reserved is not None:
                    await self.limits.settle(deployment, trip.reserved, trip.attempt)
                if purse.kind == "tag":
                    text = f"The budget of the tag '{purse.name}' is spent: ${purse.budget.limit:g}."
                    raise NoDeployment(text)
                return None
            trip.tags = tags
        return trip

    def _begin(self, trip: Trip, call: Call) -> None:
        deployment = trip.attempt.deployment
        call.deployment = deployment
        call.attempts.append(trip.attempt)
        self.parallel.began(deployment)
        self.cooldowns.began(deployment)
        self.picker.sent(trip.attempt, call)
        self.counts.picked[deployment] = self.counts.picked.get(deployment, 0) + 1

    def arrive(self, trip: Trip, call: Call, failure: Failure | None, *, abandoned: bool = False) -> None:
        """The attempt has ended; once for each that departed."""
        attempt, deployment = trip.attempt, trip.attempt.deployment
        attempt.ended, attempt.abandoned = self.runtime.clock(), abandoned
        attempt.input_tokens, attempt.output_tokens = call.usage.input_tokens, call.usage.output_tokens
        if attempt.status == 200 and not attempt.output_tokens and (trip.reserved is not None or trip.tags is not None):
            self._estimate(attempt, call)
        self.parallel.ended(deployment)
        self.picker.observe(attempt, call)
        if abandoned:
            self.cooldowns.abandoned(deployment)
        elif failure is None:
            self.cooldowns.succeeded(deployment)
        else:
            self.cooldowns.failed(deployment, failure, alone=self.table.alone(deployment))
        if trip.reserved is not None:
            self._later(self.limits.settle(deployment, trip.reserved, attempt))
        if trip.tags is not None:
            self._later(self.budgets.settle(deployment, trip.tags, trip.hold_id, attempt))

    def arrive_unread(self, trip: Trip, call: Call) -> None:
        """The end of an attempt whose body passed through."""
        error = trip.attempt.error
        failed = error is not None and not call.gone
        failure = failure_of(error, call.status, {}, b"", call) if failed else None
        self.arrive(trip, call, failure, abandoned=call.gone)

    def _estimate(self, attempt: Attempt, call: Call) -> None:
        """Tokens of an answer that nobody counted, as one that broke off: by what left."""
        per_token = _STREAM_BYTES if call.stream else _PLAIN_BYTES
        attempt.input_tokens = demand_of(call).input_tokens
        attempt.output_tokens = call.bytes_out // per_token

    # --- nobody

    async def _place(self, call: Call, name: str, failed: Collection[Deployment], since: int) -> int:
        """Wait for a place where every deployment that could be used is full; since when, or 0 where it is not that.

        `since`: when the call began to wait, where it has waited already. Raises Overloaded.
        """
        group = self.table.serving(name)
        if not any(d not in failed and {b.reason for b in self.blocks.of(d)} == {"parallel"} for d in group):
            return 0
        now = self.runtime.clock()
        began = since or now
        left_s = LONGEST_WAIT_S - (now - began) / 1e9
        if call.due:
            left_s = min(left_s, (call.due - now) / 1e9)
        if await self.parallel.place(group[0].model_name, left_s, again=bool(since)):
            return began
        self.runtime.count("shed", "parallel")
        text = f"Every deployment of '{name[:200]}' serves as many requests as it may."
        raise Overloaded(text, headers={"retry-after": "1"})

    def _nobody(self, call: Call, name: str, failed: Collection[Deployment]) -> NoDeployment:
        trace = self.selector.trace(call, name, failed)
        self.selector.refuse(call, trace)
        return nobody(trace, self.runtime.clock(), self.parallel.waiting(trace.group))

    # --- accounts

    def succeeded(self, label: str) -> None:
        """A call of this group was answered."""
        budget = self._retry_budgets.get(label)
        if budget is not None:
            budget.succeeded()

    def retry_left(self, label: str, *, first: bool) -> bool:
        """Whether the group may afford one more retry, which is spent then. `first`: it is the call's first one."""
        share = self.rules.retry_budget
        if share is None:
            return True
        budget = self._retry_budgets.get(label)
        if budget is None:  # kept from the first failure on: before that, everything is left
            budget = self._retry_budgets[label] = RetryBudget(share)
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


def nobody(trace: Trace, now: int, waiting: int = 0) -> NoDeployment:
    """The error that says why no deployment of the group can be used, and when to ask again."""
    counted: dict[str, int] = {}
    for removal in trace.removed:
        counted[removal.reason] = counted.get(removal.reason, 0) + 1
    ends = [removal.until - now for removal in trace.removed if removal.until > now and removal.step != "parallel"]
    seconds = max(1, math.ceil(min(ends) / 1e9)) if ends else 1
    why = "; ".join(f"{count} of {len(trace.all)}: {reason}" for reason, count in counted.items())
    cooling = all(removal.step in ("cooldown", "probe") for removal in trace.removed)
    text = f"No deployments available for the model '{trace.group[:200]}': {why}. Try again in {seconds} seconds."
    return NoDeployment(text, cooling=cooling, headers={"retry-after": str(seconds)})
