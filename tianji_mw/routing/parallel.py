"""Requests at the same time: how many each deployment serves, and the line of those that wait for a place.

Counts are of this process. A call waits only while every deployment it could use is full, a bounded time in a bounded
line; past that it is refused with 503 and `retry-after`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from tianji_mw.routing.base import Deployment
from tianji_mw.routing.blocks import UNTIL_LIFTED, Block, Blocks

#: Calls of one group that wait.
LONGEST_LINE: Final = 1_000
#: Seconds that a call waits.
LONGEST_WAIT_S: Final = 30.0


class Parallel:
    """The counts, and the lines."""

    def __init__(self, blocks: Blocks, most: int | None) -> None:
        self._blocks = blocks
        self._most = most
        self.inflight: dict[Deployment, int] = {}
        self._lines: dict[str, deque[asyncio.Future[None]]] = {}

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
            self._call_next(deployment.model_name)

    async def place(self, group: str, seconds: float, *, again: bool = False) -> bool:
        """Wait until somebody of the group has a place; False when none came in time, or the line is too long.

        `again`: somebody was quicker, and this call keeps its place at the front.
        """
        line = self._lines.setdefault(group, deque())
        if len(line) >= LONGEST_LINE or seconds <= 0:
            return False
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if again:
            line.appendleft(turn)
        else:
            line.append(turn)
        try:
            async with asyncio.timeout(min(seconds, LONGEST_WAIT_S)):
                await turn
        except TimeoutError:
            return False
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._call_next(group)  # the place goes to the next one
            raise
        finally:
            if turn in line:
                line.remove(turn)
        return True

    def waiting(self, group: str) -> int:
        return len(self._lines.get(group, ()))

    def _call_next(self, group: str) -> None:
        line = self._lines.get(group)
        while line:
            turn = line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
