"""An index in Redis with its search module, or in Valkey with valkey-search, which all processes share.

A point is a hash under a key of its own, which the server forgets at its time; the server's index covers the keys of
one embedding model. What the search finds is looked at again: its key must lie in the partition.

In a cluster every node is asked for its own points, and the answers are merged. Without a coordinator a node takes
questions only about an index whose name lies in its slots, so each gets one with a hash tag of its own.

Sources: Redis docs, "FT.CREATE", "FT.SEARCH", "Vectors"; valkey-search, "COMMANDS.md".
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from pydantic import Field, PrivateAttr

from tianji_mw.cache.indexes.base import IndexFailed, Match, Point, VectorIndex
from tianji_mw.errors import MissingExtra, SetupError
from tianji_mw.redis import shared
from tianji_mw.redis.errors import RedisFailed
from tianji_mw.redis.scripts import Script
from tianji_mw.redis.settings import RedisSettings
from tianji_mw.redis.slots import slot_of
from tianji_mw.runtime import Runtime

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tianji_mw.redis.client import Redis

log = logging.getLogger("tianji_mw.cache")

#: Changes with the fields of a point or of the index: older ones are then left alone until they expire.
_FORMAT: Final = 1
_MODULE_CURE: Final = (
    "it has no search module; use Redis 8 or Redis Stack, load valkey-search into Valkey, or take the embedded index"
)
#: How servers say that the index is not there, and that it is there already.
_MISSING: Final = re.compile(r"no such index|unknown index|index.{0,300}not[ _]found", re.IGNORECASE | re.DOTALL)
_THERE: Final = re.compile(r"already exists|index_exists", re.IGNORECASE)
#: Replaces a point and sets its time in one step: a point without one would stay for ever.
_PUT: Final = Script(
    "redis.call('DEL', KEYS[1]) "
    "redis.call('HSET', KEYS[1], 'partition', ARGV[2], 'vector', ARGV[3], 'payload', ARGV[4]) "
    "return redis.call('PEXPIRE', KEYS[1], ARGV[1])"
)
_BATCH: Final = 500
#: Hash tags tried for each node of a cluster; one with a fair share of the slots is met after a few.
_TAGS_PER_NODE: Final = 16


class RedisSearch(RedisSettings, VectorIndex):
    """Points in one Redis.

    >>> RedisSearch(host="search.internal", redis_semantic_cache_index_name="faq").index_name
    'faq'
    """

    title: ClassVar[str] = "the Redis index"
    aliases: ClassVar[Mapping[str, str]] = {
        **RedisSettings.aliases,
        "redis_semantic_cache_index_name": "index_name",
        "valkey_semantic_cache_index_name": "index_name",
    }

    #: Begins the name of the index and of every key; model and dimensions are added.
    index_name: str = Field(default="litellm_semantic_cache_index", pattern=r"^[A-Za-z0-9._:-]{1,128}$")
    #: `flat` compares with every point: exact, for up to some ten thousand of them.
    algorithm: Literal["hnsw", "flat"] = "hnsw"
    #: Points that a search through the graph looks at; more find more and take longer.
    ef_runtime: int = Field(default=64, ge=8, le=4096)

    _redis: Redis | None = PrivateAttr(default=None)
    _name: str = PrivateAttr(default="")
    _dims: int = PrivateAttr(default=0)
    _index_per_node: bool = PrivateAttr(default=False)

    async def start(self, runtime: Runtime, *, model_id: str, dims: int) -> None:
        """Make the index, unless it is there; a server that is down gets it later.

        Raises MissingExtra, and SetupError for a server without search and for settings that cannot work.
        """
        try:
            import numpy  # noqa: F401
        except ModuleNotFoundError:
            raise MissingExtra("numpy", "semantic") from None
        self._name, self._dims = self._name_for(model_id, dims), dims
        self._redis = await shared(self, runtime)
        try:
            await self._create()
        except IndexFailed as error:
            if _MODULE_CURE in error.message:
                raise SetupError(error.message) from None
            log.warning("%s; the index is made when it answers", error.message)

    async def aclose(self) -> None:
        """Let go of the client; the runtime closes it."""
        self._redis = None

    async def search(self, partition: str, vector: NDArray[np.float32], k: int) -> list[Match]:
        """The nearest points of the partition, of all servers that answer. Raises IndexFailed when none does."""
        query = f"(@partition:{{{_tag(partition)}}})=>[KNN {k} @vector $v AS d]"
        answers = await self._on_all(
            "FT.SEARCH", query, "PARAMS", 2, "v", self._bytes(vector), "RETURN", 1, "d", "LIMIT", 0, k, "DIALECT", 2
        )
        if any(_is_missing(answer) for answer in answers):  # the server was emptied, or is a new one
            await self._create()
        near = dict[str, float]()
        for answer in _good(answers, _is_missing):
            for key, fields in zip(answer[1::2], answer[2::2], strict=False):
                if fields:
                    near[key.decode()] = max(-1.0, min(1.0, 1.0 - float(fields[1])))
        prefix = self._key(partition, "")
        keys = [key for key in sorted(near, key=lambda key: -near[key]) if key.startswith(prefix)][:k]
        # Not by the search: some modules give no fields in a cluster, and this finds out what has expired meanwhile.
        payloads = await self._client().run_many([(key, ("HGET", key, "payload")) for key in keys])
        found = zip(keys, payloads, strict=True)
        return [Match(key[len(prefix) :], near[key], payload) for key, payload in found if isinstance(payload, bytes)]

    async def add(self, points: Sequence[Point]) -> None:
        redis = self._client()
        for start in range(0, len(points), _BATCH):
            calls = [
                _PUT.run(
                    redis, [self._key(point.partition, point.id)],
                    [max(1, int(point.ttl_s * 1000)), _tag(point.partition), self._bytes(point.vector), point.payload],
                    repeatable=True,
                )
                for point in points[start : start + _BATCH]
            ]  # fmt: skip
            try:
                await asyncio.gather(*calls)
            except RedisFailed as error:
                raise IndexFailed(error.message) from None

    async def delete(self, partition: str, ids: Sequence[str]) -> None:
        await self._unlink([self._key(partition, name) for name in ids])

    async def purge(self, partition_prefix: str) -> int:
        gone, keys = 0, list[str]()
        try:
            async for key in self._client().scan(f"{self._name}:{partition_prefix}"):
                keys.append(key)
                if len(keys) == _BATCH:
                    gone += await self._unlink(keys)
                    keys = []
        except RedisFailed as error:
            raise IndexFailed(error.message) from None
        return gone + await self._unlink(keys)

    async def ping(self) -> None:
        """Whether every server answers, and has the index."""
        answers = await self._on_all("FT.INFO")
        if any(_is_missing(answer) for answer in answers):
            await self._create()
        for answer in answers:
            if isinstance(answer, RedisFailed) and not _is_missing(answer):
                raise _failed(answer)

    async def report(self) -> dict[str, Any]:
        """The points of all servers that answer, and what their index takes. Redis does not count partitions."""
        infos = [
            dict(zip(answer[::2], answer[1::2], strict=False))
            for answer in _good(await self._on_all("FT.INFO"), _is_missing)
        ]
        megabytes = sum(float(info.get(b"vector_index_sz_mb", 0)) for info in infos)
        points = sum(int(float(info.get(b"num_docs", 0))) for info in infos)
        return {"index": self._name, "points": points, "bytes": int(megabytes * (1 << 20))}

    # --- inside

    def _name_for(self, model_id: str, dims: int) -> str:
        """One name for each kind of index: vectors of another model, and an index of another schema, are never met."""
        kind = f"{_FORMAT} {self.algorithm} {dims} {model_id}"
        model = re.sub(r"[^A-Za-z0-9]+", "-", model_id)[:48].strip("-")
        return f"{self.index_name}_{model}_{dims}_{hashlib.sha256(kind.encode()).hexdigest()[:8]}"

    def _key(self, partition: str, name: str) -> str:
        return f"{self._name}:{partition}|{name}"

    def _bytes(self, vector: NDArray[np.float32]) -> bytes:
        self._client()
        if vector.shape != (self._dims,):
            raise IndexFailed(f"the index holds vectors of {self._dims} dimensions, and this one is {vector.shape}")
        return vector.astype("<f4", copy=False).tobytes()

    def _client(self) -> Redis:
        if self._redis is None:
            raise IndexFailed(f"{self.title} is not open")
        return self._redis

    async def _create(self) -> None:
        """Make the index on every server that has none; it takes in the points that are there. Raises IndexFailed."""
        options: list[str | int] = ["TYPE", "FLOAT32", "DIM", self._dims, "DISTANCE_METRIC", "COSINE"]
        if self.algorithm == "hnsw":
            options += ["M", 16, "EF_CONSTRUCTION", 200, "EF_RUNTIME", self.ef_runtime]
        answers = await self._on_all(
            "FT.CREATE", "ON", "HASH", "PREFIX", 1, f"{self._name}:",
            "SCHEMA", "partition", "TAG", "vector", "VECTOR", self.algorithm.upper(), len(options), *options,
        )  # fmt: skip
        _good(answers, lambda answer: isinstance(answer, RedisFailed) and bool(_THERE.search(answer.answer)))

    async def _on_all(self, command: str, *rest: str | bytes | int) -> list[Any]:
        """The answers about the index of every node. Raises IndexFailed when no node is known."""
        redis = self._client()
        try:
            if self._index_per_node:
                names = self._names(redis)
                answers = await redis.run_many([(name, (command, name, *rest)) for name in names])
            else:
                answers = list((await redis.on_all(command, self._name, *rest)).values())
            if not answers:
                raise redis.table.nowhere()
        except RedisFailed as error:
            raise _failed(error) from None
        if not self._index_per_node and any(_code(answer) == "MOVED" for answer in answers):
            await redis.on_all("FT.DROPINDEX", self._name)  # by the one that took it
            self._index_per_node = True
            return await self._on_all(command, *rest)
        return answers

    def _names(self, redis: Redis) -> list[str]:
        """A name of the index for each node, by the first hash tag that lies in its slots. Raises RedisFailed."""
        names = dict[Any, str]()
        wanted = len(redis.nodes)
        for number in range(_TAGS_PER_NODE * wanted):
            node = redis.table.of(_slot(number))
            if node is not None and node not in names:
                names[node] = f"{self._name}{{{number}}}"
                if len(names) == wanted:
                    break
        return list(names.values())

    async def _unlink(self, keys: Sequence[str]) -> int:
        gone = 0
        for start in range(0, len(keys), _BATCH):
            some = keys[start : start + _BATCH]
            answers = await self._client().run_many([(key, ("UNLINK", key)) for key in some])
            for answer in answers:
                if isinstance(answer, RedisFailed):
                    raise _failed(answer)
                gone += answer
        return gone


def _tag(partition: str) -> str:
    """The partition as a tag that needs no escaping, whatever the server's rules for that are."""
    return hashlib.sha256(partition.encode()).hexdigest()[:32]


@lru_cache(maxsize=4096)
def _slot(number: int) -> int:
    return slot_of(str(number))


def _code(answer: Any) -> str:
    return answer.code if isinstance(answer, RedisFailed) else ""


def _is_missing(answer: Any) -> bool:
    return isinstance(answer, RedisFailed) and bool(_MISSING.search(answer.answer))


def _failed(error: RedisFailed) -> IndexFailed:
    if "unknown command" in error.answer.lower():
        return IndexFailed(f"{error.message.partition(': ')[0]}: {_MODULE_CURE}")
    return IndexFailed(error.message)


def _good(answers: Sequence[Any], tolerated: Any) -> list[Any]:
    """The answers without failures. Raises IndexFailed when there are only failures, and not only tolerated ones."""
    failed = [answer for answer in answers if isinstance(answer, RedisFailed)]
    bad = [answer for answer in failed if not tolerated(answer)]
    if bad and len(failed) == len(answers):
        raise _failed(bad[0])
    return [answer for answer in answers if not isinstance(answer, RedisFailed)]
