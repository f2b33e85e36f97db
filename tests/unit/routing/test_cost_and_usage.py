"""`cost-based-routing`, `usage-based-routing-v2` and `least-busy`, exactly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.pickers import World, deployments, failed, plain, strategy
from tianji_mw.routing.base import Candidates

# --- cost

PRICES = st.sampled_from([None, 0.0, 1e-7, 2e-7, 3e-7, 1e-6, 2.5e-6, 4e-6, 1e-5])


def priced(*prices: tuple[float | None, float | None]) -> Candidates:
    return deployments(*[{"input_cost": read, "output_cost": written} for read, written in prices])


def expected(group: Candidates, read: float, written: float) -> list[float]:
    price = lambda value: 5.0 if value is None else value  # noqa: E731
    return [price(one.input_cost) * read + price(one.output_cost) * written for one in group]


@given(prices=st.lists(st.tuples(PRICES, PRICES), min_size=2, max_size=12), answer=st.integers(1, 5000))
def test_the_cheapest_for_this_call(prices: list[tuple[float | None, float | None]], answer: int) -> None:
    w, group = World(strategy("cost")), priced(*prices)
    for _ in range(60):
        w.serve(group[0], 1.0, tokens=answer)
    # The prompt has 400 characters: 100 tokens.
    picked = w.pick(group)
    costs = expected(group, 100, answer)
    assert costs[group.index(picked)] == pytest.approx(min(costs))


def test_long_answers_are_dear_where_tokens_of_answers_are() -> None:
    w, group = World(strategy("cost")), priced((1e-6, 10e-6), (5e-6, 5e-6))
    assert w.picks(group, max_tokens=10) == {"d0": 1000}
    assert w.picks(group, max_tokens=250) == {"d1": 1000}


def test_one_that_is_never_the_cheapest_hides_nobody() -> None:
    w, group = World(strategy("cost")), priced((1e-6, 10e-6), (5e-6, 9e-6), (6e-6, 1e-6))
    for answer, best in ((10, "d0"), (50, "d0"), (60, "d2"), (250, "d2")):
        assert w.picks(group, max_tokens=answer) == {best: 1000}


def test_ties_are_decided_at_random_and_a_missing_price_comes_last() -> None:
    w, group = World(strategy("cost")), priced((1e-6, 2e-6), (1e-6, 2e-6), (None, 1e-9), (None, None))
    assert set(w.picks(group)) == {"d0", "d1"}
    assert w.report(group[3])["input_usd_per_token"] == 5.0


def test_without_an_answer_its_price_does_not_matter() -> None:
    w, group = World(strategy("cost")), priced((1e-6, None), (2e-6, 0.0), (1e-6, 9e-6))
    call = w.call()
    call.api.streams = False
    assert {w.picker.pick(group, call).id for _ in range(100)} == {"d0", "d2"}


# --- usage


def used(w: World, group: Candidates) -> list[int]:
    return [w.report(one)["tokens_last_minute"] for one in group]


def test_the_fewest_tokens_of_the_last_minute() -> None:
    w, group = World(strategy("usage")), plain(3)
    for one, tokens in zip(group, (300, 100, 200), strict=True):
        w.serve(one, 1.0, tokens=tokens)
    assert used(w, group) == [400, 200, 300]
    assert w.picks(group) == {"d1": 1000}


def test_a_call_counts_from_when_it_is_sent() -> None:
    w, group = World(strategy("usage")), plain(2)
    sent = w.send(group[0], max_tokens=50)
    assert used(w, group) == [153, 0]
    assert w.picks(group) == {"d1": 1000}
    w.wait(120)
    assert used(w, group) == [153, 0]  # it still runs
    w.end(sent, tokens=20)
    assert used(w, group) == [120, 0]


def test_the_minute_slides() -> None:
    w, group = World(strategy("usage")), plain(2)
    w.serve(group[0], 0.0, tokens=100)
    w.wait(40)
    w.serve(group[0], 0.0, tokens=300)
    w.wait(22)
    assert used(w, group) == [400, 0]
    w.wait(40)
    assert used(w, group) == [0, 0]
    assert len(w.picks(group)) == 2


def test_what_failed_needed_nothing_and_what_was_left_needed_what_was_expected() -> None:
    w, group = World(strategy("usage")), plain(2)
    w.fail(group[0], failed())
    w.end(w.send(group[1], max_tokens=50), abandoned=True)
    assert used(w, group) == [0, 153]


def test_by_share_of_the_limit_where_all_have_one() -> None:
    w, group = World(strategy("usage")), deployments({"tpm": 10_000}, {"tpm": 1000})
    w.serve(group[0], 1.0, tokens=900)
    w.serve(group[1], 1.0, tokens=100)
    assert w.picks(group) == {"d0": 1000}
    mixed = Candidates((*group, *deployments({"id": "free"})))
    w.serve(mixed[2], 1.0, tokens=500)
    assert w.picks(mixed) == {"d1": 1000}


def test_the_usual_answer_is_learned() -> None:
    w, group = World(strategy("usage")), plain(1)
    for _ in range(60):
        w.serve(group[0], 2.0, tokens=40)
    before = used(w, group)[0]
    w.send(group[0])
    assert used(w, group)[0] - before == 100 + 3 + 40


def test_answers_that_were_cut_off_teach_no_length() -> None:
    w, (one,) = World(strategy("cost")), plain(1)
    for error, abandoned in ((failed(), False), (None, True)):
        sent = w.send(one)
        sent[0].output_tokens = 5000
        w.end(sent, error=error, abandoned=abandoned)
    assert w.report(one)["expected_output_tokens"] == 256


# --- least busy


def test_the_fewest_in_flight_here_and_elsewhere() -> None:
    w, group = World(strategy("least_busy")), plain(3)
    sent = [w.send(group[0]), w.send(group[0]), w.send(group[1])]
    assert w.picks(group) == {"d2": 1000}
    w.picker.elsewhere(group[2], 5)
    assert w.picks(group) == {"d1": 1000}
    w.end(sent[0], error=failed())
    w.end(sent[1], abandoned=True)
    assert w.picks(group) == {"d0": 1000}
    w.picker.elsewhere(group[2], 0)
    assert 400 < w.picks(group)["d2"] < 600
    assert w.report(group[1]) == {"inflight": 1, "inflight_elsewhere": 0}
