"""The outbox: delivered, given up and counted, or waiting; each record is one of the three, whatever fails."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.outbox.test_journal import crash
from tianji_mw.callbacks.base import Callback
from tianji_mw.callbacks.destination import Destination as Sink
from tianji_mw.delivery import Delivery
from tianji_mw.journal import Journal
from tianji_mw.outbox import Outbox
from tianji_mw.records import NotDelivered, Record
from tianji_mw.runtime import Runtime

QUICK: dict[str, Any] = {"batch_size": 8, "flush_interval_s": 0.002, "backoff_s": 0.001, "max_backoff_s": 0.004}


class Destination:
    """Takes records as its mode says, and keeps what it took."""

    def __init__(self) -> None:
        self.mode = "ok"
        self.batches: list[list[str]] = []
        self.took: list[str] = []
        self.attempts = 0

    async def write(self, batch: Sequence[Record]) -> None:
        self.attempts += 1
        take = getattr(self, f"_{self.mode}")
        taken = await take(list(batch))
        self.batches.append([record.id for record in taken])
        self.took += [record.id for record in taken]

    async def _ok(self, batch: list[Record]) -> list[Record]:
        return batch

    async def _down(self, batch: list[Record]) -> list[Record]:
        raise NotDelivered("down")

    async def _broken(self, batch: list[Record]) -> list[Record]:
        raise KeyError("a bug of the callback")

    async def _cancels(self, batch: list[Record]) -> list[Record]:
        raise asyncio.CancelledError

    async def _hangs(self, batch: list[Record]) -> list[Record]:
        await asyncio.sleep(60)
        return batch

    async def _partly(self, batch: list[Record]) -> list[Record]:
        failed = [record for record in batch if (int(record.id) + self.attempts) % 3 == 0]
        self.took += [record.id for record in batch if record not in failed]
        raise NotDelivered("some failed", failed=failed)

    async def _picky(self, batch: list[Record]) -> list[Record]:
        """Refuses the request as a whole where one record in it is a poisoned one."""
        if any(int(record.id) % 5 == 4 for record in batch):
            raise NotDelivered("400", retry=False)
        return batch

    async def _refuses(self, batch: list[Record]) -> list[Record]:
        refused = [record for record in batch if int(record.id) % 5 == 4]
        self.took += [record.id for record in batch if record not in refused]
        raise NotDelivered("too large", failed=[], refused=refused)


class Life:
    """One process: a journal and an outbox, until it is killed or ends."""

    def __init__(self, root: Path | None, destination: Destination, **delivery: Any) -> None:
        self.runtime = Runtime()
        self.journal = Journal(root, segment_bytes=4096, count=self.runtime.count)
        self.destination = destination
        self.delivery = Delivery(**{**QUICK, "timeout_s": 0.01, **delivery})

    async def begin(self) -> Outbox:
        await self.journal.open(self.runtime.new_id())
        self.outbox = Outbox(
            "sink", self.destination.write, journal=self.journal, runtime=self.runtime, delivery=self.delivery
        )
        self.outbox.start()
        return self.outbox

    def offer(self, *numbers: int) -> None:
        for number in numbers:
            self.journal.offer(("sink",), str(number), "call", b'{"n":%d}' % number)
        self.journal.flush()

    async def until(self, done: Any, seconds: float = 20.0) -> None:
        async with asyncio.timeout(seconds):
            while not done():
                await asyncio.sleep(0.001)

    async def kill(self) -> None:
        self.journal.flush()
        for task in self.outbox._tasks:
            task.cancel()
        await asyncio.gather(*self.outbox._tasks, return_exceptions=True)
        crash(self.journal)

    async def end(self) -> None:
        await self.outbox.drain(0.1)
        await self.outbox.aclose()
        self.journal.close()

    def balanced(self) -> bool:
        outbox = self.outbox
        return outbox.offered == outbox.delivered + outbox.dropped.total() + outbox.pending


STEPS = st.lists(
    st.one_of(
        st.integers(1, 30),
        st.sampled_from(
            ["ok", "down", "broken", "partly", "picky", "refuses", "hangs", "cancels", "kill", "end", "rest"]
        ),
    ),
    max_size=10,
)


@settings(max_examples=60)
@given(steps=STEPS, concurrency=st.integers(1, 3))
def test_nothing_is_lost_whatever_happens(steps: list[int | str], concurrency: int) -> None:
    asyncio.run(_run(steps, concurrency))


async def _run(steps: list[int | str], concurrency: int) -> None:
    destination = Destination()
    offered, refused = 0, 0
    with tempfile.TemporaryDirectory() as folder:
        life = Life(Path(folder), destination, concurrency=concurrency)
        await life.begin()
        for step in steps:
            if isinstance(step, int):
                life.offer(*range(offered, offered + step))
                offered += step
            elif step in ("kill", "end"):
                await (life.kill() if step == "kill" else life.end())
                refused += life.outbox.dropped.total()
                life = Life(Path(folder), destination, concurrency=concurrency)
                await life.begin()
            elif step == "rest":
                await asyncio.sleep(0.01)
            else:
                destination.mode = step
            await asyncio.sleep(0)
            life.journal.flush()
            assert life.balanced(), life.outbox.report()
        destination.mode = "ok"
        await life.until(lambda: not life.outbox.pending)
        assert life.balanced()
        refused += life.outbox.dropped.total()
        assert set(life.outbox.dropped) <= {"refused", "hopeless"}
        await life.end()
        kept = Path(folder) / "refused" / "sink.jsonl"
        lines = kept.read_bytes().splitlines() if kept.exists() else []
        assert len(lines) == refused  # given up, and kept for people
        assert {str(number) for number in range(offered)} <= set(destination.took) | _numbers(lines)


def _numbers(lines: list[bytes]) -> set[str]:
    import orjson

    return {str(orjson.loads(line)["record"]["n"]) for line in lines}


async def test_only_what_failed_is_sent_again() -> None:
    destination = Destination()
    life = Life(None, destination)
    outbox = await life.begin()
    destination.mode = "partly"
    life.offer(*range(8))
    await life.until(lambda: not outbox.pending)
    assert sorted(destination.took, key=int) == [str(number) for number in range(8)]  # each of them once
    assert outbox.delivered == 8
    await life.end()


async def test_only_what_failed_is_sent_again_where_the_destination_gets_redacted_copies() -> None:
    taken: list[str] = []

    class Partly(Callback):
        async def write(self, batch: Sequence[Record]) -> None:
            failed = [] if len(batch) < 8 else [record for record in batch if int(record.id) % 2]
            taken.extend(record.id for record in batch if record not in failed)
            assert "user_api_key_hash" not in batch[0].data.get("metadata", {})
            if failed:
                raise NotDelivered("every other one failed", failed=failed)

    life = Life(None, Destination())
    life.destination.write = Sink(callback=Partly(), name="sink", key_info=False).write  # type: ignore[method-assign]
    outbox = await life.begin()
    life.offer(*range(8))
    await life.until(lambda: not outbox.pending)
    assert sorted(taken, key=int) == [str(number) for number in range(8)]
    await life.end()


async def test_one_poisoned_record_does_not_stop_the_others() -> None:
    destination = Destination()
    destination.mode = "picky"
    life = Life(None, destination)
    outbox = await life.begin()
    life.offer(*range(8))
    await life.until(lambda: not outbox.pending)
    assert outbox.dropped == {"refused": 1}
    assert sorted(destination.took, key=int) == ["0", "1", "2", "3", "5", "6", "7"]
    await life.end()


async def test_a_full_batch_goes_at_once_and_a_half_one_after_its_interval() -> None:
    destination = Destination()
    life = Life(None, destination, flush_interval_s=3600)
    outbox = await life.begin()
    life.offer(*range(11))
    await life.until(lambda: outbox.delivered == 8)
    assert outbox.pending == 3
    assert await outbox.drain(5) == 0
    assert [len(batch) for batch in destination.batches] == [8, 3]
    await outbox.aclose()


async def test_bytes_bound_a_batch() -> None:
    destination = Destination()
    life = Life(None, destination, max_batch_bytes=100)
    outbox = await life.begin()
    for number in range(6):
        life.journal.offer(("sink",), str(number), "call", b"x" * 40)
    life.journal.flush()
    await life.until(lambda: not outbox.pending)
    assert [len(batch) for batch in destination.batches] == [2, 2, 2]
    await life.end()


@pytest.mark.parametrize(("policy", "attempts", "reason"), [("discard", 1, "discarded"), ("retry", 4, "retries")])
async def test_policies_that_give_up(policy: str, attempts: int, reason: str) -> None:
    destination = Destination()
    destination.mode = "down"
    life = Life(None, destination, on_failure=policy, max_retries=3)
    outbox = await life.begin()
    life.offer(1, 2)
    await life.until(lambda: not outbox.pending)
    assert (destination.attempts, outbox.dropped) == (attempts, {reason: 2})
    assert life.runtime.counts["log_dropped", f"sink {reason}"] == 2
    await life.end()


async def test_it_reports_what_is_wrong_and_that_it_is_well_again() -> None:
    destination = Destination()
    destination.mode = "down"
    life = Life(None, destination)
    outbox = await life.begin()
    life.offer(1)
    await life.until(lambda: outbox.report()["state"] == "down")
    assert life.runtime.degraded == {"callback sink": "down"}
    assert outbox.report()["last_error"] == "down"
    destination.mode = "ok"
    await life.until(lambda: not outbox.pending)
    assert life.runtime.degraded == {}
    assert outbox.report()["state"] == "ok"
    await life.end()


async def test_retry_after_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock of the test's own: no attempt before the time that the destination asked for."""
    now = 1
    destination = Destination()

    async def throttled(batch: list[Record]) -> list[Record]:
        raise NotDelivered("429", retry_after_s=30)

    monkeypatch.setattr(destination, "_down", throttled)
    destination.mode = "down"
    life = Life(None, destination)
    life.runtime.clock = lambda: now
    outbox = await life.begin()
    life.offer(1)
    now += 10**9
    outbox._wake.set()
    await life.until(lambda: destination.attempts == 1)
    destination.mode = "ok"
    now += 29 * 10**9
    outbox._wake.set()
    await asyncio.sleep(0.02)
    assert destination.attempts == 1
    now += 2 * 10**9
    outbox._wake.set()
    await life.until(lambda: outbox.delivered == 1)
    await outbox.aclose()


