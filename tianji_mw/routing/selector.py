"""Which deployments an attempt may be made at: the steps between the name of a model and the strategy's choice.

name -> group -> team -> not tried yet -> not blocked (cooldown, limits, budget, health) -> tags -> context window ->
lowest `order`. Most groups need none of these but the blocks: then this is two dict lookups. `trace` goes the same way
and notes whom each step took out; it is asked when nobody is left, and by `explain`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from tianji_mw.errors import PermissionDenied, UnknownModel, UpstreamError
from tianji_mw.routing.base import Candidates, Deployment
from tianji_mw.routing.blocks import Block, Blocks
from tianji_mw.routing.demand import demand_of
from tianji_mw.routing.rules import RoutingRules
from tianji_mw.routing.table import Deployments
from tianji_mw.routing.tag import tagged
from tianji_mw.tags import tags_of

if TYPE_CHECKING:
    from tianji_mw.call import Call

#: Key of what is known of a group's steps, in its memo.
_STEPS: Final = "steps"
#: Sets of deployments that are remembered for one group, and how many of them one may have.
_REMEMBERED: Final = 100
_MOST_OF_ONE: Final = 1_000


class Removal(NamedTuple):
    """Somebody whom a step took out."""

    deployment: Deployment
    step: str
    reason: str
    #: Nanoseconds of the clock at which that ends; 0: it does not end by itself.
    until: int = 0


class Trace(NamedTuple):
    """The whole way for one name."""

    group: str
    all: Sequence[Deployment]
    removed: Sequence[Removal]
    left: Sequence[Deployment]


class Selector:
    """The steps over one table."""

    def __init__(self, table: Deployments, rules: RoutingRules, blocks: Blocks) -> None:
        self.table = table
        self._rules = rules
        self._blocks = blocks
        #: Groups of which every caller may have anybody, by their names: nearly all.
        self._plain = {name: group for name, group in table.plain.items() if not self._many(group)}

    def candidates(self, call: Call, name: str, failed: Collection[Deployment] = ()) -> Candidates:
        """Who may serve `name` now; perhaps nobody. Raises UnknownModel."""
        if not failed and (plain := self._plain.get(name)) is not None:
            return self._blocks.free(plain)
        group = group_for(call, self.table, name)
        if failed or self._many(group):
            return self._narrowed(call, group, failed)
        return self._blocks.free(group)

    def suited(self, call: Call, deployments: Sequence[Deployment]) -> Sequence[Deployment]:
        """Those of them that the steps leave which do not change with time."""
        for step in self._steps(call):
            deployments = step(deployments)
        return deployments

    def _many(self, group: Candidates) -> bool:
        """Whether the group needs more steps than the blocks."""
        rules = self._rules
        if rules.tag_filtering:
            return True
        known: bool | None = group.memo.get(_STEPS)
        if known is None:
            known = group.memo[_STEPS] = any(
                d.team or d.order is not None or (rules.pre_call_checks and d.max_input_tokens is not None)
                for d in group
            )
        return known

    def _narrowed(self, call: Call, group: Candidates, failed: Collection[Deployment]) -> Candidates:
        left: Sequence[Deployment] = self._blocks.free(group)
        if failed:
            left = [deployment for deployment in left if deployment not in failed]
        # What is left out only while others are there must come back where those are not for this call.
        left = self.suited(call, left) or self.suited(call, self._lenient(group, failed))
        return left if isinstance(left, Candidates) else _remembered(group, left)

    def _lenient(self, group: Candidates, failed: Collection[Deployment]) -> list[Deployment]:
        return [deployment for deployment in group if deployment not in failed and self._blocks.soft(deployment)]

    def _steps(self, call: Call) -> list[Callable[[Sequence[Deployment]], Sequence[Deployment]]]:
        steps = [lambda left: _of_team(left, call)]
        if self._rules.tag_filtering:
            steps.append(lambda left: self._tagged(left, call))
        if self._rules.pre_call_checks:
            steps.append(lambda left: _fitting(left, call))
        return [*steps, _first]

    def _tagged(self, left: Sequence[Deployment], call: Call) -> Sequence[Deployment]:
        agent = call.headers.get("user-agent", "")
        header = f"User-Agent: {agent}" if agent else ""
        return tagged(left, self.tags(call), match_any=self._rules.tag_match_any, header=header)

    def tags(self, call: Call) -> frozenset[str]:
        """The tags that count for the call."""
        if self._rules.reject_client_tags:
            return frozenset(call.identity.tags if call.identity is not None else ())
        return frozenset(tags_of(call))

    # --- why

    def trace(self, call: Call, name: str, failed: Collection[Deployment] = ()) -> Trace:
        """What each step does. Raises UnknownModel."""
        group = group_for(call, self.table, name)
        removed: list[Removal] = []
        usable = set(self._blocks.free(group)).difference(failed)
        if not self.suited(call, [deployment for deployment in group if deployment in usable]):
            usable.update(self._lenient(group, failed))
        for deployment in group:
            if not open_to(deployment, call):  # first: nobody learns how the deployments of others are
                removed.append(Removal(deployment, "team", _why("team", deployment, call)))
            elif deployment in failed:
                removed.append(Removal(deployment, "failed", "it has failed in this request"))
            elif deployment not in usable:
                block = max(self._blocks.kept(deployment), key=lambda found: found.until)
                removed.append(Removal(deployment, block.reason, said(block), block.until))
        gone = {removal.deployment for removal in removed}
        left: Sequence[Deployment] = [deployment for deployment in group if deployment not in gone]
        names = ["team", *["tags"] * self._rules.tag_filtering, *["context"] * self._rules.pre_call_checks, "order"]
        for step, narrow in zip(names, self._steps(call), strict=True):
            kept = narrow(left)
            stay = set(kept)
            removed += [Removal(d, step, _why(step, d, call)) for d in left if d not in stay]
            left = kept
        return Trace(self.table.group(name), group, removed, left)

    def refuse(self, call: Call, trace: Trace) -> None:
        """Raise the error of a client that no deployment may serve whatever the time: a tag, a team, a long prompt."""
        steps = {removal.step for removal in trace.removed}
        if "tags" in steps and not self._tagged(_of_team(trace.all, call), call):
            tags = ", ".join(sorted(self.tags(call))) or "none"
            refusal = PermissionDenied(
                f"The model '{trace.group[:200]}' is not allowed due to the tag configuration; tags of the request: "
                f"{tags[:200]}.",
                code="no_deployment_for_tags",
            )
            refusal.status = 401  # as LiteLLM has it
            raise refusal
        if steps == {"team"}:
            raise UnknownModel(f"The model '{trace.group[:200]}' does not exist.", param="model")
        if "context" in steps and not steps - {"context", "order", "team"}:
            most = max(d.max_input_tokens or 0 for d in trace.all)
            raise UpstreamError(
                f"The prompt has about {demand_of(call).input_tokens} tokens, and the largest context window of "
                f"'{trace.group[:200]}' takes {most}.",
                status=400,
                code="context_length_exceeded",
            )


def group_for(call: Call, table: Deployments, name: str) -> Candidates:
    """The deployments behind a name; for the id of one, only where the caller may use its model.

    Raises UnknownModel.
    """
    group = table.serving(name, team_of(call))
    one, identity = group[0], call.identity
    if identity is not None and identity.models and one.id == name != one.model_name:
        names = (one.model_name, one.team_model_name)
        if not any(identity.allows(public) for public in names if public):
            raise UnknownModel(f"The model '{name[:200]}' does not exist.", param="model")
    return group


def open_to(deployment: Deployment, call: Call) -> bool:
    """Whether it is the caller's team's, or everybody's."""
    admin = call.identity is not None and call.identity.admin
    return admin or not deployment.team or deployment.team == team_of(call)


