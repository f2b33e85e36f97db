"""What every vector index promises, shown with each: in this process (with its file), and in Redis (a real server)."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.redis_servers import Server, redis_server, search_module
from tianji_mw.cache.indexes.base import IndexFailed, Match, Point, VectorIndex
from tianji_mw.cache.indexes.embedded import Embedded
from tianji_mw.cache.indexes.redis_search import RedisSearch
from tianji_mw.runtime import Runtime

DIMS = 48
MODEL = "a model@1"
#: Every character that ids and partitions may have.
ODD = "Az09:._-"

Opened = Callable[..., Any]


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("redis")
    with redis_server(folder, "--loadmodule", search_module()) as server:
        yield server


@pytest.fixture(
    params=["embedded", pytest.param("flat", marks=pytest.mark.slow), pytest.param("hnsw", marks=pytest.mark.slow)]
)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], VectorIndex]:
    """Makes the same index again and again."""
    if request.param == "embedded":
        return lambda: Embedded(path=tmp_path)
    server: Server = request.getfixturevalue("redis")
    server.client().flushall()
    return lambda: RedisSearch(port=server.port, algorithm=request.param, index_name="tests", op_timeout_s=5)


@pytest.fixture
async def opened(made: Callable[[], VectorIndex]) -> AsyncIterator[Opened]:
    """Opens an index of `made`, until the end of the test or of a `with`."""

    @asynccontextmanager
    async def open_(model_id: str = MODEL, dims: int = DIMS) -> AsyncIterator[VectorIndex]:
        async with Runtime() as runtime:
            index = made()
            await index.start(runtime, model_id=model_id, dims=dims)
            try:
                yield index
            finally:
                await index.aclose()

    return open_


@pytest.fixture
async def index(opened: Opened) -> AsyncIterator[VectorIndex]:
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(opened())


def vector(seed: int, near: np.ndarray[Any, Any] | None = None, cosine: float = 0.9) -> np.ndarray[Any, Any]:
    """A vector of length 1; with `near`, one at that cosine from it."""
    made = np.random.default_rng(seed).standard_normal(DIMS)
    if near is not None:
        made -= (made @ near) * near
        made = cosine * near + np.sqrt(1 - cosine**2) * made / np.linalg.norm(made)
    return (made / np.linalg.norm(made)).astype(np.float32)


def point(seed: int, *, partition: str = "p", name: str = "", ttl_s: float = 60, **more: Any) -> Point:
    return Point(partition, name or f"id-{seed}", vector(seed, **more), f"payload {seed}".encode(), ttl_s)


async def found(index: VectorIndex, partition: str, at: np.ndarray[Any, Any], k: int, count: int) -> list[Match]:
    """What is found; a server may take a moment to take points into its index."""
    for _ in range(200):
        matches = await index.search(partition, at, k)
        if len(matches) == count:
            return matches
        await asyncio.sleep(0.01)
    raise AssertionError(f"{len(matches)} points are found, and not {count}")


async def test_nearest_first_with_cosine_and_payload(index: VectorIndex) -> None:
    at = vector(999)
    await index.add([point(n, near=at, cosine=0.95 - n / 10) for n in range(5)])
    matches = await found(index, "p", at, 3, 3)
    assert [(match.id, match.payload) for match in matches] == [(f"id-{n}", f"payload {n}".encode()) for n in range(3)]
    assert [match.similarity for match in matches] == pytest.approx([0.95, 0.85, 0.75], abs=0.002)


async def test_nothing_of_another_partition(index: VectorIndex) -> None:
    """Not even of one whose name begins with this one's, or that is equal but for the case."""
    at = vector(999)
    names = ["p", "p:", "p:q", "P", "pp", ODD, ODD + "x", "_", "a" * 300]
    await index.add([point(n, partition=name, near=at, cosine=0.9 - n / 50) for n, name in enumerate(names)])
    for n, name in enumerate(names):
        assert [match.id for match in await found(index, name, at, 10, 1)] == [f"id-{n}"]
    assert await index.search("a", at, 10) == []


async def test_partition_and_id_are_told_apart(index: VectorIndex) -> None:
    """The same characters, cut at another place."""
    at = vector(999)
    await index.add([point(1, partition="a:b", name="c"), point(2, partition="a", name="b:c")])
    assert [match.payload for match in await found(index, "a", at, 5, 1)] == [b"payload 2"]
    await index.delete("a", ["b:c"])
    await found(index, "a", at, 5, 0)
    await found(index, "a:b", at, 5, 1)