async def test_a_dead_destination_holds_a_bounded_number_of_records_in_memory(tmp_path: Path) -> None:
    destination = Destination()
    destination.mode = "down"
    life = Life(tmp_path, destination)
    outbox = await life.begin()
    for start in range(0, 4000, 100):
        life.offer(*range(start, start + 100))
        await asyncio.sleep(0.001)
    assert outbox.pending == 4000
    assert len(outbox._place.open) <= 2 * life.delivery.batch_size
    destination.mode = "ok"
    await life.until(lambda: not outbox.pending)
    assert len(set(destination.took)) == 4000
    await life.end()


async def test_a_destination_that_is_too_slow_for_a_batch_gets_smaller_ones() -> None:
    """Without it the same batch would be sent for ever."""
    destination = Destination()

    async def slow(batch: list[Record]) -> list[Record]:
        await asyncio.sleep(60 if len(batch) > 2 else 0)
        return batch

    destination._hangs = slow  # type: ignore[method-assign]
    destination.mode = "hangs"
    life = Life(None, destination)
    outbox = await life.begin()
    life.offer(*range(16))
    await life.until(lambda: not outbox.pending)
    assert outbox.delivered == 16
    await life.end()


@pytest.mark.parametrize("mode", ["down", "hangs", "partly"])
async def test_a_spool_that_is_full_gives_up_the_oldest_and_counts_each(tmp_path: Path, mode: str) -> None:
    destination = Destination()
    destination.mode = mode
    life = Life(tmp_path, destination)
    life.journal = Journal(tmp_path, segment_bytes=4096, max_bytes=20_000, count=life.runtime.count)
    outbox = await life.begin()
    for number in range(200):
        life.journal.offer(("sink",), str(number), "call", b"x" * 500)
        life.journal.flush()
        await asyncio.sleep(0)
        assert life.balanced(), outbox.report()
    destination.mode = "ok"
    await life.until(lambda: not outbox.pending)
    assert life.balanced()
    assert outbox.delivered + outbox.dropped["spool_full"] == 200
    assert outbox.dropped["spool_full"] > 100 or mode == "partly"
    assert "199" in destination.took
    assert len(destination.took) == len(set(destination.took)) >= outbox.delivered
    await life.end()


async def test_what_is_left_in_memory_at_the_end_is_counted() -> None:
    destination = Destination()
    destination.mode = "down"
    life = Life(None, destination)
    outbox = await life.begin()
    life.offer(1, 2, 3)
    assert await outbox.drain(0.05) == 3
    await outbox.aclose()
    assert outbox.dropped == {"shutdown": 3}


async def test_at_the_end_only_what_is_in_memory_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk was full for a while: those records end with the process, the others wait in the spool."""
    destination = Destination()
    destination.mode = "down"
    life = Life(tmp_path, destination)
    outbox = await life.begin()
    life.offer(1, 2)
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda fd, data: 0)
        life.offer(3)
    life.journal._retry_at = 0.0
    life.offer(4)
    await outbox.drain(0.01)
    await outbox.aclose()
    assert outbox.dropped == {"shutdown": 1}
    life.journal.close()

    destination.mode = "ok"
    again = Life(tmp_path, destination)
    await again.begin()
    await again.until(lambda: not again.outbox.pending)
    assert sorted(destination.took) == ["1", "2", "4"]
    await again.end()
