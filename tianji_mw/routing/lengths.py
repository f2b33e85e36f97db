"""How long answers usually are, learned from those that came: one figure for each model group. No strategy itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tianji_mw.routing.demand import FIRST_OUTPUT

if TYPE_CHECKING:
    from tianji_mw.facts import Attempt
    from tianji_mw.routing.base import Deployment

#: Answers that the figure mostly stands for; the first ones count as their plain mean.
_MEMORY: Final = 50


class Lengths:
    """Usual tokens of an answer by model group: what is asked decides it, hardly who answers.

    >>> Lengths().known
    0
    """

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, int]] = {}

    @property
    def known(self) -> int:
        """Model groups that have answered."""
        return len(self._seen)

    def usual(self, deployment: Deployment) -> float:
        """Tokens of its usual answer."""
        found = self._seen.get(deployment.model_name)
        return float(FIRST_OUTPUT) if found is None else found[0]

    def learn(self, attempt: Attempt) -> None:
        """Take in an attempt that has ended; one that was cut off says nothing."""
        if attempt.output_tokens <= 0 or attempt.error is not None or attempt.abandoned:
            return
        name = attempt.deployment.model_name
        mean, count = self._seen.get(name, (0.0, 0))
        count = min(count + 1, _MEMORY)
        self._seen[name] = (mean + (attempt.output_tokens - mean) / count, count)
