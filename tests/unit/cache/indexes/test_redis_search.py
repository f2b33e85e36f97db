"""The Redis index where servers come, go, lose everything, or have no search."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.processes import free_port
from tests.support.redis_servers import redis_cluster, redis_server, search_module
from tianji_mw.cache.indexes.base import IndexFailed, Point
from tianji_mw.cache.indexes.redis_search import RedisSearch
from tianji_mw.errors import SetupError
from tianji_mw.runtime import Runtime

slow = pytest.mark.slow
DIMS = 16


def vector(seed: int) -> np.ndarray[Any, Any]:
    made = np.random.default_rng(seed).standard_normal(DIMS)
    return (made / np.linalg.norm(made)).astype(np.float32)


def point(seed: int, partition: str = "p", ttl_s: float = 60) -> Point:
    return Point(partition, str(seed), vector(seed), b"payload", ttl_s)


@asynccontextmanager
async def opened(**fields: Any) -> AsyncIterator[RedisSearch]:
    async with Runtime() as runtime:
        index = RedisSearch(**{"op_timeout_s": 2, **fields})
        await index.start(runtime, model_id="some/model v2", dims=DIMS)
        yield index
        await index.aclose()


async def searched(index: RedisSearch, count: int, seed: int = 1) -> list[str]:
    """Ids, as soon as there are so many; the server is given some seconds."""
    found: list[str] = []
    for _ in range(500):
        try:
            found = [match.id for match in await index.search("p", vector(seed), 50)]
        except IndexFailed:
            found = []
        if len(found) == count:
            break
        await asyncio.sleep(0.02)
    assert len(found) == count
    return found


def module() -> tuple[str, str]:
    return "--loadmodule", search_module()


@slow
async def test_server_without_search_stops_the_start(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        async with Runtime() as runtime:
            index = RedisSearch(port=server.port)
            with pytest.raises(SetupError, match="no search module; use Redis 8"):
                await index.start(runtime, model_id="m", dims=DIMS)
            await index.aclose()


@slow
async def test_server_that_is_down_does_not(tmp_path: Path) -> None:
    port = free_port()
    async with opened(port=port) as index:
        for call in (index.search("p", vector(1), 3), index.add([point(1)]), index.delete("p", ["1"]), index.ping()):
            with pytest.raises(IndexFailed, match=f"127.0.0.1:{port}"):
                await call
        with pytest.raises(IndexFailed):
            await index.purge("")
        with redis_server(tmp_path, *module(), port=port):
            await searched(index, 0)
            for _ in range(500):
                try:
                    await index.add([point(1)])
                    break
                except IndexFailed:
                    await asyncio.sleep(0.02)
            assert await searched(index, 1) == ["1"]


@slow
async def test_index_is_made_again_after_everything_was_lost(tmp_path: Path) -> None:
    with redis_server(tmp_path, *module()) as server:
        async with opened(port=server.port) as index:
            await index.add([point(1)])
            await searched(index, 1)
            server.client().flushall()
            assert await index.search("p", vector(1), 5) == []
            await index.add([point(2)])
            assert await searched(index, 1) == ["2"]
            server.client().flushall()
            await index.add([point(3)])  # before anybody has found out
            await index.ping()
            assert await searched(index, 1) == ["3"]


@slow
async def test_what_is_stored(tmp_path: Path) -> None:
    """One hash for each point, with a time; the names say model and dimensions, and other kinds have other names."""
    with redis_server(tmp_path, *module()) as server:
        async with opened(port=server.port, valkey_semantic_cache_index_name="faq") as index:
            await index.add([point(1, ttl_s=50)])
            await index.add([point(1, ttl_s=20)])
            (key,) = server.client().keys()
            assert key.startswith(b"faq_some-model-v2_16_")
            assert key.endswith(b":p|1")
            assert 15_000 < server.client().pttl(key) <= 20_000
            await searched(index, 1)
            assert server.client().pttl(key) <= 20_000  # finding it keeps it no longer
        async with opened(port=server.port, index_name="faq", algorithm="flat") as index:
            assert await index.search("p", vector(1), 5) == []
            assert len(server.client().execute_command("FT._LIST")) == 2
            assert await index.purge("") == 0


@slow
async def test_cluster_is_searched_on_every_node(tmp_path: Path) -> None:
    with redis_cluster(tmp_path, *module(), primaries=3, replicas=0) as cluster:
        async with opened(startup_nodes=cluster.nodes) as index:
            await index.add([point(seed) for seed in range(30)])
            found = await searched(index, 30, seed=7)
            assert found[0] == "7"
            wanted = sorted(range(30), key=lambda seed: -float(vector(seed) @ vector(7)))
            assert found == [str(seed) for seed in wanted]
            assert (await index.report())["points"] == 30
            assert all(server.client().dbsize() > 0 for server in cluster.servers)
            cluster.servers[0].kill()  # the points of the others are still found
            for _ in range(300):
                try:
                    some = await index.search("p", vector(7), 50)
                    break
                except IndexFailed:
                    await asyncio.sleep(0.02)
            assert 0 < len(some) < 30


@pytest.mark.parametrize("name", ["", "a b", "a*", "a{b}", "x" * 129])
def test_wrong_index_names(name: str) -> None:
    with pytest.raises(ValueError, match="index_name"):
        RedisSearch(index_name=name)
