"""Thresholds that were learned: the `Chooser` over a `Learner`."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

from tianji_mw.cache.semantic.learner import Candidate, Learner
from tianji_mw.cache.semantic.thresholds import Choice, agreeing

if TYPE_CHECKING:
    from tianji_mw.cache.semantic.rules import SemanticRules
    from tianji_mw.cache.semantic.search import Asked, Neighbour


class Learned:
    """Neighbours against which a word speaks are no candidates; the learner decides about the others."""

    def __init__(self, learner: Learner, *, lexical: bool) -> None:
        self.learner = learner
        self._lexical = lexical

    @classmethod
    async def of(cls, rules: SemanticRules, state: bytes | None) -> Learned:
        """With what was learned before, if that can be read."""
        learner = Learner(rules.error_budget, explore=rules.explore)
        if state is not None:
            await asyncio.to_thread(learner.restore, state)
        return cls(learner, lexical=rules.lexical)

    def choose(self, asked: Asked, rng: random.Random) -> Choice:
        found = agreeing(asked, lexical=self._lexical)
        decision = self.learner.decide([_candidate(near) for near in found], rng)
        return Choice(found[0] if decision.serve is not None else None, decision.explore)

    async def learn(self, asked: Asked, answer: str, *, explored: bool) -> None:
        candidates = [_candidate(near) for near in agreeing(asked, lexical=self._lexical)]
        if self.learner.observe(candidates, answer, explored=explored):
            self.learner.take(await asyncio.to_thread(self.learner.fitting()))

    async def to_bytes(self) -> bytes:
        """Everything that was learned."""
        return await asyncio.to_thread(self.learner.saving())

    def report(self) -> dict[str, Any]:
        return self.learner.report()


def _candidate(near: Neighbour) -> Candidate:
    return Candidate(near.id, near.similarity, near.payload.answer)
