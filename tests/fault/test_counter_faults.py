"""Limits over four processes while Redis works, fails over, freezes or is missing: nothing raises nor overshoots.

Each of the four has its own client and runtime. Every limit has a window that is far longer than a test, so that what
was admitted can simply be counted.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import free_port
from tests.support.redis_servers import Cluster, Server, redis_cluster, redis_server
from tianji_mw.counters.base import Want
from tianji_mw.counters.lua import key_of
from tianji_mw.counters.redis import RedisHolds, RedisWindows
from tianji_mw.redis import shared
from tianji_mw.redis.settings import RedisSettings
from tianji_mw.runtime import Runtime

pytestmark = pytest.mark.slow

PROCESSES = 4
WINDOW_S = 3600.0
#: Shorter than in production, where probes may be five seconds apart; in these tests they come sooner.
GRACE_S = 4.0
HANGS_S = 40.0
PERIOD_S = 86_400.0


class Process:
    """One of the four."""

    def __init__(self, runtime: Runtime, redis: Any) -> None:
        self.runtime = runtime
        given: dict[str, Any] = {"prefix": "t", "replicas": lambda: PROCESSES, "grace_s": GRACE_S}
        self.windows = RedisWindows(redis, runtime, **given)
        self.holds = RedisHolds(redis, runtime, **given)
        self.admitted = 0
        self.refused = 0
        self.spent = 0.0

    async def take(self, group: str, *wants: Want) -> bool:
        refused = await self.windows.take(group, wants)
        self.admitted += refused is None
        self.refused += refused is not None
        return refused is None

    async def call(self, group: str, hold_id: str, limit: float, amount: float) -> bool:
        """Hold a little more than is spent then."""
        given: dict[str, Any] = {"hold_id": hold_id, "period_s": PERIOD_S}
        if await self.holds.hold(group, "usd", limit=limit, amount=amount * 1.2, **given) is not None:
            self.refused += 1
            return False
        await asyncio.sleep(0.002)
        self.admitted += 1
        self.spent += amount
        await self.holds.settle(group, "usd", amount=amount, **given)
        return True

    @property
    def fallbacks(self) -> int:
        return sum(self.runtime.counts.get(("counter_fallbacks", kind), 0) for kind in ("windows", "holds"))

    @property
    def well(self) -> bool:
        return not {"counters", "budgets"} & set(self.runtime.degraded) and not (
            self.windows._outages._of or self.holds._outages._of
        )


Start = Callable[..., Any]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Opens the four."""
    async with AsyncExitStack() as stack:

        async def open_(**where: Any) -> list[Process]:
            made = []
            for _ in range(PROCESSES):
                runtime = await stack.enter_async_context(Runtime())
                # All of them share one event loop and two cores: they wait for each other more than for Redis.
                settings = RedisSettings(op_timeout_s=1, **where)
                made.append(Process(runtime, await shared(settings, runtime)))
            return made

        yield open_


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


class Hammer:
    """Calls of all processes, eight at a time in each, until told to stop. An exception ends the test."""

    def __init__(self, processes: list[Process], call: Callable[[Process, int], Any]) -> None:
        self._processes, self._call = processes, call
        self._numbers = itertools.count()
        self._stopped = False

    async def __aenter__(self) -> Hammer:
        self._tasks = [asyncio.create_task(self._run(one)) for one in self._processes for _ in range(8)]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._stopped = True
        async with asyncio.timeout(HANGS_S):
            await asyncio.gather(*self._tasks)

    @property
    def fallbacks(self) -> int:
        return sum(one.fallbacks for one in self._processes)

    async def _run(self, process: Process) -> None:
        while not self._stopped:
            admitted = await self._call(process, next(self._numbers))
            await asyncio.sleep(0 if admitted else 0.01)

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        async with asyncio.timeout(HANGS_S):
            while not condition():
                assert not any(task.done() for task in self._tasks), "a call raised"
                await asyncio.sleep(0.01)


def total(processes: list[Process]) -> int:
    return sum(one.admitted for one in processes)


def all_refused(processes: list[Process], more: int = 20) -> Callable[[], bool]:
    """From now on every process is refused so many times."""
    before = [one.refused for one in processes]
    return lambda: all(one.refused >= count + more for one, count in zip(processes, before, strict=True))


