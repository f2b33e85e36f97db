"""Equal requests at the same time are one upstream call, whatever its clients do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.cached import DONE, END, STREAM, Cached, answer, ask, stream
from tianji_mw.testing import FakeLLM, Reply

Make = Callable[..., Cached]


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_hundred_misses_are_one_call(llm: FakeLLM, cached: Make, streamed: bool) -> None:
    gateway = cached()
    llm.replies.append(stream(delay_s=0.2) if streamed else Reply.json(answer(), delay_s=0.2))
    answers = await asyncio.gather(*(gateway(ask(stream=streamed)) for _ in range(100)))
    assert len(llm.requests) == 1
    assert len({one.body for one in answers}) == 1
    assert all(one.status == 200 and one.complete for one in answers)
    assert sorted(one.headers["x-cache"] for one in answers) == ["HIT"] * 99 + ["MISS"]
    assert sum("; shared" in one.headers["x-tianji-cache"] for one in answers) == 99
    total = gateway.cache.stats.report()["total"]
    assert (total["hits"], total["shared"], total["misses"]) == (99, 99, 1)


async def test_a_follower_sees_the_stream_as_it_comes(llm: FakeLLM, cached: Make) -> None:
    gateway = cached()
    llm.replies.append(stream(pause_s=0.1))
    leader = asyncio.create_task(gateway(ask(stream=True)))
    await asyncio.sleep(0.15)
    follower = await gateway(ask(stream=True))
    whole = await leader
    assert follower.body == whole.body == b"".join((*STREAM, END, DONE))
    assert len(follower.bodies) > 2, "it did not wait for the end"


async def test_a_plain_follower_of_a_stream_gets_a_plain_answer(llm: FakeLLM, cached: Make) -> None:
    from tests.support.cached import COUNTED

    gateway = cached()
    llm.replies.append(stream(*STREAM, END, COUNTED, DONE, delay_s=0.1))
    counted = ask(stream=True, stream_options={"include_usage": True})
    leader, plain = await asyncio.gather(gateway(counted), gateway(ask()))
    assert plain.json["choices"][0]["message"]["content"] == "Hi!"
    assert len(llm.requests) == 1
    assert leader.body.endswith(DONE)


@pytest.mark.parametrize("left", [1, 2])
async def test_the_leaders_leaving_does_not_hurt_the_others(llm: FakeLLM, cached: Make, left: int) -> None:
    gateway = cached()
    llm.replies.append(stream(pause_s=0.1))
    leader = asyncio.create_task(gateway(ask(stream=True), leave_after=left))
    await asyncio.sleep(0.02)
    followers = await asyncio.gather(*(gateway(ask(stream=True)) for _ in range(5)))
    await leader
    assert len(llm.requests) == 1
    assert all(one.body == b"".join((*STREAM, END, DONE)) for one in followers)
    assert (await gateway(ask(stream=True))).headers["x-cache"] == "HIT"


async def test_when_all_have_left_the_upstream_call_ends(llm: FakeLLM, cached: Make) -> None:
    gateway = cached()
    llm.replies.append(stream(*(STREAM * 20), END, DONE, pause_s=0.05))
    asked = [asyncio.create_task(gateway(ask(stream=True), leave_after=1)) for _ in range(3)]
    await asyncio.gather(*asked)
    for _ in range(40):
        if llm.dropped:
            break
        await asyncio.sleep(0.05)
    assert llm.dropped == 1, "nobody waits for it any more"
    llm.replies.append(stream())
    assert (await gateway(ask(stream=True))).headers["x-cache"] == "MISS"


async def test_a_failure_is_shared_and_not_kept(llm: FakeLLM, cached: Make) -> None:
    gateway = cached()
    llm.replies += [Reply.json({"error": {"message": "busy"}}, status=503, delay_s=0.1), Reply.json(answer())]
    answers = await asyncio.gather(*(gateway(ask()) for _ in range(10)))
    assert {one.status for one in answers} == {503}
    assert len({one.body for one in answers}) == 1
    assert len(llm.requests) == 1
    assert (await gateway(ask())).status == 200


async def test_a_stream_that_breaks_off_breaks_off_for_all(llm: FakeLLM, cached: Make) -> None:
    gateway = cached()
    llm.replies.append(stream(*STREAM, cut_after=450, delay_s=0.1, pause_s=0.02))
    answers = await asyncio.gather(*(gateway(ask(stream=True)) for _ in range(4)))
    assert all(b'"error"' in one.body for one in answers), "no stream ends in silence"
    llm.replies.append(stream())
    assert (await gateway(ask(stream=True))).headers["x-cache"] == "MISS"


async def test_who_wants_a_new_answer_does_not_follow(llm: FakeLLM, cached: Make) -> None:
    gateway = cached()
    llm.replies += [Reply.json(answer("one"), delay_s=0.1), Reply.json(answer("two"), delay_s=0.1)]
    one, two = await asyncio.gather(gateway(ask()), gateway(ask(cache={"no-cache": True})))
    assert {one.json["choices"][0]["message"]["content"], two.json["choices"][0]["message"]["content"]} == {
        "one",
        "two",
    }


async def test_other_requests_do_not_wait(llm: FakeLLM, cached: Make) -> None:
    gateway = cached()
    llm.replies += [Reply.json(answer("slow"), delay_s=0.5), Reply.json(answer("fast"))]
    slow: Any = asyncio.create_task(gateway(ask("slow")))
    await asyncio.sleep(0.05)
    assert (await gateway(ask("fast"))).json["choices"][0]["message"]["content"] == "fast"
    assert not slow.done()
    await slow
