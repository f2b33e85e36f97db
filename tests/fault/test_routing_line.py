"""The line of calls that wait for a place, over real HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.routed import entry, routed
from tests.support.stack import ANSWER, CHAT
from tianji_mw.testing import Reply

pytestmark = pytest.mark.slow


def ask(model: str, **more: Any) -> dict[str, Any]:
    return {**CHAT, "model": model, **more}


async def test_calls_wait_for_a_place(tmp_path: Any) -> None:
    most = 0

    def says(request: Any) -> Reply:
        nonlocal most
        most = max(most, routing.router.parallel.inflight[routing.router.table.all[0]])
        return Reply.json(ANSWER, delay_s=0.02)

    models = lambda urls: [entry("first", urls["a"], max_parallel_requests=3)]  # noqa: E731
    async with routed({"a": says}, models, tmp_path=tmp_path) as routing:
        assert await routing.many(30, ask("first"), at_once=30) == {200: 30}
        assert most == 3
        assert routing.router.parallel.waiting("first") == 0


async def test_of_those_that_wait_the_lowest_priority_number_is_first(tmp_path: Any) -> None:
    models = lambda urls: [entry("first", urls["a"], max_parallel_requests=1)]  # noqa: E731
    says = {"a": lambda request: Reply.json(ANSWER, delay_s=0.05)}
    async with routed(says, models, tmp_path=tmp_path, router_settings={"default_priority": 5}) as routing:
        waiting = routing.router.parallel.waiting
        calls = [asyncio.ensure_future(routing.ask(ask("first", user="running")))]
        await asyncio.sleep(0.01)
        for user, wish in (("late", {"priority": 9}), ("usual", {}), ("header", {}), ("soon", {"priority": 0})):
            headers = {"x-litellm-priority": "3"} if user == "header" else None
            calls.append(asyncio.ensure_future(routing.ask(ask("first", user=user, **wish), headers=headers)))
            while waiting("first") < len(calls) - 1:
                await asyncio.sleep(0.001)
        assert [answer.status for answer in await asyncio.gather(*calls)] == [200] * 5
        seen = [request.json for request in routing.llms["a"].requests]
        assert [request["user"] for request in seen] == ["running", "soon", "header", "usual", "late"]
        assert "priority" not in str(seen)
        for wrong in (-1, 256, "1", True):
            assert (await routing.ask(ask("first", priority=wrong))).status == 400


async def test_a_line_that_is_too_long_is_shed(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tianji_mw.routing.parallel.LONGEST_LINE", 2)
    models = lambda urls: [entry("first", urls["a"], max_parallel_requests=1)]  # noqa: E731
    says = {"a": lambda request: Reply.json(ANSWER, delay_s=0.2)}
    async with routed(says, models, tmp_path=tmp_path) as routing:
        statuses = await routing.many(6, ask("first"), at_once=6)
        assert statuses == {200: 3, 503: 3}
        first = asyncio.ensure_future(routing.many(3, ask("first"), at_once=3))
        while routing.router.parallel.waiting("first") < 2:
            await asyncio.sleep(0.01)
        answer = await routing.ask(ask("first"))
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert answer.json["error"]["code"] == "overloaded"
        await first


async def test_a_client_that_leaves_the_line_takes_no_place(tmp_path: Any) -> None:
    models = lambda urls: [entry("first", urls["a"], max_parallel_requests=1)]  # noqa: E731
    says = {"a": lambda request: Reply.json(ANSWER, delay_s=0.1)}
    async with routed(says, models, tmp_path=tmp_path) as routing:
        first = asyncio.ensure_future(routing.ask(ask("first")))
        await asyncio.sleep(0.02)
        second = asyncio.ensure_future(routing.ask(ask("first")))
        third = asyncio.ensure_future(routing.ask(ask("first")))
        while routing.router.parallel.waiting("first") < 2:
            await asyncio.sleep(0.01)
        second.cancel()
        assert (await first).status == (await third).status == 200
        await asyncio.gather(second, return_exceptions=True)
        assert routing.asked() == {"a": 2}


# --- who may be chosen
