"""Budgets that all processes share, in Redis: one round trip a hold, and one a settle.

No failure of Redis leaves this file. Without it a process may hold its share of what was neither spent nor held when
Redis answered last, and tells it later. Holds and settles have an id, so that Redis may be told twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tianji_mw.counters.aging import Aging
from tianji_mw.counters.base import Refused
from tianji_mw.counters.local import NANO, SOON_S, LocalHolds, money
from tianji_mw.counters.lua import HOLD, SETTLE, SPENT, key_of
from tianji_mw.counters.outage import GRACE_S, Outage, Outages, unsent
from tianji_mw.redis.errors import RedisFailed
from tianji_mw.runtime import Runtime

if TYPE_CHECKING:
    from tianji_mw.redis.client import Redis


@dataclass(slots=True, eq=False)
class _Owed:
    """A hold that Redis must be told of."""

    key: str
    amount: float
    period_s: float
    until: int
    #: Redis may know it already.
    maybe_told: bool = False


@dataclass(slots=True, eq=False)
class _Outage(Outage):
    """What one group did since Redis failed."""

    local: LocalHolds = field(kw_only=True)
    holds: dict[str, _Owed] = field(default_factory=dict)
    #: Settles by hold_id: key, amount, period_s.
    settles: dict[str, tuple[str, float, float]] = field(default_factory=dict)
    #: The sum of what was held and settled without Redis, by key and period_s: an hour takes no more memory.
    spent: dict[tuple[str, float], float] = field(default_factory=dict)

    def settle(self, key: str, hold_id: str, amount: float, period_s: float) -> None:
        """Tell Redis later."""
        owed = self.holds.pop(hold_id, None)
        if owed is None or owed.maybe_told:
            self.settles[hold_id] = (key, amount, period_s)
        else:
            self.spent[key, period_s] = self.spent.get((key, period_s), 0.0) + amount


@dataclass(slots=True)
class _Known:
    """What Redis said last."""

    #: Spent and held: what is held will be spent, as far as anybody knows.
    gone: float
    #: When the period ends.
    ends: int


class RedisHolds:
    """`Holds` of all processes.

    >>> holds = RedisHolds(redis, runtime, prefix="tianji", replicas=lambda: 4)                        # doctest: +SKIP
    >>> await holds.hold("team", "usd", limit=10, amount=0.5, period_s=86_400, hold_id="call-1")     # doctest: +SKIP
    """

    def __init__(
        self, redis: Redis, runtime: Runtime, *, prefix: str, replicas: Callable[[], int], grace_s: float = GRACE_S
    ) -> None:
        if "{" in prefix or "}" in prefix:
            raise ValueError("the prefix of counters is text without braces")
        self._redis, self._runtime, self._prefix, self._replicas = redis, runtime, prefix, replicas
        self._known: Aging[tuple[str, str], _Known] = Aging(lambda known, now: known.ends <= now)
        self._outages = Outages(
            runtime,
            lambda: _Outage(local=LocalHolds(runtime)),
            self._push,
            who="budgets",
            kind="holds",
            grace_s=grace_s,
        )

    async def hold(
        self, group: str, key: str, *, limit: float, amount: float, period_s: float, hold_id: str, ttl_s: float = 600.0
    ) -> Refused | None:
        owed = _Owed(key, amount, period_s, self._runtime.clock() + int(ttl_s * 1e9))
        outage = self._outages.of(group)
        if outage is not None:
            refused = await self._hold_share(group, hold_id, owed, limit, outage)
            if refused is not None or outage.down:
                return refused
        try:
            refused = await self._hold(group, hold_id, owed, limit)
        except RedisFailed as error:
            began = self._outages.begin(group, error)
            owed.maybe_told = not unsent(error)
            if outage is not None:  # the share gave it
                self._outages.fell_back()
                began.holds[hold_id] = owed
                return None
            refused = await self._hold_share(group, hold_id, owed, limit, began)
            if refused is not None and owed.maybe_told:
                began.settles[hold_id] = (key, 0.0, period_s)
            return refused
        outage, fits_share = self._outages.of(group), outage is not None
        if outage is not None and refused is not None and fits_share:
            await outage.local.settle(group, key, hold_id=hold_id, amount=0.0, period_s=period_s)
        elif outage is not None and refused is None and not fits_share:  # meanwhile another call found that it fails
            await self._hold_locally(group, hold_id, owed, float("inf"), outage)
        return refused

    async def settle(self, group: str, key: str, *, hold_id: str, amount: float, period_s: float) -> None:
        outage = self._outages.of(group)
        if outage is not None and outage.local.holds(group, key, hold_id):  # else it counts for spent already
            await outage.local.settle(group, key, hold_id=hold_id, amount=amount, period_s=period_s)
        if outage is not None and outage.down:
            outage.settle(key, hold_id, amount, period_s)
            return
        try:
            await self._settle(group, key, hold_id, amount, period_s)
        except RedisFailed as error:
            self._outages.begin(group, error).settle(key, hold_id, amount, period_s)

    async def spent(self, group: str, key: str) -> tuple[float, float, float]:
        outage = self._outages.of(group)
        if outage is None or not outage.down:
            try:
                answer = await SPENT.run(self._redis, self._names(group, key), repeatable=True)
            except RedisFailed as error:
                outage = self._outages.begin(group, error)
            else:
                self._note(group, key, answer)
                return answer[1] / NANO, answer[2] / NANO, answer[3] / 1e6
        spent, held, left_s = await outage.local.spent(group, key)
        known = self._known_now(group, key)
        known_left_s = (known.ends - self._runtime.clock()) / 1e9 if known.gone else 0.0
        return spent + known.gone, held, known_left_s or left_s

    # --- with Redis

    async def _hold(
        self, group: str, hold_id: str, owed: _Owed, limit: float, *, force: bool = False
    ) -> Refused | None:
        ttl_us = max(1, (owed.until - self._runtime.clock()) // 1000)
        args = (hold_id, money(limit), money(owed.amount), int(owed.period_s * 1e6), ttl_us, int(force))
        answer = await HOLD.run(self._redis, self._names(group, owed.key), args, repeatable=True)
        self._note(group, owed.key, answer)
        refused, spent, held, left_us, holding = answer
        if not refused:
            return None
        left_s = left_us / 1e6 or owed.period_s
        wait_s = left_s if spent >= money(limit) or not holding else min(SOON_S, left_s)
        return Refused(owed.key, wait_s, (spent + held) / NANO, limit)

    async def _settle(self, group: str, key: str, hold_id: str, amount: float, period_s: float) -> None:
        args = (hold_id, money(amount), int(period_s * 1e6))
        self._note(group, key, await SETTLE.run(self._redis, self._names(group, key), args, repeatable=True))

    async def _push(self, group: str, outage: _Outage) -> None:
        """Tell Redis what it missed; nothing is owed when this returns."""
        await self._redis.run("EXISTS", key := key_of(self._prefix, group), key=key)
        while outage.spent or outage.settles or outage.holds:
            while outage.spent:
                (key, period_s), amount = outage.spent.popitem()
                outage.settles[self._runtime.new_id()] = (key, amount, period_s)
            for hold_id, one in list(outage.settles.items()):
                await self._settle(group, one[0], hold_id, *one[1:])
                del outage.settles[hold_id]
            for hold_id, owed in list(outage.holds.items()):
                if hold_id in outage.holds:  # it may be settled meanwhile
                    owed.maybe_told = True
                    await self._hold(group, hold_id, owed, 0.0, force=True)
                    outage.holds.pop(hold_id, None)

    def _note(self, group: str, key: str, answer: list[int]) -> None:
        if self._outages.of(group) is not None:
            return  # what was left when it began stays as it was
        _, spent, held, left_us, _ = answer
        now = self._runtime.clock()
        known = _Known((spent + held) / NANO, now + left_us * 1000)
        if (group, key) in self._known.found:
            self._known.found[group, key] = known
        else:
            self._known.put((group, key), known, now)

    # --- without

    async def _hold_share(self, group: str, hold_id: str, owed: _Owed, limit: float, outage: _Outage) -> Refused | None:
        """Hold from the share of this process; Redis is told later."""
        known = self._known_now(group, owed.key)
        share = max(0.0, limit - known.gone) / max(1, self._replicas())
        refused = await self._hold_locally(group, hold_id, owed, share, outage)
        if outage.down:
            self._outages.fell_back()
            if refused is None:
                outage.holds[hold_id] = owed
        if refused is None:
            return None
        return Refused(owed.key, refused.retry_after_s, refused.used + known.gone, limit)

    async def _hold_locally(
        self, group: str, hold_id: str, owed: _Owed, limit: float, outage: _Outage
    ) -> Refused | None:
        ttl_s = max(0, owed.until - self._runtime.clock()) / 1e9
        return await outage.local.hold(
            group, owed.key, limit=limit, amount=owed.amount, period_s=owed.period_s,
            hold_id=hold_id, ttl_s=ttl_s, overshoot=False,
        )  # fmt: skip

    def _known_now(self, group: str, key: str) -> _Known:
        known = self._known.found.get((group, key))
        now = self._runtime.clock()
        return known if known is not None and known.ends > now else _Known(0.0, now)

    def _names(self, group: str, key: str) -> list[str]:
        return [key_of(self._prefix, group, kind, key) for kind in ("m", "h", "d")]
