"""A layer's life without a lifespan: late start, several event loops, and what the runtime counts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.apps import json_app
from tests.support.stack import ANSWER, CHAT, Probe
from tianji_mw.driver import RUNTIME_KEY, LLMMiddleware
from tianji_mw.errors import SetupError
from tianji_mw.runtime import Runtime
from tianji_mw.testing import drive


class Life(LLMMiddleware):
    def __init__(self, app: Any, log: list[str], name: str, **options: Any) -> None:
        super().__init__(app, **options)
        self.log, self.name = log, name
        self.fails = False

    async def start(self, runtime: Runtime) -> None:
        self.log.append(f"start {self.name}")
        await asyncio.sleep(0)
        if self.fails:
            raise SetupError(f"{self.name} has no database.")

    async def aclose(self) -> None:
        self.log.append(f"close {self.name}")


async def test_without_lifespan_a_layer_starts_once_at_the_first_request(caplog: pytest.LogCaptureFixture) -> None:
    log: list[str] = []
    inner = Life(json_app(ANSWER), log, "inner")
    app = Life(inner, log, "outer")
    answers = await asyncio.gather(*(drive(app, CHAT) for _ in range(20)))
    assert {driven.status for driven in answers} == {200}
    assert sorted(log) == ["start inner", "start outer"]
    assert caplog.text.count("starts at its first request") == 2
    assert app.runtime is inner.runtime
    assert app.runtime is not None
    await app._close()
    assert log[2:] == ["close outer", "close inner"]


async def test_a_late_start_that_fails_is_closed_and_tried_again() -> None:
    log: list[str] = []
    app = Life(json_app(ANSWER), log, "a")
    app.fails = True
    assert isinstance((await drive(app, CHAT)).error, SetupError)
    app.fails = False
    assert (await drive(app, CHAT)).status == 200
    assert log == ["start a", "close a", "start a"]


def test_two_event_loops_one_after_the_other() -> None:
    log: list[str] = []
    app = Life(Life(json_app(ANSWER), log, "inner"), log, "outer")
    runtimes = []
    for _ in range(2):
        assert asyncio.run(drive(app, CHAT)).status == 200
        runtimes.append(app.runtime)
    assert log == ["start outer", "start inner"] * 2
    assert runtimes[0] is not runtimes[1]


async def test_two_event_loops_at_once_are_refused_with_a_sentence() -> None:
    app = Life(json_app(ANSWER), [], "a")
    await drive(app, CHAT)
    driven = await asyncio.to_thread(lambda: asyncio.run(drive(app, CHAT)))
    assert isinstance(driven.error, SetupError)
    assert "one stack for each loop" in driven.error.message


async def test_inflight_and_calls_are_counted() -> None:
    runtime = Runtime()
    seen: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(runtime.inflight)
        assert scope[RUNTIME_KEY] is runtime
        await json_app(ANSWER)(scope, receive, send)

    await drive(Probe(app, runtime=runtime), CHAT)
    assert (seen, runtime.inflight) == ([1], 0)
    assert runtime.counts == {("calls", "chat_completions ok"): 1}