async def test_same_id_replaces(index: VectorIndex) -> None:
    await index.add([point(1, name=ODD)])
    await index.add([point(2, name=ODD)])
    (match,) = await found(index, "p", vector(2), 5, 1)
    assert match.id == ODD
    assert match.payload == b"payload 2"
    assert match.similarity == pytest.approx(1, abs=0.002)


async def test_time_to_live_is_absolute(index: VectorIndex) -> None:
    await index.add([point(1, ttl_s=0.4), point(2, ttl_s=60)])
    for _ in range(4):  # looking at it keeps nothing alive
        await index.search("p", vector(1), 5)
        await asyncio.sleep(0.15)
    assert [match.id for match in await found(index, "p", vector(1), 5, 1)] == ["id-2"]


async def test_delete(index: VectorIndex) -> None:
    await index.add([point(n) for n in range(4)])
    await index.delete("p", ["id-1", "id-2", "never was"])
    await index.delete("nowhere", ["id-0"])
    assert {match.id for match in await found(index, "p", vector(0), 5, 2)} == {"id-0", "id-3"}


async def test_purge_by_prefix(index: VectorIndex) -> None:
    names = ["team:a", "team:a:x", "team:b", "team*"]
    await index.add([point(n, partition=name) for n, name in enumerate(names[:3])])
    assert await index.purge("team:a") == 2
    assert await index.purge("team:[ab]*") == 0
    assert await index.search("team:a", vector(0), 5) == []
    await found(index, "team:b", vector(0), 5, 1)
    assert await index.purge("") == 1
    assert await index.purge("") == 0


async def test_more_wanted_than_there_is(index: VectorIndex) -> None:
    assert await index.search("p", vector(0), 1000) == []
    await index.add([])
    await index.add([point(n) for n in range(3)])
    assert len(await found(index, "p", vector(0), 1000, 3)) == 3


async def test_at_the_same_time(index: VectorIndex) -> None:
    """Adds, deletes and searches of many tasks: each partition ends up with what its own tasks left."""

    async def use(number: int) -> None:
        partition = f"p{number}"
        await index.add([point(seed, partition=partition) for seed in range(number * 20, number * 20 + 20)])
        matches = await index.search(partition, vector(number), 5)
        assert all(int(match.id[3:]) // 20 == number for match in matches)
        await index.delete(partition, [f"id-{seed}" for seed in range(number * 20, number * 20 + 10)])

    await asyncio.gather(*(use(number) for number in range(12)))
    for number in range(12):
        matches = await found(index, f"p{number}", vector(0), 50, 10)
        assert {int(match.id[3:]) for match in matches} == set(range(number * 20 + 10, number * 20 + 20))


async def test_points_are_there_after_a_restart(opened: Opened) -> None:
    async with opened() as index:
        await index.add([point(n) for n in range(5)])
        await index.delete("p", ["id-4"])
    async with opened() as index:
        matches = await found(index, "p", vector(3), 5, 4)
        assert matches[0] == Match("id-3", pytest.approx(1, abs=0.002), b"payload 3")  # type: ignore[arg-type]


async def test_vectors_of_another_model_are_never_matched(opened: Opened) -> None:
    for model_id, dims in itertools.product([MODEL, MODEL + "1"], [DIMS, DIMS - 1]):
        async with opened(model_id, dims) as index:
            assert await index.search("p", vector(1)[:dims], 5) == []
            some = point(1)
            await index.add([some._replace(vector=some.vector[:dims])])
            await found(index, "p", vector(1)[:dims], 5, 1)


async def test_wrong_number_of_dimensions(index: VectorIndex) -> None:
    with pytest.raises(IndexFailed, match="48 dimensions"):
        await index.search("p", vector(1)[:7], 5)
    with pytest.raises(IndexFailed, match="48 dimensions"):
        await index.add([point(1)._replace(vector=vector(1)[:7])])


async def test_not_open(made: Callable[[], VectorIndex]) -> None:
    index = made()
    with pytest.raises(IndexFailed, match="not open"):
        await index.search("p", vector(1), 5)
    await index.aclose()


async def test_report_and_ping(index: VectorIndex) -> None:
    await index.add([point(n, partition=f"p{n % 2}") for n in range(6)])
    await found(index, "p0", vector(0), 9, 3)
    report = await index.report()
    assert report["points"] == 6
    assert report["bytes"] > 0
    await index.ping()
