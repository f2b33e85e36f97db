"""A store in trouble costs no call: within a time limit, counted, left alone, asked again in the background."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from pydantic import PrivateAttr

from tests.support.cached import Cached, answer, ask
from tianji_mw.cache.base import CacheStore, StoreFailed
from tianji_mw.cache.shelf import Shelf
from tianji_mw.runtime import Runtime
from tianji_mw.testing import FakeLLM, Reply


class Moody(CacheStore):
    """Does what its mood says."""

    _mood: Any = PrivateAttr(default=None)
    _asked: int = PrivateAttr(default=0)
    _values: dict[str, bytes] = PrivateAttr(default_factory=dict)

    async def _act(self) -> None:
        self._asked += 1
        if self._mood == "frozen":
            await asyncio.sleep(60)
        elif self._mood is not None:
            raise self._mood

    async def get(self, key: str) -> bytes | None:
        await self._act()
        return self._values.get(key)

    async def put(self, key: str, value: bytes, ttl_s: float) -> None:
        await self._act()
        self._values[key] = value

    async def delete(self, keys: Sequence[str]) -> int:
        await self._act()
        return sum(self._values.pop(key, None) is not None for key in keys)

    async def ping(self) -> None:
        await self._act()


@pytest.fixture
async def runtime() -> AsyncIterator[Runtime]:
    async with Runtime() as made:
        yield made


async def test_a_frozen_store_is_waited_for_once(runtime: Runtime) -> None:
    store = Moody()
    shelf = Shelf(store, runtime, read_s=0.05)
    await shelf.put("a", b"1", 60)
    store._mood = "frozen"
    assert [await shelf.get("a") for _ in range(50)] == [None] * 50
    assert runtime.counts["cache_errors", "get timeout"] == 1
    assert runtime.counts["cache_errors", "get left-alone"] == 49
    assert "did not answer within 0.05 s" in runtime.degraded["cache"]
    await shelf.aclose()


async def test_it_heals_without_a_call_that_pays(runtime: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    store = Moody()
    shelf = Shelf(store, runtime, read_s=0.02)
    await shelf.put("a", b"1", 60)
    store._mood = "frozen"
    await shelf.get("a")
    store._mood = None
    asked = store._asked
    for _ in range(100):
        await asyncio.sleep(0.02)
        if store._asked > asked:
            break
    await asyncio.sleep(0.01)
    assert await shelf.get("a") == b"1"
    assert runtime.degraded == {}
    assert len(caplog.records) == 2, "one line when it went, one when it came back"


@pytest.mark.parametrize("kind", ["unreachable", "full", "refused", "error"])
async def test_failures_are_misses_and_counted_by_their_kind(runtime: Runtime, kind: str) -> None:
    store = Moody()
    shelf = Shelf(store, runtime)
    store._mood = StoreFailed("no", kind=kind)
    assert await shelf.get("a") is None
    assert await shelf.get_many(["a", "b"]) == [None, None]
    await shelf.put("a", b"1", 60)
    assert await shelf.delete(["a"]) == 0
    assert runtime.counts["cache_errors", f"get {kind}"] == 2
    assert runtime.counts["cache_errors", f"put {kind}"] == 1
    assert runtime.counts["cache_errors", "delete left-alone"] == 1, "three in a row, and it is left alone"
    await shelf.aclose()


async def test_whatever_a_store_raises_is_a_miss(runtime: Runtime) -> None:
    store = Moody()
    shelf = Shelf(store, runtime)
    store._mood = ZeroDivisionError("a fault of its own")
    assert await shelf.get("a") is None
    assert runtime.counts["cache_errors", "get ZeroDivisionError"] == 1
    await shelf.aclose()


async def test_people_are_told_the_trouble(runtime: Runtime) -> None:
    store = Moody()
    shelf = Shelf(store, runtime)
    store._mood = StoreFailed("cache.internal refused the password; set cache_params.password", kind="refused")
    await shelf.get("a")
    assert (await shelf.report())["trouble"] == store._mood.message
    with pytest.raises(StoreFailed):
        await shelf.ping()
    await shelf.aclose()


@pytest.mark.parametrize("mood", ["frozen", StoreFailed("down", kind="unreachable"), RuntimeError("odd")])
async def test_calls_go_on_without_it(llm: FakeLLM, mood: Any) -> None:
    store = Moody()
    gateway = Cached(llm, store=store)
    llm._default = lambda request: Reply.json(answer())
    store._mood = mood
    for number in range(5):
        found = await gateway(ask(f"question {number}"))
        assert (found.status, found.headers["x-cache"]) == (200, "MISS")
    store._mood = None
    await gateway.cache.aclose()
    await gateway.aclose()


@pytest.mark.parametrize(
    ("raw", "reason"),
    [(b"TJC0" + b"x" * 40, "version"), (b"garbage", "corrupt"), (b"", "corrupt"), (b"TJC1" + bytes(40), "corrupt")],
)
async def test_what_a_store_has_spoilt_is_a_miss(llm: FakeLLM, raw: bytes, reason: str) -> None:
    store = Moody()
    gateway = Cached(llm, store=store)
    llm._default = lambda request: Reply.json(answer())
    first = await gateway(ask())
    key = first.headers["x-litellm-cache-key"]
    for _ in range(100):
        if key in store._values:
            break
        await asyncio.sleep(0.01)
    store._values[key] = raw
    assert (await gateway(ask())).headers["x-cache"] == "MISS"
    assert gateway.app.runtime.counts["cache_errors", f"get {reason}"] == 1
    await gateway.cache.aclose()
    await gateway.aclose()
