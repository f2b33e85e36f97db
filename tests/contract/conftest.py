"""What transports promise holds on asyncio's loop and on uvloop, in every file that shows it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]] | None:
    """Both loops for `test_transports*.py`; None leaves the others to the conftest above."""
    if item.path.name.startswith("test_transports"):
        return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return None
