"""Failover over real HTTP upstreams that fail: what the client gets, and what each upstream was asked."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.support.routed import Says, entry, fails, ok, routed
from tests.support.stack import ANSWER, CHAT, STREAM, delta, stream_of
from tianji_mw.testing import Received, Reply

pytestmark = pytest.mark.slow

GROUP = "gpt-4o"
#: 0.3 ** 6 is 0.7 of 1,000: more than five are lost in one of 9,000 runs. with a retry less, in one of 27.
RETRIES = 5


def group(*names: str, **params: Any) -> Any:
    """All upstreams in one group."""
    return lambda urls: [entry(GROUP, urls[name], info={"id": name}, **params) for name in names]


def sometimes(share: float, seed: int, *faults: Reply) -> Says:
    """Fails at random, else answers."""
    rng = random.Random(seed)

    def says(request: Received) -> Reply:
        return rng.choice(faults) if rng.random() < share else ok(request)

    return says


def fault(status: int, **headers: str) -> Reply:
    reply = Reply.json({"error": {"message": "no", "type": "x", "code": None}}, status=status)
    reply.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    return reply


@pytest.mark.parametrize("strategy", ["simple-shuffle", "adaptive"])
async def test_30_percent_random_failures_are_hardly_seen(tmp_path: Any, strategy: str) -> None:
    faults = fault(429), fault(503)
    says = {name: sometimes(0.3, seed, *faults) for seed, name in enumerate("abcd")}
    settings = {"routing_strategy": strategy, "num_retries": RETRIES}
    async with routed(says, group(*"abcd"), tmp_path=tmp_path, router_settings=settings) as routing:
        statuses = await routing.many(1000, CHAT)
    assert statuses[200] >= 995, statuses
    assert all(len(call.attempts) <= 1 + RETRIES for call in routing.ends.ends)


async def test_30_percent_with_retry_after(tmp_path: Any) -> None:
    faults = fault(429, retry_after="1"), fault(503, retry_after="1")
    says = {name: sometimes(0.3, seed, *faults) for seed, name in enumerate("abcd")}
    settings = {"num_retries": RETRIES}
    async with routed(says, group(*"abcd"), tmp_path=tmp_path, router_settings=settings) as routing:
        statuses = await routing.many(1000, CHAT)
    assert statuses[200] >= 995, statuses


@pytest.mark.parametrize("strategy", ["simple-shuffle", "adaptive", "latency-based-routing"])
async def test_a_bad_start_everywhere_takes_no_group_out(tmp_path: Any, strategy: str) -> None:
    """The first call meets a 429 at every deployment; none of them is known to work, and all do."""
    says = {name: [fault(429)] for name in "abcd"}
    settings = {"routing_strategy": strategy, "num_retries": 4, "cooldown_time": 60}
    async with routed(says, group(*"abcd"), tmp_path=tmp_path, router_settings=settings) as routing:
        assert await routing.many(50, CHAT, at_once=1) == {200: 50}
        assert sum(routing.asked().values()) == 54


@pytest.mark.parametrize("strategy", ["simple-shuffle", "adaptive", "least-busy", "latency-based-routing"])
async def test_a_dead_deployment_costs_its_first_failures_and_no_call(tmp_path: Any, strategy: str) -> None:
    says = {"a": ok, "b": ok, "dead": fails(500)}
    settings = {"routing_strategy": strategy, "cooldown_time": 60}
    async with routed(says, group("a", "b", "dead"), tmp_path=tmp_path, router_settings=settings) as routing:
        statuses = await routing.many(300, CHAT, at_once=1)
        assert statuses == {200: 300}
        assert 1 <= routing.asked()["dead"] <= 5


async def test_one_that_worked_and_died_is_out_after_five_failures(tmp_path: Any) -> None:
    dead = False

    def says(request: Received) -> Reply:
        return fails(500)(request) if dead else ok(request)

    settings = {"routing_strategy": "simple-shuffle", "cooldown_time": 60}
    async with routed({"a": ok, "b": says}, group("a", "b"), tmp_path=tmp_path, router_settings=settings) as routing:
        assert await routing.many(200, CHAT, at_once=1) == {200: 200}
        before, dead = routing.asked()["b"], True
        assert await routing.many(200, CHAT, at_once=1) == {200: 200}
        assert routing.asked()["b"] - before == 5


async def test_nobody_listening_is_out_after_three_failures(tmp_path: Any) -> None:
    def models(urls: Any) -> list[dict[str, Any]]:
        return [entry(GROUP, urls["a"]), entry(GROUP, "http://127.0.0.1:9", info={"id": "nobody"})]

    settings = {"routing_strategy": "simple-shuffle", "cooldown_time": 60}
    async with routed({"a": ok}, models, tmp_path=tmp_path, router_settings=settings) as routing:
        assert await routing.many(100, CHAT, at_once=1) == {200: 100}
    tried = [a for call in routing.ends.ends for a in call.attempts if a.deployment.id == "nobody"]
    assert len(tried) == 3


STREAM_FAULTS = {
    "refused before the head": Reply(refuse=True),
    "reset after the head": Reply.events(*stream_of("x"), cut_after=0, reset=True),
    "reset after the first event": Reply.events(*stream_of("x"), cut_after=len(delta(role="assistant")), reset=True),
    "cut inside of the first event": Reply.events(*stream_of("x"), cut_after=10),
    "an error as the first event": Reply.events(b'data: {"error":{"message":"overloaded","code":503}}\n\n'),
    "an error after the role": Reply.events(
        delta(role="assistant"), b'data: {"error":{"message":"overloaded","code":503}}\n\n'
    ),
    "garbage": Reply(garbage=b"SSH-2.0-OpenSSH\r\n"),
    "an empty stream": Reply.events(),
    "html": Reply(headers={"content-type": "text/html"}, parts=[b"<html>"]),
    "a redirect": Reply(status=302, headers={"location": "http://127.0.0.1:1/"}),
}


@pytest.mark.parametrize("broken", STREAM_FAULTS, ids=lambda name: name.replace(" ", "-"))
async def test_a_stream_that_breaks_before_its_first_content_is_asked_of_another(tmp_path: Any, broken: str) -> None:
    says = {"bad": [STREAM_FAULTS[broken]], "good": ok}
    models = lambda urls: [  # noqa: E731
        entry(GROUP, urls["bad"], order=1, info={"id": "bad"}),
        entry(GROUP, urls["good"], order=2, info={"id": "good"}),
    ]
    async with routed(says, models, tmp_path=tmp_path) as routing:
        answer = await routing.ask(STREAM)
        assert answer.status == 200
        assert answer.body == b"".join(stream_of("Hello", " you"))
        assert answer.headers["x-litellm-model-id"] == "good"
        assert answer.headers["x-litellm-attempted-retries"] == "1"
        assert routing.asked() == {"bad": 1, "good": 1}
    [call] = routing.ends.ends
    assert call.outcome == "ok"
    assert [attempt.deployment.id for attempt in call.attempts] == ["bad", "good"]
    assert call.attempts[0].error is not None
    assert call.attempts[1].error is None


async def test_nothing_is_tried_again_once_content_was_delivered(tmp_path: Any) -> None:
    events = stream_of("Hello")
    says = {"bad": [Reply.events(*events, cut_after=len(events[0]) + len(events[1]), reset=True)], "good": ok}
    models = lambda urls: [  # noqa: E731
        entry(GROUP, urls["bad"], order=1, info={"id": "bad"}),
        entry(GROUP, urls["good"], order=2, info={"id": "good"}),
    ]
    async with routed(says, models, tmp_path=tmp_path) as routing:
        answer = await routing.ask(STREAM)
        assert answer.status == 200
        assert b"Hello" in answer.body
        assert b'"error"' in answer.body
        assert b"broke" in answer.body
        assert routing.asked() == {"bad": 1, "good": 0}
    [call] = routing.ends.ends
    assert call.outcome == "truncated"
    assert len(call.attempts) == 1
    assert routing.ends.ends[0].attempts[0].failed


@pytest.mark.parametrize(
    "reply",
    [
        Reply(refuse=True),
        Reply.json(ANSWER, cut_after=10, reset=True),
        Reply.json(ANSWER, cut_after=10),
        Reply(garbage=b"\0\0\0"),
        Reply.json({"object": "error", "message": "overloaded"}),
        Reply(headers={"content-type": "application/json"}, parts=[b"{}"]),
    ],
    ids=["refused", "reset", "cut", "garbage", "error-in-200", "empty"],
)
async def test_a_plain_answer_that_breaks_is_asked_of_another(tmp_path: Any, reply: Reply) -> None:
    models = lambda urls: [  # noqa: E731
        entry(GROUP, urls["bad"], order=1, info={"id": "bad"}),
        entry(GROUP, urls["good"], order=2, info={"id": "good"}),
    ]
    async with routed({"bad": [reply], "good": ok}, models, tmp_path=tmp_path) as routing:
        answer = await routing.ask(CHAT)
        assert (answer.status, answer.headers["x-litellm-model-id"]) == (200, "good")
        assert answer.json == ANSWER


async def test_a_slow_first_byte_is_given_up_for_another(tmp_path: Any) -> None:
    models = lambda urls: [  # noqa: E731
        entry(GROUP, urls["slow"], order=1, timeout=0.2, info={"id": "slow"}),
        entry(GROUP, urls["good"], order=2, info={"id": "good"}),
    ]
    async with routed({"slow": [Reply.json(ANSWER, delay_s=30)], "good": ok}, models, tmp_path=tmp_path) as routing:
        answer = await routing.ask(CHAT)
        assert (answer.status, answer.headers["x-litellm-model-id"]) == (200, "good")
        assert routing.llms["slow"].dropped == 1
    assert [a.status for a in routing.ends.ends[0].attempts] == [0, 200]


async def test_the_last_error_goes_back_as_it_came(tmp_path: Any) -> None:
    says = {"a": fails(503, text="all is lost", headers={"retry-after": "7"})}
    settings = {"num_retries": 0}
    async with routed(says, group("a"), tmp_path=tmp_path, router_settings=settings) as routing:
        answer = await routing.ask(CHAT)
        assert answer.status == 503
        assert answer.json["error"]["message"] == "all is lost"
        assert answer.headers["retry-after"] == "7"
        assert answer.headers["x-litellm-attempted-retries"] == "0"


@pytest.mark.parametrize(("status", "asked"), [(400, 1), (404, 1), (422, 1), (413, 1)])
async def test_a_wrong_request_is_wrong_everywhere(tmp_path: Any, status: int, asked: int) -> None:
    says = {"a": fails(status), "b": fails(status)}
    async with routed(says, group("a", "b"), tmp_path=tmp_path) as routing:
        answer = await routing.ask(CHAT)
        assert answer.status == status
        assert sum(routing.asked().values()) == asked


@pytest.mark.parametrize("status", [401, 403, 402])
async def test_a_refused_key_is_tried_with_another_deployments(tmp_path: Any, status: int) -> None:
    says = {"a": fails(status), "b": ok}
    models = lambda urls: [entry(GROUP, urls["a"], order=1), entry(GROUP, urls["b"], order=2)]  # noqa: E731
    async with routed(says, models, tmp_path=tmp_path) as routing:
        assert (await routing.ask(CHAT)).status == 200
    async with routed({"a": fails(status)}, group("a"), tmp_path=tmp_path) as routing:
        assert (await routing.ask(CHAT)).status == status
        assert routing.asked()["a"] == 1


async def test_a_flapping_deployment_costs_no_call(tmp_path: Any) -> None:
    count = 0

    def flaps(request: Received) -> Reply:
        nonlocal count
        count += 1
        return fails(500)(request) if count // 10 % 2 else ok(request)

    settings = {"cooldown_time": 0.05, "routing_strategy": "simple-shuffle"}
    async with routed({"a": ok, "b": flaps}, group("a", "b"), tmp_path=tmp_path, router_settings=settings) as routing:
        assert await routing.many(400, CHAT, at_once=4) == {200: 400}
        assert routing.asked()["b"] > 10


async def test_a_total_timeout_bounds_all_attempts(tmp_path: Any) -> None:
    says = {"a": lambda request: Reply.json(ANSWER, delay_s=30), "b": lambda request: Reply.json(ANSWER, delay_s=30)}
    settings = {"total_timeout": 0.5, "num_retries": 9}
    async with routed(says, group("a", "b"), tmp_path=tmp_path, router_settings=settings) as routing:
        answer = await routing.ask(CHAT)
        assert answer.status == 408
        assert sum(routing.asked().values()) == 1


async def test_an_outage_is_not_made_worse_by_retries(tmp_path: Any) -> None:
    says = {"a": fails(500), "b": fails(503)}
    settings = {"num_retries": 2, "disable_cooldowns": True}
    async with routed(says, group("a", "b"), tmp_path=tmp_path, router_settings=settings) as routing:
        statuses = await routing.many(600, CHAT)
        assert statuses[200] == 0
        # A hundred are saved up, and a tenth of the calls may follow: without a budget there would be 1,200 retries.
        assert sum(routing.asked().values()) <= 600 + 100 + 60 + 5
