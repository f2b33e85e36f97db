"""What Redis said last of a window, and how much of it still counts: the base of a share when Redis does not answer."""

from __future__ import annotations

from collections.abc import Sequence

from tianji_mw.counters.base import SLOTS
from tianji_mw.counters.local import width_of
from tianji_mw.counters.lua import MICRO


class Known:
    """One window, as heard from Redis. Its sum comes with every answer, its parts once in each part of the window."""

    __slots__ = ("_heard", "_looked", "_more", "_parts", "_width_ns")

    def __init__(self, window_s: float, now: int) -> None:
        self._width_ns = width_of(window_s)
        self._heard, self._looked = now, 0
        #: When each part leaves the window, and its sum.
        self._parts: list[tuple[int, float]] = []
        #: What came since the parts were heard; it leaves the window last.
        self._more = 0.0

    def stale(self, now: int) -> bool:
        """Whether the parts should be asked for again."""
        return now - self._looked >= self._width_ns or not self._looked

    def note(self, total: int, parts: Sequence[int], now: int) -> None:
        """What an answer said."""
        if parts:
            self._looked = now
            ends = (now + left_us * 1000 for left_us in parts[::2])
            self._parts = list(zip(ends, (amount / MICRO for amount in parts[1::2]), strict=True))
        self._heard = now
        self._more = total / MICRO - sum(amount for end, amount in self._parts if end > now)

    def used(self, now: int) -> float:
        """What still counts."""
        more = self._more if now < self._heard + SLOTS * self._width_ns else 0.0
        return max(0.0, more + sum(amount for end, amount in self._parts if end > now))

    def over(self, now: int) -> bool:
        """Whether nothing counts any more."""
        return now >= self._heard + SLOTS * self._width_ns
