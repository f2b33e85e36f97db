"""The time in which Redis does not answer for a group: who is in it, and the task that tells Redis what it missed.

While it lasts, a process decides alone. For a while after, its calls must fit both in Redis and in its own share: the
others may find out seconds later, and until they have told what they admitted, Redis believes that there is more left
than there is. Nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from tianji_mw.redis.errors import RedisDown, RedisFailed
from tianji_mw.runtime import Runtime

#: Longer than the longest pause of the client's probe (`redis/node.py`), with its question.
GRACE_S: Final = 10.0
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0


@dataclass(slots=True, eq=False)
class Outage:
    """Of one group."""

    #: Redis is not asked now.
    down: bool = True
    #: It was more than one lost connection, so that other processes are without Redis too.
    shared: bool = False
    #: When the process need not keep to its share any more; 0 while `down`.
    ends: int = 0


T = TypeVar("T", bound=Outage)


class Outages(Generic[T]):
    """All of one counter's. `push(group, outage)` tells Redis what it missed, and raises RedisFailed."""

    def __init__(
        self,
        runtime: Runtime,
        make: Callable[[], T],
        push: Callable[[str, T], Awaitable[None]],
        *,
        who: str,
        kind: str,
        grace_s: float = GRACE_S,
    ) -> None:
        self._runtime, self._make, self._push = runtime, make, push
        self._who, self._kind, self._grace_ns = who, kind, int(grace_s * 1e9)
        self._of: dict[str, T] = {}
        self._runs = False

    def of(self, group: str) -> T | None:
        """The group's outage, until it is over."""
        if not self._of:
            return None
        outage = self._of.get(group)
        if outage is not None and not outage.down and outage.ends <= self._runtime.clock():
            del self._of[group]
            return None
        return outage

    def begin(self, group: str, error: RedisFailed) -> T:
        """Redis failed. The outage that runs, or a new one."""
        outage = self.of(group)
        if outage is None:
            outage = self._of[group] = self._make()
        outage.down, outage.ends = True, 0
        outage.shared = outage.shared or isinstance(error, RedisDown)
        self._runtime.report(self._who, f"{error.message}; each process keeps to its share of the limits until it does")
        if not self._runs:
            self._runs = True
            self._runtime.spawn(f"counters-{self._kind}", self._recover)
        return outage

    def fell_back(self) -> None:
        """Count a decision that was made without Redis."""
        self._runtime.count("counter_fallbacks", self._kind)

    async def _recover(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while self._of:
            await self._runtime.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
            for group in [group for group, outage in self._of.items() if outage.down]:
                await self._try(group, self._of[group])
            if not any(outage.down for outage in self._of.values()):
                self._runtime.report(self._who, "")
            for group in list(self._of):
                self.of(group)
        self._runs = False

    async def _try(self, group: str, outage: T) -> None:
        try:
            await self._push(group, outage)
        except RedisFailed:
            outage.shared = True
            return
        outage.down = False
        outage.ends = self._runtime.clock() + (self._grace_ns if outage.shared else 0)


def unsent(error: RedisFailed) -> bool:
    """Whether Redis surely did not run the command; else nobody knows."""
    return isinstance(error, RedisDown) or bool(error.code)