def in_redis(server: Server, group: str, key: str) -> float:
    return int(server.client().hget(key_of("t", group, "w", f"{WINDOW_S:g}", key), "t")) / 1e6


async def test_four_processes_share_limits_of_requests_and_tokens(cluster: Cluster, start: Start) -> None:
    processes = await start(startup_nodes=cluster.nodes)
    rpm, tpm = Want("rpm", 1500, 1, WINDOW_S), Want("tpm", 1e9, 40, WINDOW_S)
    async with Hammer(processes, lambda one, n: one.take("by-requests", rpm, tpm)) as hammer:
        await hammer.until(all_refused(processes), "the end of the limit")
    assert total(processes) == 1500
    rpm, tpm = Want("rpm", 1e9, 1, WINDOW_S), Want("tpm", 60_000, 40, WINDOW_S)
    async with Hammer(processes, lambda one, n: one.take("by-tokens", rpm, tpm)) as hammer:
        await hammer.until(all_refused(processes), "the end of the limit")
    assert total(processes) == 1500 + 1500
    assert in_redis(cluster.owner("t:{by-tokens}"), "by-tokens", "rpm") == 1500
    assert [(one.fallbacks, one.well) for one in processes] == [(0, True)] * PROCESSES


async def test_four_processes_share_a_budget(cluster: Cluster, start: Start) -> None:
    processes = await start(startup_nodes=cluster.nodes)
    async with Hammer(processes, lambda one, n: one.call("team", f"c{n}", 10.0, 0.01)) as hammer:
        await hammer.until(all_refused(processes, 100), "the end of the budget")
    # Some may be refused for a hold that turns out smaller, but the last ones run alone.
    assert 10.0 - 0.012 <= sum(one.spent for one in processes) <= 10.0 + 0.012
    spent, held, _ = await processes[0].holds.spent("team", "usd")
    assert (round(spent, 9), held) == (round(sum(one.spent for one in processes), 9), 0)


async def test_a_primary_dies_while_limits_are_used_up(tmp_path: Path, start: Start) -> None:
    with redis_cluster(tmp_path) as cluster:
        processes = await start(startup_nodes=cluster.nodes)
        limit = 8000
        rpm, tpm = Want("rpm", limit, 1, WINDOW_S), Want("tpm", 40.0 * limit, 40, WINDOW_S)
        budget = 50.0

        async def call(one: Process, n: int) -> bool:
            return await one.take("g", rpm, tpm)

        spenders = await start(startup_nodes=cluster.nodes)
        async with (
            Hammer(processes, call) as hammer,
            Hammer(spenders, lambda one, n: one.call("g", f"c{n}", budget, 0.02)) as spending,
        ):
            await hammer.until(lambda: total(processes) > limit / 4, "a quarter of the limit")
            at_kill = total(processes)
            assert at_kill < limit / 2
            assert not hammer.fallbacks + spending.fallbacks
            cluster.owner("t:{g}").kill()
            await hammer.until(lambda: all(one.fallbacks for one in processes), "the outage")
            await hammer.until(all_refused(processes), "the end of the shares")
            shares = total(processes)
            await hammer.until(lambda: all(one.well for one in processes + spenders), "the end of the outage")
            await hammer.until(all_refused(processes), "the end of the limit")
            await spending.until(all_refused(spenders, 100), "the end of the budget")
        print(f"at kill {at_kill}, without Redis {shares}, at last {total(processes)} of {limit}")
        assert limit * 0.98 <= total(processes) <= limit * 1.01
        assert total(processes) == pytest.approx(in_redis(cluster.owner("t:{g}"), "g", "rpm"), rel=0.01)
        spent = sum(one.spent for one in spenders)
        print(f"spent {spent:.2f} of {budget}")
        assert budget * 0.98 <= spent <= budget * 1.01
        assert await processes[0].take("another", rpm, tpm)
        assert await processes[0].windows.used("another", "rpm", WINDOW_S) == 1


