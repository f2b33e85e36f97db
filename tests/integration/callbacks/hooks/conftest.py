"""What the tests of alerts over HTTP share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from tests.support.alert_records import Clock
from tests.support.hook_cases import Start
from tianji_mw.callbacks.base import Callback
from tianji_mw.testing import FakeLLM, Reply


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def hook() -> AsyncIterator[FakeLLM]:
    async with FakeLLM(lambda request: Reply(parts=[b"ok"])) as fake:
        yield fake


@pytest.fixture
async def start(clock: Clock) -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def started(callback: Callback) -> Callback:
            await callback.start(clock.runtime)
            stack.push_async_callback(callback.aclose)
            return callback

        yield started
