"""`ObjectCallback.write`: which records arrived, over a store in memory that fails as it is told."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest
from pydantic import PrivateAttr, ValidationError

from tests.support.records import START, a_record
from tianji_mw.callbacks.base import NotDelivered, Record
from tianji_mw.callbacks.objects.base import ObjectCallback, PutFailed, Stored
from tianji_mw.errors import MissingExtra
from tianji_mw.runtime import Runtime


class Memory(ObjectCallback):
    """Keeps objects, and their order; `fails` may raise, `during` is awaited before."""

    title: ClassVar[str] = "memory"

    _stored: dict[str, bytes] = PrivateAttr(default_factory=dict)
    _tried: list[str] = PrivateAttr(default_factory=list)
    _fails: Callable[[Stored], None] = PrivateAttr(default_factory=lambda: lambda item: None)
    _at_once: int = PrivateAttr(default=0)
    _most: int = PrivateAttr(default=0)
    _during: Callable[[Stored], Any] = PrivateAttr(default_factory=lambda: lambda item: asyncio.sleep(0))

    async def put(self, item: Stored) -> None:
        self._tried.append(item.key)
        self._at_once += 1
        self._most = max(self._most, self._at_once)
        try:
            await self._during(item)
            self._fails(item)
            self._stored[item.key] = item.body
        finally:
            self._at_once -= 1


async def memory(**settings: Any) -> Memory:
    callback = Memory(**settings)
    await callback.start(Runtime())
    return callback


def fails(*kinds: str, when: str) -> Callable[[Stored], None]:
    """Objects with this in their name fail, in turn, with these kinds; the last one for ever."""
    left = list(kinds)

    def fail(item: Stored) -> None:
        if when in item.key:
            raise PutFailed("told", left.pop(0) if len(left) > 1 else left[0])  # type: ignore[arg-type]

    return fail


def ids(records: Sequence[Record] | None) -> list[str]:
    return [record.data["id"] for record in records or ()]


def batch(*names: str) -> list[Record]:
    return [a_record(id=name) for name in names]


async def test_all_arrive_and_no_more_at_once_than_allowed() -> None:
    callback = await memory(concurrent_uploads=4)
    await callback.write([a_record() for _ in range(50)])
    assert len(callback._stored) == 50
    assert callback._most == 4


async def test_exactly_what_failed_is_named() -> None:
    callback = await memory()
    callback._fails = fails("retry", when="bad")
    with pytest.raises(NotDelivered, match="memory: 2 of 5 objects were not stored: told") as caught:
        await callback.write(batch("a", "bad1", "b", "bad2", "c"))
    assert sorted(ids(caught.value.failed)) == ["bad1", "bad2"]
    assert caught.value.refused == []
    assert caught.value.retry


async def test_refused_beside_others_is_refused_and_alone_is_kept() -> None:
    callback = await memory()
    callback._fails = fails("refused", when="bad")
    with pytest.raises(NotDelivered) as caught:
        await callback.write(batch("a", "bad"))
    assert (ids(caught.value.failed), ids(caught.value.refused)) == ([], ["bad"])
    with pytest.raises(NotDelivered) as caught:
        await callback.write(batch("bad1", "bad2"))
    assert (len(caught.value.failed or ()), ids(caught.value.refused)) == (2, [])
    keeping = await memory(drop_refused=False)
    keeping._fails = callback._fails
    with pytest.raises(NotDelivered) as caught:
        await keeping.write(batch("a", "bad"))
    assert (ids(caught.value.failed), ids(caught.value.refused)) == (["bad"], [])


async def test_too_old_beside_others_is_given_up() -> None:
    callback = Memory(max_retry_age_s=3600)
    await callback.start(Runtime(wall=lambda: START + 4000))
    callback._fails = fails("retry", when="bad")
    old, new = a_record(id="bad-old", endTime=START), a_record(id="bad-new", endTime=START + 1000)
    with pytest.raises(NotDelivered) as caught:
        await callback.write([old, new, a_record(id="good")])
    assert (ids(caught.value.failed), ids(caught.value.refused)) == (["bad-new"], ["bad-old"])
    with pytest.raises(NotDelivered) as caught:
        await callback.write([old])
    assert (ids(caught.value.failed), ids(caught.value.refused)) == (["bad-old"], [])


async def test_a_halt_stops_the_rest_and_loses_nothing() -> None:
    callback = await memory(concurrent_uploads=2)
    callback._fails = fails("halt", when="bad")
    with pytest.raises(NotDelivered, match="9 of 10") as caught:
        await callback.write(batch("a", "bad", *"cdefghij"))
    assert len(callback._tried) <= 3
    assert len(caught.value.failed or ()) + len(callback._stored) == 10


async def test_too_large_files_are_halved_and_a_single_record_is_refused() -> None:
    callback = await memory(layout="batches")

    def fail(item: Stored) -> None:
        if len(item.records) > 3 or b"huge" in item.body:
            raise PutFailed("too large", "too_large")

    callback._fails = fail
    records = batch("a", "b", "c", "huge", "d", "e", "f", "g", "h")
    with pytest.raises(NotDelivered) as caught:
        await callback.write(records)
    assert (ids(caught.value.failed), ids(caught.value.refused)) == ([], ["huge"])
    lines = b"".join(callback._stored.values()).splitlines()
    assert sorted(lines) == sorted(record.raw for record in records if record.data["id"] != "huge")


async def test_one_record_twice_that_is_too_large_ends() -> None:
    callback = await memory(layout="batches")
    callback._fails = fails("too_large", when="")
    record = a_record()
    with pytest.raises(NotDelivered) as caught:
        await callback.write([record, Record(record.id, record.raw)])
    assert len(caught.value.refused) == 2
    assert len(callback._tried) == 1


async def test_the_longest_pause_is_kept() -> None:
    callback = await memory()
    pauses = iter([3.0, 9.0, None])

    def fail(item: Stored) -> None:
        raise PutFailed("slow down", "busy", retry_after_s=next(pauses))

    callback._fails = fail
    with pytest.raises(NotDelivered) as caught:
        await callback.write(batch("a", "b", "c"))
    assert caught.value.retry_after_s == 9.0


async def test_a_fault_in_the_code_of_a_store_fails_one_object_and_shows_no_text() -> None:
    callback = await memory()

    def fail(item: Stored) -> None:
        if "bad" in item.key:
            raise KeyError("sk-secret")

    callback._fails = fail
    with pytest.raises(NotDelivered, match="KeyError in the callback's own code") as caught:
        await callback.write(batch("a", "bad", "b"))
    assert ids(caught.value.failed) == ["bad"]
    assert "sk-secret" not in caught.value.message


async def test_a_put_that_cancels_itself_is_a_failure() -> None:
    callback = await memory()

    def fail(item: Stored) -> None:
        raise asyncio.CancelledError

    callback._fails = fail
    with pytest.raises(NotDelivered) as caught:
        await callback.write(batch("a"))
    assert ids(caught.value.failed) == ["a"]


async def test_time_that_is_over_leaves_the_rest_for_later() -> None:
    """The clock runs on with every upload: 1 s each, of 10 s in all."""
    now = [0]
    callback = Memory(timeout_s=10, concurrent_uploads=1)
    await callback.start(Runtime(clock=lambda: now[0]))

    async def during(item: Stored) -> None:
        now[0] += 1_000_000_000

    callback._during = during
    with pytest.raises(NotDelivered, match="not enough time") as caught:
        await callback.write([a_record() for _ in range(20)])
    assert len(callback._stored) == 8
    assert len(caught.value.failed or ()) == 12


async def test_an_upload_without_end_is_left_alone() -> None:
    callback = await memory(timeout_s=0.2)
    forever = asyncio.Event()
    callback._during = lambda item: forever.wait() if "bad" in item.key else asyncio.sleep(0)
    with pytest.raises(NotDelivered) as caught:
        await callback.write(batch("a", "bad", "b"))
    assert ids(caught.value.failed) == ["bad"]
    assert len(callback._stored) == 2
    assert callback._at_once == 0  # cancelled


async def test_a_cancelled_write_cancels_its_uploads() -> None:
    callback = await memory()
    begun, forever = asyncio.Event(), asyncio.Event()

    async def during(item: Stored) -> None:
        begun.set()
        await forever.wait()

    callback._during = during
    task = asyncio.create_task(callback.write(batch("a", "b")))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert callback._at_once == 0


async def test_uploads_at_once_grow_and_halve() -> None:
    callback = await memory(concurrent_uploads=4, adaptive_uploads=True, max_adaptive_uploads=6)
    await callback.write([a_record() for _ in range(60)])
    assert callback._limit == 6
    assert callback._most == 6
    callback._fails = fails("busy", when="")
    for expected in (3, 1, 1):
        with pytest.raises(NotDelivered):
            await callback.write([a_record() for _ in range(7)])
        assert callback._limit <= expected + 1
    callback._fails = lambda item: None
    await callback.write([a_record() for _ in range(60)])
    assert callback._limit == 6
    fixed = await memory(concurrent_uploads=4)
    fixed._fails = fails("busy", when="")
    with pytest.raises(NotDelivered):
        await fixed.write([a_record() for _ in range(60)])
    assert fixed._limit == 4


async def test_what_is_not_installed_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingExtra, match=r"tianji-mw\[parquet\]"):
        await memory(layout="batches", format="parquet")
    with pytest.raises(MissingExtra, match=r"tianji-mw\[zstd\]"):
        await memory(compression="zstd")
    await memory(compression="gzip")


async def test_a_write_before_the_start_keeps_the_records() -> None:
    with pytest.raises(NotDelivered, match="was not started") as caught:
        await Memory().write(batch("a"))
    assert caught.value.failed is None
    assert caught.value.retry


@pytest.mark.parametrize(
    ("value", "expected"),
    [("true", True), ("maybe", True), ("False", False), ("0", False), (" off ", False), (False, False), (True, True)],
)
def test_prompts_only_in_doubt(value: Any, expected: bool) -> None:
    assert Memory(prompts_only=value).prompts_only is expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"format": "parquet"}, {"format": "parquet", "layout": "batch_files"}, {"layout": "files"},
        {"partition": "minute"}, {"concurrent_uploads": 0}, {"compression": "lz4"}, {"upload_timeout_s": 0},
    ],
)  # fmt: skip
def test_settings_that_are_wrong(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Memory(**wrong)
