"""A table that forgets what is over, a little at each use: no background task, no pause. It has no bound of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

#: Two for each new entry: the table shrinks faster than it can grow.
_AT_ONCE: Final = 2


class Aging(Generic[K, V]):
    """Entries by key. `over(entry, now)` says that one may be forgotten.

    >>> table = Aging[str, int](lambda entry, now: entry < now)
    >>> table.put("a", 5, 1)
    >>> table.put("b", 9, 6)
    >>> list(table.found)
    ['b']
    """

    __slots__ = ("_over", "_turn", "found")

    def __init__(self, over: Callable[[V, int], bool]) -> None:
        #: To read from.
        self.found: dict[K, V] = {}
        self._over = over
        self._turn: deque[K] = deque()

    def put(self, key: K, entry: V, now: int) -> None:
        """Add an entry that is not there."""
        self.sweep(now)
        self.found[key] = entry
        self._turn.append(key)

    def sweep(self, now: int) -> None:
        """Look at the next entries, and forget those that are over."""
        for _ in range(min(_AT_ONCE, len(self._turn))):
            key = self._turn.popleft()
            if self._over(self.found[key], now):
                del self.found[key]
            else:
                self._turn.append(key)
