"""Who decides whether a neighbour's answer is given: one threshold for all, or what was learned.

Both say the same thing about a call; only what is learned listens to what providers really answer.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from tianji_mw.cache.semantic.reuse import Rule, speaks_against

if TYPE_CHECKING:
    from tianji_mw.cache.semantic.search import Asked, Neighbour


class Choice(NamedTuple):
    """The neighbour whose answer is given, if any; `explore`: it could be given, and is verified instead."""

    neighbour: Neighbour | None
    explore: bool = False


class Chooser(Protocol):
    """Decides for one namespace."""

    def choose(self, asked: Asked, rng: random.Random) -> Choice:
        """Which neighbour's answer is given."""
        ...

    async def learn(self, asked: Asked, answer: str, *, explored: bool) -> None:
        """A provider gave this answer (by its id: that of a neighbour, where it says the same).

        `explored`: the call could have been answered.
        """
        ...

    def report(self) -> dict[str, Any]:
        """Figures for people."""
        ...


class Fixed:
    """The same cosines for all."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    def choose(self, asked: Asked, rng: random.Random) -> Choice:
        for near in asked.neighbours:
            if self.rule.refusal(asked.meaning, near.meaning, near.similarity) is None:
                return Choice(near)
        return Choice(None)

    async def learn(self, asked: Asked, answer: str, *, explored: bool) -> None:
        """Nothing: the threshold is the user's."""

    def report(self) -> dict[str, Any]:
        return {"threshold": self.rule.threshold}


def agreeing(asked: Asked, *, lexical: bool) -> Sequence[Neighbour]:
    """The neighbours against which no word speaks."""
    if not lexical:
        return asked.neighbours
    return [near for near in asked.neighbours if speaks_against(asked.meaning, near.meaning) is None]
