"""The upstream client is shown on asyncio's loop and on uvloop: their transports differ in more than speed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]] | None:
    """Both loops for `test_upstream_*.py`; None leaves the others to the conftest above."""
    if item.path.name.startswith("test_upstream_"):
        return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return None
