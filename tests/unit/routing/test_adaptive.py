"""`adaptive`: what it learns, whom it leaves out, whom it tries again. How good it is: `test_simulation.py`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.pickers import World, deployments, plain, strategy
from tianji_mw.routing.base import Candidates, Deployment


def world() -> World:
    return World(strategy("adaptive"))


def warm(w: World, group: Candidates, *seconds: float, rounds: int = 20) -> None:
    for _ in range(rounds):
        for one, took in zip(group, seconds, strict=True):
            w.serve(one, took)


def test_the_faster_one_is_chosen() -> None:
    w, group = world(), plain(3)
    warm(w, group, 1.0, 2.0, 2.0)
    assert w.picks(group) == {"d0": 1000}


def test_nearly_as_fast_is_as_good() -> None:
    w, group = world(), plain(3)
    warm(w, group, 1.0, 1.05, 1.05)
    assert min(w.picks(group, 3000)[one.id] for one in group) > 800


def test_load_moves_calls_to_the_slower_one() -> None:
    w, group = world(), plain(2)
    warm(w, group, 1.0, 1.5)
    for _ in range(8):
        w.send(group[0])
    assert w.picks(group) == {"d1": 1000}
    w.picker.elsewhere(group[1], 40)
    assert w.picks(group) == {"d0": 1000}


def test_short_answers_go_to_a_quick_start_and_long_ones_to_a_fast_writer() -> None:
    w, (quick, writer) = world(), (group := plain(2))
    for _ in range(20):
        w.serve(quick, 0.1 + 10.0, tokens=101, first=0.1)
        w.serve(writer, 1.0 + 1.0, tokens=101, first=1.0)
    assert w.picks(group, max_tokens=3) == {"d0": 1000}
    assert w.picks(group, max_tokens=80) == {"d1": 1000}
    assert w.report(quick)["ttft_ms"] == pytest.approx(100, rel=0.05)
    assert w.report(writer)["ms_per_output_token"] == pytest.approx(10, rel=0.05)


def test_worse_is_believed_sooner_than_better() -> None:
    w, (one, other) = world(), (group := plain(2))
    warm(w, group, 1.0, 1.0, rounds=10)
    before = w.report(one)["ttft_ms"]
    w.serve(one, 3.0)
    w.serve(other, 1.0)
    risen = w.report(one)["ttft_ms"]
    w.serve(one, 0.2)
    assert risen - before > 1.5 * (risen - w.report(one)["ttft_ms"]) > 0


def test_a_new_one_is_given_a_chance_and_not_everything() -> None:
    w, group = world(), plain(3)
    warm(w, Candidates(group[:2]), 1.0, 1.0)
    assert w.picks(group) == {"d2": 1000}  # nothing is known of it, so it is tried at once
    w.send(group[2])
    assert "d2" not in w.picks(group)  # by one call


@pytest.mark.parametrize("seconds", [0.01, 60.0])
def test_a_new_one_that_a_client_gave_up_on_is_not_tried_for_ever(seconds: float) -> None:
    w, group = world(), plain(3)
    warm(w, Candidates(group[:2]), 1.0, 1.0)
    sent = w.send(group[2])
    w.wait(seconds)
    w.end(sent, abandoned=True)
    if seconds > 1.0:
        assert "d2" not in w.picks(group)  # it took longer than calls take here
    else:
        assert 0 < w.picks(group)["d2"] < 1000  # nothing is known


def test_one_whose_first_call_failed_is_no_new_one() -> None:
    w, group = world(), plain(3)
    warm(w, Candidates(group[:2]), 1.0, 1.0)
    w.fail(group[2])
    assert "d2" not in w.picks(group)


def under_load(w: World, one: Deployment, calls: int, seconds: float) -> None:
    """It learns how long calls take while so many others run, and those go on running."""
    running = [w.send(one) for _ in range(calls)]
    for sent in running:
        sent[0].first = w.now + 1
    for _ in range(60):
        w.serve(one, seconds)


def test_load_that_it_is_used_to_is_no_reason_to_leave_it() -> None:
    w, (fast, slow) = world(), (group := plain(2))
    under_load(w, fast, 10, 1.0)
    for _ in range(20):
        w.serve(slow, 2.4)
    assert w.report(fast)["usual_inflight"] == pytest.approx(10, abs=0.5)
    assert w.picks(group, 100) == {"d0": 100}


def test_of_equally_fast_ones_the_idle_one_is_better_even_if_load_never_slowed_the_other() -> None:
    w, (busy, idle) = world(), (group := plain(2))
    under_load(w, busy, 10, 1.0)
    for _ in range(20):
        w.serve(idle, 1.0)
    w.send(idle)
    assert w.picks(group, 100) == {"d1": 100}


def test_explicit_weights_are_followed() -> None:
    w, group = world(), deployments({"weight": 3}, {"weight": 1})
    warm(w, group, 9.0, 1.0)
    assert 700 < w.picks(group)["d0"] < 800


@pytest.mark.parametrize("count", [2, 20])
def test_limits_are_weights(count: int) -> None:
    w, group = world(), deployments(*[{"rpm": 900}, {"rpm": 100}] * (count // 2))
    warm(w, group, *[1.0] * count)
    shares = w.picks(group, 4000)
    large = sum(shares[one.id] for one in group if one.rpm == 900)
    assert 0.85 < large / 4000 < 0.95


def test_the_good_ones_of_many_are_found() -> None:
    w, group = world(), plain(40)
    warm(w, group, *[1.0] * 20, *[30.0] * 20, rounds=5)
    shares = w.picks(group, 4000)
    assert sum(shares[one.id] for one in group[:20]) > 3960


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=30), st.integers(0, 500))
def test_any_durations_give_figures(seconds: list[float], tokens: int) -> None:
    w, group = world(), plain(2)
    for took in seconds:
        w.serve(group[0], took, tokens=tokens)
        w.serve(group[1], took, tokens=tokens, first=took)
    assert w.pick(group) in group
    assert 0 < w.report(group[0])["ttft_ms"] + 1e-3 < 1e9
