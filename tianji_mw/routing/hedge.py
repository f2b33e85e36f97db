"""Hedged requests: a second attempt beside one that is slow to begin; whichever gives content first is the answer.

For a group whose slowest answers are much slower than its usual ones. Both attempts are paid for, so only a few percent
of calls get a second one, and it is never sent after a failure: that is what retries are for.

Source: Dean and Barroso, "The Tail at Scale" (2013).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from tianji_mw.errors import TianjiError
from tianji_mw.routing.held import Held
from tianji_mw.routing.rules import Hedge

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import Message, Send

    from tianji_mw.call import Call
    from tianji_mw.driver import Inner
    from tianji_mw.facts import Attempt
    from tianji_mw.routing.router import Trip

#: Times to the first content that a percentile is taken of, and how many it takes.
_SAMPLES: Final = 200
_ENOUGH: Final = 20
_PERCENTILE: Final = 0.95
#: A second attempt may be saved up for, up to so many.
_MOST_SAVED: Final = 10.0


class Hedging:
    """When calls of each group get a second attempt."""

    def __init__(self, rule: Hedge) -> None:
        self._rule = rule
        self._times: dict[str, deque[float]] = {}
        #: The percentile of each, taken anew after so many answers: sorting for every call would cost too much.
        self._known: dict[str, float] = {}
        self._new: dict[str, int] = {}
        self._saved = 1.0
        self.sent = 0
        self.won = 0

    def after_s(self, group: str) -> float | None:
        """Seconds to wait for the first attempt of a call of this group; None where it gets no second one."""
        if self._rule.groups and group not in self._rule.groups:
            return None
        self._saved = min(_MOST_SAVED, self._saved + self._rule.max_percent / 100)
        if self._rule.after_s is not None:
            return self._rule.after_s
        return self._known.get(group)

    @property
    def affordable(self) -> bool:
        """Whether one more call may have a second attempt."""
        return self._saved >= 1.0

    def spend(self) -> None:
        """It has one."""
        self._saved -= 1.0
        self.sent += 1

    def took(self, group: str, seconds: float) -> None:
        """An answer of this group began after so long."""
        times = self._times.setdefault(group, deque(maxlen=_SAMPLES))
        times.append(seconds)
        new = self._new[group] = self._new.get(group, 0) + 1
        if new >= _ENOUGH:
            self._new[group] = 0
            self._known[group] = sorted(times)[int(len(times) * _PERCENTILE)]


class Runner:
    """One attempt as a task of its own."""

    def __init__(
        self, trip: Trip, call: Call, inner: Inner, send: Send, committed: Callable[[Attempt, Message], bool]
    ) -> None:
        self.trip = trip
        self.held = Held(call, trip.attempt, send, committed)
        self._inner = inner
        self.task = asyncio.ensure_future(self._run(call))

    async def _run(self, call: Call) -> None:
        try:
            await self._inner(self.held)
        except TianjiError as error:
            if self.held.committed:
                raise
            call.fail(error, self.trip.attempt)


class Race:
    """Up to two attempts of one call. `run` returns the one that answered, or the last that failed; all have ended."""

    def __init__(self, call: Call, inner: Inner, send: Send, committed: Callable[[Attempt, Message], bool]) -> None:
        self._call, self._inner, self._send, self._tell = call, inner, send, committed
        self._runners: list[Runner] = []
        self._winner: asyncio.Future[Attempt] = asyncio.get_running_loop().create_future()

    @property
    def trips(self) -> list[Trip]:
        """All attempts that were begun."""
        return [runner.trip for runner in self._runners]

    async def run(self, first: Trip, after_s: float, second: Callable[[], Awaitable[Trip | None]]) -> list[Runner]:
        """The attempts, the one that counts last. `second` departs on another attempt, or says that there is none."""
        try:
            runner = self._start(first)
            await self._one_of({runner.task}, after_s)
            if not runner.task.done() and not self._winner.done() and (trip := await second()) is not None:
                self._start(trip)
            await self._decided()
            return await self._finished()
        finally:
            for runner in self._runners:
                runner.task.cancel()
            await asyncio.gather(*(runner.task for runner in self._runners), return_exceptions=True)

    def _start(self, trip: Trip) -> Runner:
        runner = Runner(trip, self._call, self._inner, self._send, self._committed)
        self._runners.append(runner)
        return runner

    def _committed(self, attempt: Attempt, head: Message) -> bool:
        if self._winner.done():
            return False
        # An error is no content: the other attempt may do better, and the caller lets it go if it does not.
        self._winner.set_result(attempt)
        self._call.deployment = attempt.deployment
        self._call.attempts.remove(attempt)
        self._call.attempts.append(attempt)
        return self._tell(attempt, head)

    async def _decided(self) -> None:
        """Until one has won, or all have ended."""
        while not self._winner.done() and (running := {r.task for r in self._runners if not r.task.done()}):
            await self._one_of(running)

    async def _one_of(self, tasks: set[asyncio.Task[None]], within_s: float | None = None) -> None:
        """Until one of them has ended, or somebody has won."""
        waited: set[asyncio.Future[Any]] = {*tasks, self._winner}
        await asyncio.wait(waited, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)

    async def _finished(self) -> list[Runner]:
        if not self._winner.done():
            return sorted(self._runners, key=lambda runner: runner.trip.attempt.started)
        won = self._winner.result()
        [winner] = [runner for runner in self._runners if runner.trip.attempt is won]
        losers = [runner for runner in self._runners if runner is not winner]
        for loser in losers:
            loser.task.cancel()
        await asyncio.gather(*(loser.task for loser in losers), return_exceptions=True)
        # What the losers left behind when they were cancelled.
        if isinstance(won.error, asyncio.CancelledError):
            won.error = None
        self._call.error = won.error
        await winner.task
        return [*losers, winner]
