"""What a router keeps beside its rules: in this process, or in a Redis that several processes share."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from tianji_mw.counters.local import LocalHolds, LocalWindows
from tianji_mw.routing.base import Picker
from tianji_mw.routing.router import Router
from tianji_mw.routing.rules import RoutingRules
from tianji_mw.routing.table import Deployments
from tianji_mw.runtime import Runtime

if TYPE_CHECKING:
    from tianji_mw.redis.settings import RedisSettings
    from tianji_mw.routing.shared import Shared

log = logging.getLogger("tianji_mw.routing")


class State:
    """A router that has started, and its link to the others."""

    def __init__(self, router: Router, shared: Shared | None = None) -> None:
        self.router = router
        self.shared = shared

    @classmethod
    async def open(
        cls,
        deployments: Deployments,
        picker: Picker,
        rules: RoutingRules,
        runtime: Runtime,
        redis: RedisSettings | None,
    ) -> State:
        """Raises MissingExtra and SetupError for a Redis that cannot work; one that is down is no error."""
        picker.open(runtime)
        _warn_of_budgets(deployments, rules)
        if redis is None:
            router = Router(deployments, picker, rules, runtime, LocalWindows(runtime), LocalHolds(runtime))
            await _watch(router)
            return cls(router)
        from tianji_mw.routing.shared import Shared

        shared = await Shared.open(redis, runtime)
        router = Router(deployments, picker, rules, runtime, shared.windows, shared.holds, shared)
        await shared.join(router)
        await _watch(router)
        return cls(router, shared)

    async def aclose(self) -> None:
        await self.router.aclose()
        if self.shared is not None:
            await self.shared.aclose()


async def _watch(router: Router) -> None:
    """Begin with the background health checks, where there are any; of several processes one makes them."""
    every_s, shared = router.rules.health.every_s, router.shared
    if every_s is None:
        return
    from tianji_mw.routing.health import health_of

    checks = await health_of(router)
    if shared is not None:
        checks.lock = partial(shared.turn, every_s)
        checks.told, shared.checked = shared.told_health, checks.heard
    checks.start()


def _warn_of_budgets(deployments: Deployments, rules: RoutingRules) -> None:
    """A budget without prices counts nothing, and would never be spent."""
    for one in deployments.all:
        budgeted = rules.tag_budgets or one.max_budget is not None or one.provider.name in rules.provider_budgets
        if budgeted and one.input_cost is None and one.output_cost is None:
            log.warning(
                "calls of '%s' cost nothing in its budget: set input_cost_per_token and output_cost_per_token",
                one.model_name,
            )
