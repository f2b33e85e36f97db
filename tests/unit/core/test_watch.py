"""The watch over a client while the gateway waits: it fires once, where it belongs, and leaves no task behind."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.unit.core.test_call import GOOD, call_over, part
from tianji_mw import alarms, watch
from tianji_mw.call import Call, ClientGone
from tianji_mw.watch import Watch


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "START_AFTER_S", 0.001)
    monkeypatch.setattr(alarms, "TICK_S", 0.001)


async def loaded(*more: Any) -> Call:
    call = call_over([part(GOOD), *more])
    await call.load()
    return call


GONE = {"type": "http.disconnect"}


def fire(watching: Watch) -> None:
    """What the watcher does when the client is gone, without giving the block a turn."""
    watching._fired = True
    assert watching._task is not None
    watching._task.cancel()


async def test_a_disconnect_ends_the_wait() -> None:
    call = await loaded(GONE)
    with pytest.raises(ClientGone):
        async with Watch(call):
            await asyncio.sleep(60)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    assert call.gone


async def test_work_that_ends_in_time_is_not_disturbed() -> None:
    call = await loaded()
    for pause in (0, 0.02):
        async with Watch(call):
            await asyncio.sleep(pause)
    assert not call.gone
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_disconnect_at_the_very_end_is_taken_inside() -> None:
    call = await loaded(GONE)
    watching = Watch(call)
    with pytest.raises(ClientGone):
        async with watching:
            fire(watching)  # the cancel is asked for, and the block ends without awaiting again
    await asyncio.sleep(0)


async def test_another_error_of_the_block_stays_and_no_cancel_is_left_over() -> None:
    call = await loaded(GONE)
    watching = Watch(call)

    async def block() -> None:
        async with watching:
            fire(watching)
            raise KeyError("bug")

    with pytest.raises(KeyError):
        await block()
    await asyncio.sleep(0)


async def test_a_cancel_from_elsewhere_is_no_disconnect() -> None:
    call = await loaded()
    outcome: list[str] = []

    async def run() -> None:
        try:
            async with Watch(call):
                await asyncio.sleep(60)
        except asyncio.CancelledError:
            outcome.append("cancelled")
            raise

    task = asyncio.create_task(run())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert outcome == ["cancelled"]


async def test_both_at_once_stay_a_cancel() -> None:
    call = await loaded(GONE)
    watching = Watch(call)

    async def run() -> None:
        async with watching:
            watching.ring()
            await asyncio.sleep(60)

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises((asyncio.CancelledError, ClientGone)):
        await task
    assert task.cancelled() or not watching._fired


@pytest.mark.parametrize("error", [RuntimeError("unexpected message"), OSError("gone")])
async def test_a_channel_that_fails_tells_nothing_and_loses_nothing(error: Exception) -> None:
    call = await loaded()

    async def receive() -> Any:
        raise error

    call._receive = receive
    async with Watch(call):
        await asyncio.sleep(0.02)
    assert not call.gone


async def test_other_messages_are_passed_over() -> None:
    call = await loaded({"type": "http.request", "body": b"", "more_body": False}, GONE)
    with pytest.raises(ClientGone):
        async with Watch(call):
            await asyncio.sleep(60)
