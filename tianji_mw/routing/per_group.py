"""Several strategies at once: with `routing_groups`, some model groups have one of their own. No strategy itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tianji_mw.routing.base import Candidates, Deployment, Picker
from tianji_mw.runtime import Runtime

if TYPE_CHECKING:
    from tianji_mw.call import Call
    from tianji_mw.facts import Attempt


class PerGroup(Picker):
    """`others` serve the public names that they are listed under, `usual` everybody else.

    >>> from tianji_mw.routing.least_busy import LeastBusy
    >>> from tianji_mw.routing.shuffle import Shuffle
    >>> PerGroup(usual=Shuffle(), others={"gpt-4o": LeastBusy()}).of("gpt-4o")
    LeastBusy()
    """

    usual: Picker
    others: Mapping[str, Picker]

    def of(self, model_name: str) -> Picker:
        return self.others.get(model_name, self.usual)

    def open(self, runtime: Runtime) -> None:
        for picker in {id(picker): picker for picker in (self.usual, *self.others.values())}.values():
            picker.open(runtime)

    def pick(self, deployments: Candidates, call: Call) -> Deployment:
        return self.of(deployments[0].model_name).pick(deployments, call)

    def sent(self, attempt: Attempt, call: Call) -> None:
        self.of(attempt.deployment.model_name).sent(attempt, call)

    def observe(self, attempt: Attempt, call: Call) -> None:
        self.of(attempt.deployment.model_name).observe(attempt, call)

    def elsewhere(self, deployment: Deployment, inflight: int) -> None:
        self.of(deployment.model_name).elsewhere(deployment, inflight)

    def report(self, deployment: Deployment) -> Mapping[str, Any]:
        return self.of(deployment.model_name).report(deployment)
