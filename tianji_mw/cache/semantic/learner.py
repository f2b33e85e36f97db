"""Learns which neighbours' answers may be given, so that wrong ones stay within a budget: their share among all calls.

For each call a few facts about its neighbours say how likely the nearest one's answer is right: how near it is, how far
behind it the nearest one with another answer is, and how many neighbours have the same answer. A logistic model of
these facts is fitted to the verified calls: those that a provider answered although there was a neighbour. Calls are
then ranked by their probability of being wrong, and the longest prefix of that ranking is given for which

    upper bound of the share of wrong ones in it (one-sided, Wilson with continuity, 95%)
    x  share of it among all calls   <=  budget

holds, and the bound itself is at most `MOST_WRONG`. So nothing is given until enough was verified, and a few of the
calls that could be answered are verified all the same, or what is given would never be looked at again. Nothing is
learned from an answer that was given: whether it was right is not known.

That holds for calls like those before. For others two things limit the damage, and do not exclude it: each answer that
is given is charged with the bound, and nothing is given while the charges are above the budget of all calls so far; and
when the last verified ones of what could be given are wrong more often than the budget bears, all that was learned is
dropped.

The idea of verified thresholds with an error budget is vCache's (arXiv 2502.03771); model, bound and budget are not.
Pure: no I/O, no clock.
"""

from __future__ import annotations

import hashlib
import io
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Before a stored state; with the version of its form.
_MAGIC: Final = b"TJL1"
#: Observations, and calls, that are remembered.
_KEPT: Final = 4000
_REFIT_EVERY: Final = 25
#: One-sided 95%.
_Z: Final = 1.645
#: One-sided 90%, of the alarm: one too many costs hits, one too few costs trust.
_Z_LOW: Final = 1.2816
#: Verified calls that the alarm looks back to, and calls that tell the share of hits.
_WATCHED: Final = 60
_RECENT: Final = 500
#: Of the budget, the part that is planned with: calls to come are not those that were seen.
_PLANNED: Final = 0.9
#: However small a part of all calls: an answer that is wrong more often than this is not worth giving.
MOST_WRONG: Final = 0.12
#: Verified calls before anything is given, and those that a prefix needs.
MIN_VERIFIED: Final = 100
_MIN_PREFIX: Final = 30
#: Difference in cosine at which a neighbour counts e times less.
_TEMPERATURE: Final = 0.06
#: Where the model starts, and how firmly it holds to that: a nearer neighbour, a wider gap, more agreement are better.
_PRIOR: Final = (-2.0, 8.0, 10.0, 2.0, 0.5)
_FIRMNESS: Final = (0.1, 0.05, 0.05, 0.1, 0.1)


class Candidate(NamedTuple):
    """A neighbour: its cosine, and which answer it has."""

    id: str
    similarity: float
    answer: str


class Decision(NamedTuple):
    """`serve`: the candidate whose answer is given. `explore`: it could be, and is verified instead."""

    serve: Candidate | None
    explore: bool
    #: Probability that the nearest one's answer is wrong, as the model has it.
    wrong: float


class Fitted(NamedTuple):
    """What a fit has found: the model's weights, up to which risk answers are given, and the bound of what is given."""

    weights: tuple[float, ...]
    limit: float
    bound: float


