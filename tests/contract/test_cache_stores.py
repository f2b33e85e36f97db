"""The contract of all cache stores: the same questions, each put to the real server or its emulator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support.cache_stores import Open, azure_blob, cluster, disk, dual, gcs, memory, redis, s3
from tianji_mw.cache._objects import ObjectStore
from tianji_mw.cache.base import CacheStore
from tianji_mw.runtime import Runtime

FAST: tuple[Open, ...] = (memory, disk)
REAL: tuple[Open, ...] = (redis, cluster, dual, s3, gcs, azure_blob)


@pytest.fixture(
    scope="module",
    params=[*FAST, *(pytest.param(open_, marks=pytest.mark.slow) for open_ in REAL)],
    ids=lambda open_: open_.__name__,
)
def make(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], CacheStore]]:
    with ExitStack() as stack:
        yield request.param(stack, tmp_path_factory.mktemp("store"))


@pytest.fixture
async def store(make: Callable[[], CacheStore]) -> AsyncIterator[CacheStore]:
    async with Runtime() as runtime:
        made = make()
        await made.start(runtime)
        await made.delete([key async for key in made.keys("")])
        yield made
        await made.aclose()


@pytest.mark.parametrize(
    "value", [b"", b"x", bytes(range(256)), b"\0" * 1_000_000], ids=["empty", "one", "all", "large"]
)
async def test_bytes_come_back(store: CacheStore, value: bytes) -> None:
    await store.put("ns:a:-:m:k", value, 60)
    assert await store.get("ns:a:-:m:k") == value


async def test_what_is_not_there(store: CacheStore) -> None:
    assert await store.get("ns:none") is None
    assert await store.delete(["ns:none"]) == 0


async def test_a_newer_value_replaces_an_older_one(store: CacheStore) -> None:
    await store.put("k", b"old", 60)
    await store.put("k", b"newer", 60)
    assert await store.get("k") == b"newer"


async def test_a_value_without_time_takes_the_older_one_with_it(store: CacheStore) -> None:
    await store.put("ns:k", b"older", 60)
    await store.put("ns:k", b"newer", 0)
    await asyncio.sleep(0.005)
    assert await store.get("ns:k") is None
    assert (await store.report()).get("refused", 1) == 1, "a store that counts what it does not take has counted it"


async def test_an_entry_ends(store: CacheStore) -> None:
    await store.put("short", b"x", 1)
    await store.put("long", b"y", 60)
    await asyncio.sleep(1.2)
    assert await store.get("short") is None
    assert await store.get("long") == b"y"
    if not isinstance(store, ObjectStore):  # they tell of what has ended until a rule of the bucket takes it away
        assert [key async for key in store.keys("")] == ["long"]


async def test_many_at_once_in_their_order(store: CacheStore) -> None:
    await store.put_many([(f"k{n}", b"%d" % n, 60.0) for n in range(250)])
    asked = [f"k{n}" for n in range(300)][::-1]
    found = await store.get_many(asked)
    assert found == [b"%d" % int(key[1:]) if int(key[1:]) < 250 else None for key in asked]
    assert await store.delete([f"k{n}" for n in range(100)] + ["none"]) == 100
    assert await store.get("k0") is None
    assert await store.get("k100") == b"100"


@pytest.mark.parametrize("prefix", ["a:", "a.b", "a_", "a-b:", ""])
async def test_keys_by_prefix(store: CacheStore, prefix: str) -> None:
    keys = ["a:1", "a:2", "a.b", "axb", "a_b", "a-b:c", "ab", "b:a:1"]
    for key in keys:
        await store.put(key, b"x", 60)
    assert sorted([key async for key in store.keys(prefix)]) == sorted(key for key in keys if key.startswith(prefix))


async def test_fifty_at_once(store: CacheStore) -> None:
    async def one(number: int) -> bool:
        await store.put(f"k{number}", b"%d" % number, 60)
        return await store.get(f"k{number}") == b"%d" % number

    assert all(await asyncio.gather(*(one(number) for number in range(50))))


async def test_it_can_be_asked_how_it_is(store: CacheStore) -> None:
    await store.ping()
    report: Any = await store.report()
    assert isinstance(report, dict)


async def test_it_starts_again(make: Callable[[], CacheStore]) -> None:
    for _ in range(2):
        async with Runtime() as runtime:
            made = make()
            await made.start(runtime)
            await made.put("again", b"x", 60)
            assert await made.get("again") == b"x"
            await made.aclose()
