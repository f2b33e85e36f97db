"""What holds for every routing strategy."""

from __future__ import annotations

import random
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.pickers import STRATEGIES, S, World, deployments, failed, late, plain, strategy
from tianji_mw import plugins
from tianji_mw.facts import Attempt
from tianji_mw.routing.base import Candidates, Picker

every = pytest.mark.parametrize("name", STRATEGIES)

#: (what, a number that chooses): a deployment, an attempt, a length of time.
WHAT = ["send", "send", "send", "ok", "ok", "fail", "late", "bad", "leave", "wait", "elsewhere", "narrow"]
STEPS = st.lists(st.tuples(st.sampled_from(WHAT), st.integers(0, 1000)), max_size=60)
LIMITS = {"tpm": 1e5, "rpm": 60.0, "input_cost": 1e-6}


def played(world: World, group: Candidates, steps: list[tuple[str, int]]) -> list[str]:
    """Take the steps, end what still runs; the choices that were made."""
    running: list[tuple[Attempt, Any]] = []
    chosen, allowed = [], group
    for what, number in steps:
        if what == "send":
            picked = world.pick(allowed, stream=number % 2 == 0)
            assert any(picked is one for one in allowed)
            chosen.append(picked.id)
            running.append(world.send(picked, stream=number % 2 == 0))
        elif what == "wait":
            world.wait(number / 10)
        elif what == "elsewhere":
            world.picker.elsewhere(group[number % len(group)], number % 7)
        elif what == "narrow":
            left = [one for i, one in enumerate(group) if number >> i & 1]
            allowed = Candidates(left) if left else group
        elif running:
            ended(world, running.pop(number % len(running)), what, number)
    for sent in running:
        world.end(sent, abandoned=True)
    return chosen


def ended(world: World, sent: tuple[Attempt, Any], what: str, number: int) -> None:
    if sent[1].stream and number % 3:
        sent[0].first = sent[0].started + (world.now - sent[0].started) // 2
    errors = {"fail": failed(), "late": late(), "bad": failed(400)}
    world.end(sent, tokens=number, error=errors.get(what), abandoned=what == "leave")


@every
@settings(max_examples=60)
@given(steps=STEPS, seed=st.integers(0, 99), size=st.integers(1, 12), limited=st.booleans())
def test_whatever_happens_it_picks_candidates_and_counts_to_zero(
    name: str, steps: list[tuple[str, int]], seed: int, size: int, limited: bool
) -> None:
    world, group = World(strategy(name), seed), deployments(*[LIMITS if limited else {}] * size)
    played(world, group, steps)
    world.wait(62)
    world.pick(group)
    for one in group:
        report = world.report(one)
        assert report.get("inflight", 0) == 0
        assert report.get("tokens_last_minute", 0) == 0


@every
@settings(max_examples=25)
@given(steps=STEPS, seed=st.integers(0, 99))
def test_the_same_seed_makes_the_same_choices(name: str, steps: list[tuple[str, int]], seed: int) -> None:
    first, again = (played(World(strategy(name), seed), plain(5), steps) for _ in range(2))
    assert first == again


@every
def test_a_second_picker_has_a_state_of_its_own(name: str) -> None:
    group = plain(3)
    busy, idle = World(strategy(name)), World(strategy(name))
    for _ in range(20):
        busy.serve(group[0], 9.0)
        busy.fail(group[1])
        busy.send(group[2])
    busy.pick(group)
    shares = idle.picks(group, 3000)
    assert min(shares[one.id] for one in group) > 800


@every
def test_equal_deployments_get_equal_shares(name: str) -> None:
    # Without a buffer `latency` follows the single best mean: that is what its buffer is for.
    fields = {"lowest_latency_buffer": 0.5} if name == "latency" else {}
    world, group = World(strategy(name, **fields)), plain(4)
    shares: Counter[str] = Counter()
    rng = random.Random(3)
    running: list[tuple[int, int, tuple[Attempt, Any]]] = []
    for number in range(4000):
        world.wait(0.2)
        while running and running[0][0] <= world.now:
            world.end(running.pop(0)[2])
        picked = world.pick(group)
        shares[picked.id] += 1
        running.append((world.now + int(rng.lognormvariate(0, 0.4) * S), number, world.send(picked)))
        running.sort(key=lambda entry: entry[:2])
    assert max(shares.values()) / 4000 < 0.25 + 0.2
    assert name == "latency" or max(shares.values()) / 4000 < 0.32


@every
def test_one_candidate_is_the_choice_whatever_is_known_of_it(name: str) -> None:
    world, group = World(strategy(name)), plain(1)
    for _ in range(10):
        assert world.pick(group) is group[0]
        world.fail(group[0], late(), seconds=100)


@every
def test_all_candidates_bad_is_no_reason_to_choose_nobody(name: str) -> None:
    world, group = World(strategy(name)), plain(3)
    for one in group:
        for _ in range(20):
            world.fail(one)
            world.fail(one, late(), seconds=30)
    assert set(world.picks(group)) <= {one.id for one in group}


@every
def test_an_end_without_a_beginning_is_no_harm(name: str) -> None:
    world, group = World(strategy(name)), plain(2)
    attempt = Attempt(group[0], world.now)
    attempt.ended = world.now + S
    world.picker.observe(attempt, world.call())
    assert world.report(group[0]).get("inflight", 0) == 0
    assert world.pick(group) in group


@every
def test_a_report_is_for_people_and_always_there(name: str) -> None:
    world, (one, other) = World(strategy(name)), plain(2)
    world.serve(one, 1.0)
    assert world.report(one).keys() == world.report(other).keys()
    assert all(value is None or isinstance(value, int | float | bool) for value in world.report(one).values())


@every
def test_old_candidates_do_not_stay_alive(name: str) -> None:
    world, group = World(strategy(name)), plain(5)
    for _ in range(3):
        world.pick(Candidates(group[:4]))
    before = sys.getrefcount(group[0])
    for _ in range(50):
        world.pick(Candidates(group[:4]))
    after = sys.getrefcount(group[0])  # pytest keeps a reference to what it compares
    assert after == before


def steps_of(world: World, group: Candidates) -> int:
    """Function calls of a pick right after an `observe`."""
    call, count = world.call(), 0

    def seen(frame: Any, event: str, arg: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    world.serve(world.pick(group), 1.0)
    sys.setprofile(seen)
    try:
        world.picker.pick(group, call)
    finally:
        sys.setprofile(None)
    return count


@every
def test_a_pick_of_a_thousand_costs_hardly_more_than_one_of_ten(name: str) -> None:
    fields = {**LIMITS, "output_cost": 2e-6}
    few, many = deployments(*[fields] * 10), deployments(*[{**fields, "input_cost": i * 1e-9} for i in range(1000)])
    counts = []
    for group in (few, many):
        world = World(strategy(name))
        for one in group:
            world.serve(one, 1.0)
        counts.append(max(steps_of(world, group) for _ in range(30)[1:]))
    assert counts[1] <= 2 * counts[0] + 20


def test_names_belong_to_one_strategy() -> None:
    classes = [plugins.find("routing", name, Picker) for name in STRATEGIES]
    names = [name for cls in classes for name in cls.names]
    assert len(names) == len(set(names))
    assert {cls.__name__ for cls in classes if cls.limits} == {"Latency", "Cost", "LowestUsage"}
