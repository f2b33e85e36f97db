"""Streams for the harness beside the development data: what is learned with an error budget of 1, 2 and 5%.

`lookup` decides, `store` is the provider's answer to a miss. What the harness tells after a hit is not used: nobody
would know it. Words are not compared: the answers of these streams are intents.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from tests.evaluation.cache import vector
from tianji_mw.cache.semantic.learner import Candidate, Learner

NEIGHBOURS = 10


class Stream:
    """A cache of one namespace, with the labels of the data for answers."""

    budget = 0.01

    def __init__(self, budget: float | None = None, seed: int = 0) -> None:
        self.learner = Learner(budget or self.budget)
        self._rng = random.Random(seed)
        self._vectors = np.empty((8192, 384), np.float32)
        self._answers: list[str] = []
        self._near: list[Candidate] = []
        self._decision = self.learner.decide((), self._rng)

    def nearest(self, asked: np.ndarray[Any, Any]) -> list[Candidate]:
        count = len(self._answers)
        found = self._vectors[:count] @ asked
        best = np.argsort(-found)[:NEIGHBOURS]
        return [Candidate(str(at), float(found[at]), self._answers[at]) for at in best]

    def lookup(self, text: str) -> str | None:
        self._near = self.nearest(vector(text))
        decision = self._decision = self.learner.decide(self._near, self._rng)
        return decision.serve.answer if decision.serve is not None and not decision.explore else None

    def store(self, text: str, label: str) -> None:
        if self.learner.observe(self._near, label, explored=self._decision.explore):
            self.learner.fit()
        self._vectors[len(self._answers)] = vector(text)
        self._answers.append(label)


class Stream1(Stream):
    """1% of all calls may be wrong."""


class Stream2(Stream):
    """2%."""

    budget = 0.02


class Stream5(Stream):
    """5%."""

    budget = 0.05
