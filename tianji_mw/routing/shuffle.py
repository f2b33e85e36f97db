"""Weighted random choice, LiteLLM's `simple-shuffle`: by `weight`, else `rpm`, else `tpm`, else uniform.

It remembers sums of weights, and nothing of calls.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, ClassVar

from tianji_mw.routing.base import Candidates, Deployment, Picker

if TYPE_CHECKING:
    from tianji_mw.call import Call


class Shuffle(Picker):
    """`routing_strategy: simple-shuffle`."""

    names: ClassVar[tuple[str, ...]] = ("simple-shuffle", "weighted")

    def pick(self, deployments: Candidates, call: Call) -> Deployment:
        """A deployment without the weight that another has is never chosen."""
        return shuffled(deployments, call)


def shuffled(deployments: Candidates, call: Call) -> Deployment:
    """The choice itself, for other strategies too."""
    if len(deployments) == 1:
        return deployments[0]
    sums: list[float] | None = deployments.memo.get(Shuffle)
    if sums is None:
        sums = deployments.memo[Shuffle] = weight_sums(deployments)
    return deployments[bisect_right(sums, call.runtime.rng.random() * sums[-1])]


def weight_sums(deployments: Sequence[Deployment]) -> list[float]:
    """Running sums of the weights: a random number below the last one falls to the first that is above it."""
    for family in ("weight", "rpm", "tpm"):
        weights = [getattr(deployment, family) or 0.0 for deployment in deployments]
        if any(weights):
            return list(accumulate(weights))
    return [float(count) for count in range(1, len(deployments) + 1)]
