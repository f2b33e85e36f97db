"""Hedged requests over real HTTP upstreams: the faster one answers, the slower one is let go, both are noted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.routed import entry, fails, ok, routed
from tests.support.stack import ANSWER, CHAT, STREAM, stream_of
from tianji_mw.testing import Reply

GROUP = "gpt-4o"
HEDGE = {"hedge": {"after": "50ms", "max_percent": 100}, "num_retries": 0}


def ordered(urls: Any) -> list[dict[str, Any]]:
    return [entry(GROUP, urls[name], weight=1 if name == "slow" else 1e-9, info={"id": name}) for name in urls]


def slow(seconds: float) -> Any:
    return lambda request: Reply.json(ANSWER, delay_s=seconds)


@pytest.mark.parametrize("body", [CHAT, STREAM], ids=["plain", "stream"])
async def test_a_slow_one_gets_company_and_the_faster_one_answers(tmp_path: Any, body: Any) -> None:
    async with routed({"slow": slow(30), "fast": ok}, ordered, tmp_path=tmp_path, router_settings=HEDGE) as routing:
        answer = await routing.ask(body)
        assert (answer.status, answer.headers["x-litellm-model-id"]) == (200, "fast")
        assert answer.complete
        if body is STREAM:
            assert answer.body == b"".join(stream_of("Hello", " you"))
        assert routing.asked() == {"slow": 1, "fast": 1}
        assert routing.llms["slow"].dropped == 1
        assert not any(routing.router.parallel.inflight.values())
    [call] = routing.ends.ends
    assert call.outcome == "ok"
    assert [(a.deployment.id, a.abandoned, a.error) for a in call.attempts] == [
        ("slow", True, None),
        ("fast", False, None),
    ]


async def test_a_quick_one_stays_alone(tmp_path: Any) -> None:
    async with routed({"slow": ok, "fast": ok}, ordered, tmp_path=tmp_path, router_settings=HEDGE) as routing:
        for _ in range(20):
            assert (await routing.ask(CHAT)).status == 200
        assert routing.asked() == {"slow": 20, "fast": 0}


async def test_the_first_may_still_win(tmp_path: Any) -> None:
    says = {"slow": slow(0.2), "fast": slow(30)}
    async with routed(says, ordered, tmp_path=tmp_path, router_settings=HEDGE) as routing:
        answer = await routing.ask(CHAT)
        assert (answer.status, answer.headers["x-litellm-model-id"]) == (200, "slow")
        assert routing.asked() == {"slow": 1, "fast": 1}
    [call] = routing.ends.ends
    assert [(a.deployment.id, a.abandoned) for a in call.attempts] == [("fast", True), ("slow", False)]


async def test_one_that_fails_leaves_the_other_the_call(tmp_path: Any) -> None:
    says = {"slow": slow(0.3), "fast": fails(500)}
    async with routed(says, ordered, tmp_path=tmp_path, router_settings=HEDGE) as routing:
        assert (await routing.ask(CHAT)).headers["x-litellm-model-id"] == "slow"
    says = {"slow": lambda request: Reply.json({"error": {"message": "late"}}, status=500, delay_s=0.2), "fast": ok}
    async with routed(says, ordered, tmp_path=tmp_path, router_settings=HEDGE) as routing:
        assert (await routing.ask(CHAT)).headers["x-litellm-model-id"] == "fast"


async def test_both_failed_is_an_error(tmp_path: Any) -> None:
    late = {"error": {"message": "late", "type": "x", "code": None}}
    says = {"slow": lambda request: Reply.json(late, status=503, delay_s=0.2), "fast": fails(500)}
    async with routed(says, ordered, tmp_path=tmp_path, router_settings=HEDGE) as routing:
        answer = await routing.ask(CHAT)
        assert answer.status in (500, 503)
        assert routing.asked() == {"slow": 1, "fast": 1}
        assert not any(routing.router.parallel.inflight.values())
    assert routing.ends.ends[0].outcome == "upstream_error"


async def test_only_a_share_of_the_calls_gets_company(tmp_path: Any) -> None:
    settings = {"hedge": {"after": "20ms", "max_percent": 10}, "num_retries": 0}
    async with routed({"slow": slow(0.1), "fast": ok}, ordered, tmp_path=tmp_path, router_settings=settings) as routing:
        assert await routing.many(40, CHAT, at_once=8) == {200: 40}
        assert routing.router.hedging is not None
        assert routing.router.hedging.sent == routing.asked()["fast"] <= 5


async def test_the_client_leaves_and_both_are_let_go(tmp_path: Any) -> None:
    events = [b": wait\n\n"]
    says = {name: lambda request: Reply.events(*events * 3, pause_s=0.1, delay_s=0.1) for name in ("slow", "fast")}
    async with routed(says, ordered, tmp_path=tmp_path, router_settings=HEDGE) as routing:
        task = asyncio.ensure_future(routing.ask(STREAM))
        while sum(routing.asked().values()) < 2:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for _ in range(300):
            if not any(llm.open_connections for llm in routing.llms.values()):
                break
            await asyncio.sleep(0.01)
        assert not any(llm.open_connections for llm in routing.llms.values())
        assert not any(routing.router.parallel.inflight.values())
    assert all(attempt.abandoned for attempt in routing.ends.ends[0].attempts)
