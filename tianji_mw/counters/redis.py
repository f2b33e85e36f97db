"""Windows that all processes share, in Redis: one round trip a take. Money is in `redis_holds.py`.

No failure of Redis leaves this file. Without it a process keeps to its share of what was left when Redis answered
last, and tells it later what it admitted. Where nobody knows whether Redis ran a command, it counts for used: what is
taken is told again, and what is given back is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tianji_mw.counters.aging import Aging
from tianji_mw.counters.base import SLOTS, Refused, Want
from tianji_mw.counters.known import Known
from tianji_mw.counters.local import LocalWindows, width_of
from tianji_mw.counters.lua import ADD, MICRO, TAKE, USED, key_of
from tianji_mw.counters.outage import GRACE_S, Outage, Outages, unsent
from tianji_mw.counters.redis_holds import RedisHolds
from tianji_mw.redis.errors import RedisFailed
from tianji_mw.runtime import Runtime

if TYPE_CHECKING:
    from tianji_mw.redis.client import Redis

__all__ = ["RedisHolds", "RedisWindows"]


@dataclass(slots=True, eq=False)
class _Outage(Outage):
    """What one group did since Redis failed."""

    local: LocalWindows = field(kw_only=True)
    began: int = field(kw_only=True)
    #: What Redis must be told, by key and window_s: sums of what was taken (and apart from that, given back), each for
    #: one part of the window. An hour takes no more memory than a window.
    owed: dict[tuple[str, float], dict[tuple[int, bool], float]] = field(default_factory=dict)

    def owe(self, key: str, window_s: float, amount: float, at: int) -> None:
        """Tell Redis later."""
        part = at // width_of(window_s)
        sums = self.owed.setdefault((key, window_s), {})
        if (part, amount < 0) not in sums:
            for old in [old for old in sums if old[0] < part - SLOTS]:
                del sums[old]
        sums[part, amount < 0] = sums.get((part, amount < 0), 0.0) + amount


class RedisWindows:
    """`Windows` of all processes.

    >>> windows = RedisWindows(redis, runtime, prefix="tianji", replicas=lambda: 4)         # doctest: +SKIP
    >>> await windows.take("gpt-a", [Want("rpm", 600, 1), Want("tpm", 100_000, 1_250)])     # doctest: +SKIP
    """

    def __init__(
        self, redis: Redis, runtime: Runtime, *, prefix: str, replicas: Callable[[], int], grace_s: float = GRACE_S
    ) -> None:
        if "{" in prefix or "}" in prefix:
            raise ValueError("the prefix of counters is text without braces")
        self._redis, self._runtime, self._prefix, self._replicas = redis, runtime, prefix, replicas
        self._known: Aging[tuple[str, str, float], Known] = Aging(Known.over)
        self._outages = Outages(
            runtime,
            lambda: _Outage(local=LocalWindows(runtime), began=runtime.clock()),
            self._push,
            who="counters",
            kind="windows",
            grace_s=grace_s,
        )

    async def take(self, group: str, wants: Sequence[Want]) -> Refused | None:
        if not wants:
            return None
        outage = self._outages.of(group)
        if outage is not None:
            refused = await self._take_share(group, wants, outage)
            if refused is not None or outage.down:
                return refused
        try:
            refused = await self._take(group, wants)
        except RedisFailed as error:
            began = self._outages.begin(group, error)
            if outage is None:
                return await self._take_share(group, wants, began)
            self._outages.fell_back()
            self._owe(wants, began)
            return None
        outage, fits_share = self._outages.of(group), outage is not None
        if outage is not None and (refused is not None) == fits_share:
            # Redis refused what the share gave; or it admitted, while another call found that it fails.
            for want in wants:
                await outage.local.settle(group, want.key, -want.amount if refused else want.amount, want.window_s)
        return refused

    async def settle(
        self, group: str, key: str, amount: float, window_s: float = 60.0, *, at: float | None = None
    ) -> None:
        now = self._runtime.clock()
        taken = int(at * 1e9) if at is not None and amount < 0 else now
        outage = self._outages.of(group)
        if outage is not None and outage.down:
            outage.owe(key, window_s, amount, taken)
        else:
            try:
                await self._add(group, key, window_s, [(taken, amount)])
            except RedisFailed as error:
                outage = self._outages.begin(group, error)
                if amount > 0 or unsent(error):
                    outage.owe(key, window_s, amount, taken)
        if outage is not None and taken >= outage.began:
            await outage.local.settle(group, key, amount, window_s, at=at)

    async def used(self, group: str, key: str, window_s: float = 60.0) -> float:
        outage = self._outages.of(group)
        if outage is None or not outage.down:
            try:
                name, width = self._name(group, key, window_s)
                return int(await USED.run(self._redis, [name], [width], repeatable=True)) / MICRO
            except RedisFailed as error:
                outage = self._outages.begin(group, error)
        return self.known(group, key, window_s)

    def known(self, group: str, key: str, window_s: float = 60.0) -> float:
        outage = self._outages.of(group)
        known = self._known_used(group, key, window_s)
        return known if outage is None else known + outage.local.known(group, key, window_s)

    # --- with Redis

    async def _take(self, group: str, wants: Sequence[Want]) -> Refused | None:
        now = self._runtime.clock()
        knowns = [self._known_of(group, want, now) for want in wants]
        names: list[str] = []
        args: list[int] = [int(any(known.stale(now) for known in knowns))]
        for want in wants:
            name, width = self._name(group, want.key, want.window_s)
            names.append(name)
            args += (_micro(want.limit), _micro(want.amount), width)
        which, wait_us, sums, rings = await TAKE.run(self._redis, names, args)
        if self._outages.of(group) is None:  # what was left when an outage began stays as it was
            now = self._runtime.clock()
            for known, total, parts in zip(knowns, sums, rings or [()] * len(sums), strict=True):
                known.note(total, parts, now)
        if not which:
            return None
        want = wants[which - 1]
        return Refused(want.key, wait_us / 1e6, sums[which - 1] / MICRO, want.limit)

    async def _add(self, group: str, key: str, window_s: float, entries: Sequence[tuple[int, float]]) -> None:
        name, width = self._name(group, key, window_s)
        now = self._runtime.clock()
        args: list[int] = [width]
        for at, amount in entries:
            args += (max(0, now - at) // 1000, _micro(amount))
        await ADD.run(self._redis, [name], args)

    async def _push(self, group: str, outage: _Outage) -> None:
        """Tell Redis what it missed; nothing is owed when this returns."""
        await self._redis.run("EXISTS", key := key_of(self._prefix, group), key=key)
        while outage.owed:
            (key, window_s), sums = outage.owed.popitem()
            width, order = width_of(window_s), sorted(sums, key=lambda part: part[1])  # taken, then given back
            try:  # as if at the end of each part: too late is safe, too early is not
                await self._add(group, key, window_s, [((part[0] + 1) * width, sums[part]) for part in order])
            except RedisFailed as error:
                for part in order:
                    if sums[part] > 0 or unsent(error):
                        outage.owe(key, window_s, sums[part], part[0] * width)
                raise

    # --- without

    async def _take_share(self, group: str, wants: Sequence[Want], outage: _Outage) -> Refused | None:
        """Take from the share of this process; Redis is told later."""
        processes = max(1, self._replicas())
        known = {want.key: self._known_used(group, want.key, want.window_s) for want in wants}
        shares = [
            Want(want.key, max(0.0, want.limit - known[want.key]) / processes, want.amount, want.window_s)
            for want in wants
        ]
        refused = await outage.local.take(group, shares)
        if outage.down:
            self._outages.fell_back()
            if refused is None:
                self._owe(wants, outage)
        if refused is None:
            return None
        limit = next(want.limit for want in wants if want.key == refused.key)
        return Refused(refused.key, refused.retry_after_s, refused.used + known[refused.key], limit)

    def _owe(self, wants: Sequence[Want], outage: _Outage) -> None:
        now = self._runtime.clock()
        for want in wants:
            outage.owe(want.key, want.window_s, want.amount, now)

    def _known_of(self, group: str, want: Want, now: int) -> Known:
        known = self._known.found.get((group, want.key, want.window_s))
        if known is None:
            known = Known(want.window_s, now)
            self._known.put((group, want.key, want.window_s), known, now)
        return known

    def _known_used(self, group: str, key: str, window_s: float) -> float:
        known = self._known.found.get((group, key, window_s))
        return known.used(self._runtime.clock()) if known is not None else 0.0

    def _name(self, group: str, key: str, window_s: float) -> tuple[str, int]:
        """Its key in Redis, and the width of its parts in us."""
        return key_of(self._prefix, group, "w", f"{window_s:g}", key), -(-width_of(window_s) // 1000)


def _micro(amount: float) -> int:
    """Millionths; more than nine billion is as good as no limit."""
    return round(min(amount, 9e9) * MICRO)
