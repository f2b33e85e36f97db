"""Places, and the line for them: first come first served, and nobody waits beside a place that he could have."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.routing_core import FAILED, Clock, a_group, call_of, router_of, runtime_of
from tianji_mw.errors import NoDeployment, Overloaded, UnknownModel
from tianji_mw.identity.base import Identity
from tianji_mw.routing import parallel
from tianji_mw.routing.blocks import Blocks
from tianji_mw.routing.parallel import Parallel, Turn
from tianji_mw.routing.router import Router, Trip
from tianji_mw.runtime import Runtime

TICKS = 10


async def settle() -> None:
    for _ in range(TICKS):
        await asyncio.sleep(0)


def places(most: int | None, *fields: dict[str, Any]) -> tuple[Parallel, Any, Blocks]:
    blocks = Blocks(runtime_of(Clock()))
    return Parallel(blocks, most), a_group(*(fields or ({},))), blocks


def test_full_ones_are_blocked_until_one_ends() -> None:
    found, [one], blocks = places(2)
    found.began(one)
    assert blocks.of(one) == []
    found.began(one)
    assert [block.detail for block in blocks.of(one)] == ["2 at a time"]
    found.began(one)  # somebody whom a block does not stop, such as a health check
    found.ended(one)
    assert blocks.of(one) != []
    found.ended(one)
    assert blocks.of(one) == []
    found.ended(one)
    assert found.inflight[one] == 0


def test_its_own_number_goes_before_the_general_one() -> None:
    found, group, blocks = places(1, {"max_parallel": 2}, {})
    for one in group:
        found.began(one)
    assert [bool(blocks.of(one)) for one in group] == [False, True]
    found, [one], blocks = places(None)
    for _ in range(1_000):
        found.began(one)
    assert blocks.of(one) == []


def queue(found: Parallel, count: int) -> tuple[list[asyncio.Task[bool]], list[int]]:
    order: list[int] = []

    async def wait(number: int, turn: Turn) -> bool:
        came = await found.place(turn, 5)
        order.append(number)
        return came

    turns = [found.turn(("m",), 1) for _ in range(count)]
    return [asyncio.ensure_future(wait(n, turn)) for n, turn in enumerate(turns) if turn is not None], order


async def test_first_come_first_served_and_those_that_leave_are_passed_over() -> None:
    found, [one], _ = places(1)
    tasks, order = queue(found, 5)
    await settle()
    assert found.waiting("m") == 5
    tasks[1].cancel()
    for _ in range(4):
        found.began(one)
        found.ended(one)
        await settle()
    assert order == [0, 2, 3, 4]
    assert found.waiting("m") == 0
    assert [task.cancelled() for task in tasks] == [False, True, False, False, False]


async def test_one_that_leaves_just_when_it_is_called_gives_its_turn_to_the_next() -> None:
    found, [one], _ = places(1)
    tasks, order = queue(found, 2)
    await settle()
    found.began(one)
    found.ended(one)
    tasks[0].cancel()
    await settle()
    assert order == [1]


async def test_no_time_and_no_place() -> None:
    found, _, _ = places(1)
    turn = found.turn(("m",), 1)
    assert turn is not None
    assert not await found.place(turn, 0)
    assert not await found.place(turn, -1)
    assert not await found.place(turn, 0.001)
    assert found.waiting("m") == 0


async def test_a_call_keeps_its_place_where_somebody_was_quicker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "LONGEST_LINE", 3)
    found, [one], _ = places(1)
    first = found.turn(("m",), 1)
    assert first is not None
    tasks, order = queue(found, 3)
    await settle()
    assert found.turn(("m",), 1) is None  # the line is too long for a new one
    again = asyncio.ensure_future(found.place(first, 5))
    await settle()
    found.began(one)
    found.ended(one)
    await settle()
    assert (again.done(), order) == (True, [])
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_line_for_several_names_is_called_by_each() -> None:
    found, [a, b], _ = places(1, {"model_name": "a"}, {"model_name": "b"})
    turn = found.turn(("a", "b"), 1)
    assert turn is not None
    for one in (a, b):
        waiting = asyncio.ensure_future(found.place(turn, 5))
        await settle()
        assert found.waiting("a") == found.waiting("b") == 1
        found.began(one)
        found.ended(one)
        assert await waiting
        assert found.waiting("a") == found.waiting("b") == 0


# --- through a router


def routed(*fields: dict[str, Any]) -> tuple[Runtime, Router]:
    runtime = runtime_of(Clock())
    return runtime, router_of(runtime, a_group(*fields), max_parallel=1)


async def test_a_place_that_the_first_cannot_use_is_passed_on() -> None:
    runtime, router = routed({}, {})
    a, b = router.table.all
    trips = [await router.depart(call_of(runtime), "m", failed) for failed in ({b}, {a})]
    first = asyncio.ensure_future(router.depart(call_of(runtime), "m", {a}))
    second = asyncio.ensure_future(router.depart(call_of(runtime), "m"))
    await settle()
    assert router.parallel.waiting("m") == 2
    router.arrive(trips[0], call_of(runtime), None)  # a is free: the first one has failed there
    assert (await second).attempt.deployment is a
    assert not first.done()
    router.arrive(trips[1], call_of(runtime), None)
    assert (await first).attempt.deployment is b


async def test_nobody_waits_for_a_place_that_is_not_for_him() -> None:
    runtime, router = routed({"team": "red"})
    await router.depart(call_of(runtime, identity=Identity(key_hash="r", team="red")), "m")
    with pytest.raises(UnknownModel):
        await router.depart(call_of(runtime), "m")
    assert router.parallel.waiting("m") == 0


async def test_a_place_is_not_taken_twice_while_something_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = runtime_of(Clock())
    router = router_of(runtime, a_group({"rpm": 100}), max_parallel=1, enforce_limits=True)
    [one] = router.table.all
    take = router.limits.take

    async def slow(*given: Any) -> Any:
        await settle()
        return await take(*given)

    monkeypatch.setattr(router.limits, "take", slow)
    running = [asyncio.ensure_future(router.depart(call_of(runtime), "m")) for _ in range(5)]
    for _ in range(5):
        await settle()
        await settle()
        assert router.parallel.inflight[one] == 1
        [done] = [task for task in running if task.done()]
        running.remove(done)
        router.arrive(done.result(), call_of(runtime), None)
    assert router.parallel.inflight[one] == 0


async def test_a_hedge_does_not_wait() -> None:
    runtime, router = routed({})
    await router.depart(call_of(runtime), "m")
    with pytest.raises(NoDeployment, match="at the same time"):
        await router.depart(call_of(runtime), "m", waits=False)


@settings(max_examples=60)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 25), st.integers(0, 1 << 30))
def test_everybody_gets_a_place_whatever_the_order(deployments: int, most: int, calls: int, seed: int) -> None:
    """Calls that leave, fail here and there, and end in any order: no wake-up is lost, no limit is passed."""
    rng = random.Random(seed)

    async def one_call(router: Router, runtime: Runtime, ended: Callable[[Trip], None]) -> None:
        failed = set(rng.sample(router.table.all, rng.randint(0, deployments - 1)))
        trip = await router.depart(call_of(runtime), "m", failed)
        assert router.parallel.inflight[trip.attempt.deployment] <= most
        try:
            for _ in range(rng.randint(0, 5)):
                await asyncio.sleep(0)
        finally:
            router.arrive(trip, call_of(runtime), rng.choice([None, FAILED._replace(counts=False)]))
            ended(trip)

    async def run() -> None:
        runtime, served = runtime_of(Clock(), seed), list[Trip]()
        router = router_of(runtime, a_group(*[{} for _ in range(deployments)]), max_parallel=most)
        tasks = [asyncio.ensure_future(one_call(router, runtime, served.append)) for _ in range(calls)]
        for _ in range(rng.randint(0, 8)):
            await asyncio.sleep(0)
        for task in rng.sample(tasks, rng.randint(0, calls // 2)):
            task.cancel()
        async with asyncio.timeout(10):  # far below the time that a call waits
            found = await asyncio.gather(*tasks, return_exceptions=True)
        assert not [one for one in found if isinstance(one, Exception)], found
        assert not any(router.parallel.inflight.values())
        assert router.parallel.waiting("m") == 0
        assert all(not router.blocks.of(one) for one in router.table.all)

    asyncio.run(run())


async def test_a_line_that_is_too_long_is_an_overload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "LONGEST_LINE", 0)
    runtime, router = routed({})
    await router.depart(call_of(runtime), "m")
    with pytest.raises(Overloaded) as refused:
        await router.depart(call_of(runtime), "m")
    assert refused.value.headers == {"retry-after": "1"}
