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

    _items: OrderedDict[str, _Item] = PrivateAttr(default_factory=OrderedDict)
    #: Expiry and key; one whose entry is gone or newer is skipped when its time comes.
    _queue: list[tuple[int, str]] = PrivateAttr(default_factory=list)
    _size: int = PrivateAttr(default=0)
    _counts: dict[str, int] = PrivateAttr(default_factory=lambda: {"evicted": 0, "expired": 0, "refused": 0})
    _clock: Callable[[], int] = PrivateAttr(default=time.monotonic_ns)

    async def start(self, runtime: Runtime) -> None:
        self._clock = runtime.clock

    async def aclose(self) -> None:
        self.clear()

    async def get(self, key: str) -> bytes | None:
        item = self._items.get(key)
        if item is None:
            return None
        if item.expires <= self._clock():
            self._drop(key, "expired")
            return None
        self._items.move_to_end(key)
        return item.value

    async def put(self, key: str, value: bytes, ttl_s: float) -> None:
        self.keep(key, value, ttl_s)

    def keep(self, key: str, value: bytes, ttl_s: float) -> None:
        """`put` for who must not wait."""
        self._drop(key)
        cost = _cost(key, value)
        if len(value) > self.max_item_bytes or cost > self.max_bytes or ttl_s <= 0:
            self._counts["refused"] += 1
            return
        now = self._clock()
        expires = now + int(min(ttl_s, 1e9) * 1e9)
        self._items[key] = _Item(value, expires)
        self._size += cost
        heapq.heappush(self._queue, (expires, key))
        self._sweep(now)
        while self._size > self.max_bytes or len(self._items) > self.max_items:
            self._drop(next(iter(self._items)), "evicted")

    async def delete(self, keys: Sequence[str]) -> int:
        return sum(self._drop(key) for key in keys)

    async def keys(self, prefix: str) -> AsyncIterator[str]:
        now = self._clock()
        for key in [key for key, item in self._items.items() if key.startswith(prefix) and item.expires > now]:
            yield key

    async def report(self) -> dict[str, Any]:
        return {
            "items": len(self._items), "bytes": self._size, "max_items": self.max_items, "max_bytes": self.max_bytes,
            **self._counts,
        }  # fmt: skip

    def clear(self) -> None:
        """Forget everything."""
        self._items.clear()
        self._queue.clear()
        self._size = 0

    def _drop(self, key: str, why: str = "") -> bool:
        item = self._items.pop(key, None)
        if item is None:
            return False
        self._size -= _cost(key, item.value)
        if why:
            self._counts[why] += 1
        return True

    def _sweep(self, now: int) -> None:
        """Let a few expired entries go, and places in the queue whose entry was replaced."""
        queue = self._queue
        for _ in range(_SWEEP):
            if not queue or queue[0][0] > now:
                break
            expires, key = heapq.heappop(queue)
            item = self._items.get(key)
            if item is not None and item.expires == expires:
                self._drop(key, "expired")
        if len(queue) > 2 * len(self._items) + 64:
            # Entries that were replaced or evicted long before their time left their places behind.
            queue[:] = [(item.expires, key) for key, item in self._items.items()]
            heapq.heapify(queue)


def _cost(key: str, value: bytes) -> int:
    return len(key) + len(value) + _OVERHEAD
