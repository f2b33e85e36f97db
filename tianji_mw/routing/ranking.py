"""Deployments sorted by a figure, so that picking the least of 1,000 costs what picking the least of ten does.

`Figures` holds one number for each deployment and remembers what changed; a `Ranking` sorts some of them (one
`Candidates`) and catches up when it is asked. Nothing is pushed: a ranking goes with the candidates it lives on.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import random

    from tianji_mw.routing.base import Candidates, Deployment

#: Changes that are remembered; a ranking that has missed more is sorted anew.
_LOG: Final = 4096


class Figures:
    """A number for each deployment; `default` for those without.

    >>> Figures(default=0.0).figure
    {}
    """

    __slots__ = ("_changed", "_dropped", "default", "figure")

    def __init__(self, *, default: float) -> None:
        self.default = default
        #: Read it; write through `set`.
        self.figure: dict[Deployment, float] = {}
        self._changed: list[Deployment] = []
        #: How many changes are not remembered any more.
        self._dropped = 0

    def set(self, deployment: Deployment, figure: float) -> None:
        """Its figure is now this."""
        if self.figure.get(deployment, self.default) != figure:
            self.figure[deployment] = figure
            changed = self._changed
            changed.append(deployment)
            if len(changed) > 2 * _LOG:
                del changed[:_LOG]
                self._dropped += _LOG

    def least(self, deployments: Candidates, rng: random.Random, within: float = 0.0) -> Deployment:
        """One of those with the least figure, or at most the share `within` above it; at random."""
        ranking: Ranking | None = deployments.memo.get(self)
        if ranking is None:
            ranking = deployments.memo[self] = Ranking(deployments)
        missed = self._changed[max(ranking.seen - self._dropped, 0) :]
        if ranking.seen < self._dropped or len(missed) > len(deployments):
            ranking.sort(self)
        else:
            ranking.move(self, missed)
        ranking.seen = self._dropped + len(self._changed)
        order = ranking.order
        most = order[0][0] * (1.0 + within)
        return deployments[order[int(rng.random() * bisect_right(order, (most, len(order))))][1]]


class Ranking:
    """The order of one `Candidates`: (figure, place among the candidates), least first."""

    __slots__ = ("_figures", "_places", "order", "seen")

    def __init__(self, deployments: Candidates) -> None:
        self._places = {deployment: place for place, deployment in enumerate(deployments)}
        self._figures: list[float] = []
        self.order: list[tuple[float, int]] = []
        #: Changes of the figures that are in it; -1: not even sorted.
        self.seen = -1

    def sort(self, figures: Figures) -> None:
        """All of them anew."""
        known, default = figures.figure, figures.default
        self._figures = [known.get(deployment, default) for deployment in self._places]
        self.order = sorted((figure, place) for place, figure in enumerate(self._figures))

    def move(self, figures: Figures, changed: list[Deployment]) -> None:
        """Only those that may have changed. Lists move their pointers faster than a tree is walked."""
        for deployment in changed:
            place = self._places.get(deployment)
            if place is None:
                continue
            before, now = self._figures[place], figures.figure[deployment]
            if before != now:
                del self.order[bisect_left(self.order, (before, place))]
                insort(self.order, (now, place))
                self._figures[place] = now
