"""What one process shares: single flight, restarts with an injected clock, ids, closing in reverse."""

from __future__ import annotations

import asyncio
import random
import uuid
from typing import Any

import pytest

from tianji_mw.runtime import Runtime


class Opener:
    def __init__(self, log: list[str], name: str = "x", fails: int = 0) -> None:
        self.log, self.name, self.fails, self.opened = log, name, fails, 0

    async def open(self) -> str:
        self.opened += 1
        await asyncio.sleep(0)
        if self.opened <= self.fails:
            raise OSError("unreachable")
        self.log.append(f"open {self.name}")
        return self.name

    async def close(self, value: str) -> None:
        self.log.append(f"close {value}")


async def test_one_opening_for_all_who_ask() -> None:
    log: list[str] = []
    async with Runtime() as runtime:
        opener = Opener(log)
        values = await asyncio.gather(*(runtime.shared("k", opener.open, opener.close) for _ in range(100)))
        assert values == ["x"] * 100
        assert await runtime.shared("k", opener.open, opener.close) == "x"
        assert opener.opened == 1
    assert log == ["open x", "close x"]


async def test_a_failed_opening_is_told_to_all_who_waited_and_tried_again_later() -> None:
    async with Runtime() as runtime:
        opener = Opener([], fails=1)
        asked = (runtime.shared("k", opener.open, opener.close) for _ in range(10))
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(result) for result in results] == [OSError] * 10
        assert await runtime.shared("k", opener.open, opener.close) == "x"
        assert opener.opened == 2


async def test_whoever_came_first_may_be_cancelled_without_harm_to_the_others() -> None:
    async with Runtime() as runtime:
        opener = Opener([])
        first = asyncio.ensure_future(runtime.shared("k", opener.open, opener.close))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(runtime.shared("k", opener.open, opener.close))
        await asyncio.sleep(0)
        first.cancel()
        assert await second == "x"
        assert opener.opened == 1


async def test_a_failed_opening_that_nobody_waits_for_is_not_lost_in_the_background() -> None:
    async with Runtime() as runtime:
        opener = Opener([], fails=1)
        first = asyncio.ensure_future(runtime.shared("k", opener.open, opener.close))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0.01)
        assert await runtime.shared("k", opener.open, opener.close) == "x"


async def test_closing_goes_backwards_and_does_not_stop_at_a_failure() -> None:
    log: list[str] = []

    async def bad(value: str) -> None:
        raise OSError("gone")

    runtime = Runtime()
    for name in "abc":
        opener = Opener(log, name)
        await runtime.shared(name, opener.open, bad if name == "b" else opener.close)
    await runtime.aclose()
    assert log[3:] == ["close c", "close a"]
    assert runtime.counts == {("close_failures", ""): 1}
    await runtime.aclose()
    assert log[3:] == ["close c", "close a"]


async def test_closing_ends_an_opening_that_is_under_way() -> None:
    runtime = Runtime()

    async def never() -> None:
        await asyncio.sleep(60)

    async def close(value: None) -> None: ...

    waiting = asyncio.ensure_future(runtime.shared("k", never, close))
    await asyncio.sleep(0)
    await runtime.aclose()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_task_that_dies_is_started_again_with_backoff_and_counted() -> None:
    now, pauses, runs = 0, [], []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await asyncio.sleep(0)

    async def work() -> None:
        nonlocal now
        runs.append(1)
        if len(runs) == 8:
            now += 61_000_000_000  # it ran for a minute this time
        if len(runs) < 10:
            raise KeyError("bug")

    async with Runtime(sleep=sleep, clock=lambda: now) as runtime:
        runtime.spawn("work", work)
        while runtime._tasks:
            await asyncio.sleep(0)
        assert runtime.restarts == {"work": 9}
    assert pauses == [0.1, 0.5, 2.0, 10.0, 30.0, 30.0, 30.0, 0.1, 0.5]


async def test_closing_stops_background_tasks() -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("yes")

    runtime = Runtime()
    runtime.spawn("work", work)
    await asyncio.sleep(0)
    await runtime.aclose()
    assert ended == ["yes"]
    assert not runtime._tasks


def test_ids_are_uuids_of_version_7_that_sort_by_time() -> None:
    wall = 1_700_000_000.0
    runtime = Runtime(wall=lambda: wall, rng=random.Random(1))
    ids: list[str] = []
    for _ in range(1000):
        ids.append(runtime.new_id())
        wall += 0.0011
    assert sorted(ids) == ids
    assert len(set(ids)) == 1000
    for text in ids:
        parsed = uuid.UUID(text)
        assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert uuid.UUID(ids[0]).int >> 80 == 1_700_000_000_000


def test_equal_seeds_give_equal_ids() -> None:
    def made() -> list[str]:
        runtime = Runtime(wall=lambda: 1.0, rng=random.Random(7))
        return [runtime.new_id() for _ in range(3)]

    assert made() == made()


async def test_the_transport_is_made_once_and_closed() -> None:
    log: list[Any] = []

    class Fake:
        async def aclose(self) -> None:
            log.append("closed")

    runtime = Runtime(transport_factory=Fake)  # type: ignore[arg-type]
    assert runtime.transport is runtime.transport
    await runtime.aclose()
    assert log == ["closed"]
