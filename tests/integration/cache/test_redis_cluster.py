"""`RedisStore` against a real cluster of three primaries: spread, scripts, and slots that move under load."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import redis as redis_py

from tests.support.redis_servers import Cluster, redis_cluster
from tianji_mw.cache.redis import RedisStore
from tianji_mw.redis.errors import KeysApart
from tianji_mw.redis.scripts import Script
from tianji_mw.redis.slots import slot_of, tagged
from tianji_mw.runtime import Runtime

pytestmark = pytest.mark.slow

KEYS = [f"n{n}" for n in range(600)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with redis_cluster(tmp_path_factory.mktemp("cluster"), replicas=0) as running:
        yield running


@pytest.fixture
async def runtime() -> AsyncIterator[Runtime]:
    async with Runtime() as runtime:
        yield runtime


@pytest.fixture
async def store(cluster: Cluster, runtime: Runtime) -> RedisStore:
    """A store that was told one node, with entries on all."""
    store = RedisStore(startup_nodes=(cluster.nodes[0],))
    await store.start(runtime)
    await store.put_many([(key, key.encode(), 600.0) for key in KEYS])
    return store


async def test_keys_are_spread_and_come_back_in_order(cluster: Cluster, store: RedisStore, runtime: Runtime) -> None:
    sizes = [server.client().dbsize() for server in cluster.servers]
    assert all(150 < size < 250 for size in sizes)
    assert await store.get_many([*KEYS, "none"]) == [*(key.encode() for key in KEYS), None]
    assert sorted([key async for key in store.keys("n59")]) == ["n59", *(f"n59{n}" for n in range(10))]
    report = await store.report()
    assert report["nodes"] == {f"127.0.0.1:{server.port}": "up" for server in cluster.servers}
    assert (report["mode"], report["items"]) == ("cluster", sum(sizes))
    assert await store.delete(["n0", "n1", "n2", "none"]) == 3
    assert not runtime.counts


async def test_a_get_is_one_command_at_one_node(cluster: Cluster, store: RedisStore) -> None:
    def gets() -> int:
        return sum(server.calls("get") for server in cluster.servers)

    before = gets()
    for key in KEYS[:100]:
        assert await store.get(key) == key.encode()
    assert gets() - before == 100  # a redirection would be a second one


async def test_scripts_run_where_their_keys_are(store: RedisStore) -> None:
    script = Script("redis.call('SET', KEYS[1], ARGV[1]); return redis.call('INCRBY', KEYS[2], ARGV[1])")
    for tag in "abcdefgh":
        assert await script.run(store.client, [tagged(tag, "last"), tagged(tag, "sum")], [3]) == 3
        assert await store.get(tagged(tag, "last")) == b"3"
    with pytest.raises(KeysApart):
        await script.run(store.client, ["n1", "n2"], [3])


async def test_slots_move_while_they_are_read(cluster: Cluster, store: RedisStore, runtime: Runtime) -> None:
    """Every slot of the first node that has keys goes to the second and back, key by key."""
    moving = sorted({slot_of(key) for key in KEYS if cluster.owner(key).port == cluster.servers[0].port})[:60]
    mine = [key for key in KEYS if slot_of(key) in moving]
    reads = 0
    stop = asyncio.Event()

    async def read() -> None:
        nonlocal reads
        while not stop.is_set():
            for key in mine:
                assert await store.get(key) == key.encode()
                reads += 1
            assert await store.get_many(mine) == [key.encode() for key in mine]
            await asyncio.sleep(0)

    readers = [asyncio.create_task(read()) for _ in range(4)]
    for source, target in ((0, 1), (1, 0)):
        await asyncio.to_thread(_migrate, cluster, moving, source, target)
    stop.set()
    await asyncio.gather(*readers)
    assert reads > 500
    # A slot's own keys may be in two places for a moment: redirections, and no failure.
    assert not runtime.counts
    assert await store.get_many(KEYS) == [key.encode() for key in KEYS]


def _migrate(cluster: Cluster, slots: list[int], source: int, target: int) -> None:
    one, other = cluster.servers[source], cluster.servers[target]
    names = {server.port: server.client().execute_command("CLUSTER", "MYID").decode() for server in cluster.servers}
    with one.client() as giver, other.client() as taker:
        for slot in slots:
            taker.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[one.port])
            giver.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[other.port])
            for key in giver.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
                giver.execute_command("MIGRATE", "127.0.0.1", other.port, key, 0, 5000)
            for server in (other, one, *cluster.servers):
                server.client().execute_command("CLUSTER", "SETSLOT", slot, "NODE", names[other.port])


async def test_what_a_server_would_refuse_is_split(cluster: Cluster, store: RedisStore) -> None:
    """MGET over slots is an error of the server; the store's questions never are."""
    with pytest.raises(redis_py.exceptions.ClusterCrossSlotError):
        cluster.servers[0].client().execute_command("MGET", "n1", "n2")
    assert await store.get_many(["n1", "n2"]) == [b"n1", b"n2"]
    assert await store.delete(["n1", "n2"]) == 2
