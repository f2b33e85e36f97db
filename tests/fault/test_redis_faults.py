"""Redis that freezes, dies, fails over or is not there yet: no call fails, and none waits for it twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import free_port
from tests.support.redis_servers import MASTER, Cluster, redis_cluster, redis_sentinel, redis_server
from tianji_mw.cache.base import StoreFailed
from tianji_mw.cache.redis import RedisStore
from tianji_mw.cache.shelf import Shelf
from tianji_mw.runtime import Runtime

pytestmark = pytest.mark.slow

#: Far above any time limit: an operation that takes longer has lost its limit.
HANGS_S = 5.0
KEYS = [f"k{n}" for n in range(200)]


@pytest.fixture
async def runtime() -> AsyncIterator[Runtime]:
    async with Runtime() as runtime:
        yield runtime


async def started(runtime: Runtime, **fields: Any) -> RedisStore:
    store = RedisStore.model_validate(fields)
    await store.start(runtime)
    return store


async def fails(store: RedisStore, key: str = "k") -> bool:
    """Whether a get fails."""
    try:
        async with asyncio.timeout(HANGS_S):
            await store.get(key)
    except StoreFailed:
        return True
    return False


def waited(runtime: Runtime) -> int:
    """Gets that waited for a server in vain."""
    return runtime.counts.get(("redis_errors", "get timeout"), 0)


def unsent(runtime: Runtime) -> int:
    """Gets that were not even sent."""
    return runtime.counts.get(("redis_errors", "get down"), 0)


async def healed(store: RedisStore, *, within_s: float, key: str = "k") -> float:
    """Seconds until a put works again."""
    began = time.perf_counter()
    async with asyncio.timeout(within_s):
        while True:
            try:
                await store.put(key, b"v", 600)
                return time.perf_counter() - began
            except StoreFailed:
                await asyncio.sleep(0.02)


@dataclass
class Load:
    """About `per_s` gets and puts a second, as calls would make them: a StoreFailed is a miss."""

    store: RedisStore
    per_s: int = 200
    #: When each miss was, in seconds after the start.
    misses: list[float] = field(default_factory=list)
    done: int = 0

    async def __aenter__(self) -> Load:
        self._began, self._stop = time.perf_counter(), False
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._stop = True
        await self._task

    @property
    def now(self) -> float:
        return time.perf_counter() - self._began

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:  # anything but a StoreFailed ends the test
            while not self._stop:
                key = KEYS[self.done % len(KEYS)]
                group.create_task(self._call(key, write=self.done % 5 == 0))
                self.done += 1
                await asyncio.sleep(max(0.0, self.done / self.per_s - self.now))

    async def _call(self, key: str, *, write: bool) -> None:
        try:
            async with asyncio.timeout(HANGS_S):
                if write:
                    await self.store.put(key, key.encode(), 600)
                else:
                    assert await self.store.get(key) in (key.encode(), None)
        except StoreFailed:
            self.misses.append(self.now)


async def test_a_frozen_server_costs_its_time_once(tmp_path: Path, runtime: Runtime) -> None:
    with redis_server(tmp_path) as server:
        store = await started(runtime, port=server.port)
        await store.put("k", b"v", 600)
        server.freeze()
        assert all(await asyncio.gather(*(fails(store) for _ in range(20))))
        assert 1 <= waited(runtime) <= 20
        before = waited(runtime), unsent(runtime)
        assert all([await fails(store) for _ in range(500)])
        # The probe meets a frozen server too, and no call waits for it.
        await asyncio.sleep(1.5)
        assert all([await fails(store) for _ in range(500)])
        assert (waited(runtime), unsent(runtime)) == (before[0], before[1] + 1000)
        server.thaw()
        await healed(store, within_s=8)
        assert await store.get("k") == b"v"
        assert not runtime.degraded


async def test_a_longer_time_limit_opens_the_breaker_too(tmp_path: Path, runtime: Runtime) -> None:
    with redis_server(tmp_path) as server:
        store = RedisStore(port=server.port, op_timeout_s=0.5)
        shelf = Shelf(store, runtime)
        await shelf.start()
        await shelf.put("k", b"v", 600)
        server.freeze()
        assert await shelf.get("k") is None  # the layer waits for what the store waits for
        assert store.client.nodes[0].trouble is not None
        before = waited(runtime), unsent(runtime)
        assert [await shelf.get("k") for _ in range(100)] == [None] * 100
        assert (waited(runtime), unsent(runtime)) == (before[0], before[1] + 100)
        server.thaw()


async def test_a_server_that_starts_anew_is_found_by_the_first_call_after(tmp_path: Path, runtime: Runtime) -> None:
    port = free_port()
    with redis_server(tmp_path, port=port):
        store = await started(runtime, port=port)
        await asyncio.gather(*(store.put(key, b"v", 600) for key in KEYS[:10]))  # ten connections, or so
    with redis_server(tmp_path, port=port):
        assert await store.get("k0") is None
        assert not runtime.counts


async def test_a_server_that_dies_costs_nothing(tmp_path: Path, runtime: Runtime) -> None:
    port = free_port()
    with redis_server(tmp_path, port=port) as server:
        store = await started(runtime, port=port)
        await store.put("k", b"v", 600)
        server.kill()
        assert all([await fails(store) for _ in range(200)])
    assert (waited(runtime), unsent(runtime)) == (0, 199)
    with redis_server(tmp_path, port=port):
        await healed(store, within_s=8)


async def test_a_start_before_the_server(tmp_path: Path, runtime: Runtime) -> None:
    port = free_port()
    store = await started(runtime, port=port)
    with pytest.raises(StoreFailed, match="the connection is refused; check host and port") as caught:
        await store.get("k")
    assert caught.value.kind == "unreachable"
    assert f"redis 127.0.0.1:{port}" in runtime.degraded
    with redis_server(tmp_path, port=port):
        await healed(store, within_s=8)
    assert not runtime.degraded


# --- cluster


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    with redis_cluster(tmp_path) as running:
        yield running


async def test_a_primary_that_dies_under_load(cluster: Cluster, runtime: Runtime) -> None:
    store = await started(runtime, startup_nodes=cluster.nodes[:2])
    await store.put_many([(key, key.encode(), 600.0) for key in KEYS])
    victim = cluster.servers[0]
    lost = {key for key in KEYS if cluster.owner(key).port == victim.port}
    async with Load(store) as load:
        await asyncio.sleep(1)
        assert not load.misses
        killed = load.now
        victim.kill()
        recovered = killed + await healed(store, within_s=20, key=min(lost))
        await asyncio.sleep(2)
    assert all(killed <= at < recovered + 0.5 for at in load.misses)
    # A third of the keys were the victim's: no more than those were missed.
    assert len(load.misses) < (recovered - killed + 0.5) * load.per_s * 0.6
    found = await store.get_many(sorted(lost))
    assert sum(value is not None for value in found) >= len(lost) - 5  # a replica may miss the last writes
    assert not runtime.degraded
    print(f"failover: {recovered - killed:.2f} s, {len(load.misses)} of {load.done} calls missed")


async def test_a_frozen_node_holds_up_nobody_else(cluster: Cluster, runtime: Runtime) -> None:
    store = await started(runtime, startup_nodes=cluster.nodes)
    await store.put_many([(key, key.encode(), 600.0) for key in KEYS])
    victim = cluster.servers[1]
    frozen = [key for key in KEYS if cluster.owner(key).port == victim.port]
    others = [key for key in KEYS if key not in frozen]
    victim.freeze()
    slow = asyncio.gather(*(fails(store, key) for key in frozen))
    assert not any([await fails(store, key) for key in others])
    assert all(await slow)
    assert waited(runtime) + unsent(runtime) == len(frozen)
    mixed = await store.get_many(KEYS)
    assert sum(value is None for value in mixed) == len(frozen)
    await healed(store, within_s=20, key=frozen[0])  # by failover
    victim.thaw()
    await asyncio.sleep(1)
    assert await store.get_many(KEYS) == [b"v" if key == frozen[0] else key.encode() for key in KEYS]
    assert not runtime.degraded


# --- Sentinel


async def test_sentinels_name_a_new_primary(tmp_path: Path, runtime: Runtime) -> None:
    with redis_sentinel(tmp_path) as watched:
        store = await started(runtime, sentinel_nodes=watched.nodes, service_name=MASTER)
        await store.put_many([(key, key.encode(), 600.0) for key in KEYS])
        assert list((await store.report())["nodes"]) == [f"127.0.0.1:{watched.primary.port}"]
        async with Load(store) as load:
            await asyncio.sleep(0.5)
            killed = load.now
            watched.primary.kill()
            recovered = killed + await healed(store, within_s=30)
            await asyncio.sleep(1)
        assert all(killed <= at < recovered + 0.5 for at in load.misses)
        report = await store.report()
        assert report["nodes"] == {f"127.0.0.1:{watched.replica.port}": "up"}
        assert not runtime.degraded
        print(f"failover: {recovered - killed:.2f} s, {len(load.misses)} of {load.done} calls missed")


async def test_a_primary_that_is_told_to_be_a_replica(tmp_path: Path, runtime: Runtime) -> None:
    with redis_sentinel(tmp_path) as watched:
        store = await started(runtime, sentinel_nodes=watched.nodes, service_name=MASTER)
        async with Load(store) as load:
            await asyncio.sleep(0.5)
            watched.sentinels[0].client().execute_command("SENTINEL", "FAILOVER", MASTER)
            # Sentinel leaves the old primary a primary for some ten seconds.
            async with asyncio.timeout(40):
                while list((await store.report())["nodes"]) != [f"127.0.0.1:{watched.replica.port}"]:
                    await asyncio.sleep(0.05)
            await healed(store, within_s=10)
            misses = len(load.misses)
            await asyncio.sleep(1)
        assert len(load.misses) == misses
        assert not runtime.degraded
