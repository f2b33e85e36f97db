"""Our start and stop around the lifespan of any app: the five cases, order, failures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware

from tests.support.apps import json_app
from tests.support.stack import CHAT
from tianji_mw.driver import LLMMiddleware
from tianji_mw.errors import SetupError
from tianji_mw.runtime import Runtime
from tianji_mw.testing import drive, started


class Life(LLMMiddleware):
    def __init__(self, app: Any, log: list[str], name: str = "us", error: Exception | None = None) -> None:
        super().__init__(app)
        self.log, self.name, self.error = log, name, error
        self.seen: Runtime | None = None

    async def start(self, runtime: Runtime) -> None:
        self.log.append(f"start {self.name}")
        self.seen = runtime
        if self.error is not None:
            raise self.error

    async def aclose(self) -> None:
        self.log.append(f"close {self.name}")


async def run(app: Any, *, stop: bool = True) -> list[Any]:
    """The lifespan's messages as a server sees them."""
    sent: list[Any] = []
    told = [{"type": "lifespan.startup"}] + ([{"type": "lifespan.shutdown"}] if stop else [])

    async def receive() -> Any:
        if told:
            return told.pop(0)
        await asyncio.sleep(60)
        return None

    async def send(message: Any) -> None:
        sent.append(message)

    async with asyncio.timeout(2):
        await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
    return sent


def kinds(sent: list[Any]) -> list[str]:
    return [message["type"].removeprefix("lifespan.") for message in sent]


def starlette_app(log: list[str], fails: str = "", **options: Any) -> Starlette:
    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        log.append("start app")
        if fails == "start":
            raise OSError("no database")
        yield
        log.append("close app")
        if fails == "stop":
            raise OSError("stuck")

    return Starlette(lifespan=lifespan, **options)


async def test_an_app_that_supports_lifespan() -> None:
    log: list[str] = []
    assert kinds(await run(Life(starlette_app(log), log))) == ["startup.complete", "shutdown.complete"]
    assert log == ["start us", "start app", "close app", "close us"]


async def test_the_same_as_a_middleware_of_the_app() -> None:
    log: list[str] = []
    app = starlette_app(log, middleware=[Middleware(Life, log, "a"), Middleware(Life, log, "b")])
    assert kinds(await run(app)) == ["startup.complete", "shutdown.complete"]
    assert log == ["start a", "start b", "start app", "close app", "close b", "close a"]


async def raises(scope: Any, receive: Any, send: Any) -> None:
    raise ValueError("Django can only handle ASGI/HTTP connections, not lifespan.")


async def raises_later(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    raise ValueError("unknown message")


async def returns(scope: Any, receive: Any, send: Any) -> None:
    return None


async def returns_later(scope: Any, receive: Any, send: Any) -> None:
    await receive()


async def never_answers(scope: Any, receive: Any, send: Any) -> None:
    while True:
        await receive()


async def leaves_after_its_start(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})


@pytest.mark.parametrize(
    "app",
    [raises, raises_later, returns, returns_later, never_answers, leaves_after_its_start],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("layers", [1, 3])
async def test_apps_without_a_lifespan(app: Any, layers: int) -> None:
    log: list[str] = []
    for i in range(layers):
        app = Life(app, log, str(i))
    assert kinds(await run(app)) == ["startup.complete", "shutdown.complete"]
    names = [str(i) for i in range(layers)]
    assert log == [*(f"start {n}" for n in reversed(names)), *(f"close {n}" for n in names)]


async def test_an_app_whose_start_fails() -> None:
    log: list[str] = []
    sent: list[Any] = []

    async def collect() -> None:
        sent.extend(await run(Life(starlette_app(log, fails="start"), log)))

    with pytest.raises(OSError, match="no database"):
        await collect()
    assert log == ["start us", "start app", "close us"]


async def test_an_app_whose_start_fails_is_reported_in_its_own_words() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    log: list[str] = []
    assert await run(Life(app, log)) == [{"type": "lifespan.startup.failed", "message": "no database"}]
    assert log == ["start us", "close us"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (SetupError("The ledger has no database; set DATABASE_URL."), "The ledger has no database; set DATABASE_URL."),
        (ConnectionRefusedError("redis"), "The start failed: ConnectionRefusedError: redis"),
    ],
)
@pytest.mark.parametrize("outside", [False, True])
async def test_a_layer_whose_start_fails(error: Exception, message: str, outside: bool) -> None:
    log: list[str] = []
    app: Any = Life(starlette_app(log), log, "bad", error)
    app = Life(app, log, "outer") if outside else app
    assert await run(app) == [{"type": "lifespan.startup.failed", "message": message}]
    opened = ["start outer", "start bad", "close bad", "close outer"] if outside else ["start bad", "close bad"]
    assert log == opened  # and the app never heard of it


async def test_a_start_that_fails_inside_of_an_app_that_catches_everything() -> None:
    async def catches(scope: Any, receive: Any, send: Any) -> None:
        try:
            await receive()
        except BaseException:
            await send({"type": "lifespan.startup.complete"})

    sent = await run(Life(catches, [], "bad", SetupError("Sentence.")))
    assert sent == [{"type": "lifespan.startup.failed", "message": "Sentence."}]


async def test_an_app_whose_stop_fails() -> None:
    log: list[str] = []
    with pytest.raises(OSError, match="stuck"):
        await run(Life(starlette_app(log, fails="stop"), log))
    assert log[-1] == "close us"


async def test_a_layer_that_cannot_be_closed_is_reported_and_the_runtime_closed() -> None:
    class Bad(Life):
        async def aclose(self) -> None:
            await super().aclose()
            raise OSError("stuck")

    log: list[str] = []
    app = Bad(returns, log)

    async def close() -> None:
        log.append("close resource")

    async def start(runtime: Runtime) -> None:
        runtime.on_close(close)

    app.start = start  # type: ignore[method-assign]
    assert kinds(await run(app)) == ["startup.complete", "shutdown.failed"]
    assert log == ["close us", "close resource"]


async def test_nested_layers_share_one_runtime() -> None:
    log: list[str] = []
    inner = Life(returns, log, "inner")
    outer = Life(Starlette(middleware=[Middleware(lambda app: Life(inner, log, "middle"))]), log, "outer")
    async with started(outer):
        assert inner.seen is outer.seen
        assert inner.seen is not None
    assert outer.runtime is None


async def test_a_layer_without_lifespan_inside_of_one_with_it_is_closed_with_it() -> None:
    log: list[str] = []
    mounted = Life(json_app({}), log, "mounted")

    async def host(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":  # mounts get no lifespan
            await mounted(scope, receive, send)

    outer = Life(host, log, "outer")
    async with started(outer):
        assert (await drive(outer, CHAT)).status == 200
        assert mounted.runtime is outer.runtime
    assert log == ["start outer", "start mounted", "close outer", "close mounted"]


async def test_a_second_lifespan_starts_anew() -> None:
    log: list[str] = []
    app = Life(json_app({}), log)
    for _ in range(2):
        async with started(app):
            assert (await drive(app, CHAT)).status == 200
    assert log == ["start us", "close us"] * 2


async def test_a_cancelled_lifespan_closes_what_was_opened() -> None:
    log: list[str] = []
    task = asyncio.create_task(run(Life(returns, log), stop=False))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log == ["start us", "close us"]
