"""What a cache store is: bytes by key, with a time to live. Everything else about caching is not its business.

The layer around it limits the time of each question, counts failures and turns them into misses (`shelf.py`); a store
just raises `StoreFailed`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, ClassVar

from tianji_mw.plugins import PluginSettings
from tianji_mw.runtime import Runtime


class StoreFailed(Exception):
    """The store could not do it. `message` names the reason and the place; never a key of ours, a password or content.

    `kind`: `timeout`, `unreachable`, `busy`, `full`, `refused` (login, rights), or `error`.
    """

    def __init__(self, message: str, *, kind: str = "error") -> None:
        super().__init__(message)
        self.message = message
        self.kind = kind


class CacheStore(PluginSettings):
    """Base of the stores. A subclass's fields are its configuration, and construction has no side effect.

    Keys are ASCII text of at most 300 characters out of letters, digits and `:._-`; values are bytes. What `put` wrote,
    `get` gives back in full or not at all; after its time to live it gives None.
    """

    #: Answers without waiting for anything outside of this process: it needs no time limit and no queue for writes.
    instant: ClassVar[bool] = False
    #: Keeps calls away from what has failed by itself, and as fine as it needs (a node of a cluster): no breaker around
    #: it.
    has_breaker: ClassVar[bool] = False
    #: Seconds that a read may take before it is a miss.
    read_timeout_s: ClassVar[float] = 0.25

    async def start(self, runtime: Runtime) -> None:
        """Open what it needs. A server that is not there yet is no reason to fail: wrong settings are (SetupError)."""

    async def aclose(self) -> None:
        """Close it again; also after a start that failed halfway."""

    async def get(self, key: str) -> bytes | None:
        """The value, or None. Raises StoreFailed."""
        raise NotImplementedError

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """The values, in the order of the keys. Raises StoreFailed."""
        return [await self.get(key) for key in keys]

    async def put(self, key: str, value: bytes, ttl_s: float) -> None:
        """Keep the value for so many seconds, in the place of an older one. Raises StoreFailed."""
        raise NotImplementedError

    async def put_many(self, items: Sequence[tuple[str, bytes, float]]) -> None:
        """`put` for several: key, value, seconds. Raises StoreFailed."""
        for key, value, ttl_s in items:
            await self.put(key, value, ttl_s)

    async def delete(self, keys: Sequence[str]) -> int:
        """Forget them; how many there were. Raises StoreFailed."""
        raise NotImplementedError

    def keys(self, prefix: str) -> AsyncIterator[str]:
        """Every key that begins with `prefix`; an async generator. For purges and figures, never in a call's path.

        Raises StoreFailed.
        """
        raise NotImplementedError

    async def ping(self) -> None:
        """Ask the cheapest question. Raises StoreFailed with what to do."""

    async def prove(self, namespace: str) -> bool:
        """Write a value among this namespace's keys, read it, delete it; whether it was read. Raises StoreFailed."""
        key, value = f"{namespace}:-:-:-:probe-{time.time_ns()}", b"probe"
        await self.ping()
        await self.put(key, value, 10)
        found = await self.get(key)
        await self.delete([key])
        return found == value

    async def report(self) -> dict[str, Any]:
        """Figures for people, such as `items`, `bytes`, `evicted`; no secret in them. Raises StoreFailed."""
        return {}
