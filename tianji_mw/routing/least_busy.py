"""The deployment with the fewest calls in flight, LiteLLM's `least-busy`. It knows nothing of how fast they are.

Unlike LiteLLM's: ties are decided at random and not by the order in the config, and every attempt that ends counts
down, those of clients that left too.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from tianji_mw.routing.base import Candidates, Deployment, Picker
from tianji_mw.routing.ranking import Figures

if TYPE_CHECKING:
    from tianji_mw.call import Call
    from tianji_mw.facts import Attempt


class _State:
    __slots__ = ("elsewhere", "inflight", "total")

    def __init__(self) -> None:
        self.inflight: dict[Deployment, int] = {}
        self.elsewhere: dict[Deployment, int] = {}
        self.total = Figures(default=0.0)

    def count(self, deployment: Deployment) -> None:
        self.total.set(deployment, self.inflight.get(deployment, 0) + self.elsewhere.get(deployment, 0))


class LeastBusy(Picker):
    """`routing_strategy: least-busy`."""

    names: ClassVar[tuple[str, ...]] = ("least-busy",)

    # A pydantic private attribute costs twenty times as much to read.
    @cached_property
    def _state(self) -> _State:
        return _State()

    def pick(self, deployments: Candidates, call: Call) -> Deployment:
        """One of those with the fewest."""
        if len(deployments) == 1:
            return deployments[0]
        return self._state.total.least(deployments, call.runtime.rng)

    def sent(self, attempt: Attempt, call: Call) -> None:
        """One more."""
        state, deployment = self._state, attempt.deployment
        state.inflight[deployment] = state.inflight.get(deployment, 0) + 1
        state.count(deployment)

    def observe(self, attempt: Attempt, call: Call) -> None:
        """One less, however it ended."""
        state, deployment = self._state, attempt.deployment
        state.inflight[deployment] = max(state.inflight.get(deployment, 0) - 1, 0)
        state.count(deployment)

    def elsewhere(self, deployment: Deployment, inflight: int) -> None:
        """Those of other processes count like our own."""
        state = self._state
        state.elsewhere[deployment] = inflight
        state.count(deployment)

    def report(self, deployment: Deployment) -> Mapping[str, Any]:
        """Calls that run there now."""
        state = self._state
        return {
            "inflight": state.inflight.get(deployment, 0),
            "inflight_elsewhere": state.elsewhere.get(deployment, 0),
        }
