"""A Datadog intake of a script, as strict as the contract."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.support.datadog_intake import KEY, Intake, Start
from tianji_mw.callbacks.datadog_shared import DatadogCallback
from tianji_mw.redact import Secret
from tianji_mw.runtime import Runtime
from tianji_mw.testing import FakeLLM


@pytest.fixture
def intake() -> Intake:
    return Intake()


@pytest.fixture
async def server(intake: Intake) -> AsyncIterator[FakeLLM]:
    async with FakeLLM(intake) as fake:
        yield fake


@pytest.fixture
async def start(server: FakeLLM) -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def started(kind: type[DatadogCallback], **fields: Any) -> Any:
            callback = kind(**{"api_key": Secret(KEY), "api_base": server.url, "timeout_s": 5, **fields})
            await callback.start(Runtime())
            stack.push_async_callback(callback.aclose)
            return callback

        yield started
