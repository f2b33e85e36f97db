"""Entries in this process's memory over Redis. LiteLLM's dual cache, with memories that do not go stale.

A change is told to the other processes over pub/sub, and they forget their copy. A process that cannot hear it forgets
everything after `stale_at_most_s`, and keeps what it copies then no longer than that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from pydantic import Field, PrivateAttr

from tianji_mw.cache.base import StoreFailed
from tianji_mw.cache.memory import Memory
from tianji_mw.cache.redis import RedisStore
from tianji_mw.redis.errors import RedisFailed
from tianji_mw.runtime import Runtime

if TYPE_CHECKING:
    from tianji_mw.redis.channel import Channel

#: Most keys in one message.
_TOLD: Final = 500


class Dual(RedisStore):
    """Memory over one Redis.

    >>> Dual(host="cache.internal", default_in_memory_ttl=30).memory_ttl_s
    30.0
    """

    aliases: ClassVar[Mapping[str, str]] = {
        **RedisStore.aliases,
        "default_in_memory_ttl": "memory_ttl_s",
        "default_in_redis_ttl": "redis_ttl_s",
    }

    #: Longest life of a copy in memory; never longer than what Redis has left for it.
    memory_ttl_s: float = Field(default=300.0, gt=0, le=86_400)
    #: Longest life in Redis; without one, what the layer asks for.
    redis_ttl_s: float | None = Field(default=None, gt=0)
    #: How long a copy may differ from Redis while changes cannot be heard.
    stale_at_most_s: float = Field(default=5.0, ge=2.5, le=3600)
    memory_max_items: int = Field(default=10_000, ge=1)
    memory_max_bytes: int = Field(default=256 << 20, ge=1024)
    memory_max_item_bytes: int = Field(default=8 << 20, ge=1)
    #: Where changes are told; the same for all processes that share entries.
    channel_name: str = Field(default="tianji-cache-changes", min_length=1, max_length=200)

    _runtime: Runtime = PrivateAttr()
    _memory: Memory = PrivateAttr()
    _channel: Channel | None = PrivateAttr(default=None)
    #: Who we are in messages.
    _me: bytes = PrivateAttr(default=b"")
    #: Keys that are being read from Redis, and the reader that may copy the value: none once the key has changed.
    _readers: dict[str, object] = PrivateAttr(default_factory=dict)
    #: The same for keys that are being written: none once another process has written them.
    _writers: dict[str, object] = PrivateAttr(default_factory=dict)
    #: The memory was emptied since changes could be heard last.
    _emptied: bool = PrivateAttr(default=False)

    async def start(self, runtime: Runtime) -> None:
        await super().start(runtime)
        from tianji_mw.redis.channel import Channel

        self._runtime, self._me = runtime, runtime.new_id().encode()
        self._memory = Memory(
            max_items=self.memory_max_items, max_bytes=self.memory_max_bytes, max_item_bytes=self.memory_max_item_bytes
        )
        await self._memory.start(runtime)
        self._channel = Channel(self.client, self.channel_name, heard=self._heard, joined=self._joined)
        runtime.spawn("cache-changes", self._channel.listen)

    async def aclose(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.aclose()
            await self._memory.aclose()
        await super().aclose()

    # --- entries

    async def get(self, key: str) -> bytes | None:
        found = await self._fresh().get(key)
        return found if found is not None else (await self._read((key,))).get(key)

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        found = await self._fresh().get_many(keys)
        missing = [key for key, value in zip(keys, found, strict=True) if value is None]
        if not missing:
            return found
        read = await self._read(missing)
        return [read.get(key) if value is None else value for key, value in zip(keys, found, strict=True)]

    async def put(self, key: str, value: bytes, ttl_s: float) -> None:
        await self.put_many(((key, value, ttl_s),))

    async def put_many(self, items: Sequence[tuple[str, bytes, float]]) -> None:
        """Raises StoreFailed when Redis did not take them; this process has them all the same."""
        keys, writer = [key for key, _, _ in items], object()
        self._fresh()
        self._writers.update(dict.fromkeys(keys, writer))
        most_s = self.redis_ttl_s or math.inf
        try:
            await super().put_many([(key, value, min(ttl_s, most_s)) for key, value, ttl_s in items])
        finally:
            mine = {key for key in keys if self._writers.get(key) is writer}
            for key in mine:
                del self._writers[key]
            await self._forget(keys)
            copy_s = self._copy_s
            await self._memory.put_many(
                [(key, value, min(t, most_s, copy_s)) for key, value, t in items if key in mine]
            )
        await self._tell(keys)

    async def delete(self, keys: Sequence[str]) -> int:
        self._fresh()
        try:
            gone = await super().delete(keys)
        finally:
            await self._forget(keys)
        await self._tell(keys)
        return gone

    async def report(self) -> dict[str, Any]:
        return {**await super().report(), "hears_changes": self._hears, "memory": await self._memory.report()}

    async def _read(self, keys: Sequence[str]) -> dict[str, bytes]:
        """Values out of Redis, copied into memory unless they change meanwhile."""
        reader = object()
        self._readers.update(dict.fromkeys(keys, reader))
        found: dict[str, bytes] = {}
        copies: list[tuple[str, bytes, float]] = []
        try:
            for key, (value, left_s) in zip(keys, await self.get_with_ttl(keys), strict=True):
                if value is not None:
                    found[key] = value
                    if left_s > 0 and self._readers.get(key) is reader:
                        copies.append((key, value, min(left_s, self._copy_s)))
        finally:
            for key in keys:
                if self._readers.get(key) is reader:
                    del self._readers[key]
        await self._memory.put_many(copies)
        return found

    # --- changes

    @property
    def _hears(self) -> bool:
        heard_ns = self._channel.heard_ns if self._channel is not None else None
        return heard_ns is not None and self._runtime.clock() - heard_ns < self.stale_at_most_s * 1e9

    @property
    def _copy_s(self) -> float:
        return self.memory_ttl_s if self._hears else min(self.memory_ttl_s, self.stale_at_most_s)

    def _fresh(self) -> Memory:
        """The memory, without what may be stale by now."""
        if self._channel is None:
            raise StoreFailed("Redis: the store was not started")
        if not self._emptied and not self._hears:
            self._empty()
            self._emptied = True
        return self._memory

    def _empty(self) -> None:
        self._memory.clear()
        # What is being read or written may be older than what was not heard.
        self._readers.clear()
        self._writers.clear()

    async def _joined(self) -> None:
        """Changes are heard from now on; those before it were not."""
        self._empty()
        self._emptied = False

    async def _heard(self, message: bytes) -> None:
        sender, _, keys = message.partition(b" ")
        if sender != self._me:
            changed = keys.decode("ascii", "replace").split("\n")
            for key in changed:
                self._writers.pop(key, None)
            await self._forget(changed)

    async def _forget(self, keys: Sequence[str]) -> None:
        """Drop the copies of what has changed, and those that are on their way."""
        for key in keys:
            self._readers.pop(key, None)
        await self._memory.delete(keys)

    async def _tell(self, keys: Sequence[str]) -> None:
        """Have the others forget these. Nobody to tell is no failure: who cannot hear forgets by itself."""
        channel = self._channel
        for start in range(0, len(keys), _TOLD):
            try:
                if channel is not None:
                    await channel.send(self._me + b" " + "\n".join(keys[start : start + _TOLD]).encode())
            except RedisFailed as error:
                self._runtime.count("cache_errors", f"tell {error.kind}")
