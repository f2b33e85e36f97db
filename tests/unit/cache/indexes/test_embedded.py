"""The embedded index beside a plain comparison with everything, its limits, and its file."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.processes import ROOT, environment
from tianji_mw.cache.indexes._sketches import Sketches, packed
from tianji_mw.cache.indexes.base import IndexFailed, Point
from tianji_mw.cache.indexes.embedded import Embedded
from tianji_mw.runtime import Runtime

DIMS = 64
FILE = "index.sqlite3"
#: What 8 bits a dimension cost.
ERROR = 0.003


def vector(seed: int, dims: int = DIMS) -> np.ndarray[Any, Any]:
    made = np.random.default_rng(seed).standard_normal(dims)
    return (made / np.linalg.norm(made)).astype(np.float32)


def point(seed: int, *, partition: str = "p", ttl_s: float = 60.0, payload: bytes = b"x") -> Point:
    return Point(partition, str(seed), vector(seed), payload, ttl_s)


@asynccontextmanager
async def opened(*, model_id: str = "m", dims: int = DIMS, wall: Any = time.time, **fields: Any) -> AsyncIterator[Any]:
    async with Runtime(wall=wall) as runtime:
        index = Embedded(**fields)
        await index.start(runtime, model_id=model_id, dims=dims)
        try:
            yield index
        finally:
            await index.aclose()


# --- searching

OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "add", "delete", "purge", "wait", "search"]),
        st.sampled_from(["a", "ab", "b"]),
        st.integers(0, 30),
        st.sampled_from([1.0, 5.0, 100.0]),
    ),
    max_size=60,
)


@given(OPERATIONS, st.integers(4, 12))
@settings(max_examples=150, deadline=None)
async def test_same_as_comparing_with_everything(operations: list[Any], max_points: int) -> None:
    now, points, index = 1000.0, dict[tuple[str, str], tuple[Any, float]](), Sketches(DIMS, max_points, 1 << 20)
    used: list[tuple[str, str]] = []  # the one that goes next comes first
    for name, partition, number, ttl_s in operations:
        place, at = (partition, str(number)), vector(number)
        if name == "add":
            gone = index.add(*place, packed(at), b"%d" % number, now + ttl_s)
            used = [one for one in used if one != place]
            room = len(used) + 1 - max_points
            assert gone == (used[:room] if room > 0 else [])
            for one in gone:
                used.remove(one)
                del points[one]
            used.append(place)
            points[place] = (at, now + ttl_s)
        elif name == "delete":
            assert index.remove(*place) is (points.pop(place, None) is not None)
            used = [one for one in used if one in points]
        elif name == "purge":
            for beginning in index.beginning(partition):
                for one in index.points(beginning):
                    index.remove(beginning, one)
            points = {one: kept for one, kept in points.items() if not one[0].startswith(partition)}
            used = [one for one in used if one in points]
        elif name == "wait":
            now += ttl_s
        else:
            matches = index.search(partition, at, 3, now)
            wanted = {
                one: float(kept @ at)
                for (place_, one), (kept, ends) in points.items()
                if place_ == partition and ends > now
            }
            best = sorted(wanted.values(), reverse=True)[:3]
            assert [match.similarity for match in matches] == pytest.approx(best, abs=ERROR)
            assert [match.similarity for match in matches] == pytest.approx([wanted[m.id] for m in matches], abs=ERROR)
            if matches:
                used.remove((partition, matches[0].id))
                used.append((partition, matches[0].id))
        assert len(index) == len(points)
    assert index.bytes == sum(DIMS + len(one) + len(b"%d" % int(one)) + 250 for _, one in points)


@pytest.mark.parametrize("shares", [[1.0], [0.5, 0.5], [0.1, 0.9]], ids=["alone", "half", "tenth"])
def test_large_partitions_find_the_nearest(shares: list[float]) -> None:
    """All ways of looking: in full, by sketches, by coarse sketches first, with rows of others between them."""
    rng, count, dims = np.random.default_rng(1), 12_000, 96
    centres = rng.standard_normal((200, dims))
    data = centres[rng.integers(0, 200, count)] + 0.8 * rng.standard_normal((count, dims))
    data = (data / np.linalg.norm(data, axis=1, keepdims=True)).astype(np.float32)
    owner = rng.choice(len(shares), count, p=shares)
    index = Sketches(dims, count, 1 << 30)
    for number in range(count):
        index.add(str(owner[number]), str(number), packed(data[number]), b"", 100.0 if number % 10 else 1.0)
    for part in range(len(shares)):
        mine = np.flatnonzero((owner == part) & (np.arange(count) % 10 > 0))
        hits = 0
        for number in mine[:200]:
            asked = data[number] + 0.4 / dims**0.5 * rng.standard_normal(dims).astype(np.float32)
            asked /= np.linalg.norm(asked)
            matches = index.search(str(part), asked, 3, 50.0)
            assert {int(match.id) for match in matches} <= set(mine)
            assert matches[0].similarity == pytest.approx(float(data[int(matches[0].id)] @ asked), abs=ERROR)
            hits += matches[0].similarity >= float((data[mine] @ asked).max()) - ERROR
        assert hits >= 196


def test_many_equal_vectors_hide_nothing() -> None:
    """More points at one distance than may be looked at: the nearer one is among those that are."""
    index = Sketches(DIMS, 10_000, 1 << 30)
    far, near = vector(1), vector(2)
    for number in range(9_999):
        index.add("p", str(number), packed(far), b"", 10.0)
    index.add("p", "near", packed(near), b"", 10.0)
    assert index.search("p", near, 1, 0.0)[0].id == "near"
    assert len(index.search("p", far, 5, 0.0)) == 5


@pytest.mark.parametrize("dims", [1, 3, 384, 1536, 3072])
async def test_any_number_of_dimensions(dims: int) -> None:
    async with opened(dims=dims, max_points=700) as index:
        await index.add([Point("p", str(seed), vector(seed, dims), b"", 60) for seed in range(700)])
        matches = await index.search("p", vector(5, dims), 1)
        assert matches[0].similarity == pytest.approx(1, abs=ERROR)


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
async def test_vectors_without_direction_are_refused(bad: float) -> None:
    async with opened() as index:
        with pytest.raises(IndexFailed, match="without direction"):
            await index.add([point(1)._replace(vector=np.full(DIMS, bad, np.float32))])


# --- limits


async def test_what_was_not_used_the_longest_goes_first() -> None:
    async with opened(max_points=3) as index:
        await index.add([point(1), point(2), point(3)])
        await index.search("p", vector(1), 1)
        await index.add([point(4)])
        assert {match.id for match in await index.search("p", vector(1), 9)} == {"1", "3", "4"}
        assert (await index.report())["evicted"] == 1


async def test_max_bytes() -> None:
    async with opened(max_bytes=1 << 16) as index:
        await index.add([point(seed, payload=b"x" * 1500) for seed in range(100)])
        report = await index.report()
        assert report["bytes"] <= 1 << 16
        assert 25 <= report["points"] < 40
        with pytest.raises(IndexFailed, match="max_bytes"):
            await index.add([point(7, payload=b"x" * (1 << 16))])


async def test_expired_points_give_their_room_back() -> None:
    now = [1000.0]
    async with opened(wall=lambda: now[0], flush_interval_s=0.01) as index:
        await index.add([point(seed, partition=str(seed), ttl_s=10) for seed in range(300)] + [point(999)])
        now[0] += 11
        for _ in range(200):
            if (report := await index.report())["points"] == 1:
                break
            await asyncio.sleep(0.01)
        assert report["points"] == 1
        assert report["partitions"] == 1


async def test_the_loop_is_not_held_up() -> None:
    async with opened() as index:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        await index.add([point(seed) for seed in range(320)])
        assert turns >= 320 // 16
        turns = 0
        assert await index.purge("") == 320
        assert turns >= 2
        counting.cancel()


# --- the file


async def test_file_is_for_its_owner_only(tmp_path: Path) -> None:
    async with opened(path=tmp_path / "new" / "folder") as index:
        await index.add([point(1)])
    for file in [tmp_path / "new" / "folder", *(tmp_path / "new" / "folder").iterdir()]:
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0


async def test_expired_and_evicted_points_do_not_come_back(tmp_path: Path) -> None:
    now = [1000.0]
    async with opened(path=tmp_path, wall=lambda: now[0], max_points=3) as index:
        await index.add([point(1), point(2, ttl_s=5), point(3), point(4)])
    now[0] += 6
    async with opened(path=tmp_path, wall=lambda: now[0]) as index:
        assert {match.id for match in await index.search("p", vector(1), 9)} == {"3", "4"}
    async with opened(path=tmp_path, wall=lambda: now[0], max_points=1) as index:  # fewer than are saved
        assert [match.id for match in await index.search("p", vector(1), 9)] == ["4"]


async def test_other_model_begins_empty(tmp_path: Path) -> None:
    async with opened(path=tmp_path) as index:
        await index.add([point(1)])
    async with opened(path=tmp_path, model_id="another") as index:
        assert (await index.report())["points"] == 0
        assert index._runtime.counts["index_set_aside", "outdated"] == 1
    async with opened(path=tmp_path) as index:  # nothing of the first one is left
        assert (await index.report())["points"] == 0


@pytest.mark.parametrize("how", ["garbage", "cut", "flipped", "foreign", "empty"])
async def test_broken_file(tmp_path: Path, how: str) -> None:
    """Set aside and counted where it is broken; the index starts, empty, and saves again."""
    async with opened(path=tmp_path) as index:
        await index.add([point(seed, payload=b"y" * 200) for seed in range(200)])
    file = tmp_path / FILE
    raw = file.read_bytes()
    if how == "foreign":
        file.unlink()
        with sqlite3.connect(file) as db:
            db.execute("CREATE TABLE stamp (something INTEGER)")
        db.close()
    else:
        middle = len(raw) // 2 // 4096 * 4096
        file.write_bytes(
            {
                "garbage": b"this is no database " * 300,
                "cut": raw[: len(raw) // 2],
                "flipped": raw[:middle]
                + bytes(byte ^ 0xFF for byte in raw[middle : middle + 4096])
                + raw[middle + 4096 :],
                "empty": b"",
            }[how]
        )
    async with opened(path=tmp_path) as index:
        assert (await index.report())["points"] == 0
        assert (tmp_path / (FILE + ".corrupt")).exists() is (how in ("garbage", "cut", "flipped"))
        assert (await index.report())["persisted"] is (how != "foreign")
        await index.add([point(1)])
    async with opened(path=tmp_path) as index:
        assert (await index.report())["points"] == (how != "foreign")


async def test_second_process_stays_in_memory(tmp_path: Path) -> None:
    async with opened(path=tmp_path) as first, opened(path=tmp_path) as second:
        await first.add([point(1)])
        await second.add([point(2)])
        assert (await first.report())["persisted"] is True
        assert (await second.report())["persisted"] is False
        assert "another process" in second._runtime.degraded["semantic index"]
        assert [match.id for match in await second.search("p", vector(1), 5)] == ["2"]
    async with opened(path=tmp_path) as index:
        assert [match.id for match in await index.search("p", vector(1), 5)] == ["1"]


async def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    async with opened(path=tmp_path / "file") as index:
        await index.add([point(1)])
        assert (await index.report())["persisted"] is False
        assert index._runtime.counts["index_file_failures", "open"] == 1


async def test_write_failures_are_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tianji_mw.cache.indexes._saved import Saved

    real = Saved.write

    def full(self: Saved, changes: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Saved, "write", full)
    async with opened(path=tmp_path, flush_interval_s=0.01) as index:
        await index.add([point(1), point(2)])
        while not index._runtime.degraded:
            await asyncio.sleep(0.01)
        await index.delete("p", ["2"])
        monkeypatch.setattr(Saved, "write", real)
        while index._runtime.degraded:
            await asyncio.sleep(0.01)
    async with opened(path=tmp_path) as index:
        assert [match.id for match in await index.search("p", vector(1), 5)] == ["1"]


async def test_file_that_stays_behind_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tianji_mw.cache.indexes._saved import Saved

    async with opened(path=tmp_path, flush_interval_s=0.01, max_points=10) as index:
        await index.add([point(1)])
        await asyncio.sleep(0.1)
        monkeypatch.setattr(Saved, "write", lambda *_: (_ for _ in ()).throw(sqlite3.OperationalError("full")))
        await index.add([point(seed) for seed in range(100)])
        while (await index.report())["persisted"]:
            await asyncio.sleep(0.01)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
async def test_killed_process_loses_the_last_moments_only(tmp_path: Path) -> None:
    program = f"""
import asyncio, itertools, numpy as np
from tianji_mw.cache.indexes.base import Point
from tianji_mw.cache.indexes.embedded import Embedded
from tianji_mw.runtime import Runtime
async def main():
    index = Embedded(path={str(tmp_path)!r}, flush_interval_s=0.05)
    await index.start(Runtime(), model_id="m", dims={DIMS})
    for number in itertools.count():
        await index.add([Point("p", str(number), np.ones({DIMS}, np.float32), b"x", 60)])
        print(number, flush=True)
        await asyncio.sleep(0.001)
asyncio.run(main())
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment(), cwd=ROOT)
    assert process.stdout is not None
    try:
        said = [int(process.stdout.readline()) for _ in range(500)]
    finally:
        process.kill()
        process.wait(5)
        process.stdout.close()
    async with opened(path=tmp_path) as index:
        report = await index.report()
        assert report["persisted"] is True
        assert report["points"] > len(said) / 2
        names = {int(match.id) for match in await index.search("p", np.ones(DIMS, np.float32), 10_000)}
        assert names == set(range(len(names)))  # batches in order, none in part


def test_nothing_is_opened_by_construction(tmp_path: Path) -> None:
    Embedded(path=tmp_path / "never")
    assert os.listdir(tmp_path) == []