class Learner:
    """What is known of one namespace.

    >>> Learner(0.01).decide([Candidate("a", 0.99, "x")], random.Random(1)).serve is None
    True
    """

    __slots__ = (
        "_bound", "_calls", "_charged", "_explored", "_facts", "_fresh", "_limit", "_recent", "_uncounted", "_weights",
        "_wrong", "budget", "explore", "resets", "seen", "served",
    )  # fmt: skip

    def __init__(self, error_budget: float, *, explore: float = 0.05) -> None:
        self.budget = error_budget
        self.explore = explore
        self._weights: list[float] = list(_PRIOR)
        #: Facts of the verified calls, and whether the neighbour's answer was wrong there.
        self._facts: deque[tuple[float, ...]] = deque(maxlen=_KEPT)
        self._wrong: deque[bool] = deque(maxlen=_KEPT)
        #: Facts of all calls; None for those without a neighbour.
        self._calls: deque[tuple[float, ...] | None] = deque(maxlen=_KEPT)
        #: The probability of being wrong up to which an answer is given; below zero: none is.
        self._limit = -1.0
        #: The upper bound of the share of wrong ones among what is given.
        self._bound = 1.0
        #: Wrong answers that were given, as they are charged.
        self._charged = 0.0
        #: Answers given since the last of what could be given was verified without an alarm.
        self._uncounted = 0
        #: Of the last calls that could be answered and were verified instead: which were wrong.
        self._explored: deque[bool] = deque(maxlen=_WATCHED)
        #: Of the last calls: which could be answered.
        self._recent: deque[bool] = deque(maxlen=_RECENT)
        self._fresh = 0
        self.seen = 0
        self.served = 0
        #: How often what was learned was dropped.
        self.resets = 0

    def decide(self, candidates: Sequence[Candidate], rng: random.Random) -> Decision:
        """What happens to a call with these neighbours, the nearest first."""
        self.seen += 1
        if not candidates:
            self._calls.append(None)
            return Decision(None, False, 1.0)
        facts = facts_of(candidates)
        self._calls.append(facts)
        wrong = self._probability(facts)
        could = wrong <= self._limit
        self._recent.append(could)
        if not could:
            return Decision(None, False, wrong)
        if rng.random() < self.explore:
            return Decision(candidates[0], True, wrong)
        if self._charged + self._bound > self.budget * self.seen:
            return Decision(None, False, wrong)
        self._charged += self._bound
        self._uncounted += 1
        self.served += 1
        return Decision(candidates[0], False, wrong)

    def observe(self, candidates: Sequence[Candidate], answer: str, *, explored: bool = False) -> bool:
        """A provider was asked, and gave this answer: that of a candidate, where it says the same.

        `explored`: the call could have been answered. True when it is time to `fit`.
        """
        if not candidates:
            return False
        wrong = candidates[0].answer != answer
        self._facts.append(facts_of(candidates))
        self._wrong.append(wrong)
        if explored:
            self._watch(wrong)
        self._fresh += 1
        return self._fresh >= _REFIT_EVERY and len(self._facts) >= MIN_VERIFIED

    def _watch(self, wrong: bool) -> None:
        """Drop what was learned when what could be given is wrong more often than the budget bears: a lower bound."""
        self._explored.append(wrong)
        count, share = len(self._explored), sum(self._recent) / max(len(self._recent), 1)
        seen = sum(self._explored)
        if seen < 2 or lower_bound(seen, count) * share <= self.budget:
            if not wrong:
                self._uncounted = 0
            return
        self._charged += self._uncounted * seen / count
        self._limit, self._uncounted, self._fresh = -1.0, 0, 0
        self._explored.clear()
        self._facts.clear()
        self._wrong.clear()
        self.resets += 1

    def _probability(self, facts: tuple[float, ...]) -> float:
        score = sum(weight * fact for weight, fact in zip(self._weights, facts, strict=True))
        return 1 / (1 + math.exp(min(30.0, max(-30.0, score))))

    # --- fitting

    def fit(self) -> None:
        """Learn from what was observed; some milliseconds."""
        self.take(self.fitting()())

    def fitting(self) -> Callable[[], Fitted]:
        """The work of `fit` on what is known now, for a thread; `take` its result."""
        facts, wrong, calls = tuple(self._facts), tuple(self._wrong), tuple(self._calls)
        weights, budget = tuple(self._weights), self.budget
        self._fresh = 0
        return lambda: _fitted(facts, wrong, calls, weights, budget)

    def take(self, found: Fitted) -> None:
        """Use what a fit has found; one from before a reset is too old."""
        if len(self._facts) >= MIN_VERIFIED:
            self._weights, self._limit, self._bound = list(found.weights), found.limit, found.bound

    # --- state

    def to_bytes(self) -> bytes:
        """Everything that was learned, with a digest before it."""
        return self.saving()()

    def saving(self) -> Callable[[], bytes]:
        """The work of `to_bytes` on what is known now, for a thread: tens of milliseconds."""
        facts, wrong, calls = tuple(self._facts), tuple(self._wrong), tuple(self._calls)
        counts = (self.seen, self.served, self._charged)
        return lambda: _saved(facts, wrong, calls, counts)

    def restore(self, raw: bytes) -> bool:
        """Take over what `to_bytes` gave; False, and nothing changed, for anything else."""
        import numpy as np

        start = len(_MAGIC) + 32
        if raw[: len(_MAGIC)] != _MAGIC or hashlib.sha256(raw[start:]).digest() != raw[len(_MAGIC) : start]:
            return False
        with np.load(io.BytesIO(raw[start:]), allow_pickle=False) as found:
            facts, calls = found["facts"].astype(float), found["calls"].astype(float)
            wrong, (seen, served, charged) = found["wrong"], found["counts"].tolist()
        self._facts.extend(tuple(row) for row in facts.tolist())
        self._wrong.extend(bool(one) for one in wrong)
        self._calls.extend(None if math.isnan(row[0]) else tuple(row) for row in calls.tolist())
        self.seen, self.served, self._charged = int(seen), int(served), charged
        if len(self._facts) >= MIN_VERIFIED:
            self.fit()
        return True

    def report(self) -> dict[str, Any]:
        """Figures for people. `strict`: nothing is given."""
        return {
            "error_budget": self.budget,
            "calls": self.seen,
            "served": self.served,
            "charged": round(self._charged, 2),
            "resets": self.resets,
            "verified": len(self._facts),
            "verified_wrong": sum(self._wrong),
            "strict": self._limit < 0,
            "serves_up_to_risk": round(self._limit, 4) if self._limit >= 0 else None,
        }