def team_of(call: Call) -> str:
    """The team of the caller's key; empty where it has none."""
    return call.identity.team if call.identity is not None else ""


def said(block: Block) -> str:
    """A block in words."""
    words = {
        "cooldown": "it is in cooldown", "probe": "one call tries it after its cooldown",
        "rate_limit": "its rate limit is used up", "parallel": "it serves as many requests as it may at the same time",
        "budget": "its budget is spent", "health": "its health check failed",
    }  # fmt: skip
    return f"{words[block.reason]} ({block.detail})" if block.detail else words[block.reason]


def _of_team(left: Sequence[Deployment], call: Call) -> Sequence[Deployment]:
    if not any(d.team and not open_to(d, call) for d in left):
        return left
    return [d for d in left if open_to(d, call)]


def _fitting(left: Sequence[Deployment], call: Call) -> Sequence[Deployment]:
    if all(d.max_input_tokens is None for d in left):
        return left
    tokens = demand_of(call).input_tokens
    if all(d.max_input_tokens is None or tokens <= d.max_input_tokens for d in left):
        return left
    return [d for d in left if d.max_input_tokens is None or tokens <= d.max_input_tokens]


def _first(left: Sequence[Deployment]) -> Sequence[Deployment]:
    """Those with the lowest `order`; where one has an order, those without come last."""
    orders = {d.order for d in left}
    if len(orders) < 2:
        return left
    lowest = min(order for order in orders if order is not None)
    return [d for d in left if d.order == lowest]


def _remembered(group: Candidates, left: Sequence[Deployment]) -> Candidates:
    """The same object for the same deployments, so that a strategy need not learn them anew for each call."""
    key = ("left", *map(id, left)) if len(left) <= _MOST_OF_ONE else None
    if key is None:
        return Candidates(left)
    known: Candidates | None = group.memo.get(key)
    if known is None:
        if len(group.memo) > _REMEMBERED:
            group.memo.clear()
        known = group.memo[key] = Candidates(left)
    return known


def _why(step: str, deployment: Deployment, call: Call) -> str:
    match step:
        case "team":
            return "it belongs to another team"
        case "tags":
            return f"its tags are {', '.join(sorted(deployment.tags)) or 'none'}"
        case "context":
            return f"its context window takes {deployment.max_input_tokens} tokens"
        case _:
            return f"its order is {deployment.order}, and one with a lower order is there"
