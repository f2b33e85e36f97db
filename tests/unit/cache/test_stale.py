"""Entries past their time: given while a new one is fetched, or where no new one can be had."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.cached import Cached, answer, ask, stream
from tianji_mw.testing import Driven, FakeLLM, Reply

Make = Callable[..., Cached]


def text(driven: Driven) -> str:
    found: str = driven.json["choices"][0]["message"]["content"]
    return found


async def old(gateway: Cached, llm: FakeLLM, seconds: float) -> None:
    """An entry of that age."""
    llm.replies.append(Reply.json(answer("old")))
    await gateway(ask("warm up", cache={"no-store": True, "no-cache": True})) if gateway.app.runtime is None else None
    llm.replies.append(Reply.json(answer("old")))
    gateway.app.runtime.wall = gateway.wall
    await gateway(ask())
    llm.replies.clear()
    gateway.wall.now += seconds


async def test_stale_while_a_new_one_is_fetched(llm: FakeLLM, cached: Make) -> None:
    gateway = cached(ttl_s=10, stale_while_revalidate_s=60)
    await old(gateway, llm, 30)
    before = len(llm.requests)
    llm.replies.append(Reply.json(answer("new"), delay_s=0.05))
    answers = await asyncio.gather(*(gateway(ask()) for _ in range(10)))
    assert {text(one) for one in answers} == {"old"}
    assert {one.headers["x-cache"] for one in answers} == {"STALE"}
    assert {one.headers["age"] for one in answers} == {"30"}
    for _ in range(50):
        await asyncio.sleep(0.02)
        found = await gateway(ask())
        if text(found) == "new":
            break
    assert text(found) == "new"
    assert found.headers["x-cache"] == "HIT"
    assert len(llm.requests) == before + 1, "one refresh for all"


async def test_a_refresh_is_a_call_of_its_own(llm: FakeLLM, cached: Make) -> None:
    gateway = cached(ttl_s=10, stale_while_revalidate_s=60)
    await old(gateway, llm, 30)
    calls = gateway.app.runtime.counts["calls", "chat_completions ok"]
    llm.replies.append(Reply.json(answer("new")))
    await gateway(ask())
    for _ in range(50):
        await asyncio.sleep(0.02)
        if gateway.app.runtime.counts["calls", "chat_completions ok"] == calls + 1:
            return
    raise AssertionError("the refresh was not counted as a call")


async def test_too_old_is_a_miss(llm: FakeLLM, cached: Make) -> None:
    gateway = cached(ttl_s=10, stale_while_revalidate_s=60)
    await old(gateway, llm, 80)
    llm.replies.append(Reply.json(answer("new")))
    assert text(await gateway(ask())) == "new"


async def test_a_client_that_sets_an_age_gets_nothing_older(llm: FakeLLM, cached: Make) -> None:
    gateway = cached(ttl_s=10, stale_while_revalidate_s=60)
    await old(gateway, llm, 30)
    llm.replies.append(Reply.json(answer("new")))
    assert text(await gateway(ask(cache={"s-maxage": 20}))) == "new"


@pytest.mark.parametrize("status", [429, 500, 502, 503])
@pytest.mark.parametrize("streamed", [False, True])
async def test_stale_where_the_provider_fails(llm: FakeLLM, cached: Make, status: int, streamed: bool) -> None:
    gateway = cached(ttl_s=10, stale_if_error_s=3600)
    await old(gateway, llm, 1000)
    llm.replies.append(Reply.json({"error": {"message": "down"}}, status=status))
    found = await gateway(ask(stream=streamed))
    assert found.status == 200
    assert found.headers["x-cache"] == "STALE"
    assert b"old" in found.body
    assert gateway.app.runtime.counts["calls", "chat_completions cached"] == 1


async def test_stale_where_the_provider_cannot_be_reached(llm: FakeLLM, cached: Make) -> None:
    gateway = cached(ttl_s=10, stale_if_error_s=3600)
    await old(gateway, llm, 1000)
    llm.replies.append(Reply(refuse=True))
    assert text(await gateway(ask())) == "old"


async def test_followers_are_given_the_stale_one_too(llm: FakeLLM, cached: Make) -> None:
    gateway = cached(ttl_s=10, stale_if_error_s=3600)
    await old(gateway, llm, 1000)
    before = len(llm.requests)
    llm.replies.append(Reply.json({"error": {"message": "down"}}, status=503, delay_s=0.1))
    found = await asyncio.gather(*(gateway(ask()) for _ in range(5)))
    assert {(one.status, text(one), one.headers["x-cache"]) for one in found} == {(200, "old", "STALE")}
    assert len(llm.requests) == before + 1


async def test_the_clients_own_error_is_no_reason_for_it(llm: FakeLLM, cached: Make) -> None:
    gateway = cached(ttl_s=10, stale_if_error_s=3600)
    await old(gateway, llm, 1000)
    llm.replies.append(Reply.json({"error": {"message": "bad"}}, status=400))
    assert (await gateway(ask())).status == 400


async def test_a_good_answer_goes_before_the_stale_one(llm: FakeLLM, cached: Make) -> None:
    gateway = cached(ttl_s=10, stale_if_error_s=3600)
    await old(gateway, llm, 1000)
    llm.replies.append(stream())
    found = await gateway(ask(stream=True))
    assert found.headers["x-cache"] == "MISS"
    assert b"Hi" in found.body


async def test_a_refresh_that_fails_keeps_the_old_one(llm: FakeLLM, cached: Make) -> None:
    gateway = cached(ttl_s=10, stale_while_revalidate_s=600)
    await old(gateway, llm, 30)
    llm.replies.append(Reply.json({"error": {"message": "down"}}, status=500))
    assert text(await gateway(ask())) == "old"
    counts: Any = gateway.app.runtime.counts
    for _ in range(50):
        await asyncio.sleep(0.02)
        if ("cache_refresh_failures", "chat_completions") in counts:
            break
    assert counts["cache_refresh_failures", "chat_completions"] == 1
    llm.replies.append(Reply.json(answer("new")))
    assert text(await gateway(ask())) == "old"