async def test_a_frozen_redis(tmp_path: Path, start: Start) -> None:
    with redis_server(tmp_path) as server:
        processes = await start(port=server.port)
        limit = 6000
        want = Want("rpm", limit, 1, WINDOW_S)
        async with Hammer(processes, lambda one, n: one.take("g", want)) as hammer:
            await hammer.until(lambda: total(processes) > limit / 4, "a quarter of the limit")
            server.freeze()
            await hammer.until(all_refused(processes), "the end of the shares")
            assert total(processes) <= limit * 1.01
            assert all("share" in one.runtime.degraded["counters"] for one in processes)
            server.thaw()
            await hammer.until(lambda: all(one.well for one in processes), "the end of the outage")
            await hammer.until(all_refused(processes), "the end of the limit")
        print(f"{total(processes)} of {limit}, and {in_redis(server, 'g', 'rpm'):g} in Redis")
        assert limit * 0.99 <= total(processes) <= limit * 1.01
        # Takes that were on their way when it froze ran when it went on, and count twice.
        assert total(processes) <= in_redis(server, "g", "rpm") <= total(processes) + 8 * PROCESSES


async def test_no_redis_at_all(tmp_path: Path, start: Start) -> None:
    port = free_port()
    processes = await start(port=port)
    for one in processes:
        for _ in range(50):
            await one.take("g", Want("rpm", 100, 1, WINDOW_S), Want("tpm", 1e6, 10, WINDOW_S))
            await one.holds.hold(
                "g", "usd", limit=10, amount=0.1, period_s=PERIOD_S, hold_id=f"{id(one)}-{one.refused}"
            )
        await one.windows.settle("g", "tpm", -50, WINDOW_S)
        await one.windows.settle("g", "other", 7, WINDOW_S)
        assert await one.windows.used("g", "tpm", WINDOW_S) == 200
    assert [one.admitted for one in processes] == [25] * PROCESSES
    held = [await one.holds.spent("g", "usd") for one in processes]
    assert all(spent == 0 and 0 < held <= 2.5 for spent, held, _ in held)
    with redis_server(tmp_path, port=port) as server:
        async with asyncio.timeout(HANGS_S):
            while not all(one.well for one in processes):
                await asyncio.sleep(0.05)
        assert in_redis(server, "g", "rpm") == 100
        assert in_redis(server, "g", "tpm") == 800
        assert in_redis(server, "g", "other") == 28
        assert not await processes[0].take("g", Want("rpm", 100, 1, WINDOW_S))
        spent, held_there, _ = await processes[0].holds.spent("g", "usd")
        assert (spent, round(held_there, 9)) == (0, round(sum(one[1] for one in held), 9))


async def test_one_lost_connection_is_no_outage(tmp_path: Path, start: Start) -> None:
    with redis_server(tmp_path) as server:
        (one, *_) = await start(port=server.port)
        want = Want("rpm", 100, 1, WINDOW_S)
        assert await one.take("g", want)
        server.client().execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert await one.take("g", want)  # from the share
        async with asyncio.timeout(HANGS_S):
            while not one.well:
                await asyncio.sleep(0.01)
        assert one.fallbacks == 1
        while await one.take("g", want):
            pass
        assert one.admitted == 100
        assert in_redis(server, "g", "rpm") == 100


async def test_spending_goes_on_without_redis(tmp_path: Path, start: Start) -> None:
    with redis_server(tmp_path) as server:
        (one, two, *_) = await start(port=server.port)
        holds, given = one.holds, {"period_s": PERIOD_S}
        assert await holds.hold("g", "usd", limit=10, amount=2, hold_id="before", **given) is None
        server.freeze()
        # 10 - 2 held is left; a quarter of it is ours.
        assert await holds.hold("g", "usd", limit=10, amount=1.5, hold_id="a", **given) is None
        assert await holds.hold("g", "usd", limit=10, amount=1.5, hold_id="b", **given) is not None
        await holds.settle("g", "usd", hold_id="before", amount=1, **given)
        await holds.settle("g", "usd", hold_id="a", amount=0.5, **given)
        assert await holds.hold("g", "usd", limit=10, amount=1.5, hold_id="c", **given) is None
        server.thaw()
        async with asyncio.timeout(HANGS_S):
            while not one.well:
                await asyncio.sleep(0.01)
        assert (await two.holds.spent("g", "usd"))[:2] == (1.5, 1.5)
        await holds.settle("g", "usd", hold_id="c", amount=0, **given)
        assert (await two.holds.spent("g", "usd"))[:2] == (1.5, 0)
