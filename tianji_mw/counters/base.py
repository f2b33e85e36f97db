"""The protocols `Windows` and `Holds`, and what they say. Nothing is counted here.

A *group* is what one decision is about, such as a deployment or a virtual key; in Redis all of its keys lie in one
hash slot, so that one script decides. The same key with two lengths of window is two counters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

#: Parts of a window. What is taken counts for the whole window and at most one part longer, never shorter.
BUCKETS: Final = 60
#: Those, and the present one.
SLOTS: Final = BUCKETS + 1


@dataclass(slots=True, frozen=True)
class Want:
    """Take `amount` from `key`, of which any window of `window_s` may see `limit` at most.

    >>> Want("rpm", 600, 1).window_s
    60.0
    """

    key: str
    limit: float
    amount: float
    window_s: float = 60.0


@dataclass(slots=True, frozen=True)
class Refused:
    """Why nothing was taken. `used` is what counts now, without the amount that was asked for.

    `retry_after_s`: when it would be admitted if nobody took anything meanwhile; an amount above the limit never is,
    and gets the length of the window or of the rest of the period.
    """

    key: str
    retry_after_s: float
    used: float
    limit: float


class Windows(Protocol):
    """Limits of amounts over time, such as requests and tokens a minute."""

    async def take(self, group: str, wants: Sequence[Want]) -> Refused | None:
        """Take all or nothing; of several that are refused, the one that waits longest is told."""

    async def settle(
        self, group: str, key: str, amount: float, window_s: float = 60.0, *, at: float | None = None
    ) -> None:
        """Add a correction, such as the tokens really used minus those taken. No sum goes below 0.

        `at`: when the amount was taken, as `runtime.clock() / 1e9`. A negative correction is taken out where it was
        put in, and does nothing when that has left the window; without `at`, it is taken out of the newest parts,
        which forgets calls of others too soon. A positive one counts from now on.
        """

    async def used(self, group: str, key: str, window_s: float = 60.0) -> float:
        """What counts now."""

    def known(self, group: str, key: str, window_s: float = 60.0) -> float:
        """The same, as far as this process has heard: it asks nobody."""


class Holds(Protocol):
    """Budgets in money: a call holds what it may cost, and spends what it did cost.

    A period begins with its first hold and lasts `period_s`. What was spent is then forgotten; calls that still run
    keep their holds, since their money is spent in the period in which they end.
    """

    async def hold(
        self, group: str, key: str, *, limit: float, amount: float, period_s: float, hold_id: str, ttl_s: float = 600.0
    ) -> Refused | None:
        """Hold `amount`, for `ttl_s` at most. The same `hold_id` again changes nothing.

        Admitted when it fits in what is neither spent nor held; or when nothing is held and something is left, so that
        one call may overshoot, and only one.
        """

    async def settle(self, group: str, key: str, *, hold_id: str, amount: float, period_s: float) -> None:
        """End the hold, if it has not ended, and add what was spent to the present period. Once for each hold."""

    async def spent(self, group: str, key: str) -> tuple[float, float, float]:
        """Spent, held, and seconds until the period ends (0 when none has begun)."""
