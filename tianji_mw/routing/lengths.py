"""How long answers usually are, learned from those that came: one figure for each model group. No strategy itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tianji_mw.routing.demand import FIRST_OUTPUT

if TYPE_CHECKING:
    from tianji_mw.facts import Attempt
    from tianji_mw.routing.base import Deployment

#: Answers that the figure mostly stands for; the first ones count as their plain mean.
_MEMORY: Final = 50


class Length:
    """Of one model group: what is asked decides it, hardly who answers.

    >>> Length().usual
    256.0
    """

    __slots__ = ("_count", "usual")

    def __init__(self) -> None:
        #: Tokens of an answer.
        self.usual = float(FIRST_OUTPUT)
        self._count = 0

    def learn(self, attempt: Attempt) -> None:
        """Take in an attempt that has ended; one that was cut off says nothing."""
        tokens = attempt.output_tokens
        if tokens <= 0 or attempt.error is not None or attempt.abandoned:
            return
        if self._count < _MEMORY:
            self._count += 1
        self.usual += (tokens - self.usual) / self._count


class Lengths:
    """By model group."""

    __slots__ = ("_of",)

    def __init__(self) -> None:
        self._of: dict[str, Length] = {}

    def usual(self, deployment: Deployment) -> float:
        """Tokens of its usual answer."""
        found = self._of.get(deployment.model_name)
        return float(FIRST_OUTPUT) if found is None else found.usual

    def learn(self, attempt: Attempt) -> None:
        """Take in an attempt that has ended."""
        length = self._of.get(attempt.deployment.model_name)
        if length is None:
            length = self._of[attempt.deployment.model_name] = Length()
        length.learn(attempt)
