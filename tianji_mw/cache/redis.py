"""Entries in Redis: one server, Sentinel or Cluster. LiteLLM's `redis`.

A get is one round trip. Calls are kept away from a server that does not answer (`tianji_mw/redis/node.py`): a frozen
one costs its first callers `op_timeout_s`, and nobody anything after that. Redis itself forgets what is over its time.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

from pydantic import Field, PrivateAttr

from tianji_mw.cache.base import CacheStore, StoreFailed
from tianji_mw.redis import shared
from tianji_mw.redis.errors import Command, RedisFailed
from tianji_mw.redis.settings import RedisSettings
from tianji_mw.runtime import Runtime

if TYPE_CHECKING:
    from tianji_mw.redis.client import Redis

T = TypeVar("T")

_NOT_STARTED: Final = "Redis: the store was not started"


class RedisStore(RedisSettings, CacheStore):
    """Entries in one Redis.

    >>> RedisStore(host="cache.internal", password="os.environ/REDIS_PASSWORD").mode
    'standalone'
    """

    has_breaker: ClassVar[bool] = True
    aliases: ClassVar[Mapping[str, str]] = {**RedisSettings.aliases, "redis_flush_size": "flush_size"}

    #: Most entries that `put_many` and `delete` send in one go.
    flush_size: int = Field(default=100, ge=1, le=10_000)

    _redis: Redis | None = PrivateAttr(default=None)

    @property
    def read_timeout_s(self) -> float:  # type: ignore[override]
        """The client keeps its own time: were the layer's shorter, no breaker would ever open."""
        return self.op_timeout_s + 0.05

    async def start(self, runtime: Runtime) -> None:
        """Take the process's client. Raises MissingExtra, and SetupError for settings that cannot work."""
        self._redis = await shared(self, runtime)

    async def aclose(self) -> None:
        """Let go of the client; the runtime closes it."""
        self._redis = None

    @property
    def client(self) -> Redis:
        """The client. Raises StoreFailed before the start."""
        if self._redis is None:
            raise StoreFailed(_NOT_STARTED)
        return self._redis

    # --- entries

    async def get(self, key: str) -> bytes | None:
        found: bytes | None = await self._run("GET", key)
        return found

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """A key whose node does not answer is missing; StoreFailed is raised when none answers."""
        return _found(await self.client.run_many([(key, ("GET", key)) for key in keys]))

    async def get_with_ttl(self, keys: Sequence[str]) -> list[tuple[bytes | None, float]]:
        """Values, and the seconds that they have left; one round trip to each node. As `get_many` otherwise."""
        pairs: list[tuple[str, Command]] = [(key, (name, key)) for key in keys for name in ("GET", "PTTL")]
        answers = _found(await self.client.run_many(pairs))
        return [(value, _left_s(left_ms)) for value, left_ms in zip(answers[::2], answers[1::2], strict=True)]

    async def put(self, key: str, value: bytes, ttl_s: float) -> None:
        await self._run("SET", key, value, "PX", _ms(ttl_s))

    async def put_many(self, items: Sequence[tuple[str, bytes, float]]) -> None:
        for some in _batches(items, self.flush_size):
            _checked(await self.client.run_many([(k, ("SET", k, value, "PX", _ms(ttl_s))) for k, value, ttl_s in some]))

    async def delete(self, keys: Sequence[str]) -> int:
        gone = 0
        for some in _batches(keys, self.flush_size):
            gone += sum(_checked(await self.client.run_many([(key, ("UNLINK", key)) for key in some])))
        return gone

    async def keys(self, prefix: str) -> AsyncIterator[str]:
        """Every key on every primary; SCAN may give one twice while a server makes its table larger."""
        try:
            async for key in self.client.scan(prefix):
                yield key
        except RedisFailed as error:
            raise _failed(error) from None

    # --- people

    async def ping(self) -> None:
        answers = await self.client.on_all("PING")
        if not answers:
            raise _failed(self.client.table.nowhere())
        _checked(list(answers.values()))

    async def report(self) -> dict[str, Any]:
        """Version, mode, nodes, and memory and keys over all primaries."""
        infos = await self.client.on_all("INFO")
        if not infos:
            raise _failed(self.client.table.nowhere())
        answers = [_info(answer) for answer in _found(list(infos.values())) if answer is not None]
        sizes = [size for size in (await self.client.on_all("DBSIZE")).values() if isinstance(size, int)]
        return {
            "server": f"Redis {answers[0].get('redis_version', '')}".strip(),
            "mode": self.mode,
            "nodes": {where: "down" if isinstance(found, RedisFailed) else "up" for where, found in infos.items()},
            "bytes": sum(int(answer.get("used_memory", 0)) for answer in answers),
            "max_bytes": sum(int(answer.get("maxmemory", 0)) for answer in answers),
            "items": sum(sizes),
            "evicted": sum(int(answer.get("evicted_keys", 0)) for answer in answers),
            "expired": sum(int(answer.get("expired_keys", 0)) for answer in answers),
        }

    async def _run(self, name: str, key: str, *rest: str | bytes | int) -> Any:
        try:
            return await self.client.run(name, key, *rest, key=key)
        except RedisFailed as error:
            raise _failed(error) from None


def _ms(ttl_s: float) -> int:
    return max(1, int(ttl_s * 1000))


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _left_s(left_ms: int | None) -> float:
    """PTTL in seconds: -1 is for ever, and -2 gone."""
    return math.inf if left_ms == -1 else max(left_ms or 0, 0) / 1000


def _failed(error: RedisFailed) -> StoreFailed:
    return StoreFailed(error.message, kind=error.kind)


def _checked(answers: list[Any]) -> list[Any]:
    """The answers. Raises StoreFailed for the first that failed."""
    for answer in answers:
        if isinstance(answer, RedisFailed):
            raise _failed(answer)
    return answers


def _found(answers: list[Any]) -> list[Any]:
    """The answers, None for one that failed. Raises StoreFailed when all failed."""
    failed = [answer for answer in answers if isinstance(answer, RedisFailed)]
    if failed and len(failed) == len(answers):
        raise _failed(failed[0])
    return [None if isinstance(answer, RedisFailed) else answer for answer in answers] if failed else answers


def _info(raw: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in raw.decode("utf-8", "replace").splitlines() if ":" in line)
    return {name: value for name, _, value in lines}
