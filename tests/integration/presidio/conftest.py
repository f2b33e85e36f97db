"""The engine, the services, and an app in each of the ways to run Presidio."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.integration.presidio.stack import (
    App,
    served,
)
from tests.support.presidio_server import PresidioServer
from tests.support.stack import Serve
from tianji_mw.guardrails import presidio_local
from tianji_mw.testing import FakeLLM


@pytest.fixture(scope="module")
def real() -> Any:
    """Presidio with the installed model."""
    return presidio_local.build({"en": ""})


@pytest.fixture(scope="module")
def blank() -> Any:
    return presidio_local.build({"en": "none"})


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Nobody may look up a host: everything here is on loopback."""
    asked: list[Any] = []
    found = socket.getaddrinfo

    def look(host: Any, *args: Any, **options: Any) -> Any:
        if host not in ("127.0.0.1", b"127.0.0.1", None):
            asked.append(host)
        return found(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look)
    yield asked
    assert not asked


@pytest.fixture
async def presidio(blank: Any) -> AsyncIterator[FakeLLM]:
    """The REST services."""
    async with FakeLLM(PresidioServer(blank)) as fake:
        yield fake


@pytest.fixture(params=["local", "rest", "rest+anonymizer"])
async def app(
    request: Any, llm: FakeLLM, serve: Serve, presidio: FakeLLM, blank: Any, monkeypatch: pytest.MonkeyPatch
) -> App:
    """Builds the app of a YAML file whose guardrail is Presidio, in each of the ways to run it."""
    monkeypatch.setattr(presidio_local, "build", lambda models: blank)

    async def build(**options: Any) -> Any:
        env = {}
        if request.param != "local":
            env["PRESIDIO_ANALYZER_API_BASE"] = presidio.url.removeprefix("http://")
        if request.param == "rest+anonymizer":
            env["PRESIDIO_ANONYMIZER_API_BASE"] = presidio.url
        return await served(serve, llm, env, **options)

    return build
