"""`adaptive`: failures, outliers, and how they come back."""

from __future__ import annotations

import pytest

from tests.support.pickers import World, failed, late, plain, strategy
from tianji_mw.routing.adaptive import Adaptive
from tianji_mw.routing.base import Candidates


def world() -> World:
    return World(strategy("adaptive"))


def warm(w: World, group: Candidates, *seconds: float, rounds: int = 20) -> None:
    for _ in range(rounds):
        for one, took in zip(group, seconds, strict=True):
            w.serve(one, took)


def test_failures_move_calls_away_until_probes_go_well() -> None:
    w, group = world(), plain(3)
    warm(w, group, 1.0, 1.0, 1.0)
    for _ in range(4):
        w.fail(group[0])
    assert w.report(group[0])["doubted"]
    assert w.picks(group, 1000)["d0"] <= 1000 / 150 + 1
    probes = 0
    for _ in range(3000):
        w.wait(0.1)
        picked = w.pick(group)
        probes += picked is group[0] and w.report(group[0])["doubted"]
        w.serve(picked, 0.2)
    assert probes <= 8
    assert not w.report(group[0])["doubted"]
    assert w.picks(group)["d0"] > 200


def test_probes_of_one_that_stays_bad_become_rare() -> None:
    w, group = world(), plain(3)
    warm(w, group, 1.0, 1.0, 1.0)
    when = []
    for number in range(10_000):
        picked = w.pick(group)
        if picked is group[0]:
            when.append(number)
            w.fail(picked)
        else:
            w.serve(picked, 0.1)
    assert 5 <= len(when) <= 30
    assert when[-1] - when[-2] > 1000


def test_one_probe_at_a_time() -> None:
    w, group = world(), plain(3)
    warm(w, group, 1.0, 20.0, 1.0)
    sent = []
    for _ in range(2000):
        w.wait(0.2)
        if (picked := w.pick(group)) is group[1]:
            sent.append(w.send(picked))
        else:
            w.serve(picked, 1.0)
    assert len(sent) == 1


def test_a_single_failure_is_soon_forgotten() -> None:
    w, group = world(), plain(2)
    warm(w, group, 1.0, 1.0)
    w.fail(group[0])
    assert w.picks(group, 30) == {"d1": 30}
    w.wait(60)
    assert w.picks(group, 1000)["d0"] > 300


def test_a_clients_mistake_speaks_against_nobody() -> None:
    w, group = world(), plain(2)
    warm(w, group, 1.0, 1.0)
    for _ in range(20):
        w.fail(group[0], failed(400))
    assert w.report(group[0])["failing"] == 0


def test_an_attempt_that_hangs_is_noticed_before_it_ends() -> None:
    w, group = world(), plain(2)
    warm(w, group, 1.0, 1.0)
    w.send(group[0])
    w.send(group[1])[0].first = w.now + 1
    w.wait(20)
    assert w.picks(group) == {"d1": 1000}


def test_abandoned_for_being_slow_counts_as_slow() -> None:
    w, group = world(), plain(2)
    warm(w, group, 1.0, 1.0)
    for _ in range(3):
        sent = w.send(group[0], stream=True)
        w.wait(10)
        w.end(sent, abandoned=True)
    assert w.picks(group, 100) == {"d1": 100}
    assert w.report(group[0])["failing"] == 0


def test_a_slow_one_is_tried_again_when_time_has_passed() -> None:
    w, group = world(), plain(2)
    warm(w, group, 1.0, 1.4)
    assert w.picks(group, 100) == {"d0": 100}
    for _ in range(200):
        w.wait(0.2)
        w.serve(group[0], 1.0)
    assert w.picks(group)["d1"] > 200
    w.send(group[1])
    assert w.picks(group) == {"d0": 1000}


def test_what_is_old_is_tried_by_one_call_at_a_time() -> None:
    w, (fast, slow) = world(), (group := plain(2))
    warm(w, group, 1.0, 2.2)
    for _ in range(200):
        w.wait(0.2)
        w.pick(group)
        w.serve(fast, 1.0)
    for _ in range(2):
        w.send(fast)
    assert w.picks(group, 10) == {"d1": 10}
    w.send(slow)
    assert w.picks(group, 10) == {"d0": 10}


def test_who_may_not_be_chosen_is_not_probed_either() -> None:
    w, group = world(), plain(3)
    warm(w, group, 1.0, 1.0, 1.0)
    for _ in range(5):
        w.fail(group[0])
    some = Candidates(group[1:])
    for _ in range(1000):
        w.wait(0.1)
        assert w.pick(some) in some


def test_after_a_good_probe_the_next_ones_follow_at_once() -> None:
    w, group = world(), plain(3)
    warm(w, group, 1.0, 1.0, 1.0)
    for _ in range(5):
        w.fail(group[0])
    for _ in range(170):
        w.wait(0.1)
        w.serve(w.pick(group), 0.2)
    assert not w.report(group[0])["doubted"]


def test_what_is_planned_for_doubtful_ones_does_not_pile_up() -> None:
    picker = Adaptive()
    w, group = World(picker), plain(3)
    warm(w, group, 1.0, 1.0, 1.0)
    for number in range(20_000):
        picked = w.pick(group)
        if picked is group[0] and number % 2:
            w.fail(picked)
        else:
            w.serve(picked, 0.2)
    assert len(picker._state.of(group[0]).group.doubtful) < 10


@pytest.mark.parametrize("error", [failed(), failed(429), late()])
def test_when_all_fail_alike_all_are_chosen(error: Exception) -> None:
    w, group = world(), plain(4)
    for _ in range(10):
        for one in group:
            w.fail(one, error, seconds=1.0)
    assert min(w.picks(group)[one.id] for one in group) > 100
