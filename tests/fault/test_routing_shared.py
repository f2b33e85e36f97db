"""What processes of one router tell each other through a real Redis, and what becomes of them without it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.calls import a_call
from tests.support.processes import free_port
from tests.support.redis_servers import Cluster, redis_cluster, redis_server
from tests.support.stack import deployment
from tianji_mw.redis.settings import RedisSettings
from tianji_mw.routing import loads
from tianji_mw.routing.base import Candidates, Deployment
from tianji_mw.routing.blocks import Block
from tianji_mw.routing.failure import Failure
from tianji_mw.routing.health import health_of
from tianji_mw.routing.least_busy import LeastBusy
from tianji_mw.routing.router import Router
from tianji_mw.routing.rules import HealthRules, RoutingRules
from tianji_mw.routing.shared import Shared
from tianji_mw.routing.state import State
from tianji_mw.routing.table import Deployments
from tianji_mw.runtime import Runtime
from tianji_mw.testing import FakeLLM

pytestmark = pytest.mark.slow

#: Far above what anything here takes.
WITHIN_S = 20.0
CHANNEL = "tianji:route:news"
REFUSED = Failure(
    kind="RateLimit", status=429, error=None, again=True, elsewhere=False, falls_back=True, counts=True,
    unreachable=False, wait_s=None,
)  # fmt: skip


class Process:
    """One process's router, and its link to the others."""

    def __init__(self, runtime: Runtime, shared: Shared, router: Router) -> None:
        self.runtime, self.shared, self.router = runtime, shared, router

    def __getitem__(self, name: str) -> Deployment:
        return next(d for d in self.router.table.all if d.id == name)

    def cools(self, name: str, seconds: float = 60.0) -> None:
        """A call is refused there, and it may rest for so long."""
        assert self.router.cooldowns.failed(self[name], REFUSED._replace(wait_s=seconds), alone=False)

    def state(self, name: str) -> str:
        return self.router.cooldowns.state(self[name])

    def blocks(self, name: str) -> list[Block]:
        return self.router.blocks.of(self[name])

    def elsewhere(self, name: str) -> int:
        return int(self.router.picker.report(self[name])["inflight_elsewhere"])

    def begins(self, name: str, times: int = 1) -> None:
        for _ in range(times):
            self.router.parallel.began(self[name])

    def ends(self, name: str, times: int = 1) -> None:
        for _ in range(times):
            self.router.parallel.ended(self[name])

    @property
    def hears(self) -> bool:
        return self.shared._channel.heard_ns is not None and not self.shared._unread

    def counted(self, event: str) -> dict[str, int]:
        return {detail: count for (name, detail), count in self.runtime.counts.items() if name == event}

    async def ends_in_order(self) -> None:
        await self.router.aclose()
        await self.shared.aclose()
        await self.runtime.aclose()

    async def crashes(self) -> None:
        """Nobody is told."""
        await self.runtime.aclose()


