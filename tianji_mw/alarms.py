"""Coarse deadlines: one timer of the event loop serves all of a process, and setting one costs a dict entry.

For deadlines that nearly never ring and need no precision, such as "the body must come within a minute": a timer of
the loop for each would cost more than most requests' other work. They ring up to `TICK_S` late.
"""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Final, Protocol

TICK_S: Final = 0.04
#: A tick that is so late belongs to a loop that has ended.
_DEAD_S: Final = 5.0


class Alarm(Protocol):
    """What rings. One object may stand in the table once."""

    def ring(self) -> None: ...


class Alarms:
    """The deadlines of one process, or of one event loop after another."""

    __slots__ = ("_due", "_next")

    def __init__(self) -> None:
        self._due: dict[Alarm, float] = {}
        #: When the next tick is due; 0 when none is.
        self._next = 0.0

    def set(self, alarm: Alarm, seconds: float) -> None:
        """Ring it after so many seconds, in the running event loop."""
        now = time.monotonic()
        self._due[alarm] = now + seconds
        if not self._next or now > self._next + _DEAD_S:
            self._tick_later(now)

    def clear(self, alarm: Alarm) -> None:
        """It need not ring any more; nothing happens when it has rung."""
        self._due.pop(alarm, None)

    def within(self, seconds: float) -> Within:
        """`with alarms.within(60):` raises TimeoutError inside when the block's awaits take longer."""
        return Within(self, seconds)

    def _tick_later(self, now: float) -> None:
        self._next = now + TICK_S
        asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        now = time.monotonic()
        for alarm in [alarm for alarm, due in self._due.items() if due <= now]:
            del self._due[alarm]
            alarm.ring()
        if self._due:
            self._tick_later(now)
        else:
            self._next = 0.0


class Within:
    """`asyncio.timeout` at a tenth of its price."""

    __slots__ = ("_alarms", "_seconds", "_task", "rang")

    def __init__(self, alarms: Alarms, seconds: float) -> None:
        self._alarms = alarms
        self._seconds = seconds
        #: The time was over before the block was.
        self.rang = False
        self._task: asyncio.Task[object] | None = None

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        self._alarms.set(self, self._seconds)

    def ring(self) -> None:
        """Too late: interrupt the block."""
        self.rang = True
        if self._task is not None:
            self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._alarms.clear(self)
        # Somebody else may have cancelled as well: that goes on.
        if self.rang and self._task is not None and not self._task.uncancel() and kind is asyncio.CancelledError:
            raise TimeoutError from error
