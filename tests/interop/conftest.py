"""Fixtures of the SDK tests: three upstreams that record bytes, and the gateway in its four places."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.interop.sdk import MODES, Setup, setup
from tests.interop.support import Loop


@pytest.fixture(scope="session")
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture(scope="session", params=MODES)
def place(request: pytest.FixtureRequest, loop: Loop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    with setup(loop, request.param, tmp_path_factory.mktemp("config") / "config.yaml") as place:
        yield place


@pytest.fixture
def sdk(place: Setup) -> Setup:
    """The place, with nothing scripted and nothing recorded."""
    place.reset()
    return place
