"""What the stores over object storage share: an object for each entry, and when it ends.

An object is named as LiteLLM names it, the key with `/` for `:`, under the path of the config. Before the value stand a
mark and the time of its end, because not every storage deletes by itself, and none to the second; rules of the bucket's
life cycle have to take old objects away. Objects of others are misses.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Any, ClassVar, Final, TypeVar

from pydantic import Field, PrivateAttr

from tianji_mw.cache.base import CacheStore, StoreFailed
from tianji_mw.errors import SetupError
from tianji_mw.runtime import Runtime

T = TypeVar("T")

_HEAD: Final = struct.Struct("<4sd")
_MAGIC: Final = b"TJO1"
#: Bytes read beyond those of the largest value: an object of somebody else's has no bound.
BEYOND: Final = 65_536
#: Requests at the same time.
_TOGETHER: Final = 16


class ObjectStore(CacheStore):
    """Base of them; a subclass reads, writes, removes and lists objects by their names."""

    title: ClassVar[str] = "object storage"
    #: A round trip to a storage elsewhere.
    read_timeout_s: ClassVar[float] = 2.0

    #: Folder of the objects; may be empty.
    path: str = Field(default="", max_length=500)
    max_item_bytes: int = Field(default=8 << 20, ge=1)
    #: Seconds for one request.
    timeout_s: float = Field(default=5.0, gt=0, le=120)

    _wall: Callable[[], float] = PrivateAttr(default=time.time)
    _refused: int = PrivateAttr(default=0)

    # --- of a subclass; each raises StoreFailed

    async def read(self, name: str) -> bytes | None:
        """The object, or None."""
        raise NotImplementedError

    async def write(self, name: str, body: bytes, ends: float) -> None:
        """Write the object; `ends` is in seconds since 1970."""
        raise NotImplementedError

    async def remove(self, name: str) -> bool:
        """Remove it; whether it was there."""
        raise NotImplementedError

    def names(self, prefix: str) -> AsyncIterator[str]:
        """Names that begin so; an async generator."""
        raise NotImplementedError

    # --- the store

    async def start(self, runtime: Runtime) -> None:
        self._wall = runtime.wall

    async def get(self, key: str) -> bytes | None:
        raw = await self.read(self.name_of(key))
        if raw is None or len(raw) < _HEAD.size:
            return None
        magic, ends = _HEAD.unpack_from(raw)
        return raw[_HEAD.size :] if magic == _MAGIC and ends > self._wall() else None

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        return await _together([partial(self.get, key) for key in keys])

    async def put(self, key: str, value: bytes, ttl_s: float) -> None:
        if len(value) > self.max_item_bytes or ttl_s <= 0:
            self._refused += 1
            await self.remove(self.name_of(key))
            return
        ends = self._wall() + ttl_s
        await self.write(self.name_of(key), _HEAD.pack(_MAGIC, ends) + value, ends)

    async def put_many(self, items: Sequence[tuple[str, bytes, float]]) -> None:
        await _together([partial(self.put, *item) for item in items])

    async def delete(self, keys: Sequence[str]) -> int:
        return sum(await _together([partial(self.remove, self.name_of(key)) for key in keys]))

    async def keys(self, prefix: str) -> AsyncIterator[str]:
        """Also of entries whose time is over and that nothing has taken away yet."""
        start = len(self.name_of(""))
        async for name in self.names(self.name_of(prefix)):
            yield name[start:].replace("/", ":")

    async def ping(self) -> None:
        await self.read(self.name_of("ping"))

    async def report(self) -> dict[str, Any]:
        return {"path": self.path, "refused": self._refused}

    def name_of(self, key: str) -> str:
        """The object of a key."""
        folder = self.path.strip("/")
        return (f"{folder}/" if folder else "") + key.replace(":", "/")


class BlockingObjects(ObjectStore):
    """Over a blocking SDK, in threads: a subclass writes `_read`, `_write`, `_remove`, `_pages` and `_tried`."""

    _threads: Threads | None = PrivateAttr(default=None)

    async def read(self, name: str) -> bytes | None:
        found: bytes | None = await self._asked(self._read, name)
        return found

    async def write(self, name: str, body: bytes, ends: float) -> None:
        await self._asked(self._write, name, body, ends)

    async def remove(self, name: str) -> bool:
        return bool(await self._asked(self._remove, name))

    async def names(self, prefix: str) -> AsyncIterator[str]:
        pages = self._pages(prefix)
        while (page := await self._asked(next, pages, None)) is not None:
            for name in page:
                yield name

    async def _asked(self, work: Callable[..., Any], *arguments: Any) -> Any:
        if self._threads is None:
            raise StoreFailed("the store was not started")
        try:
            return await self._threads.run(self._tried, work, *arguments)
        except StoreFailed as error:
            if error.kind == "refused":
                await self._renew()
            raise

    async def _renew(self) -> None:
        """We were refused: take another key, if there is one by now."""

    # --- in a thread

    def _tried(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """The work's result; what the SDK raises as StoreFailed."""
        raise NotImplementedError

    def _read(self, name: str) -> bytes | None:
        raise NotImplementedError

    def _write(self, name: str, body: bytes, ends: float) -> None:
        raise NotImplementedError

    def _remove(self, name: str) -> bool:
        raise NotImplementedError

    def _pages(self, prefix: str) -> Iterator[list[str]]:
        """Names that begin so, in pages, each fetched when it is asked for."""
        raise NotImplementedError


class Threads:
    """Threads in which a blocking SDK works; their names begin as `hush` wants it."""

    def __init__(self, name: str) -> None:
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(_TOGETHER, thread_name_prefix=f"tianji-cache-{name}")

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """The work in a thread. Raises what it raises."""
        if self._pool is None:
            raise StoreFailed("the store was closed")
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(work, *arguments))

    def close(self) -> None:
        """Not waited for: a thread in a request that nobody reads ends by its timeout."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)


def moment(seconds: float) -> datetime:
    """The time as SDKs take it."""
    return datetime.fromtimestamp(min(seconds, 253_000_000_000), UTC)


def must(value: str, field: str, title: str) -> None:
    """Raise SetupError for a setting that is missing."""
    if not value:
        raise SetupError(f"{title}: {field} is missing; set it in cache_params.")


async def _together(work: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """All of it, a few at a time; the first failure is raised."""
    found: list[T] = []
    for at in range(0, len(work), _TOGETHER):
        found += await asyncio.gather(*(one() for one in work[at : at + _TOGETHER]))
    return found