def _saved(
    facts: Sequence[tuple[float, ...]],
    wrong: Sequence[bool],
    calls: Sequence[tuple[float, ...] | None],
    counts: Sequence[float],
) -> bytes:
    import numpy as np

    empty = [math.nan] * len(_PRIOR)
    out = io.BytesIO()
    np.savez_compressed(
        out,
        facts=np.array(facts, np.float32).reshape(-1, len(_PRIOR)),
        wrong=np.array(wrong, bool),
        calls=np.array([one or empty for one in calls], np.float32).reshape(-1, len(_PRIOR)),
        counts=np.array(counts),
    )
    raw = out.getvalue()
    return _MAGIC + hashlib.sha256(raw).digest() + raw


def _fitted(
    known: Sequence[tuple[float, ...]],
    told: Sequence[bool],
    asked: Sequence[tuple[float, ...] | None],
    before: Sequence[float],
    budget: float,
) -> Fitted:
    import numpy as np

    facts, wrong = np.array(known), np.array(told, dtype=float)
    weights = _regressed(facts, 1 - wrong, np.array(before))
    risk = _risk(facts, weights)
    calls = np.sort(_risk(np.array([one for one in asked if one is not None]).reshape(-1, len(_PRIOR)), weights))
    order = np.argsort(risk, kind="stable")
    count = np.arange(1, len(order) + 1)
    bound = upper_bounds(np.cumsum(wrong[order]), count)
    share = np.searchsorted(calls, risk[order], side="right") / max(len(asked), 1)
    fits = (bound * share <= _PLANNED * budget) & (bound <= MOST_WRONG) & (count >= _MIN_PREFIX)
    last = np.nonzero(fits)[0]
    told_weights = tuple(float(weight) for weight in weights)
    if not len(last):
        return Fitted(told_weights, -1.0, 1.0)
    return Fitted(told_weights, float(risk[order][last[-1]]), float(bound[last[-1]]))


def facts_of(candidates: Sequence[Candidate]) -> tuple[float, ...]:
    """The facts about the neighbours, the nearest first: constant, cosine, gap, agreement, count."""
    first = candidates[0]
    others = [one.similarity for one in candidates if one.answer != first.answer]
    behind = others[0] if others else max(0.0, candidates[-1].similarity - 0.05)
    weights = [math.exp((one.similarity - first.similarity) / _TEMPERATURE) for one in candidates]
    same = sum(weight for weight, one in zip(weights, candidates, strict=True) if one.answer == first.answer)
    count = len(candidates) - len(others)
    return (
        1.0, first.similarity - 0.7, first.similarity - behind, same / sum(weights) - 0.7, math.log(1 + count) - 1,
    )  # fmt: skip


def _regressed(
    facts: NDArray[np.float64], right: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Weights of the logistic model, by Newton's method from `weights` on, held to the prior; none makes it worse."""
    import numpy as np

    prior, firmness = np.array(_PRIOR), np.array(_FIRMNESS)

    def loss(at: NDArray[np.float64]) -> float:
        score = facts @ at
        return float(np.logaddexp(0, score).sum() - right @ score + 0.5 * (firmness * (at - prior) ** 2).sum())

    now = loss(weights)
    for _ in range(20):
        found = 1 / (1 + np.exp(-np.clip(facts @ weights, -30, 30)))
        slope = facts.T @ (right - found) - firmness * (weights - prior)
        curve = (facts * (found * (1 - found) + 1e-6)[:, None]).T @ facts + np.diag(firmness)
        step = np.linalg.solve(curve, slope)
        for _ in range(12):
            after = loss(weights + step)
            if after <= now:
                break
            step = step / 2
        else:
            break
        weights, before, now = weights + step, now, after
        if before - now < 1e-4:
            break
    return weights


def _risk(facts: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    result: NDArray[np.float64] = 1 / (1 + np.exp(np.clip(facts @ weights, -30, 30)))
    return result


def upper_bounds(wrong: NDArray[np.float64], count: NDArray[Any]) -> NDArray[np.float64]:
    """One-sided upper bounds of shares: Wilson's score interval with continuity (Newcombe, Stat. in Med. 17, 1998)."""
    import numpy as np

    share = np.minimum((wrong + 0.5) / count, 1.0)
    spread = _Z * np.sqrt(share * (1 - share) / count + _Z * _Z / (4 * count * count))
    result: NDArray[np.float64] = np.minimum(1.0, (share + _Z * _Z / (2 * count) + spread) / (1 + _Z * _Z / count))
    return result


def lower_bound(wrong: int, count: int) -> float:
    """One-sided lower bound of a share (Wilson's score interval, 90%): it is not below it, but by chance."""
    share = wrong / count
    spread = _Z_LOW * math.sqrt(share * (1 - share) / count + _Z_LOW * _Z_LOW / (4 * count * count))
    return max(0.0, (share + _Z_LOW * _Z_LOW / (2 * count) - spread) / (1 + _Z_LOW * _Z_LOW / count))
