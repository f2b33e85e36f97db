"""One call's way to an answer: attempts within a group, then other groups, until the first content has left.

    group -> attempt -> failed? -> retry elsewhere, or after a wait -> next group -> the last error

Nothing is tried again once content was delivered. What failed and why stays in `call.attempts`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from tianji_mw.apis.base import Usage
from tianji_mw.errors import NoDeployment, TianjiError, UpstreamError
from tianji_mw.routing.base import Deployment
from tianji_mw.routing.continuation import Delivery, may_continue
from tianji_mw.routing.failure import Failure, failure_of
from tianji_mw.routing.fallbacks import has_any, next_group, targets, usable
from tianji_mw.routing.headers import of_failure, of_fallbacks
from tianji_mw.routing.hedge import Race, Runner
from tianji_mw.routing.held import Held
from tianji_mw.routing.retries import has_policy, retries_of, wait_s
from tianji_mw.routing.router import Router, Trip
from tianji_mw.routing.selector import team_of
from tianji_mw.routing.wishes import MOCKED, TELL_ERRORS, Wishes
from tianji_mw.taps import bodiless, send_error

if TYPE_CHECKING:
    from starlette.types import Message, Send

    from tianji_mw.call import Call
    from tianji_mw.driver import Inner
    from tianji_mw.facts import Attempt

#: Errors that leave nothing to wait for: another group is asked at once, where there is one.
_NO_WAIT: Final = frozenset({"RateLimit"})


class Failover:
    """State of one call. `again`: whether what an app answered with this status may be asked of it again."""

    __slots__ = (
        "_again", "_call", "_delivery", "_failed", "_failures", "_free", "_held", "_inner", "_most", "_retries",
        "_router", "_send", "_tried", "_wishes",
    )  # fmt: skip

    def __init__(
        self, router: Router, call: Call, inner: Inner, send: Send, again: Callable[[Held], bool], *, free: bool
    ) -> None:
        #: Whether attempts may run at the same time: the gateway's do not disturb each other.
        self._free = free
        self._router, self._call, self._inner, self._send, self._again = router, call, inner, send, again
        #: Groups, by the names that aliases stand for.
        self._tried: list[str] = []
        #: Deployments that failed in the present group.
        self._failed: set[Deployment] = set()
        self._retries = 0
        self._most: int | None = None
        #: The last attempt's answer, where it is not on its way.
        self._held: Held | None = None
        self._wishes = Wishes in call.notes
        #: Of the groups that came before, where the client wants to know.
        self._failures: list[Failure] | None = [] if self._wishes and call.request.get(TELL_ERRORS) is True else None
        self._delivery = Delivery(call, send) if router.rules.continuation and may_continue(call) else None
        if self._delivery is not None:
            self._send = self._delivery

    async def run(self) -> None:
        """The whole way. Raises what the inner app raises, and TianjiError where nothing could be sent at all."""
        call, router = self._call, self._router
        name = call.model
        pending: list[str] = []
        before: Failure | None = None
        while True:
            self._tried.append(router.table.group(name))
            attempts = len(call.attempts)
            failure = (self._mocked() if self._wishes else None) or await self._group(name)
            if failure is None:
                if self._delivery is not None and self._delivery.broken:
                    await self._resume(name, self._delivery)
                return
            if before is not None and not failure.falls_back and len(call.attempts) == attempts:
                failure = before  # a target that does not take this call at all is passed over
            before = failure
            # A target's own list goes before the rest of the list that named it.
            pending = [*targets(call, router.rules, name, failure, self._tried[-1]), *pending]
            target = next_group(call, router.rules, router.table, failure, pending, self._tried)
            if target is None or call.gone or call.closed:
                break
            if self._failures is not None:
                self._failures.append(failure)
            router.counts.fell_back(router.table.label(name), router.table.label(target), failure.kind)
            self._failed.clear()
            name = call.group = target
        await self._give_up(failure)

    def _mocked(self) -> Failure | None:
        """The failure that LiteLLM's switches ask for, to try fallbacks out: of the first group, and of no other."""
        request = self._call.request
        if len(self._tried) > 1:
            return None
        for switch, (status, code) in MOCKED.items():
            if request.get(switch) is True:
                error = UpstreamError(f"This failure was asked for by '{switch}'.", status=status, code=code)
                return failure_of(error, status, {}, b"", self._call)
        return None

    # --- a group

    async def _group(self, name: str) -> Failure | None:
        """Attempts at the deployments of one group; None when one answered."""
        call, router = self._call, self._router
        failure: Failure | None = None
        retry = 0
        while True:
            try:
                trip = await router.depart(call, name, self._failed)
            except TianjiError as error:
                # Nobody is left; what the last attempt said tells more than that.
                return failure or failure_of(error, error.status, {}, b"", call)
            label = trip.attempt.deployment.model_name
            after_s = router.hedging.after_s(label) if router.hedging is not None and not retry and self._free else None
            failure = await self._attempt(trip) if after_s is None else await self._race(trip, name, after_s)
            if failure is None:
                if router.strained:
                    router.succeeded(label)
                return None
            if not await self._may_retry(name, trip.attempt.deployment, failure, retry):
                return failure
            retry += 1
            self._retries += 1

    async def _may_retry(self, name: str, deployment: Deployment, failure: Failure, retry: int) -> bool:
        """Whether another attempt in the group follows, after the wait that it takes."""
        call, router, rules = self._call, self._router, self._router.rules
        if call.gone or call.closed or not self._worth(name, failure):
            return False
        self._failed.add(deployment)
        others = bool(router.selector.candidates(call, name, self._failed))
        if failure.elsewhere and not others:
            return False
        most = self._most = retries_of(call, rules, deployment, self._tried[-1], failure)
        if retry >= most and not self._more(name, deployment, others=others, most=most):
            return False
        seconds = wait_s(call, rules, failure, retry, others=others)
        if not others:
            if has_any(call, rules, router.table, name, failure, self._tried):
                if failure.kind in _NO_WAIT or failure.wait_s:
                    return False
                seconds = 0.0
            if not router.selector.candidates(call, name) and not router.vacancy.full(call, name):
                return False  # all are in cooldown: the client learns for how long
            self._failed.clear()
        if not self._in_time(seconds) or not self._affordable(deployment.model_name, first=not retry):
            return False
        if seconds:
            await call.runtime.sleep(seconds)
        router.counts.retried(deployment.model_name, failure.kind)
        return True

    def _more(self, name: str, deployment: Deployment, *, others: bool, most: int) -> bool:
        """Whether the group has more to offer when its retries are spent: the next `order`, or all of it."""
        if not others:
            return False
        if self._router.rules.weighted_failover and most:
            return True
        next_order = self._router.selector.candidates(self._call, name, self._failed)[0].order
        return next_order != deployment.order

    def _worth(self, name: str, failure: Failure) -> bool:
        """Whether this kind of failure is retried at all."""
        if failure.error is not None and not isinstance(failure.error, UpstreamError):
            return failure.again
        typed = failure.kind in ("ContextWindow", "ContentPolicyViolation", "NotFound")
        rules = self._router.rules
        if typed and has_any(self._call, rules, self._router.table, name, failure, self._tried):
            return False
        return failure.again or has_policy(rules, self._tried[-1], failure)

    def _in_time(self, seconds: float) -> bool:
        if math.isinf(seconds):
            return False
        call = self._call
        return not call.due or call.runtime.clock() + int(seconds * 1e9) < call.due

    def _affordable(self, label: str, *, first: bool) -> bool:
        if self._router.retry_left(label, first=first):
            return True
        self._call.runtime.count("retries_refused", label)
        return False

    # --- an attempt

    async def _attempt(self, trip: Trip) -> Failure | None:
        """One attempt; None when its answer went to the client, in full or until it broke off."""
        call, attempt = self._call, trip.attempt
        if len(call.attempts) > 1:
            _forget(call)
        held = self._held = Held(call, attempt, self._send, self._committed)
        try:
            await self._inner(held)
            if not held.committed and held.status < 400 and bodiless(call, held.status):
                await held.release()  # a head may be all of it
        except TianjiError as error:
            if held.committed:
                self._router.arrive(trip, call, failure_of(error, held.status, {}, b"", call))
                raise
            call.fail(error, attempt)
        except BaseException as error:
            self._router.arrive(trip, call, None, abandoned=True)
            if isinstance(error, Exception) and held.answered and not (call.gone or call.closed):
                await held.release()  # frameworks answer 500, and let the exception out after it
            raise
        return self._ended(trip, held)

    async def _race(self, trip: Trip, name: str, after_s: float) -> Failure | None:
        """An attempt, and a second one beside it when it is slow to begin."""
        call, router = self._call, self._router
        hedging = router.hedging
        assert hedging is not None
        if len(call.attempts) > 1:
            _forget(call)
        race = Race(call, self._inner, self._send, self._committed)

        async def second() -> Trip | None:
            others = router.selector.candidates(call, name, {trip.attempt.deployment})
            if not others or not hedging.affordable:
                return None
            hedging.spend()
            try:
                return await router.depart(call, name, {trip.attempt.deployment}, waits=False)
            except TianjiError:
                return None  # nobody else is free

        departed = [trip]
        try:
            runners = await race.run(trip, after_s, second)
        except BaseException:
            for trip_ in race.trips or departed:
                router.arrive(trip_, call, None, abandoned=True)
            raise
        *others, last = runners
        for other in others:
            self._lost(other)
        self._held = last.held
        if last.held.committed and others and last.trip is not trip:
            hedging.won += 1
        return self._ended(last.trip, last.held)

    def _lost(self, runner: Runner) -> None:
        """The attempt of a race that is not the answer: it failed, or somebody else was faster."""
        attempt, call = runner.trip.attempt, self._call
        if attempt.error is None or isinstance(attempt.error, asyncio.CancelledError):
            attempt.error = None
            self._router.arrive(runner.trip, call, None, abandoned=True)
            return
        self._failed.add(attempt.deployment)
        self._router.arrive(runner.trip, call, failure_of(attempt.error, runner.held.status, {}, b"", call))

    async def _resume(self, name: str, delivery: Delivery) -> None:
        """Have others go on with a stream that broke off, each where the one before stopped."""
        call, router = self._call, self._router
        last = call.attempts[-1]
        self._failed.add(last.deployment)
        failure = failure_of(last.error, 0, {}, b"", call)
        listed = targets(call, router.rules, name, failure, self._tried[-1])
        for group in (name, *usable(call, router.rules, router.table, failure, listed, self._tried)):
            unable = {d for d in router.table.serving(group, team_of(call)) if not d.prefills}
            label = router.table.label(group)
            while delivery.broken and self._in_time(0.0) and self._affordable(label, first=False):
                try:
                    trip = await router.depart(call, group, self._failed | unable)
                except TianjiError:
                    break  # nobody of this group
                self._failed.add(trip.attempt.deployment)
                call.group = group
                with delivery.resumed():
                    await self._attempt(trip)
        await delivery.give_up()

    def _ended(self, trip: Trip, held: Held) -> Failure | None:
        """What became of an attempt whose app has returned."""
        call, attempt = self._call, trip.attempt
        failed = attempt.error is not None or (held.status >= 400 and not held.committed)
        failure = None
        if failed:
            failure = failure_of(attempt.error, held.status, held.headers, held.body, call)
            if attempt.error is None:
                attempt.status = held.status  # an app's own answer
        self._router.arrive(trip, call, failure, abandoned=call.gone)
        if failure is not None:
            self._failed.add(attempt.deployment)
        if failure is None or held.committed:
            self._held = None  # it knows us: two that know each other are the collector's work
            if failure is None and self._router.pins.used:
                self._router.pins.keep(call, self._tried[-1], attempt.deployment)
            return None
        return failure if attempt.error is not None or self._again(held) else failure._replace(again=False)

    def _committed(self, attempt: Attempt, head: Message) -> bool:
        """The answer begins to leave: the head says who gave it."""
        call, router = self._call, self._router
        attempt.first = call.runtime.clock()
        if router.hedging is not None and attempt.status == 200:
            router.hedging.took(attempt.deployment.model_name, (attempt.first - attempt.started) / 1e9)
        deployment = attempt.deployment
        told = router.told.answer(call, deployment, self._tried, self._retries, self._most)
        if router.limits.limited:
            team = team_of(call)
            told += router.limits.left(router.table.serving(call.group or call.model, team), team)
        if self._failures:
            told.append(of_fallbacks(self._failures))
        head["headers"] = [*head.get("headers", ()), *told]
        return True

    async def _give_up(self, failure: Failure) -> None:
        """The last error, as it came where it came from an app or an upstream."""
        call, held = self._call, self._held
        self._held = None
        if call.gone or call.closed:
            return
        if failure.error is not None:
            call.fail(failure.error)
        if held is not None and held.answered and not isinstance(failure.error, NoDeployment):
            await held.release()
        else:
            error = failure.error or TianjiError("The app gave no answer.")
            error.headers = {**error.headers, **of_failure(self._tried, self._retries, self._most)}
            await send_error(call, self._send, error)
        if self._delivery is not None:
            await self._delivery.give_up()  # nobody goes on with an error


def _forget(call: Call) -> None:
    """Another attempt follows one that failed: what that one left behind is no part of the call's end."""
    if not call.closed and not call.gone:
        call.error = call.outcome = None
        call.usage = Usage()
