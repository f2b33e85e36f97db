"""Cooldowns that leave somebody out only while others are there, and that none of them lasts for ever."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.support.routing_core import FAILED, Clock, S, a_group, runtime_of
from tianji_mw.routing.blocks import Block, Blocks
from tianji_mw.routing.cooldown import Cooldowns, Minute
from tianji_mw.routing.rules import RoutingRules

LIMITED = FAILED._replace(kind="RateLimit", status=429)
REFUSED = FAILED._replace(kind="Authentication", status=401)


def made(*fields: dict[str, Any], **rules: Any) -> tuple[Clock, Blocks, Cooldowns, Any]:
    clock = Clock()
    runtime = runtime_of(clock)
    blocks = Blocks(runtime)
    return clock, blocks, Cooldowns(RoutingRules(**rules), blocks, runtime), a_group(*(fields or ({}, {})))


def test_one_that_mostly_works_is_used_when_nobody_else_is_there() -> None:
    _, blocks, cooldowns, group = made()
    for one in group:
        for _ in range(3):
            cooldowns.succeeded(one)
    cooldowns.failed(group[0], LIMITED, alone=False)
    assert [*blocks.free(group)] == [group[1]]
    cooldowns.failed(group[1], LIMITED, alone=False)
    assert [*blocks.free(group)] == [*group]


def test_one_that_mostly_fails_or_whose_key_is_refused_is_not() -> None:
    _, blocks, cooldowns, group = made()
    for one in group:
        for _ in range(3):
            cooldowns.succeeded(one)
    cooldowns.failed(group[0], REFUSED, alone=False)
    for _ in range(5):
        cooldowns.failed(group[1], FAILED, alone=False)
    assert [*blocks.free(group)] == []


def test_a_few_bad_answers_at_the_start_say_too_little() -> None:
    _, blocks, cooldowns, group = made()
    for one in group:
        cooldowns.failed(one, LIMITED, alone=False)
    assert [*blocks.free(group)] == [*group]
    for one in group:
        cooldowns.failed(one, FAILED._replace(status=None, unreachable=True), alone=False)
    assert [*blocks.free(group)] == [*group]


def test_one_that_asks_for_long_from_the_start_is_left_out() -> None:
    _, blocks, cooldowns, group = made()
    cooldowns.failed(group[0], LIMITED._replace(wait_s=33.0), alone=False)
    cooldowns.failed(group[1], LIMITED._replace(wait_s=1.0), alone=False)
    assert [*blocks.free(group)] == [group[1]]


def test_who_is_used_for_want_of_another_and_fails_on_is_out() -> None:
    _, blocks, cooldowns, group = made()
    for one in group:
        cooldowns.failed(one, LIMITED, alone=False)
    for _ in range(3):
        cooldowns.failed(group[0], LIMITED, alone=False)
    assert [*blocks.free(group)] == [*group]
    assert cooldowns.failed(group[0], LIMITED, alone=False)
    assert [*blocks.free(group)] == [group[1]]
    assert cooldowns.state(group[0]) == "open"


def test_one_trial_at_a_time_however_long_it_was_out() -> None:
    clock, blocks, cooldowns, group = made()
    one = group[0]
    for _ in range(5):
        cooldowns.failed(one, FAILED._replace(wait_s=600), alone=False)
    clock.wait(600)
    assert cooldowns.began(one)
    assert not blocks.soft(one)


def test_a_trial_of_one_that_mostly_works_holds_nobody_off() -> None:
    clock, blocks, cooldowns, group = made()
    for one in group:
        for _ in range(3):
            cooldowns.succeeded(one)
        cooldowns.failed(one, LIMITED, alone=False)
    clock.wait(5)
    assert all(cooldowns.began(one) for one in group)
    assert [*blocks.free(group)] == [*group]


def test_another_process_may_take_it_out_and_bring_it_back() -> None:
    clock, blocks, cooldowns, group = made()
    one = group[0]
    cooldowns.heard(one, 10, Block("cooldown", clock.now + 10 * S, "RateLimit 429"))
    assert [*blocks.free(group)] == [group[1]]
    cooldowns.closed(one)
    assert cooldowns.state(one) == "open"  # its time is not over
    clock.wait(10)
    cooldowns.closed(one)
    assert cooldowns.state(one) == "closed"
    assert cooldowns.share(one) < 1


def test_a_minute_forgets_slice_by_slice() -> None:
    minute = Minute()
    for second in range(0, 120, 10):
        minute.note(second * S, failed=second % 20 == 0)
    assert minute.counts(110 * S) == (6, 3)
    assert minute.counts(165 * S) == (1, 0)
    assert minute.counts(10_000 * S) == (0, 0)


@given(st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=60))
def test_a_minute_counts_as_a_list_does(steps: list[tuple[int, bool]]) -> None:
    minute, noted, now = Minute(), list[tuple[int, bool]](), 1_000
    for wait, failed in steps:
        now += wait
        if failed:
            minute.note(now * S, failed=True)
        else:
            minute.worked(now * S)
        noted.append((now // 10, failed))
        counted = [failed for at, failed in noted if at > now // 10 - 6]
        assert minute.counts(now * S) == (len(counted), sum(counted))


STEPS = st.one_of(
    st.tuples(st.just("wait"), st.floats(0, 400)),
    st.tuples(st.just("begin"), st.just(0.0)),
    st.tuples(st.just("work"), st.just(0.0)),
    st.tuples(st.just("fail"), st.one_of(st.just(0.0), st.floats(0, 1e308), st.just(float("inf")))),
    st.tuples(st.just("limited"), st.floats(0, 1e9)),
    st.tuples(st.just("harmless"), st.just(0.0)),
    st.tuples(st.just("abandon"), st.just(0.0)),
    st.tuples(st.just("heard"), st.floats(0.001, 3600)),
    st.tuples(st.just("closed"), st.just(0.0)),
)


@given(st.lists(st.tuples(st.integers(0, 1), STEPS), max_size=80), st.booleans(), st.integers(0, 2))
def test_whatever_happens_it_comes_back(steps: list[tuple[int, tuple[str, float]]], alone: bool, allowed: int) -> None:
    rules: dict[str, Any] = {"allowed_fails": allowed - 1} if allowed else {}
    clock, blocks, cooldowns, group = made(**rules)
    probing: list[Any] = []
    for number, (what, amount) in steps:
        one = group[number]
        match what:
            case "wait":
                clock.wait(amount)
            case "begin":
                if cooldowns.began(one):
                    probing.append(one)
            case "work":
                cooldowns.succeeded(one)
            case "fail":
                cooldowns.failed(one, FAILED._replace(wait_s=amount or None), alone=alone)
            case "limited":
                cooldowns.failed(one, LIMITED._replace(wait_s=amount), alone=alone)
            case "harmless":
                cooldowns.failed(one, FAILED._replace(counts=False), alone=alone)
            case "abandon":
                cooldowns.abandoned(one, probe=one in probing)
            case "heard":
                cooldowns.heard(one, amount, Block("cooldown", 0, "elsewhere"))
            case _:
                cooldowns.closed(one)
        for each in group:
            assert all(block.until <= clock.now + 3600 * S for block in blocks.of(each))
            open_, blocked = cooldowns.state(each) == "open", [b for b in blocks.of(each) if b.reason == "cooldown"]
            assert open_ == bool(blocked)
            assert 0.1 <= cooldowns.share(each) <= 1.0
        assert cooldowns.returning <= set(group)
    # An hour later, everybody may be tried, and one call that works brings everybody back for good.
    clock.wait(3600)
    assert [*blocks.free(group)] == [*group]
    for one in group:
        assert cooldowns.state(one) != "open"
        cooldowns.began(one)
        cooldowns.succeeded(one)
        assert cooldowns.state(one) == "closed"
    clock.wait(30)
    assert [cooldowns.share(one) for one in group] == [1.0, 1.0]
    assert cooldowns.returning == set()
