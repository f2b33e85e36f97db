"""The contract of counters: the same questions to those of one process and to those in a real Redis.

Time is the test's own. In Redis, the scripts read it from a key in the place of the server's clock.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.redis_servers import Server, redis_server
from tianji_mw.counters import redis as in_redis
from tianji_mw.counters import redis_holds
from tianji_mw.counters.base import Holds, Refused, Want, Windows
from tianji_mw.counters.known import Known
from tianji_mw.counters.local import LocalHolds, LocalWindows
from tianji_mw.counters.lua import MICRO
from tianji_mw.counters.redis import RedisHolds, RedisWindows
from tianji_mw.redis import shared
from tianji_mw.redis.scripts import Script
from tianji_mw.redis.settings import RedisSettings
from tianji_mw.runtime import Runtime

#: A window of 60 s counts up to one part longer.
PART_S = 1.0
OLD, NEW = "redis.call('TIME')", "redis.call('HMGET', 'now', 's', 'us')"
GROUPS = itertools.count()

several = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@dataclass
class Counters:
    """Both counters on one clock. `group` is new in each test and each example."""

    windows: Windows
    holds: Holds
    runtime: Runtime
    server: Server | None = None
    #: Starts within a part of the window, at no round number.
    ns: int = 1_000_000_123_000
    group: str = ""

    def fresh(self) -> None:
        self.group = f"g{next(GROUPS)}"

    def later(self, seconds: float) -> None:
        self.ns += round(seconds * 1e6) * 1000
        if self.server is not None:
            self.server.client().hset("now", mapping={"s": self.ns // 10**9, "us": self.ns // 1000 % 10**6})

    async def take(self, *wants: Want) -> Refused | None:
        return await self.windows.take(self.group, wants)

    async def hold(self, hold_id: str, amount: float, limit: float = 10, ttl_s: float = 600) -> Refused | None:
        return await self.holds.hold(
            self.group, "usd", limit=limit, amount=amount, period_s=3600, hold_id=hold_id, ttl_s=ttl_s
        )

    async def settle(self, hold_id: str, amount: float) -> None:
        await self.holds.settle(self.group, "usd", hold_id=hold_id, amount=amount, period_s=3600)

    async def spent(self) -> tuple[float, float, float]:
        return await self.holds.spent(self.group, "usd")


@pytest.fixture(scope="module", params=["local", pytest.param("redis", marks=pytest.mark.slow)])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server | None]:
    with ExitStack() as stack:
        redis = request.param == "redis"
        yield stack.enter_context(redis_server(tmp_path_factory.mktemp("redis"))) if redis else None


@asynccontextmanager
async def opened(server: Server | None) -> AsyncIterator[Counters]:
    async with Runtime() as real:
        runtime = Runtime(clock=lambda: counters.ns)
        windows: Windows = LocalWindows(runtime)
        holds: Holds = LocalHolds(runtime)
        if server is not None:
            redis = await shared(RedisSettings(port=server.port, op_timeout_s=5), real)
            windows = RedisWindows(redis, runtime, prefix="t", replicas=lambda: 1)
            holds = RedisHolds(redis, runtime, prefix="t", replicas=lambda: 1)
        counters = Counters(windows, holds, runtime, server)
        counters.fresh()
        counters.later(0)
        yield counters
        assert not runtime.counts


@pytest.fixture
async def counters(server: Server | None, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Counters]:
    for module, names in ((in_redis, ("TAKE", "ADD", "USED")), (redis_holds, ("HOLD", "SETTLE", "SPENT"))):
        for name in names:
            source = getattr(module, name).source
            assert source.count(OLD) == 1
            monkeypatch.setattr(module, name, Script(source.replace(OLD, NEW)))
    async with opened(server) as found:
        yield found


# --- windows


async def test_no_more_than_the_limit(counters: Counters) -> None:
    assert [await counters.take(Want("rpm", 5, 1)) for _ in range(5)] == [None] * 5
    refused = await counters.take(Want("rpm", 5, 1))
    assert refused is not None
    assert (refused.key, refused.used, refused.limit) == ("rpm", 5, 5)
    assert await counters.windows.used(counters.group, "rpm") == 5
    assert 60 <= refused.retry_after_s <= 60 + PART_S


async def test_what_is_known_without_asking(counters: Counters) -> None:
    known = counters.windows.known
    assert known(counters.group, "rpm") == 0
    for number in range(1, 4):
        await counters.take(Want("rpm", 3, 1), Want("tpm", 100, 10))
        assert (known(counters.group, "rpm"), known(counters.group, "tpm")) == (number, number * 10)
        counters.later(5)
    assert await counters.take(Want("rpm", 3, 1)) is not None
    assert known(counters.group, "rpm") == 3
    counters.later(51 + PART_S)
    assert known(counters.group, "rpm") < 3
    counters.later(60 + PART_S)
    assert known(counters.group, "rpm") == 0


async def test_all_or_nothing(counters: Counters) -> None:
    assert await counters.take(Want("rpm", 10, 1), Want("tpm", 100, 80)) is None
    refused = await counters.take(Want("rpm", 10, 1), Want("tpm", 100, 30))
    assert refused is not None
    assert (refused.key, refused.used) == ("tpm", 80)
    assert await counters.windows.used(counters.group, "rpm") == 1
    assert await counters.take(Want("rpm", 10, 1), Want("tpm", 100, 20)) is None
    assert await counters.take() is None


async def test_the_one_that_waits_longest_is_told(counters: Counters) -> None:
    assert await counters.take(Want("tpm", 100, 100)) is None
    counters.later(20)
    assert await counters.take(Want("rpm", 1, 1)) is None
    for wants in (Want("tpm", 100, 1), Want("rpm", 1, 1)), (Want("rpm", 1, 1), Want("tpm", 100, 1)):
        refused = await counters.take(*wants)
        assert refused is not None
        assert refused.key == "rpm"


async def test_one_key_twice(counters: Counters) -> None:
    assert await counters.take(Want("tpm", 10, 4), Want("tpm", 10, 4)) is None
    assert await counters.take(Want("tpm", 10, 1), Want("tpm", 10, 2)) is not None
    assert await counters.windows.used(counters.group, "tpm") == 8


async def test_groups_keys_and_lengths_are_apart(counters: Counters) -> None:
    assert await counters.take(Want("rpm", 1, 1)) is None
    assert await counters.take(Want("rpm", 1, 1, 3600)) is None
    assert await counters.take(Want("rpm2", 1, 1)) is None
    assert await counters.windows.take(counters.group + "x", [Want("rpm", 1, 1)]) is None
    assert await counters.windows.take("{odd} %", [Want("a{b}:*", 1e6, 1)]) is None


async def test_the_wait_is_neither_too_short_nor_too_long(counters: Counters) -> None:
    for amount in (10, 20, 30, 40):
        assert await counters.take(Want("tpm", 100, amount)) is None
        counters.later(7)
    refused = await counters.take(Want("tpm", 100, 25))
    assert refused is not None
    counters.later(refused.retry_after_s - 0.001)
    assert await counters.take(Want("tpm", 100, 25)) is not None
    counters.later(0.001)
    assert await counters.take(Want("tpm", 100, 25)) is None
    assert await counters.windows.used(counters.group, "tpm") == 95


async def test_more_than_the_limit_never_fits(counters: Counters) -> None:
    refused = await counters.take(Want("tpm", 100, 101))
    assert refused is not None
    assert (refused.retry_after_s, refused.used) == (60, 0)


async def test_fractions_and_no_limit(counters: Counters) -> None:
    assert await counters.take(Want("x", 0.3, 0.125)) is None
    assert await counters.take(Want("x", float("inf"), 1e9 + 0.5)) is None
    assert await counters.windows.used(counters.group, "x") == 1e9 + 0.625


async def test_corrections(counters: Counters) -> None:
    windows, group = counters.windows, counters.group
    assert await counters.take(Want("tpm", 1000, 1000)) is None
    await windows.settle(group, "tpm", -900)
    assert await windows.used(group, "tpm") == 100
    await windows.settle(group, "tpm", 50)
    assert await windows.used(group, "tpm") == 150
    await windows.settle(group, "tpm", -900)
    assert await windows.used(group, "tpm") == 0
    assert await counters.take(Want("tpm", 1000, 1000)) is None
    assert await counters.take(Want("tpm", 1000, 1)) is not None


async def test_a_correction_is_taken_out_where_it_was_put_in(counters: Counters) -> None:
    windows, group = counters.windows, counters.group
    at = counters.ns / 1e9
    assert await counters.take(Want("tpm", 2000, 1000)) is None
    counters.later(30)
    assert await counters.take(Want("tpm", 2000, 1000)) is None
    await windows.settle(group, "tpm", -900, at=at)
    assert await windows.used(group, "tpm") == 1100
    counters.later(32)  # what is left of the first leaves the window, and nothing of the second
    assert await windows.used(group, "tpm") == 1000
    await windows.settle(group, "tpm", -900, at=at)
    assert await windows.used(group, "tpm") == 1000


async def test_a_correction_upwards_counts_from_now_on(counters: Counters) -> None:
    at = counters.ns / 1e9
    assert await counters.take(Want("tpm", 2000, 1000)) is None
    counters.later(45)
    await counters.windows.settle(counters.group, "tpm", 500, at=at)
    counters.later(30)
    assert await counters.windows.used(counters.group, "tpm") == 500


async def test_at_the_same_time(counters: Counters) -> None:
    answers = await asyncio.gather(*(counters.take(Want("rpm", 20, 1), Want("tpm", 1e6, 7)) for _ in range(60)))
    assert answers.count(None) == 20
    assert await counters.windows.used(counters.group, "tpm") == 140


Ask = tuple[float, Sequence[tuple[str, int]]]
asks = st.lists(
    st.tuples(
        st.one_of(st.just(0.0), st.integers(1, 90_000).map(lambda ms: ms / 1000)),
        st.lists(
            st.tuples(st.sampled_from("ab"), st.integers(0, 12)), min_size=1, max_size=2, unique_by=lambda w: w[0]
        ),
    ),
    max_size=40,
)


@several
@given(asks=asks)
async def test_never_more_than_the_limit_in_any_window(counters: Counters, asks: Sequence[Ask]) -> None:
    counters.fresh()
    limits = {"a": 10, "b": 25}
    admitted: dict[str, list[tuple[int, int]]] = {"a": [], "b": []}

    def within(key: str, seconds: float) -> int:
        return sum(amount for at, amount in admitted[key] if counters.ns - at < seconds * 1e9)

    for pause, wants in asks:
        counters.later(pause)
        refused = await counters.take(*(Want(key, limits[key], amount) for key, amount in wants))
        if refused is None:
            for key, amount in wants:
                admitted[key].append((counters.ns, amount))
                assert within(key, 60) <= limits[key]
        else:
            assert any(within(key, 60 + PART_S) + amount > limits[key] for key, amount in wants)
        for key in "ab":
            used = await counters.windows.used(counters.group, key)
            assert within(key, 60) <= used <= within(key, 60 + PART_S)


# --- holds


async def test_a_call_holds_and_spends(counters: Counters) -> None:
    assert await counters.spent() == (0, 0, 0)
    assert await counters.hold("1", 2) is None
    assert await counters.spent() == (0, 2, 3600)
    counters.later(60)
    await counters.settle("1", 0.000_000_001)
    assert await counters.spent() == (0.000_000_001, 0, 3540)


async def test_a_hold_that_is_released(counters: Counters) -> None:
    assert await counters.hold("1", 10) is None
    assert await counters.hold("2", 10) is not None
    await counters.settle("1", 0)
    assert await counters.spent() == (0, 0, 3600)
    assert await counters.hold("2", 10) is None


async def test_the_last_call_may_overshoot_and_only_one(counters: Counters) -> None:
    assert await counters.hold("1", 9.5) is None
    await counters.settle("1", 9.5)
    assert await counters.hold("2", 3) is None
    refused = await counters.hold("3", 0.1)
    assert refused is not None
    assert (refused.used, refused.limit, refused.retry_after_s) == (12.5, 10, 1)
    await counters.settle("2", 3)
    counters.later(100)
    refused = await counters.hold("3", 0.1)
    assert refused is not None
    assert refused.retry_after_s == 3500
    counters.later(3500)
    assert await counters.hold("3", 0.1) is None


async def test_holding_twice_is_holding_once(counters: Counters) -> None:
    assert await counters.hold("1", 6) is None
    assert await counters.hold("1", 6) is None
    assert (await counters.spent())[1] == 6


async def test_a_hold_that_nobody_settles(counters: Counters) -> None:
    assert await counters.hold("dead", 8, ttl_s=30) is None
    assert await counters.hold("1", 5) is not None
    counters.later(30)
    assert await counters.hold("1", 5) is None
    await counters.settle("dead", 3)
    assert await counters.spent() == (3, 5, 3570)


async def test_a_period_ends(counters: Counters) -> None:
    assert await counters.hold("1", 6) is None
    await counters.settle("1", 6)
    assert await counters.hold("2", 3, ttl_s=7200) is None
    counters.later(3600)
    assert await counters.spent() == (0, 3, 0)  # the call still runs
    assert await counters.hold("3", 8) is not None
    await counters.settle("2", 10)  # begins a period
    assert await counters.spent() == (10, 0, 3600)
    counters.later(3599)
    assert await counters.hold("3", 7) is not None
    counters.later(1)
    assert await counters.hold("3", 7) is None
    assert await counters.spent() == (0, 7, 3600)


async def test_a_budget_of_nothing(counters: Counters) -> None:
    refused = await counters.hold("1", 0.1, limit=0)
    assert refused == Refused("usd", 3600, 0, 0)


async def test_calls_at_the_same_time_hold_no_more_than_there_is(counters: Counters) -> None:
    answers = await asyncio.gather(*(counters.hold(f"{n}", 0.3) for n in range(60)))
    assert answers.count(None) == 33


@dataclass
class Ledger:
    """What a budget should say."""

    spent: int = 0
    ends: int = 0
    holds: dict[str, tuple[int, int]] = field(default_factory=dict)

    def pass_time(self, now: int) -> None:
        self.holds = {hold_id: one for hold_id, one in self.holds.items() if one[1] > now}
        if self.ends <= now:
            self.spent = self.ends = 0

    @property
    def held(self) -> int:
        return sum(amount for amount, _ in self.holds.values())


steps = st.lists(
    st.tuples(
        st.integers(0, 2_000), st.sampled_from(["hold", "hold", "settle"]), st.integers(0, 9), st.integers(0, 12)
    ),
    max_size=40,
)


@several
@given(steps=steps)
async def test_a_budget_as_a_ledger_has_it(counters: Counters, steps: Sequence[tuple[int, str, int, int]]) -> None:
    counters.fresh()
    ledger, limit = Ledger(), 20
    for pause, what, which, amount in steps:
        counters.later(pause)
        ledger.pass_time(counters.ns)
        hold_id = f"h{which}"
        if what == "settle" and hold_id in ledger.holds:
            del ledger.holds[hold_id]
            ledger.spent += amount
            ledger.ends = ledger.ends or (counters.ns + 3600 * 10**9 if amount else 0)
            await counters.settle(hold_id, amount)
        elif what == "hold" and hold_id not in ledger.holds:
            fits = ledger.spent + ledger.held + amount <= limit or (not ledger.holds and ledger.spent < limit)
            refused = await counters.hold(hold_id, amount, limit, ttl_s=1500)
            assert (refused is None) == fits
            if fits:
                ledger.holds[hold_id] = (amount, counters.ns + 1500 * 10**9)
                ledger.ends = ledger.ends or counters.ns + 3600 * 10**9
                largest = max(amount for amount, _ in ledger.holds.values())
                assert ledger.spent + ledger.held <= limit + largest or ledger.spent >= limit
        left_s = max(0, ledger.ends - counters.ns) / 1e9
        assert await counters.spent() == (ledger.spent, ledger.held, left_s)


# --- each of its own


async def test_a_process_forgets_what_is_over() -> None:
    now = 0
    windows, holds = LocalWindows(Runtime(clock=lambda: now)), LocalHolds(Runtime(clock=lambda: now))
    for n in range(2000):
        now += 10**9
        assert await windows.take(f"g{n}", [Want("rpm", 5, 1)]) is None
        assert await holds.hold(f"g{n}", "usd", limit=1, amount=1, period_s=60, hold_id="1", ttl_s=70) is None
    assert len(windows._rings.found) < 150
    assert len(holds._purses.found) < 150


def test_what_redis_said_leaves_the_window() -> None:
    second = 10**9
    known = Known(60, 0)
    assert known.stale(5 * second)
    known.note(30 * MICRO, [10_000_000, 10 * MICRO, 50_000_000, 20 * MICRO], 5 * second)
    known.note(35 * MICRO, (), 6 * second)
    assert not known.stale(6 * second - 1)
    assert [known.used(at * second) for at in (6, 14, 15, 54, 55, 66, 67)] == [35, 35, 25, 25, 5, 5, 0]
    assert known.over(67 * second)


@pytest.mark.slow
async def test_redis_forgets_what_is_over(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        async with Runtime() as runtime:
            redis = await shared(RedisSettings(port=server.port), runtime)
            windows = RedisWindows(redis, runtime, prefix="t", replicas=lambda: 1)
            holds = RedisHolds(redis, runtime, prefix="t", replicas=lambda: 1)
            assert await windows.take("g", [Want("rpm", 5, 1), Want("tpm", 5, 1, 3600)]) is None
            assert await holds.hold("g", "usd", limit=1, amount=1, period_s=60, hold_id="1") is None
            await holds.settle("g", "usd", hold_id="1", amount=1, period_s=60)
        client = server.client()
        ttls = {key.decode(): client.ttl(key) for key in client.scan_iter("*")}
        assert ttls == {
            "t:{g}:w:60:rpm": pytest.approx(62, abs=2),
            "t:{g}:w:3600:tpm": pytest.approx(3661, abs=2),
            "t:{g}:m:usd": pytest.approx(61, abs=2),
            "t:{g}:d:usd": pytest.approx(61, abs=2),
        }


@pytest.mark.slow
async def test_one_round_trip(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        async with Runtime() as runtime:
            redis = await shared(RedisSettings(port=server.port), runtime)
            windows = RedisWindows(redis, runtime, prefix="t", replicas=lambda: 1)
            wants = [Want("rpm", 50, 1), Want("tpm", 5000, 10)]
            for _ in range(100):
                await windows.take("g", wants)
            assert (server.calls("evalsha"), server.calls("eval")) == (100, 1)
            assert await windows.used("g", "rpm") == 50


async def test_wrong_values() -> None:
    with pytest.raises(ValueError, match="longer than 0 s"):
        await LocalWindows(Runtime()).take("g", [Want("rpm", 1, 1, 0)])
