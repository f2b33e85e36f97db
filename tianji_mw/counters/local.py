"""Counters of one process: exact, and fast enough for every call. Other processes do not see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tianji_mw.counters.aging import Aging
from tianji_mw.counters.base import BUCKETS, SLOTS, Refused, Want
from tianji_mw.runtime import Runtime

#: Money is counted in whole billionths, which add up without error.
NANO: Final = 1_000_000_000
#: A call ends before anybody can say when: ask again soon.
SOON_S: Final = 1.0


class _Ring:
    """One window: a ring of sums, the oldest of which is emptied when its part of the window is used anew."""

    __slots__ = ("at", "bucket", "slots", "total", "width_ns")

    def __init__(self, window_s: float, now: int) -> None:
        self.width_ns = width_of(window_s)
        #: The present part of time, and its place.
        self.bucket = now // self.width_ns
        self.at = self.bucket % SLOTS
        self.slots = [0.0] * SLOTS
        self.total = 0.0

    def turn(self, bucket: int) -> None:
        """Go on to the present, and forget what has left the window."""
        gone = min(bucket - self.bucket, SLOTS)
        for one in range(bucket - gone + 1, bucket + 1):
            self.slots[one % SLOTS] = 0.0
        self.bucket, self.at = bucket, bucket % SLOTS
        self.total = sum(self.slots)  # anew: differences of floats would drift

    def take_out(self, amount: float, taken: int) -> None:
        """Less by `amount`: out of the part of time where it was taken, then the older ones, then the newer ones."""
        oldest = self.bucket - BUCKETS
        if taken < oldest:
            return
        taken = min(taken, self.bucket)
        for one in (*range(taken, oldest - 1, -1), *range(taken + 1, self.bucket + 1)):
            part = min(self.slots[one % SLOTS], amount)
            self.slots[one % SLOTS] -= part
            amount -= part
            if amount <= 0:
                break
        self.total = sum(self.slots)

    def wait_ns(self, want: Want, now: int) -> int:
        """How long until enough has left the window; 0 when it fits now."""
        need = self.total + want.amount - want.limit
        if need <= 0:
            return 0
        for age, amount in enumerate(self.slots[self.at + 1 :] + self.slots[: self.at + 1]):  # the oldest first
            need -= amount
            if need <= 0:
                return (self.bucket + 1 + age) * self.width_ns - now
        return BUCKETS * self.width_ns


def width_of(window_s: float) -> int:
    """Nanoseconds of one part of a window, rounded up."""
    if window_s <= 0:
        raise ValueError("a window is longer than 0 s")
    return -(-int(window_s * 1e9) // BUCKETS) or 1


def _unused(ring: _Ring, now: int) -> bool:
    return now // ring.width_ns - ring.bucket >= SLOTS


class LocalWindows:
    """`Windows` of one process.

    >>> import asyncio
    >>> windows = LocalWindows(Runtime(clock=lambda: 0))
    >>> asyncio.run(windows.take("gpt-a", [Want("rpm", 600, 1)]))
    >>> asyncio.run(windows.take("gpt-a", [Want("rpm", 600, 600)]))
    Refused(key='rpm', retry_after_s=61.0, used=1.0, limit=600)
    """

    def __init__(self, runtime: Runtime) -> None:
        self._clock = runtime.clock
        self._rings: Aging[tuple[str, str, float], _Ring] = Aging(_unused)

    async def take(self, group: str, wants: Sequence[Want]) -> Refused | None:
        now, found = self._clock(), self._rings.found
        taken: list[tuple[_Ring, float, float]] = []
        for want in wants:
            ring = found.get((group, want.key, want.window_s))
            if ring is None:
                ring = self._ring(group, want.key, want.window_s, now)
            elif (bucket := now // ring.width_ns) != ring.bucket:
                ring.turn(bucket)
                self._rings.sweep(now)
            slot, total = ring.slots[ring.at], ring.total
            if total + want.amount > want.limit:
                for ring, slot, total in reversed(taken):  # as it was: adding and subtracting would not give that back
                    ring.slots[ring.at], ring.total = slot, total
                return self._refused(group, wants, now)
            taken.append((ring, slot, total))
            ring.slots[ring.at] = slot + want.amount
            ring.total = total + want.amount
        return None

    async def settle(
        self, group: str, key: str, amount: float, window_s: float = 60.0, *, at: float | None = None
    ) -> None:
        ring = self._ring(group, key, window_s, self._clock())
        if amount < 0:
            ring.take_out(-amount, ring.bucket if at is None else int(at * 1e9) // ring.width_ns)
        else:
            ring.slots[ring.at] += amount
            ring.total += amount

    async def used(self, group: str, key: str, window_s: float = 60.0) -> float:
        return self.known(group, key, window_s)

    def known(self, group: str, key: str, window_s: float = 60.0) -> float:
        found = (group, key, window_s) in self._rings.found
        return self._ring(group, key, window_s, self._clock()).total if found else 0.0

    def _ring(self, group: str, key: str, window_s: float, now: int) -> _Ring:
        ring = self._rings.found.get((group, key, window_s))
        if ring is None:
            ring = _Ring(window_s, now)
            self._rings.put((group, key, window_s), ring, now)
        elif (bucket := now // ring.width_ns) != ring.bucket:
            ring.turn(bucket)
        return ring

    def _refused(self, group: str, wants: Sequence[Want], now: int) -> Refused:
        rings = [self._ring(group, want.key, want.window_s, now) for want in wants]
        waits = [ring.wait_ns(want, now) for ring, want in zip(rings, wants, strict=True)]
        longest = max(range(len(wants)), key=waits.__getitem__)
        want = wants[longest]
        return Refused(want.key, waits[longest] / 1e9, rings[longest].total, want.limit)


class _Purse:
    """One budget, in billionths."""

    __slots__ = ("ends", "held", "holds", "spent")

    def __init__(self) -> None:
        self.spent = self.held = 0
        #: When the period ends; 0 when none has begun.
        self.ends = 0
        #: By hold_id: how much, and until when.
        self.holds: dict[str, tuple[int, int]] = {}

    def release(self, hold_id: str) -> None:
        self.held -= self.holds.pop(hold_id, (0, 0))[0]

    def end_holds(self, now: int) -> None:
        """End those that nobody settled."""
        for hold_id in [hold_id for hold_id, (_, until) in self.holds.items() if until <= now]:
            self.release(hold_id)

    def fits(self, limit: int, amount: int, *, overshoot: bool) -> bool:
        return self.spent + self.held + amount <= limit or (overshoot and not self.holds and self.spent < limit)


def _over(purse: _Purse, now: int) -> bool:
    if purse.ends > now:
        return False
    purse.end_holds(now)
    return not purse.holds


class LocalHolds:
    """`Holds` of one process.

    >>> import asyncio
    >>> holds = LocalHolds(Runtime(clock=lambda: 0))
    >>> asyncio.run(holds.hold("team", "usd", limit=10, amount=0.5, period_s=86_400, hold_id="call-1"))
    >>> asyncio.run(holds.spent("team", "usd"))
    (0.0, 0.5, 86400.0)
    """

    def __init__(self, runtime: Runtime) -> None:
        self._clock = runtime.clock
        self._purses: Aging[tuple[str, str], _Purse] = Aging(_over)

    async def hold(
        self,
        group: str,
        key: str,
        *,
        limit: float,
        amount: float,
        period_s: float,
        hold_id: str,
        ttl_s: float = 600.0,
        overshoot: bool = True,
    ) -> Refused | None:
        """As `Holds.hold`; without `overshoot`, not even a lone call may go above the limit."""
        now = self._clock()
        self._purses.sweep(now)
        purse = self._purse(group, key, now)
        if hold_id in purse.holds:
            return None
        most, nano = money(limit), money(amount)
        if not purse.fits(most, nano, overshoot=overshoot):
            purse.end_holds(now)
            if not purse.fits(most, nano, overshoot=overshoot):
                left_s = (purse.ends - now) / 1e9 if purse.ends else period_s
                wait_s = left_s if purse.spent >= most or not purse.holds else min(SOON_S, left_s)
                return Refused(key, wait_s, (purse.spent + purse.held) / NANO, limit)
        purse.ends = purse.ends or now + int(period_s * 1e9)
        purse.holds[hold_id] = (nano, now + int(ttl_s * 1e9))
        purse.held += nano
        return None

    async def settle(self, group: str, key: str, *, hold_id: str, amount: float, period_s: float) -> None:
        now = self._clock()
        purse = self._purse(group, key, now)
        purse.release(hold_id)
        if amount:
            purse.ends = purse.ends or now + int(period_s * 1e9)
            purse.spent = max(0, purse.spent + money(amount))

    async def spent(self, group: str, key: str) -> tuple[float, float, float]:
        now = self._clock()
        if (group, key) not in self._purses.found:
            return 0.0, 0.0, 0.0
        purse = self._purse(group, key, now)
        purse.end_holds(now)
        return purse.spent / NANO, purse.held / NANO, max(0, purse.ends - now) / 1e9

    def holds(self, group: str, key: str, hold_id: str) -> bool:
        """Whether this hold was made here, and is neither settled nor ended."""
        purse = self._purses.found.get((group, key))
        return purse is not None and hold_id in purse.holds

    def _purse(self, group: str, key: str, now: int) -> _Purse:
        purse = self._purses.found.get((group, key))
        if purse is None:
            purse = _Purse()
            self._purses.put((group, key), purse, now)
        elif purse.ends and purse.ends <= now:
            purse.spent = purse.ends = 0
        if purse.holds and next(iter(purse.holds.values()))[1] <= now:
            purse.end_holds(now)
        return purse


def money(amount: float) -> int:
    """Billionths; more than nine million is as good as no limit."""
    return round(min(amount, 9e6) * NANO)
