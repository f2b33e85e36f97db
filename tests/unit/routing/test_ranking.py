"""The sorted list behind most strategies, against a plain minimum."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from tests.support.pickers import plain
from tianji_mw.routing.base import Candidates
from tianji_mw.routing.ranking import Figures

CHANGES = st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0.0, 1.0, 2.0, 3.0, float("inf")])), max_size=40)


@given(st.lists(st.tuples(CHANGES, st.integers(1, 1023)), max_size=12), st.sampled_from([0.0, 0.5, 1.0]))
def test_it_is_the_least_of_any_candidates_at_any_time(
    rounds: list[tuple[list[tuple[int, float]], int]], within: float
) -> None:
    everybody, figures, rng = plain(10), Figures(default=1.0), random.Random(1)
    now = dict.fromkeys(everybody, 1.0)
    kept: dict[int, Candidates] = {}
    for changes, mask in rounds:
        for place, figure in changes:
            figures.set(everybody[place], figure)
            now[everybody[place]] = figure
        some = kept.setdefault(mask, Candidates(one for i, one in enumerate(everybody) if mask >> i & 1))
        least = min(now[one] for one in some)
        assert now[figures.least(some, rng, within)] <= least * (1 + within)


def test_ties_are_decided_at_random_and_evenly() -> None:
    group, figures, rng = plain(4), Figures(default=1.0), random.Random(1)
    figures.set(group[0], 2.0)
    found = [figures.least(group, rng) for _ in range(3000)]
    assert {found.count(one) // 100 for one in group[1:]} <= {9, 10}
    assert group[0] not in found


def test_one_that_slept_through_many_changes_is_right_and_little_is_remembered() -> None:
    group, figures, rng = plain(50), Figures(default=0.0), random.Random(1)
    rare, often = Candidates(group[:30]), Candidates(group)
    assert figures.least(rare, rng) in rare
    for number in range(50_000):
        figures.set(group[number % 50], 1.0 + number)
        if number % 10 == 0:
            figures.least(often, rng)
    assert figures.least(rare, rng) is group[0]
    assert len(figures._changed) < 10_000
    assert all(len(ranking.order) == 30 for ranking in rare.memo.values())
