"""The store in memory: its bounds hold whatever is done to it."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tianji_mw.cache.memory import Memory
from tianji_mw.runtime import Runtime

KEYS = st.sampled_from([f"k{n}" for n in range(12)])


class Clock:
    now = 0

    def __call__(self) -> int:
        return self.now


def run(work: Any) -> Any:
    return asyncio.run(work)


class Bounds(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.clock = Clock()
        self.store = Memory(max_items=5, max_bytes=4000, max_item_bytes=900)
        run(self.store.start(Runtime(clock=self.clock)))
        #: What was put last, and until when it may be there.
        self.put_last: dict[str, tuple[bytes, int]] = {}

    @rule(key=KEYS, size=st.integers(0, 1200), ttl=st.integers(0, 50))
    def put(self, key: str, size: int, ttl: int) -> None:
        value = bytes([size % 256]) * size
        run(self.store.put(key, value, float(ttl)))
        if size <= 900 and ttl > 0:
            self.put_last[key] = (value, self.clock.now + ttl * 10**9)
        else:
            self.put_last.pop(key, None)

    @rule(key=KEYS)
    def get(self, key: str) -> None:
        found = run(self.store.get(key))
        if found is not None:
            value, expires = self.put_last[key]
            assert found == value
            assert self.clock.now < expires

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        run(self.store.delete([key]))
        assert run(self.store.get(key)) is None
        self.put_last.pop(key, None)

    @rule(seconds=st.integers(1, 20))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds * 10**9

    @invariant()
    def bounds_hold(self) -> None:
        if hasattr(self, "store"):
            report = run(self.store.report())
            assert report["items"] <= 5
            assert 0 <= report["bytes"] <= 4000


TestBounds = Bounds.TestCase
TestBounds.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


async def test_the_least_recently_used_goes_first() -> None:
    store = Memory(max_items=3)
    for key in "abc":
        await store.put(key, b"x", 60)
    await store.get("a")
    await store.put("d", b"x", 60)
    assert [await store.get(key) is not None for key in "abcd"] == [True, False, True, True]
    assert (await store.report())["evicted"] == 1


async def test_what_is_replaced_leaves_nothing_behind() -> None:
    store = Memory()
    for number in range(10_000):
        await store.put("same", b"%d" % number, 60 + number)
    report = await store.report()
    assert report["items"] == 1
    assert len(store._kept.queue) < 200


async def test_a_value_that_is_too_large_is_counted() -> None:
    store = Memory(max_item_bytes=10)
    await store.put("a", b"short", 60)
    await store.put("a", b"much too long", 60)
    assert await store.get("a") is None, "an older value is no answer either"
    assert (await store.report())["refused"] == 1


async def test_keys_by_prefix() -> None:
    store = Memory()
    for key in ("a:1", "a:2", "b:1"):
        await store.put(key, b"x", 60)
    assert [key async for key in store.keys("a:")] == ["a:1", "a:2"]
