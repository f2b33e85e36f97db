"""Health checks: what is asked of whom, what an answer means, and that nobody is asked who answers clients anyway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.stack import ANSWER, KEY, anthropic, deployment
from tianji_mw.counters.local import LocalHolds, LocalWindows
from tianji_mw.errors import UpstreamError
from tianji_mw.routing import health as health_module
from tianji_mw.routing.base import Deployment
from tianji_mw.routing.blocks import Block
from tianji_mw.routing.failure import Failure
from tianji_mw.routing.health import Health, HealthChecks, health_of
from tianji_mw.routing.health_probe import Probe
from tianji_mw.routing.least_busy import LeastBusy
from tianji_mw.routing.router import Router
from tianji_mw.routing.rules import HealthRules, RoutingRules
from tianji_mw.routing.table import Deployments
from tianji_mw.runtime import Runtime
from tianji_mw.testing import FakeLLM, Reply

_S = 1_000_000_000
GOOD = Reply.json(ANSWER)
DOWN = Reply.json({"error": {"message": "down"}}, status=500)
FAILED = Failure("InternalServer", 500, UpstreamError("x", status=500), True, True, True, True, False, None)


class Bench:
    """A router of some deployments under a clock that only tests move, and its checks."""

    def __init__(self, *deployments: Deployment, **rules: Any) -> None:
        self.now = 1_000 * _S
        self.runtime = Runtime(clock=lambda: self.now)
        health = HealthRules(**{"every_s": 60.0, **rules})
        table = Deployments(deployments)
        windows, holds = LocalWindows(self.runtime), LocalHolds(self.runtime)
        self.router = Router(table, LeastBusy(), RoutingRules(health=health), self.runtime, windows, holds)
        self.checks = HealthChecks(self.router, health, self.runtime)

    @property
    def free(self) -> list[str]:
        """Ids of those that may be chosen."""
        return [one.id for one in self.router.blocks.free(self.router.table.serving("gpt-4o"))]

    async def ask(self, *deployments: Deployment) -> list[Health]:
        found = await self.checks.check(deployments)
        return [found[one] for one in deployments]


Make = Any


@pytest.fixture
async def bench() -> AsyncIterator[Make]:
    """Makes benches, and closes their runtimes."""
    made: list[Bench] = []

    def make(*deployments: Deployment, **rules: Any) -> Bench:
        made.append(Bench(*deployments, **rules))
        return made[-1]

    yield make
    for one in made:
        await one.runtime.aclose()


@pytest.fixture
async def other() -> AsyncIterator[FakeLLM]:
    async with FakeLLM() as fake:
        yield fake


# --- what is asked


@pytest.mark.parametrize(
    ("mode", "path", "answer", "field"),
    [
        ("chat", "/v1/chat/completions", ANSWER, "messages"),
        ("completion", "/v1/completions", {"choices": [{"text": "x"}]}, "prompt"),
        ("embedding", "/v1/embeddings", {"data": [{"embedding": [0.1]}]}, "input"),
        ("responses", "/v1/responses", {"id": "r", "status": "completed", "output": []}, "input"),
        ("moderation", "/v1/moderations", {"results": [{"flagged": False}]}, "input"),
        ("rerank", "/v1/rerank", {"results": []}, "documents"),
        ("", "/v1/chat/completions", ANSWER, "messages"),
    ],
)
async def test_each_mode_has_a_small_request_of_its_own(
    bench: Make, llm: FakeLLM, mode: str, path: str, answer: Any, field: str
) -> None:
    one = deployment(llm.url, mode=mode)
    llm.replies.append(Reply.json(answer))
    [health] = await bench(one).ask(one)
    assert (health.state, health.how, health.error) == ("healthy", "probe", "")
    [request] = llm.requests
    assert (request.path, request.json["model"]) == (path, "gpt-4o-2024")
    assert field in request.json
    assert len(request.body) < 200
    assert request.headers["authorization"] == f"Bearer {KEY}"


async def test_it_goes_through_the_bridge_of_the_provider(bench: Make, llm: FakeLLM) -> None:
    one = deployment(llm.url, provider=anthropic(llm.url), model="claude")
    said = {"id": "m", "type": "message", "role": "assistant", "content": [{"type": "text", "text": "x"}]}
    llm.replies.append(
        Reply.json({**said, "stop_reason": "end_turn", "usage": {"input_tokens": 1, "output_tokens": 1}})
    )
    [health] = await bench(one).ask(one)
    assert health.state == "healthy", health
    assert (llm.requests[0].path, llm.requests[0].headers["x-api-key"]) == ("/v1/messages", KEY)


async def test_a_model_of_its_own_for_checks(bench: Make, llm: FakeLLM) -> None:
    one = deployment(llm.url, model_name="openai/*", model="*", health_model="gpt-4o-mini")
    llm.replies.append(GOOD)
    assert (await bench(one).ask(one))[0].state == "healthy"
    assert llm.requests[0].json["model"] == "gpt-4o-mini"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"mode": "image_generation"}, "'image_generation' is not checked"),
        ({"mode": "realtime"}, "not checked"),
        ({"model": "whisper-1"}, "'audio' is not checked"),
        ({"model_name": "openai/*", "model": "*"}, "health_check_model"),
        ({"mode": "moderation", "provider": anthropic("http://127.0.0.1:9")}, "does not serve moderations"),
    ],
)
async def test_what_cannot_be_asked_is_skipped_and_nothing_is_sent(
    bench: Make, llm: FakeLLM, fields: dict[str, Any], told: str
) -> None:
    one = deployment(llm.url, **fields)
    [health] = await bench(one).ask(one)
    assert health.state == "skipped"
    assert told in health.error
    assert not llm.requests


async def test_one_that_takes_too_long(bench: Make, llm: FakeLLM) -> None:
    one = deployment(llm.url, health_timeout_s=0.05)
    llm.replies.append(Reply.json(ANSWER, delay_s=30))
    [health] = await bench(one).ask(one)
    assert (health.state, health.status) == ("unhealthy", 408)


async def test_errors_show_no_key(bench: Make, llm: FakeLLM) -> None:
    one = deployment(llm.url)
    llm.replies += [Reply.json({"error": {"message": f"wrong key {KEY}"}}, status=401)] * 2
    [health] = await bench(one).ask(one)
    assert (health.state, health.status) == ("unhealthy", 401)
    assert "wrong key" in health.error
    assert KEY not in health.error


async def test_one_that_nobody_can_reach(bench: Make) -> None:
    one = deployment("http://127.0.0.1:9")
    [health] = await bench(one).ask(one)
    assert (health.state, health.status) == ("unhealthy", 0)


async def test_an_answer_that_is_none(bench: Make, llm: FakeLLM) -> None:
    one = deployment(llm.url)
    llm.replies.append(Reply(parts=[b"<html>"]))
    assert (await bench(one).ask(one))[0].state == "unhealthy"


# --- what it means


async def test_with_routing_who_failed_is_left_out_until_it_answers(bench: Make, llm: FakeLLM, other: FakeLLM) -> None:
    a, b = deployment(llm.url, id="a"), deployment(other.url, id="b")
    made = bench(a, b, routing=True)
    llm.replies, other.replies = [DOWN, GOOD], [GOOD]
    assert [one.state for one in await made.ask(a, b)] == ["unhealthy", "healthy"]
    assert made.free == ["b"]
    assert [block.detail for block in made.router.blocks.of(a)] == ["InternalServer 500"]
    await made.ask(a)
    assert made.free == ["a", "b"]


async def test_an_old_result_says_nothing(bench: Make, llm: FakeLLM) -> None:
    a, b = deployment(llm.url, id="a"), deployment(llm.url, id="b")
    made = bench(a, b, routing=True)
    llm.replies.append(DOWN)
    await made.ask(a)
    made.now += 119 * _S
    assert made.free == ["b"]
    made.now += 2 * _S  # two intervals
    assert made.free == ["a", "b"]


async def test_checks_alone_leave_no_group_without_anybody(bench: Make, llm: FakeLLM) -> None:
    a, b = deployment(llm.url, id="a"), deployment(llm.url, id="b")
    made = bench(a, b, routing=True)
    llm.replies = [DOWN, DOWN]
    await made.ask(a, b)
    assert made.free == ["a", "b"]


async def test_without_routing_a_failure_only_counts(bench: Make, llm: FakeLLM) -> None:
    a, b = deployment(llm.url, id="a"), deployment(llm.url, id="b")
    made = bench(a, b)
    llm.replies = [DOWN] * 5
    for _ in range(4):
        await made.ask(a)
        assert made.free == ["a", "b"]
    assert made.router.cooldowns.counts(a) == (4, 4)
    await made.ask(a)
    assert (made.free, made.router.cooldowns.state(a)) == (["b"], "open")


@pytest.mark.parametrize("status", [408, 429])
async def test_transient_errors_can_be_ignored(bench: Make, llm: FakeLLM, status: int) -> None:
    a, b = deployment(llm.url, id="a"), deployment(llm.url, id="b")
    llm.replies += [Reply.json({"error": {"message": "wait"}}, status=status)] * 2
    lenient, strict = bench(a, b, routing=True, ignore_transient=True), bench(a, b, routing=True)
    assert (await lenient.ask(a))[0].state == "unhealthy"
    assert (lenient.free, lenient.router.cooldowns.state(a)) == (["a", "b"], "closed")
    await strict.ask(a)
    assert strict.free == ["b"]


@pytest.mark.parametrize(("mode", "free"), [("", ["a", "b"]), ("chat", ["b"])])
async def test_a_guess_that_was_not_understood_is_no_fault_of_the_deployment(
    bench: Make, llm: FakeLLM, mode: str, free: list[str]
) -> None:
    a, b = deployment(llm.url, id="a", mode=mode), deployment(llm.url, id="b")
    made = bench(a, b, routing=True)
    llm.replies.append(Reply.json({"error": {"message": "This is not a chat model"}}, status=404))
    assert (await made.ask(a))[0].state == "unhealthy"
    assert made.free == free


async def test_a_request_that_it_does_not_take_is_no_reason_to_leave_it_out(bench: Make, llm: FakeLLM) -> None:
    a, b = deployment(llm.url, id="a", mode="chat"), deployment(llm.url, id="b")
    made = bench(a, b, routing=True)
    llm.replies.append(Reply.json({"error": {"message": "max_tokens is too small"}}, status=400))
    assert (await made.ask(a))[0].state == "unhealthy"
    assert made.free == ["a", "b"]


async def test_a_good_check_after_a_cooldown_spares_a_client_the_trial(bench: Make, llm: FakeLLM) -> None:
    a, b = deployment(llm.url, id="a"), deployment(llm.url, id="b")
    made = bench(a, b)
    for _ in range(5):
        made.router.cooldowns.failed(a, FAILED, alone=False)
    llm.replies = [GOOD, GOOD]
    await made.ask(a)
    assert made.router.cooldowns.state(a) == "open"  # its time is not over
    made.now += 6 * _S
    assert made.router.cooldowns.state(a) == "half_open"
    await made.ask(a)
    assert (made.router.cooldowns.state(a), made.router.cooldowns.share(a) < 1) == ("closed", True)


# --- whom the background asks


async def test_who_answers_clients_is_not_asked(bench: Make, llm: FakeLLM) -> None:
    hot, idle = deployment(llm.url, id="hot"), deployment(llm.url, id="idle")
    made = bench(hot, idle)
    made.router.cooldowns.succeeded(hot)
    llm.replies = [GOOD] * 4
    await made.checks.round()
    assert {one.id: health.how for one, health in made.checks.latest.items()} == {"hot": "traffic", "idle": "probe"}
    made.now += 59 * _S
    await made.checks.round()  # the minute of its last answer is not over
    assert len(llm.requests) == 2
    made.now += 61 * _S
    await made.checks.round()
    assert len(llm.requests) == 4


async def test_who_fails_clients_is_asked(bench: Make, llm: FakeLLM) -> None:
    one = deployment(llm.url)
    made = bench(one)
    made.router.cooldowns.succeeded(one)
    made.checks.listen()
    for _ in range(2):
        made.router.cooldowns.failed(one, FAILED, alone=True)
    llm.replies.append(GOOD)
    await made.checks.round()
    assert len(llm.requests) == 1


async def test_traffic_lifts_what_a_check_has_blocked(bench: Make, llm: FakeLLM) -> None:
    a, b = deployment(llm.url, id="a"), deployment(llm.url, id="b")
    made = bench(a, b, routing=True)
    llm.replies.append(DOWN)
    await made.ask(a)
    for _ in range(2):
        made.router.cooldowns.succeeded(a)
    made.checks.listen()
    assert (made.free, made.checks.latest[a].how) == (["a", "b"], "traffic")


async def test_those_left_out_by_the_config_or_without_money_are_not_asked(bench: Make, llm: FakeLLM) -> None:
    left, poor = deployment(llm.url, id="left", unchecked=True), deployment(llm.url, id="poor")
    made = bench(left, poor)
    made.router.blocks.put(poor, Block("budget", made.now + 100 * _S))
    await made.checks.round()
    assert not llm.requests


async def test_one_of_several_processes_asks_and_tells_the_others(bench: Make, llm: FakeLLM) -> None:
    a, b = deployment(llm.url, id="a"), deployment(llm.url, id="b")
    asker, hearer = bench(a, b, routing=True), bench(a, b, routing=True)

    async def no() -> bool:
        return False

    hearer.checks.lock = no
    await hearer.checks.round()
    assert not llm.requests
    asker.checks.told = lambda check: hearer.checks.heard({"a": a, "b": b}[check.id], check)
    llm.replies = [DOWN, GOOD]
    await asker.ask(a)
    assert hearer.free == ["b"]
    await asker.ask(a)
    assert hearer.free == ["a", "b"]
    hearer.checks.lock = None
    llm.replies = [GOOD]
    await hearer.checks.round()  # `a` was asked a moment ago, elsewhere
    assert len(llm.requests) == 3


async def test_nobody_is_asked_while_the_process_ends(bench: Make, llm: FakeLLM) -> None:
    made = bench(deployment(llm.url))
    made.runtime.draining = True
    await made.checks.round()
    assert not llm.requests


async def test_the_background_begins_once_and_ends_with_the_runtime(llm: FakeLLM) -> None:
    turns: asyncio.Queue[float] = asyncio.Queue()
    go = asyncio.Semaphore(0)

    async def sleep(seconds: float) -> None:
        turns.put_nowait(seconds)
        await go.acquire()

    llm.replies = [GOOD]
    runtime = Runtime(sleep=sleep)
    health = HealthRules(every_s=60)
    router = Router(
        Deployments([deployment(llm.url)]), LeastBusy(), RoutingRules(health=health), runtime, LocalWindows(runtime),
        LocalHolds(runtime),
    )  # fmt: skip
    checks = await health_of(router)
    assert await health_of(router) is checks
    checks.start()
    checks.start()
    assert 0 <= await turns.get() < 10
    go.release()
    assert await turns.get() == 30  # the round is over; in between it listens
    assert len(llm.requests) == 1
    await runtime.aclose()
    assert turns.empty()


# --- how many at once


async def test_one_that_is_being_asked_is_not_asked_twice(bench: Make, llm: FakeLLM) -> None:
    one = deployment(llm.url)
    made = bench(one)
    llm.replies.append(GOOD)
    found = await asyncio.gather(*(made.ask(one) for _ in range(5)))
    assert [health.state for [health] in found] == ["healthy"] * 5
    assert len(llm.requests) == 1


async def test_a_few_at_a_time(bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    running = most = 0

    async def probe(one: Deployment, runtime: Runtime) -> Probe:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return Probe()

    monkeypatch.setattr(health_module, "probe", probe)
    many = [deployment("http://127.0.0.1:9", id=str(number)) for number in range(50)]
    made = bench(*many, concurrency=3)
    assert {health.state for health in await made.ask(*many)} == {"healthy"}
    assert most == 3


async def test_a_plugin_that_fails_ends_no_other_check(bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    async def probe(one: Deployment, runtime: Runtime) -> Probe:
        if one.id == "a":
            raise ValueError("a fault of a plugin, with sk-secret")
        return Probe()

    monkeypatch.setattr(health_module, "probe", probe)
    a, b = deployment("http://127.0.0.1:9", id="a"), deployment("http://127.0.0.1:9", id="b")
    made = bench(a, b, routing=True)
    first, second = await made.ask(a, b)
    assert (first.state, first.error) == ("unhealthy", "the check itself failed: ValueError")
    assert second.state == "healthy"
    assert made.free == ["a", "b"]


async def test_checks_that_are_given_up_say_nothing(bench: Make, llm: FakeLLM) -> None:
    one = deployment(llm.url)
    made = bench(one)
    llm.replies.append(Reply.json(ANSWER, delay_s=30))
    asking = asyncio.ensure_future(made.ask(one))
    while not llm.requests:
        await asyncio.sleep(0.01)
    await made.checks.aclose()
    with pytest.raises(KeyError):
        await asking
    assert not made.checks.latest
    assert made.router.cooldowns.counts(one) == (0, 0)
