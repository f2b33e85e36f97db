"""Stacks before a fake upstream, closed when their test ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.unit.providers.served import Asker, Build, config, stacks
from tianji_mw.testing import FakeLLM


@pytest.fixture
async def build() -> AsyncIterator[Build]:
    async with stacks() as found:
        yield found


@pytest.fixture
def ask(llm: FakeLLM, build: Build) -> Asker:
    return Asker(llm, build)


@pytest.fixture
def app(llm: FakeLLM, build: Build) -> Any:
    """The app of one deployment."""
    return build(config(llm))
