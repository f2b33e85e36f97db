"""Writes to a store outside of the path of calls: bounded, newest value per key, readable before it is written.

A cache that is slow to write loses entries, counted, and never holds up a call.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from tianji_mw.cache.shelf import Shelf
    from tianji_mw.runtime import Runtime

_TASKS: Final = 4
_BATCH: Final = 64


class _Waiting(NamedTuple):
    value: bytes
    ttl_s: float


class Writer:
    """The writes of one store."""

    __slots__ = ("_busy", "_most", "_runtime", "_shelf", "_tasks", "_waiting", "size")

    def __init__(self, shelf: Shelf, runtime: Runtime, *, max_bytes: int = 64 << 20) -> None:
        self._shelf = shelf
        self._runtime = runtime
        self._most = max_bytes
        self._waiting: dict[str, _Waiting] = {}
        #: What is being written now.
        self._busy: dict[str, _Waiting] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        #: Bytes that wait.
        self.size = 0

    def offer(self, key: str, value: bytes, ttl_s: float) -> None:
        """Have it written soon; dropped and counted where too much waits already."""
        if self.size + len(value) > self._most:
            self._runtime.count("cache_errors", "put full")
            return
        if (before := self._waiting.pop(key, None)) is not None:
            self.size -= len(before.value)
        self._waiting[key] = _Waiting(value, ttl_s)
        self.size += len(value)
        if len(self._tasks) < _TASKS:
            task = asyncio.create_task(self._write())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def get(self, key: str) -> bytes | None:
        """What still waits to be written."""
        found = self._waiting.get(key) or self._busy.get(key)
        return found.value if found is not None else None

    def forget(self, key: str) -> None:
        """Do not write it any more."""
        if (before := self._waiting.pop(key, None)) is not None:
            self.size -= len(before.value)

    def waiting(self) -> list[str]:
        """Keys of what waits."""
        return [*self._waiting, *self._busy]

    async def _write(self) -> None:
        while self._waiting:
            keys = [key for key, _ in zip(self._waiting, range(_BATCH), strict=False)]
            batch = {key: self._waiting.pop(key) for key in keys}
            self.size -= sum(len(one.value) for one in batch.values())
            self._busy.update(batch)
            try:
                await self._shelf.put_many([(key, one.value, one.ttl_s) for key, one in batch.items()])
            finally:
                for key, one in batch.items():
                    if self._busy.get(key) is one:
                        del self._busy[key]

    async def drain(self, within_s: float) -> None:
        """Wait until all is written, so long at most; what is left then is dropped and counted."""
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=within_s)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if left := len(self._waiting) + len(self._busy):
            self._runtime.count("cache_errors", "put shutdown", left)
            self._waiting.clear()
            self._busy.clear()
