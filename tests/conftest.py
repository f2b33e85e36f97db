"""Fixtures for all tests. A test fails when an exception was lost in the background of its event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, settings

from tianji_mw.testing import FakeLLM, started

# Machines that run these tests are shared: how long one example takes says nothing. CI repeats the same examples, so
# that a red run means a change; every other run looks for new ones.
settings.register_profile(
    "tianji", deadline=None, derandomize=bool(os.environ.get("CI")), suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("fast", settings.get_profile("tianji"), max_examples=25)
settings.load_profile(os.environ.get("TIANJI_HYPOTHESIS", "tianji"))


#: Where asyncio's loop and uvloop both must do: their transports differ in more than speed.
ON_BOTH_LOOPS = ("test_transports.py",)


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Every async test on asyncio's own loop; those of the upstream client on uvloop as well."""
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    return {**loops, "uvloop": uvloop.new_event_loop} if item.path.name in ON_BOTH_LOOPS else loops


@pytest.fixture(autouse=True)
def no_lost_exceptions(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """Everything that reaches the loop's exception handler ('Task exception was never retrieved' among it)."""
    lost: list[dict[str, Any]] = []

    def note(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        lost.append(context)

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "default_exception_handler", note)
    yield lost
    assert not lost, f"lost in the background: {[(c.get('message'), c.get('exception')) for c in lost]}"


@pytest.fixture(autouse=True)
def no_spool_at_home(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Records of a test wait in a folder of the test, where nothing else is said."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / "state"))


@pytest.fixture
async def serve() -> AsyncIterator[Callable[[Any], Awaitable[Any]]]:
    """Starts an app's lifespan for the rest of the test: `app = await serve(app)`."""
    async with AsyncExitStack() as stack:
        yield lambda app: stack.enter_async_context(started(app))


@pytest.fixture
async def llm() -> AsyncIterator[FakeLLM]:
    """A real HTTP upstream on loopback."""
    async with FakeLLM() as fake:
        yield fake
