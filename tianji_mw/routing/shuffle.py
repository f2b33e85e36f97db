"""Weighted random choice, LiteLLM's `simple-shuffle`: by `weight`, else `rpm`, else `tpm`, else uniform. Stateless."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tianji_mw.errors import NoDeployment
from tianji_mw.routing.base import Deployment

if TYPE_CHECKING:
    from tianji_mw.call import Call


class Shuffle:
    """`routing_strategy: simple-shuffle`."""

    __slots__ = ()

    def pick(self, deployments: Sequence[Deployment], call: Call) -> Deployment:
        """One of the deployments. A deployment without the weight that another has is never chosen."""
        if len(deployments) == 1:
            return deployments[0]
        if not deployments:
            raise NoDeployment(f"No deployment for '{call.model}' is available.")
        rng = call.runtime.rng
        for family in ("weight", "rpm", "tpm"):
            weights = [getattr(deployment, family) or 0.0 for deployment in deployments]
            if any(weights):
                return rng.choices(deployments, weights)[0]
        return deployments[int(rng.random() * len(deployments))]
