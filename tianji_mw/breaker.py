"""A circuit breaker: what has failed several times in a row is left alone for a while, then tried again, once. Pure."""

from __future__ import annotations


class Breaker:
    """Opens after `failures` in a row, for `cooldown_s`; then one attempt in each such time passes until one succeeds.

    `now` is monotonic time in nanoseconds. An attempt that never reports back blocks nothing. Zero `failures` never
    open it.
    """

    __slots__ = ("_cooldown_ns", "_failures", "_in_a_row", "_next_ns")

    def __init__(self, failures: int = 5, cooldown_s: float = 10.0) -> None:
        self._failures = failures
        self._cooldown_ns = int(cooldown_s * 1e9)
        self._in_a_row = 0
        self._next_ns = 0

    @property
    def open(self) -> bool:
        """Whether it keeps attempts away."""
        return 0 < self._failures <= self._in_a_row

    def allows(self, now: int) -> bool:
        """Whether an attempt may be made. Of an open one, a yes is the one attempt of this time."""
        if not self.open:
            return True
        if now < self._next_ns:
            return False
        self._next_ns = now + self._cooldown_ns
        return True

    def succeeded(self) -> None:
        """The attempt went well: it closes."""
        self._in_a_row = 0

    def failed(self, now: int) -> None:
        """The attempt failed."""
        self._in_a_row += 1
        if self.open:
            self._next_ns = now + self._cooldown_ns