Start = Callable[..., Awaitable[Process]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts one more process, with deployments of its own making."""
    async with AsyncExitStack() as stack:

        async def started(names: str = "d1 d2 d3", *, heard: bool = True, **fields: Any) -> Process:
            runtime = Runtime()
            stack.push_async_callback(runtime.aclose)
            checks: Any = frozenset({"session_affinity"})
            shared = await Shared.open(RedisSettings.model_validate(fields), runtime)
            router = Router(
                Deployments([deployment("http://127.0.0.1", id=name) for name in names.split()]),
                LeastBusy(), RoutingRules(affinity=checks), runtime, shared.windows, shared.holds, shared,
            )  # fmt: skip
            await shared.join(router)
            process = Process(runtime, shared, router)
            if heard:
                await until(lambda: process.hears)
            return process

        yield started


async def until(condition: Callable[[], bool], *, always: Callable[[], bool] = lambda: True) -> float:
    """Seconds until it holds; it must in the end."""
    began = time.perf_counter()
    async with asyncio.timeout(WITHIN_S):
        while not condition():
            assert always()
            await asyncio.sleep(0.005)
    return time.perf_counter() - began


async def remains(condition: Callable[[], bool], seconds: float) -> None:
    """It holds all the time."""
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends:
        assert condition()
        await asyncio.sleep(0.01)


# --- health checks


async def test_one_process_makes_the_health_checks_of_all(tmp_path: Path) -> None:
    rules = RoutingRules(health=HealthRules(every_s=2.0, routing=True))
    async with FakeLLM() as llm, AsyncExitStack() as stack:
        with redis_server(tmp_path) as server:
            states = []
            for _ in range(3):
                runtime = await stack.enter_async_context(Runtime())
                table = Deployments([deployment(llm.url, id="poor")])
                redis = RedisSettings(host="127.0.0.1", port=server.port)
                states.append(await State.open(table, LeastBusy(), rules, runtime, redis))
            checks = [await health_of(state.router) for state in states]
            [poor] = {state.router.table.all[0].id for state in states}
            await until(lambda: all(check.latest for check in checks))
            found = [next(iter(check.latest.values())) for check in checks]
            assert poor == "poor"
            assert {one.state for one in found} == {"unhealthy"}
            assert [one.how for one in found].count("probe") == len(llm.requests) == 1
            for state in states:
                await state.aclose()


# --- cooldowns


async def test_all_agree_on_a_cooldown(tmp_path: Path, start: Start) -> None:
    with redis_server(tmp_path) as server:
        one, two, three = [await start(port=server.port) for _ in range(3)]
        one.cools("d2")
        seconds = await until(lambda: two.state("d2") == three.state("d2") == "open")
        print(f"agreed after {seconds * 1000:.0f} ms")
        (block,) = two.blocks("d2")
        (ours,) = one.blocks("d2")
        assert (block.reason, block.detail, block.soft) == ("cooldown", ours.detail, ours.soft)
        assert [d.id for d in two.router.blocks.free(candidates(two))] == ["d1", "d3"]
        assert [two.state(name) for name in ("d1", "d3")] == ["closed", "closed"]


async def test_a_process_without_a_network_takes_nothing_from_the_others(tmp_path: Path, start: Start) -> None:
    with redis_server(tmp_path) as server:
        one, two, three = [await start(port=server.port) for _ in range(3)]
        for name in ("d1", "d2", "d3"):
            two.router.cooldowns.succeeded(two[name])
            while one.state(name) == "closed":
                one.router.cooldowns.failed(one[name], REFUSED._replace(status=502, unreachable=True), alone=False)
        await until(lambda: all(two.state(name) == three.state(name) == "open" for name in ("d1", "d2", "d3")))
        assert len(two.router.blocks.free(candidates(two))) == 3  # as its own calls went well
        assert len(three.router.blocks.free(candidates(three))) == 0


async def test_who_comes_later_learns_what_holds(tmp_path: Path, start: Start) -> None:
    with redis_server(tmp_path) as server:
        one = await start(port=server.port)
        one.cools("d1", 60)
        one.cools("d3", 0.3)
        await until(lambda: server.client().exists("tianji:route:{d1}:cooldown") == 1)
        await until(lambda: server.client().exists("tianji:route:{d3}:cooldown") == 0)
        two = await start("d1 d3 d4", port=server.port)
        assert [two.state(name) for name in ("d1", "d3", "d4")] == ["open", "closed", "closed"]
        left_s = (two.blocks("d1")[0].until - two.runtime.clock()) / 1e9
        assert 0 < left_s <= 60
        assert one.counted("routing_messages") == two.counted("routing_messages") == {}


async def test_a_deployment_that_works_again_does_so_for_all(tmp_path: Path, start: Start) -> None:
    with redis_server(tmp_path) as server:
        one, two = [await start(port=server.port) for _ in range(2)]
        one.cools("d1", 0.5)
        one.cools("d2", 0.5)
        one.cools("d3", 60)
        await until(lambda: all(two.state(name) == "open" for name in ("d1", "d2", "d3")))
        await until(lambda: one.state("d1") == two.state("d1") == two.state("d2") == "half_open")
        one.router.cooldowns.succeeded(one["d1"])
        await until(lambda: two.state("d1") == "closed")
        assert two.router.cooldowns.share(two["d1"]) < 1  # its load grows here too
        assert two.state("d2") == "half_open"
        # A success of before is no sign against a cooldown that holds.
        one.shared.closed(one["d3"])
        one.shared.closed(one["d1"])
        one.cools("d2", 60)
        await until(lambda: two.state("d2") == "open")
        assert two.state("d3") == "open"


async def test_a_cooldown_grows_wherever_it_is_tried(tmp_path: Path, start: Start) -> None:
    with redis_server(tmp_path) as server:
        one, two = [await start(port=server.port) for _ in range(2)]
        for number, process in enumerate([one, two, one]):
            process.cools("d1", 0.2)
            assert process.router.cooldowns._circuits[process["d1"]].repeats == number
            await until(lambda: one.state("d1") == two.state("d1") == "open")
            await until(lambda: one.state("d1") == two.state("d1") == "half_open")


async def test_a_try_of_ours_holds_nobody_off_once_another_one_failed(tmp_path: Path, start: Start) -> None:
    with redis_server(tmp_path) as server:
        one, two = [await start(port=server.port) for _ in range(2)]
        one.cools("d1", 0.2)
        await until(lambda: two.state("d1") == "open")
        await until(lambda: one.state("d1") == two.state("d1") == "half_open")
        two.router.cooldowns.began(two["d1"])
        assert [block.reason for block in two.blocks("d1")] == ["probe"]
        one.cools("d1", 0.2)
        await until(lambda: [block.reason for block in two.blocks("d1")] == ["cooldown"])
        await until(lambda: not two.blocks("d1"))


# --- loads


async def test_loads_are_told_and_a_crash_leaves_none(tmp_path: Path, start: Start) -> None:
    with redis_server(tmp_path) as server:
        one, two, three = [await start(port=server.port) for _ in range(3)]
        one.begins("d1", 3)
        two.begins("d1", 2)
        two.begins("d2")
        await until(lambda: [three.elsewhere(name) for name in ("d1", "d2", "d3")] == [5, 1, 0])
        await until(lambda: one.elsewhere("d1") == 2 and two.elsewhere("d1") == 3)
        assert [process.shared.replicas() for process in (one, two, three)] == [3, 3, 3]
        picks = {three.router.picker.pick(three.router.table.serving("gpt-4o"), a_call()).id for _ in range(20)}
        assert picks == {"d3"}
        one.ends("d1", 3)
        await until(lambda: three.elsewhere("d1") == 2)
        await two.crashes()
        await until(lambda: three.elsewhere("d1") == 0 and three.elsewhere("d2") == 0)
        await until(lambda: one.shared.replicas() == three.shared.replicas() == 2)
        await remains(lambda: one.shared.replicas() == three.shared.replicas() == 2, 4)


async def test_who_ends_in_order_says_so(tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loads, "_LASTS_NS", 10**15)
    with redis_server(tmp_path) as server:
        one, two = [await start(port=server.port) for _ in range(2)]
        one.begins("d1")
        one.cools("d2")
        await until(lambda: two.elsewhere("d1") == 1 and two.shared.replicas() == 2)
        one.cools("d3")
        await one.ends_in_order()
        await until(lambda: two.elsewhere("d1") == 0 and two.shared.replicas() == 1)
        assert two.state("d2") == two.state("d3") == "open"


async def test_nothing_is_said_while_nothing_changes(tmp_path: Path, start: Start) -> None:
    with redis_server(tmp_path) as server:
        one = await start(port=server.port)
        one.begins("d1", 7)
        listener = server.client().pubsub()
        listener.subscribe(CHANNEL)
        await asyncio.sleep(3)
        told = []
        while (message := listener.get_message(timeout=0.1)) is not None:
            if message["type"] == "message":
                told.append(orjson.loads(message["data"])["load"])
        # Once when it changed, and then with each hello.
        assert set(map(str, told)) <= {str([["d1", 7]]), "[]"}
        assert 2 <= len(told) <= 6


async def test_very_many_deployments(tmp_path: Path, start: Start) -> None:
    names = [f"{n:04d}" + "x" * 60 for n in range(3000)]
    with redis_server(tmp_path) as server:
        one, two = [await start(" ".join(names), port=server.port) for _ in range(2)]
        for name in names:
            one.router.parallel.inflight[one.shared._by_id[name]] = 2
        picker = two.router.picker
        await until(lambda: all(picker.report(d)["inflight_elsewhere"] == 2 for d in two.router.table.all))
        for name in names:
            one.shared.cooled(
                one.shared._by_id[name], 60, Block("cooldown", one.runtime.clock() + 60 * 10**9, "y" * 999)
            )
        await until(lambda: all(two.router.cooldowns.state(d) == "open" for d in two.router.table.all))
        three = await start(" ".join(names), port=server.port)
        assert all(three.router.cooldowns.state(d) == "open" for d in three.router.table.all)


# --- messages of nobody


async def test_what_no_process_would_say(tmp_path: Path, start: Start) -> None:
    with redis_server(tmp_path) as server:
        one, two = [await start(port=server.port) for _ in range(2)]
        client = server.client()
        wrong: list[Any] = [
            [], 7, None, "x", {}, {"v": "1"}, {"v": True}, {"v": 1}, {"v": 1, "from": 5}, {"v": 1, "from": ""},
            {"v": 1, "from": "x", "load": {"d1": 3}}, {"v": 1, "from": "x", "load": [["d1"]]},
            {"v": 1, "from": "x", "load": [["d1", -1]]}, {"v": 1, "from": "x", "load": [["d1", 1e9]]},
            {"v": 1, "from": "x", "load": [["d1", True]]}, {"v": 1, "from": "x", "cooled": [["d1", "60", "", False]]},
            {"v": 1, "from": "x", "cooled": [["d1", -5, "", False]]}, {"v": 1, "from": "x", "closed": [None]},
            {"v": 1, "from": "x", "cooled": [["d1", 1e12, "", False]]}, {"v": 1, "from": "x", "cooled": "d1"},
        ]  # fmt: skip
        raw = [
            *map(orjson.dumps, wrong),
            b"",
            b"\xff\x00",
            b"{",
            b'{"v":1,"from":"x","load":[' + b"[" * 5000,
            b"1" * 300_000,
        ]
        for message in raw:
            client.publish(CHANNEL, message)
        client.publish(CHANNEL, orjson.dumps({"v": 2, "from": "x", "loads": "anything"}))
        client.publish(CHANNEL, orjson.dumps({"v": 1, "from": "x", "load": [["nobody", 5], ["d1", 1]], "new": 1}))
        await until(lambda: one.elsewhere("d1") == two.elsewhere("d1") == 1)
        assert one.counted("routing_messages") == {"malformed": len(raw), "of another version": 1}
        assert one.state("d1") == "closed"
        for key, value in ((b"d1", b"[1"), (b"d2", b'["d2",1]'), (b"d3", orjson.dumps(["other", 9, "why", False]))):
            client.set(b"tianji:route:{%b}:cooldown" % key, value, px=60_000)
        three = await start(port=server.port)
        assert [three.state(name) for name in ("d1", "d2", "d3")] == ["closed", "closed", "open"]
        assert three.counted("routing_messages") == {"malformed": 2}
        assert one.runtime.restarts == three.runtime.restarts == {}


# --- without Redis


async def test_a_frozen_server(tmp_path: Path, start: Start) -> None:
    with redis_server(tmp_path) as server:
        one, two = [await start(port=server.port) for _ in range(2)]
        two.begins("d1", 4)
        await until(lambda: one.elsewhere("d1") == 4 and one.shared.replicas() == two.shared.replicas() == 2)
        server.freeze()
        one.cools("d2", 120)
        assert one.state("d2") == "open"

        def both() -> bool:
            return one.shared.replicas() == two.shared.replicas() == 2

        # Nobody knows any more how busy they are; but they share limits all the same.
        await until(lambda: one.elsewhere("d1") == 0, always=both)
        await remains(both, 2)
        assert two.state("d2") == "closed"
        two.begins("d1", 2)
        server.thaw()
        await until(lambda: two.state("d2") == "open" and one.elsewhere("d1") == 6, always=both)
        await remains(both, 4)
        assert one.runtime.restarts == two.runtime.restarts == {}


async def test_a_server_that_dies_and_comes_back_empty(tmp_path: Path, start: Start) -> None:
    port = free_port()
    with redis_server(tmp_path, port=port) as server:
        one, two = [await start(port=port) for _ in range(2)]
        one.cools("d1", 120)
        await until(lambda: two.state("d1") == "open")
        server.kill()
        two.cools("d2", 120)
        one.begins("d3")
        await asyncio.sleep(1)
    with redis_server(tmp_path, port=port) as server:
        await until(lambda: one.state("d2") == "open" and two.elsewhere("d3") == 1)
        await until(
            lambda: server.client().exists(*(f"tianji:route:{{{name}}}:cooldown" for name in ("d1", "d2"))) == 2
        )
        three = await start(port=port)
        assert three.state("d1") == three.state("d2") == "open"
        assert one.runtime.restarts == two.runtime.restarts == {}


async def test_a_start_without_redis(tmp_path: Path, start: Start) -> None:
    port = free_port()
    one = await start(port=port, heard=False)
    one.cools("d1", 120)
    one.begins("d2")
    assert await one.router.pins.of(session(), "gpt-4o", one.router.table.serving("gpt-4o")) is None
    one.router.pins.keep(session(), "gpt-4o", one["d3"])
    assert one.shared.replicas() == 1
    with redis_server(tmp_path, port=port):
        two = await start(port=port)
        await until(lambda: two.state("d1") == "open" and two.elsewhere("d2") == 1)


# --- pins


def session(name: str = "s") -> Any:
    return a_call(request={"model": "gpt-4o", "messages": [], "litellm_session_id": name})


def candidates(process: Process) -> Candidates:
    return process.router.table.serving("gpt-4o")


async def pinned(process: Process, name: str = "s") -> str | None:
    found = await process.router.pins.of(session(name), "gpt-4o", candidates(process))
    return found.id if found is not None else None


async def test_pins_are_shared(tmp_path: Path, start: Start) -> None:
    with redis_server(tmp_path) as server:
        one, two = [await start(port=server.port) for _ in range(2)]
        assert await pinned(two) is None
        one.router.pins.keep(session(), "gpt-4o", one["d2"])
        await until(lambda: bool(server.client().keys("tianji:route:pin:*")))
        assert await pinned(two) == "d2"
        (key,) = server.client().keys("tianji:route:pin:*")
        assert 3500 < server.client().ttl(key) <= 3600
        # Two that pin at the same time: the first one has it, for both.
        one.router.pins.keep(session("t"), "gpt-4o", one["d1"])
        two.router.pins.keep(session("t"), "gpt-4o", two["d3"])
        await until(lambda: one.shared.pins._writing is not None and one.shared.pins._writing.done())
        await until(lambda: two.shared.pins._writing is not None and two.shared.pins._writing.done())
        assert await pinned(one, "t") == await pinned(two, "t") is not None


async def test_pins_without_redis(tmp_path: Path, start: Start) -> None:
    with redis_server(tmp_path) as server:
        one = await start(port=server.port)
        one.router.pins.keep(session(), "gpt-4o", one["d2"])
        await until(lambda: one.shared.pins._writing is not None and one.shared.pins._writing.done())
        server.freeze()
        async with asyncio.timeout(WITHIN_S):
            assert [await pinned(one, f"new {n}") for n in range(200)] == [None] * 200
        for n in range(200):
            one.router.pins.keep(session(f"new {n}"), "gpt-4o", one["d1"])
        assert [await pinned(one, f"new {n}") for n in range(200)] == ["d1"] * 200
        assert await pinned(one) == "d2"
        # One of them, or what is told in the background, waited; the others did not even ask.
        waited = one.counted("redis_errors").get("get timeout", 0)
        assert waited <= 1
        assert sum(one.counted("routing_errors").values()) >= 200
        server.thaw()


async def test_pins_are_written_before_the_end(tmp_path: Path, start: Start) -> None:
    with redis_server(tmp_path) as server:
        one = await start(port=server.port)
        for n in range(2000):
            one.router.pins.keep(session(str(n)), "gpt-4o", one["d2"])
        await one.ends_in_order()
        assert len(server.client().keys("tianji:route:pin:*")) == 2000


# --- cluster


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    with redis_cluster(tmp_path) as running:
        yield running


async def test_on_a_cluster(cluster: Cluster, start: Start) -> None:
    names = " ".join(f"d{n}" for n in range(40))
    one, two = [await start(names, startup_nodes=cluster.nodes[:2]) for _ in range(2)]
    for name in names.split():
        one.cools(name)
    one.begins("d1", 2)
    await until(lambda: all(two.state(name) == "open" for name in names.split()) and two.elsewhere("d1") == 2)
    one.router.pins.keep(session(), "gpt-4o", one["d2"])
    await until(lambda: one.shared.pins._writing is not None and one.shared.pins._writing.done())
    three = await start(names, startup_nodes=cluster.nodes[:2])
    assert all(three.state(name) == "open" for name in names.split())
    assert await pinned(three) == "d2"


async def test_a_cluster_whose_channel_moves(cluster: Cluster, start: Start) -> None:
    one, two = [await start(startup_nodes=cluster.nodes[:2]) for _ in range(2)]
    await until(lambda: one.shared.replicas() == two.shared.replicas() == 2)
    cluster.owner(CHANNEL).kill()
    one.cools("d2", 120)
    two.begins("d1", 3)
    await until(lambda: two.state("d2") == "open" and one.elsewhere("d1") == 3)
    assert one.shared.replicas() == two.shared.replicas() == 2
    assert one.runtime.restarts == two.runtime.restarts == {}
