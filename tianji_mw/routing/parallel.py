"""Requests at the same time: how many each deployment serves, and the line of those that wait for a place.

Counts are of this process. A call waits only while every deployment it could use is full, a bounded time in a bounded
line; past that it is refused with 503 and `retry-after`.
"""

from __future__ import annotations

import asyncio
from bisect import insort
from collections.abc import Iterable
from typing import Final

from tianji_mw.routing.base import Deployment
from tianji_mw.routing.blocks import UNTIL_LIFTED, Block, Blocks

#: Calls of one group that wait.
LONGEST_LINE: Final = 1_000
#: Seconds that a call waits.
LONGEST_WAIT_S: Final = 30.0


class Turn:
    """One call's place in the line; it keeps it where somebody else was quicker. `since`: when it began to wait."""

    __slots__ = ("called", "names", "rank", "since")

    def __init__(self, rank: tuple[int, int], names: tuple[str, ...], since: int) -> None:
        #: Its priority and its number: lower is called before higher.
        self.rank = rank
        self.names, self.since = names, since
        #: Set when there may be a place; None while it does not wait.
        self.called: asyncio.Future[None] | None = None


class Parallel:
    """The counts, and the lines: one for each public name, by priority and then in the order in which calls came."""

    def __init__(self, blocks: Blocks, most: int | None) -> None:
        self._blocks = blocks
        self._most = most
        self.inflight: dict[Deployment, int] = {}
        self._lines: dict[str, list[Turn]] = {}
        self._numbers = 0

    def began(self, deployment: Deployment) -> None:
        count = self.inflight[deployment] = self.inflight.get(deployment, 0) + 1
        most = deployment.max_parallel or self._most
        if most is not None and count == most:
            self._blocks.put(deployment, Block("parallel", UNTIL_LIFTED, f"{most} at a time"))

    def ended(self, deployment: Deployment) -> None:
        count = self.inflight[deployment] = self.inflight[deployment] - 1
        most = deployment.max_parallel or self._most
        if most is not None and count < most:
            if count == most - 1:
                self._blocks.lift(deployment, "parallel")
            self._call_next((deployment.model_name,))

    def turn(self, names: Iterable[str], since: int, priority: int = 0) -> Turn | None:
        """A place in the line for deployments of these public names; None where it is too long."""
        found = tuple(names)
        if any(self.waiting(name) >= LONGEST_LINE for name in found):
            return None
        self._numbers += 1
        return Turn((priority, self._numbers), found, since)

    async def place(self, turn: Turn, seconds: float) -> bool:
        """Wait until somebody has a place; False when none came in time."""
        if seconds <= 0:
            return False
        lines = [self._lines.setdefault(name, []) for name in turn.names]
        for line in lines:
            insort(line, turn, key=_rank)
        called = turn.called = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(min(seconds, LONGEST_WAIT_S)):
                await called
        except TimeoutError:
            return called.done() and not called.cancelled()  # called in the very moment in which its time was over
        except asyncio.CancelledError:
            if called.done() and not called.cancelled():
                self.pass_on(turn)
            raise
        finally:
            turn.called = None
            for line in lines:
                if turn in line:
                    line.remove(turn)
        return True

    def pass_on(self, turn: Turn) -> None:
        """A call that was called does not take the place: the next one behind it may."""
        self._call_next(turn.names, behind=turn.rank)

    def waiting(self, name: str) -> int:
        return len(self._lines.get(name, ()))

    def _call_next(self, names: Iterable[str], *, behind: tuple[int, int] = (-1, 0)) -> None:
        for name in names:
            for turn in self._lines.get(name, ()):
                if turn.rank > behind and turn.called is not None and not turn.called.done():
                    turn.called.set_result(None)
                    return


def _rank(turn: Turn) -> tuple[int, int]:
    return turn.rank
