"""Budgets of providers, deployments and tags, around any strategy: what is spent is left out until its period ends.

What a call may cost is held before it is sent and replaced by its real cost at its end, so that calls at the same time
cannot spend the same dollar: at most one call goes past a budget. Costs are tokens by `input_cost_per_token` and
`output_cost_per_token`; a deployment without prices costs nothing, which `state.py` warns of.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

from tianji_mw.counters.base import Holds
from tianji_mw.routing.base import Deployment
from tianji_mw.routing.blocks import Block, Blocks
from tianji_mw.routing.demand import demand_of
from tianji_mw.routing.rules import Budget, RoutingRules
from tianji_mw.routing.table import Deployments
from tianji_mw.runtime import Runtime

if TYPE_CHECKING:
    from tianji_mw.call import Call
    from tianji_mw.facts import Attempt

#: Tokens of an answer that nobody has limited and nobody has seen the like of.
_UNSEEN: Final = 4_096
#: No model writes more: who asks for more than that must not hold what is left for everybody else.
_MOST_OUTPUT: Final = 1 << 17
#: How much of what was learned stays with each call.
_FADES: Final = 0.999
#: How soon a budget is looked at again whose rest is held; another process may have let go of it.
_MOMENT_S: Final = 0.5


class Purse(NamedTuple):
    """One budget: of a `provider`, a `deployment` or a `tag`."""

    kind: str
    name: str
    budget: Budget

    @property
    def key(self) -> str:
        """With the period, so that a changed one begins anew; LiteLLM's names."""
        return f"{self.kind}_spend:{self.name}:{self.budget.period_s:g}"


class Budgets:
    """All budgets of a router."""

    def __init__(self, table: Deployments, rules: RoutingRules, holds: Holds, blocks: Blocks, runtime: Runtime) -> None:
        self._holds, self._blocks, self._runtime = holds, blocks, runtime
        self._tags = rules.tag_budgets
        self._all = table.all
        self.of: dict[Deployment, list[Purse]] = {d: purses for d in table.all if (purses := _purses(d, rules))}
        self._longest: dict[Deployment, int] = {}
        #: Prompt tokens by our estimate of them: the most of late, where it is more than 1.
        self._denser: dict[Deployment, float] = {}
        #: Deployments that wait for calls on their way, which hold what is left of a budget.
        self._held: dict[Purse, list[Deployment]] = {}

    def holds_for(self, deployment: Deployment) -> bool:
        """Whether a budget may stand in the way of this deployment's calls."""
        return bool(self._tags) or deployment in self.of

    async def hold(self, deployment: Deployment, call: Call, tags: frozenset[str], hold_id: str) -> Purse | None:
        """Hold what the call may cost; the budget that is spent, whose deployments are blocked then, or None."""
        amount = self._most(deployment, call)
        held: list[Purse] = []
        for purse in self._purses(deployment, tags):
            budget = purse.budget
            refused = await self._holds.hold(
                purse.key, "usd", limit=budget.limit, amount=amount, period_s=budget.period_s, hold_id=hold_id
            )
            if refused is None:
                held.append(purse)
                continue
            for one in held:
                await self._holds.settle(one.key, "usd", hold_id=hold_id, amount=0.0, period_s=one.budget.period_s)
            spent, _, ends_s = await self._holds.spent(purse.key, "usd")
            self._block(purse, deployment, spent, ends_s)
            return purse
        return None

    def learn(self, deployment: Deployment, call: Call, attempt: Attempt) -> None:
        """How long its answers and how dense its prompts may be, so that what is held suffices."""
        self._longest[deployment] = max(attempt.output_tokens, int(self._longest.get(deployment, 0) * _FADES))
        if attempt.input_tokens:
            ratio = attempt.input_tokens / max(1, demand_of(call).input_tokens)
            self._denser[deployment] = max(1.0, ratio, self._denser.get(deployment, 1.0) * _FADES)

    async def settle(self, deployment: Deployment, tags: frozenset[str], hold_id: str, attempt: Attempt) -> None:
        """Count what it really cost, and let go what was held."""
        cost = cost_of(deployment, attempt.input_tokens, attempt.output_tokens)
        for purse in self._purses(deployment, tags):
            await self._holds.settle(purse.key, "usd", hold_id=hold_id, amount=cost, period_s=purse.budget.period_s)
            for one in self._held.pop(purse, ()):
                self._blocks.lift(one, "budget")

    def _purses(self, deployment: Deployment, tags: frozenset[str]) -> list[Purse]:
        found = self.of.get(deployment, [])
        if not self._tags:
            return found
        return [*found, *(Purse("tag", tag, self._tags[tag]) for tag in sorted(tags) if tag in self._tags)]

    def _most(self, deployment: Deployment, call: Call) -> float:
        """What the call costs if its answer is as long as it may be."""
        demand = demand_of(call)
        output = demand.most_output
        if output is None:
            output = self._longest.get(deployment) or _UNSEEN
        output = min(output, _MOST_OUTPUT)
        return cost_of(deployment, math.ceil(demand.input_tokens * self._denser.get(deployment, 1.0)), output)

    def _block(self, purse: Purse, deployment: Deployment, spent: float, ends_s: float) -> None:
        """Block whoever this budget is for: until its period ends, or for a moment where calls only hold the rest.

        A tag's budget is the business of the one call.
        """
        over = spent >= purse.budget.limit
        self._runtime.count("budgets_spent" if over else "budgets_held", purse.kind)
        if purse.kind == "tag":
            return
        blocked = [d for d in (self._all if purse.kind == "provider" else (deployment,)) if purse in self.of.get(d, ())]
        # Clients read it: ids of deployments are the operator's.
        whose = purse.name if purse.kind == "provider" else "its own"
        detail = f"{purse.kind}, {whose}: ${spent:.6g} of ${purse.budget.limit:g} spent"
        if not over:
            detail, ends_s = f"{detail}, the rest is held by calls on their way", _MOMENT_S
            self._held[purse] = blocked
        block = Block("budget", self._runtime.clock() + max(1, int(ends_s * 1e9)), detail)
        for one in blocked:
            self._blocks.put(one, block)

    async def report(self) -> list[dict[str, object]]:
        """Every budget: what is spent and held, and when its period ends."""
        purses = {purse for found in self.of.values() for purse in found}
        purses |= {Purse("tag", tag, budget) for tag, budget in self._tags.items()}
        out: list[dict[str, object]] = []
        for purse in sorted(purses, key=lambda found: found.key):
            spent, held, ends = await self._holds.spent(purse.key, "usd")
            figures = {"limit_usd": purse.budget.limit, "spent_usd": spent, "held_usd": held, "ends_in_s": ends}
            out.append({"kind": purse.kind, "name": purse.name, **figures})
        return out


def cost_of(deployment: Deployment, input_tokens: int, output_tokens: int) -> float:
    """US dollars."""
    return input_tokens * (deployment.input_cost or 0.0) + output_tokens * (deployment.output_cost or 0.0)


def _purses(deployment: Deployment, rules: RoutingRules) -> list[Purse]:
    found = []
    name = deployment.provider.name
    if (budget := rules.provider_budgets.get(name)) is not None:
        found.append(Purse("provider", name, budget))
    if deployment.max_budget is not None and deployment.budget_s is not None:
        budget = Budget(limit=deployment.max_budget, period_s=deployment.budget_s)
        found.append(Purse("deployment", deployment.id, budget))
    return found
