"""A cached gateway before a fake upstream, closed when its test ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.support.cached import Cached
from tianji_mw.testing import FakeLLM


@pytest.fixture
async def cached(llm: FakeLLM) -> AsyncIterator[Callable[..., Cached]]:
    made: list[Cached] = []

    def make(**options: Any) -> Cached:
        made.append(Cached(llm, **options))
        return made[-1]

    yield make
    for one in made:
        await one.aclose()
