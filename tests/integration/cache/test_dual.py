"""Memory over a real Redis: copies, their life, and how other processes hear of changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import free_port
from tests.support.redis_servers import Cluster, Server, redis_cluster, redis_server
from tests.support.tcp import until
from tianji_mw.cache.base import StoreFailed
from tianji_mw.cache.dual import Dual
from tianji_mw.runtime import Runtime

pytestmark = pytest.mark.slow

#: Starts a store as a process of its own would, with a runtime and a client of its own.
Process = Callable[..., Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with redis_server(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with redis_cluster(tmp_path_factory.mktemp("cluster"), replicas=0) as running:
        yield running


@pytest.fixture
async def process() -> AsyncIterator[Process]:
    async with AsyncExitStack() as stack:

        async def started(*, listening: bool = True, **fields: Any) -> Dual:
            store = Dual.model_validate(fields)
            await store.start(await stack.enter_async_context(Runtime()))
            stack.push_async_callback(store.aclose)
            if listening:
                await until(lambda: store._hears)
            return store

        yield started


async def test_a_hit_is_copied_and_read_from_memory(server: Server, process: Process) -> None:
    one, other = await process(port=server.port), await process(port=server.port)
    await one.put("copied", b"v", 60)
    await asyncio.sleep(0.1)  # the other hears of it, and would forget a copy that is younger than that
    before = server.calls("get")
    assert [await other.get("copied") for _ in range(5)] == [b"v"] * 5
    assert [await one.get("copied") for _ in range(5)] == [b"v"] * 5
    assert server.calls("get") - before == 1
    assert await other.get_many(["copied", "none", "copied"]) == [b"v", None, b"v"]
    assert server.calls("get") - before == 2  # for the one that memory has not
    assert (await other.report())["memory"]["items"] == 1


async def test_a_copy_lives_no_longer_than_its_entry(server: Server, process: Process) -> None:
    one, other = await process(port=server.port), await process(port=server.port)
    await one.put("short", b"v", 0.3)
    assert await other.get("short") == b"v"
    await asyncio.sleep(0.35)
    assert (await one.get("short"), await other.get("short")) == (None, None)


async def test_lives_of_their_own(server: Server, process: Process) -> None:
    store = await process(port=server.port, default_in_memory_ttl=0.1, default_in_redis_ttl=30)
    await store.put("lives", b"old", 600)
    plain = server.client()
    assert 25_000 < plain.pttl("lives") <= 30_000
    plain.set("lives", b"new")  # by somebody who tells nobody
    assert await store.get("lives") == b"old"
    await asyncio.sleep(0.15)
    assert await store.get("lives") == b"new"


@pytest.mark.parametrize("where", ["server", "cluster"])
async def test_changes_reach_other_processes(where: str, process: Process, request: pytest.FixtureRequest) -> None:
    found: Any = request.getfixturevalue(where)
    fields = {"port": found.port} if isinstance(found, Server) else {"startup_nodes": found.nodes}
    one, other = await process(**fields), await process(**fields)
    keys = [f"change{n}" for n in range(700)]
    await one.put_many([(key, b"1", 60.0) for key in keys])
    assert set(await other.get_many(keys)) == {b"1"}
    await one.put("change0", b"2", 60)
    assert await one.delete(keys[1:]) == 699

    async with asyncio.timeout(5):
        while await other.get_many(keys) != [b"2"] + [None] * 699:
            await asyncio.sleep(0.01)
    assert await one.get("change0") == b"2"
    if isinstance(found, Cluster):
        assert sum(server.calls("spublish") for server in found.servers) > 0
        assert sum(server.calls("publish") for server in found.servers) == 0


async def test_a_change_while_it_is_read_is_not_copied(server: Server, process: Process) -> None:
    one, other = await process(port=server.port), await process(port=server.port)
    await one.put("race", b"old", 60)
    asked = type(other).get_with_ttl

    async def slow(self: Dual, keys: Any) -> Any:
        found = await asked(self, keys)
        await one.put("race", b"new", 60)
        await asyncio.sleep(0.1)  # the change is heard before the old value arrives
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Dual, "get_with_ttl", slow)
        assert await other.get("race") == b"old"
    assert await other.get("race") == b"new"


async def test_an_own_delete_while_it_is_read_is_not_undone(server: Server, process: Process) -> None:
    store = await process(port=server.port)
    await store.put("undone", b"v", 60)
    store._memory.clear()
    asked = type(store).get_with_ttl

    async def slow(self: Dual, keys: Any) -> Any:
        found = await asked(self, keys)
        await self.delete(keys)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Dual, "get_with_ttl", slow)
        assert await store.get("undone") == b"v"
    assert await store.get("undone") is None


async def test_who_cannot_hear_keeps_nothing_long(tmp_path: Path, process: Process) -> None:
    port = free_port()
    with redis_server(tmp_path, port=port):
        store = await process(port=port, stale_at_most_s=2.5)
        await store.put("k", b"v", 60)
    assert await store.get("k") == b"v"  # the server has gone, and the copy is young
    await asyncio.sleep(2.6)
    with pytest.raises(StoreFailed):
        await store.get("k")
    with pytest.raises(StoreFailed):
        await store.put("k", b"mine", 60)
    assert await store.get("k") == b"mine"
    assert store._copy_s == 2.5
    with redis_server(tmp_path, port=port) as server:
        async with asyncio.timeout(10):
            while not store._hears or store._runtime.degraded:
                await asyncio.sleep(0.05)
        assert (await store.report())["hears_changes"]
        assert await store.get("k") is None  # what was not heard of is not believed
        await store.put("k", b"again", 60)
        server.client().set("k", b"changed")
        server.client().publish(store.channel_name, b"somebody k")
        async with asyncio.timeout(5):
            while await store.get("k") != b"changed":
                await asyncio.sleep(0.01)


async def test_a_frozen_subscription_is_noticed(tmp_path: Path, process: Process) -> None:
    with redis_server(tmp_path) as server:
        store = await process(port=server.port, stale_at_most_s=2.5)
        await store.put("k", b"v", 60)
        server.freeze()
        await asyncio.sleep(3)
        with pytest.raises(StoreFailed):
            await store.get("k")
        server.thaw()


async def test_a_start_before_the_server(tmp_path: Path, process: Process) -> None:
    port = free_port()
    store = await process(port=port, listening=False)
    with pytest.raises(StoreFailed):
        await store.get("k")
    with redis_server(tmp_path, port=port):
        async with asyncio.timeout(10):
            while not store._hears or store._runtime.degraded:
                await asyncio.sleep(0.05)
        await store.put("k", b"v", 60)
        assert await store.get("k") == b"v"


async def test_what_was_not_started_says_so() -> None:
    for question in (Dual().get("k"), Dual().put("k", b"v", 1), Dual().delete(["k"])):
        with pytest.raises(StoreFailed, match="not started"):
            await question
