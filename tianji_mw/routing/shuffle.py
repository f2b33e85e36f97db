"""Weighted random choice, LiteLLM's `simple-shuffle`: by `weight`, else `rpm`, else `tpm`, else uniform.

It remembers sums of weights, and nothing of calls.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from tianji_mw.errors import NoDeployment
from tianji_mw.routing.base import Deployment

if TYPE_CHECKING:
    from tianji_mw.call import Call


#: Groups of deployments whose sums are kept; there are few, but what a router leaves of them may vary.
_REMEMBERED: Final = 1_000


class Shuffle:
    """`routing_strategy: simple-shuffle`."""

    __slots__ = ("_sums",)

    def __init__(self) -> None:
        self._sums: dict[tuple[Deployment, ...], list[float]] = {}

    def pick(self, deployments: Sequence[Deployment], call: Call) -> Deployment:
        """One of the deployments. A deployment without the weight that another has is never chosen."""
        if len(deployments) == 1:
            return deployments[0]
        if not deployments:
            raise NoDeployment(f"No deployment for '{call.model}' is available.")
        group = tuple(deployments)
        sums = self._sums.get(group)
        if sums is None:
            if len(self._sums) >= _REMEMBERED:
                self._sums.clear()
            sums = self._sums[group] = _sums(group)
        return group[bisect_right(sums, call.runtime.rng.random() * sums[-1])]


def _sums(deployments: Sequence[Deployment]) -> list[float]:
    """Running sums of the weights: a random number below the last one falls to the first that is above it."""
    for family in ("weight", "rpm", "tpm"):
        weights = [getattr(deployment, family) or 0.0 for deployment in deployments]
        if any(weights):
            return list(accumulate(weights))
    return [float(count) for count in range(1, len(deployments) + 1)]
