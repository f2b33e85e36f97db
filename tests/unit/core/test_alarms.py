"""Coarse deadlines ring once, rather late than early, in whichever event loop runs, and leave no timer behind."""

from __future__ import annotations

import asyncio

import pytest

from tianji_mw import alarms
from tianji_mw.alarms import Alarms


@pytest.fixture(autouse=True)
def fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alarms, "TICK_S", 0.002)


class Bell:
    def __init__(self) -> None:
        self.rings = 0

    def ring(self) -> None:
        self.rings += 1


async def test_it_rings_once_after_its_time_and_not_when_it_was_cleared() -> None:
    table, early, late, cleared = Alarms(), Bell(), Bell(), Bell()
    table.set(early, 0.005)
    table.set(late, 60)
    table.set(cleared, 0.005)
    table.clear(cleared)
    await asyncio.sleep(0.03)
    assert (early.rings, late.rings, cleared.rings) == (1, 0, 0)
    table.clear(late)
    table.clear(early)
    await asyncio.sleep(0.01)
    assert table._next == 0, "no tick is due when nothing waits"


def test_it_goes_on_in_the_next_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alarms, "_DEAD_S", 0.02)
    table, lost, bell = Alarms(), Bell(), Bell()

    async def leave() -> None:
        table.set(lost, 60)

    async def wait() -> None:
        await asyncio.sleep(0.05)
        table.set(bell, 0.001)
        await asyncio.sleep(0.03)

    asyncio.run(leave())
    asyncio.run(wait())
    assert bell.rings == 1


async def test_within_is_a_timeout() -> None:
    table = Alarms()
    with pytest.raises(TimeoutError), table.within(0.005):
        await asyncio.sleep(60)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    with table.within(60):
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    assert not table._due


async def test_somebody_elses_cancel_stays_a_cancel() -> None:
    table, began = Alarms(), asyncio.Event()

    async def work() -> None:
        with table.within(60):
            began.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(work())
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
