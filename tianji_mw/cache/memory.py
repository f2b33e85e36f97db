"""Answers in this process's memory: bounded in items and bytes, the least recently used goes first.

It is gone with the process, and every process has its own; `dual` puts Redis behind it.
"""

from __future__ import annotations

import heapq
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, ClassVar, Final, NamedTuple

from pydantic import Field, PrivateAttr

from tianji_mw.cache.base import CacheStore
from tianji_mw.runtime import Runtime

#: What an entry costs beside its key and value: measured as the growth of the process, 64-bit CPython.
_OVERHEAD: Final = 300
#: Expired entries looked for at each write: twice as many as can be added, so that they never pile up.
_SWEEP: Final = 2


class _Item(NamedTuple):
    value: bytes
    #: In nanoseconds of the clock.
    expires: int


class Memory(CacheStore):
    """The store of one process.

    >>> Memory(max_bytes=64 << 20).max_items
    10000
    """

    instant: ClassVar[bool] = True

    max_items: int = Field(default=10_000, ge=1)
    #: Of keys, values and what keeping them costs.
    max_bytes: int = Field(default=256 << 20, ge=1024)
    #: A larger value is not kept.
    max_item_bytes: int = Field(default=8 << 20, ge=1)

    #: A plain object: each look at a private attribute of a model takes pydantic longer than finding an entry.
    _kept: Kept = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        self._kept = Kept(self.max_items, self.max_bytes, self.max_item_bytes)

    async def start(self, runtime: Runtime) -> None:
        self._kept.clock = runtime.clock

    async def aclose(self) -> None:
        self.clear()

    async def get(self, key: str) -> bytes | None:
        return self._kept.get(key)

    async def put(self, key: str, value: bytes, ttl_s: float) -> None:
        self._kept.put(key, value, ttl_s)

    async def delete(self, keys: Sequence[str]) -> int:
        return sum(map(self._kept.drop, keys))

    async def keys(self, prefix: str) -> AsyncIterator[str]:
        for key in self._kept.beginning(prefix):
            yield key

    async def report(self) -> dict[str, Any]:
        kept = self._kept
        return {
            "items": len(kept.items), "bytes": kept.size, "max_items": self.max_items, "max_bytes": self.max_bytes,
            **kept.counts,
        }  # fmt: skip

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()


class Kept:
    """The entries, the least recently used first, and the queue in which they expire."""

    __slots__ = ("_max_bytes", "_max_item_bytes", "_max_items", "clock", "counts", "items", "queue", "size")

    def __init__(self, max_items: int, max_bytes: int, max_item_bytes: int) -> None:
        self._max_items, self._max_bytes, self._max_item_bytes = max_items, max_bytes, max_item_bytes
        self.clock: Callable[[], int] = time.monotonic_ns
        self.items: OrderedDict[str, _Item] = OrderedDict()
        #: Expiry and key; one whose entry is gone or newer is skipped when its time comes.
        self.queue: list[tuple[int, str]] = []
        self.size = 0
        self.counts = {"evicted": 0, "expired": 0, "refused": 0}

    def get(self, key: str) -> bytes | None:
        """The value, which is the most recently used one now."""
        item = self.items.get(key)
        if item is None:
            return None
        if item.expires <= self.clock():
            self.drop(key, "expired")
            return None
        self.items.move_to_end(key)
        return item.value

    def put(self, key: str, value: bytes, ttl_s: float) -> None:
        """Keep the value, in the place of an older one, if it is not too large."""
        self.drop(key)
        cost = _cost(key, value)
        if len(value) > self._max_item_bytes or cost > self._max_bytes or ttl_s <= 0:
            self.counts["refused"] += 1
            return
        now = self.clock()
        expires = now + int(min(ttl_s, 1e9) * 1e9)
        self.items[key] = _Item(value, expires)
        self.size += cost
        heapq.heappush(self.queue, (expires, key))
        self._sweep(now)
        while self.size > self._max_bytes or len(self.items) > self._max_items:
            self.drop(next(iter(self.items)), "evicted")

    def drop(self, key: str, why: str = "") -> bool:
        """Forget it; whether it was there."""
        item = self.items.pop(key, None)
        if item is None:
            return False
        self.size -= _cost(key, item.value)
        if why:
            self.counts[why] += 1
        return True

    def beginning(self, prefix: str) -> list[str]:
        """The keys that begin so and have time left."""
        now = self.clock()
        return [key for key, item in self.items.items() if key.startswith(prefix) and item.expires > now]

    def clear(self) -> None:
        """Forget everything."""
        self.items.clear()
        self.queue.clear()
        self.size = 0

    def _sweep(self, now: int) -> None:
        """Let a few expired entries go, and places in the queue whose entry was replaced."""
        queue = self.queue
        for _ in range(_SWEEP):
            if not queue or queue[0][0] > now:
                break
            expires, key = heapq.heappop(queue)
            item = self.items.get(key)
            if item is not None and item.expires == expires:
                self.drop(key, "expired")
        if len(queue) > 2 * len(self.items) + 64:
            # Entries that were replaced or evicted long before their time left their places behind.
            queue[:] = [(item.expires, key) for key, item in self.items.items()]
            heapq.heapify(queue)


def _cost(key: str, value: bytes) -> int:
    return len(key) + len(value) + _OVERHEAD
