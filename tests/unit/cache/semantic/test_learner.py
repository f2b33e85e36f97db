"""What is learned keeps to its budget, whatever the stream; streams with known truth."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tianji_mw.cache.semantic.layer import error_bound
from tianji_mw.cache.semantic.learner import MIN_VERIFIED, Candidate, Learner, facts_of, upper_bounds

DIMS = 24


def stream(seed: int, calls: int, intents: int, spread: float, split: int = 1) -> tuple[np.ndarray, list[str]]:
    """Points around centres; each centre has `split` answers, which nothing but chance tells apart."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((intents, DIMS))
    which = rng.integers(0, intents, calls)
    points = centres[which] + spread * rng.standard_normal((calls, DIMS))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    answers = [f"{intent}-{rng.integers(0, split)}" for intent in which]
    return points.astype(np.float32), answers


def run(learner: Learner, points: np.ndarray, answers: list[str], seed: int = 0) -> tuple[int, int]:
    """Hits and wrong ones; what was given is never told to be right or wrong."""
    rng, kept, known = random.Random(seed), np.empty_like(points), list[str]()
    hits = wrong = 0
    for point, answer in zip(points, answers, strict=True):
        near = kept[: len(known)] @ point
        best = np.argsort(-near)[:10]
        candidates = [Candidate(str(at), float(near[at]), known[at]) for at in best]
        decision = learner.decide(candidates, rng)
        if decision.serve is not None and not decision.explore:
            hits += 1
            wrong += decision.serve.answer != answer
            continue
        if learner.observe(candidates, answer, explored=decision.explore):
            learner.fit()
        kept[len(known)] = point
        known.append(answer)
    return hits, wrong


@pytest.mark.parametrize("budget", [0.01, 0.02, 0.05])
@pytest.mark.parametrize("spread", [0.3, 0.6])
def test_the_budget_holds(budget: float, spread: float) -> None:
    over = 0
    for seed in range(6):
        points, answers = stream(seed, 900, 30, spread)
        _, wrong = run(Learner(budget), points, answers, seed)
        over += wrong > budget * len(answers)
    assert over == 0


def test_an_easy_stream_has_many_hits() -> None:
    points, answers = stream(1, 1500, 30, 0.3)
    hits, wrong = run(Learner(0.01), points, answers)
    assert hits > 700
    assert wrong <= 15


@pytest.mark.parametrize("seed", range(4))
def test_answers_that_nothing_tells_apart_are_not_given(seed: int) -> None:
    points, answers = stream(seed, 900, 30, 0.3, split=2)
    hits, _ = run(Learner(0.05), points, answers, seed)
    assert hits == 0


def test_nothing_is_given_before_enough_was_verified() -> None:
    points, answers = stream(3, MIN_VERIFIED, 5, 0.1)
    assert run(Learner(0.5), points, answers) == (0, 0)


def test_a_change_of_heart_is_noticed() -> None:
    """Answers change at once, as with another model behind the same name: serving stops by what exploring shows."""
    points, answers = stream(5, 4000, 20, 0.3)
    changed = answers[:2000] + [f"new-{answer}-{at % 2}" for at, answer in enumerate(answers[2000:])]
    learner = Learner(0.05, explore=0.2)
    run(learner, points, changed)
    assert learner.report()["verified_wrong"] > 50


def trained() -> Learner:
    learner = Learner(0.02)
    run(learner, *stream(2, 800, 20, 0.3))
    return learner


def test_what_was_learned_survives() -> None:
    learner, again = trained(), Learner(0.02)
    assert again.restore(learner.to_bytes())
    assert again.report() == {**learner.report(), "serves_up_to_risk": again.report()["serves_up_to_risk"]}
    assert again.report()["strict"] is False


@given(st.binary(max_size=300))
def test_garbage_is_not_taken_over(raw: bytes) -> None:
    learner = Learner(0.02)
    assert learner.restore(raw) is False
    assert learner.report()["verified"] == 0


def test_a_cut_state_is_not_taken_over() -> None:
    raw = trained().to_bytes()
    assert Learner(0.02).restore(raw[: len(raw) // 2]) is False


def test_memory_is_bounded() -> None:
    learner, rng = Learner(0.01), random.Random(1)
    near = [Candidate("a", 0.9, "x"), Candidate("b", 0.5, "y")]
    for at in range(9000):
        learner.decide(near, rng)
        if at % 3:
            learner.observe(near, "x")
    assert len(learner.to_bytes()) < 200_000
    assert learner.report()["verified"] <= 4000


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.sampled_from("abc")), max_size=10),
    st.sampled_from("abcd"),
)
def test_it_is_total(found: list[tuple[float, str]], answer: str) -> None:
    learner, rng = Learner(0.01), random.Random(1)
    candidates = [Candidate(str(at), near, name) for at, (near, name) in enumerate(sorted(found, reverse=True))]
    decision = learner.decide(candidates, rng)
    assert decision.serve is None
    assert 0 <= decision.wrong <= 1
    learner.observe(candidates, answer)
    if candidates:
        assert len(facts_of(candidates)) == 5


@pytest.mark.parametrize(
    ("wrong", "seen", "expected"), [(0, 100, 0.0295), (1, 100, 0.0466), (5, 50, 0.1989), (0, 0, 1.0), (3, 3, 1.0)]
)
def test_the_bound_of_what_was_verified(wrong: int, seen: int, expected: float) -> None:
    """Figures of Clopper and Pearson's one-sided 95% bound, from beta quantiles."""
    assert error_bound(wrong, seen) == pytest.approx(expected, abs=2e-4)


def test_bounds_shrink_with_what_is_seen() -> None:
    def bound(wrong: float, count: int) -> float:
        return float(upper_bounds(np.array([wrong]), np.array([count]))[0])

    assert 0.0 < bound(0.0, 1000) < bound(0.0, 100) < bound(0.0, 30) < 0.12
    assert bound(5.0, 100) > 0.05
