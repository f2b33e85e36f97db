"""What the tests of mails share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.alert_records import Clock
from tests.support.mail_cases import Serve
from tests.support.smtp_server import Box, Mode, smtp_server
from tianji_mw.testing import FakeLLM, Reply


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    """Starts a server for the rest of the test."""
    async with AsyncExitStack() as stack:

        async def served(mode: Mode = "starttls", **options: Any) -> Box:
            return await stack.enter_async_context(smtp_server(tmp_path, mode, **options))

        yield served


@pytest.fixture
async def api() -> AsyncIterator[FakeLLM]:
    async with FakeLLM(lambda request: Reply.json({"id": "1"}, status=202)) as fake:
        yield fake
