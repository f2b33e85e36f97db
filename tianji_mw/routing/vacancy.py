"""What happens to a call that nobody can take now: it waits for a place where all are full, or is told why.

The error says how many deployments are left out for which reason, and when to ask again; never their ids, and nothing
of other tenants.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from tianji_mw.errors import NoDeployment, Overloaded
from tianji_mw.routing.base import Candidates, Deployment
from tianji_mw.routing.blocks import Blocks
from tianji_mw.routing.parallel import LONGEST_WAIT_S, Parallel, Turn
from tianji_mw.routing.rules import RoutingRules
from tianji_mw.routing.selector import Selector, Trace, team_of
from tianji_mw.routing.wishes import asked_priority
from tianji_mw.runtime import Runtime

if TYPE_CHECKING:
    from tianji_mw.call import Call

#: How soon a call that waits looks again, at least.
_SOON_S: Final = 0.01
#: What an error does not say in full: those tags are the operator's.
_UNTOLD: Final = {"tags": "its tags are others"}
#: Reasons that an error names.
_MOST_REASONS: Final = 10


class Vacancy:
    """Asked when `Selector.candidates` left nobody."""

    def __init__(
        self, selector: Selector, blocks: Blocks, parallel: Parallel, runtime: Runtime, rules: RoutingRules
    ) -> None:
        self._selector, self._blocks, self._parallel, self._runtime = selector, blocks, parallel, runtime
        self._rules = rules

    async def wait(self, call: Call, name: str, failed: Collection[Deployment], turn: Turn | None) -> Turn | None:
        """Wait for a place where every deployment that the call could use is full; None where it is not that.

        `turn`: the call's place in the line, where it has waited already. Raises Overloaded.
        """
        if not self.full(call, name, failed):
            if turn is not None:
                self._parallel.pass_on(turn)
            return None
        group, now = self._group(call, name), self._runtime.clock()
        if turn is None:
            asked = asked_priority(call)
            priority = self._rules.default_priority if asked is None else asked
            turn = self._parallel.turn({deployment.model_name for deployment in group}, now, priority)
        elif self._blocks.free(group):
            self._parallel.pass_on(turn)  # there is a place, which only others can use
        if turn is not None:
            left_s = LONGEST_WAIT_S - (now - turn.since) / 1e9
            if call.due:
                left_s = min(left_s, (call.due - now) / 1e9)
            back_s = self._back_s(group, now)
            if await self._parallel.place(turn, min(left_s, back_s)) or back_s < left_s:
                return turn
        self._runtime.count("shed", "parallel")
        text = f"Every deployment of '{name[:200]}' serves as many requests as it may."
        raise Overloaded(text, headers={"retry-after": "1"})

    def full(self, call: Call, name: str, failed: Collection[Deployment] = ()) -> bool:
        """Whether some could be used if they did not serve as many requests as they may."""
        full = [one for one in self._group(call, name) if one not in failed and self._is_full(one)]
        return bool(full) and bool(self._selector.suited(call, full))

    def refusal(self, call: Call, name: str, failed: Collection[Deployment]) -> NoDeployment:
        """The error; raises another one where no time would change it, such as for a prompt that is too long."""
        trace = self._selector.trace(call, name, failed)
        self._selector.refuse(call, trace)
        return nobody(trace, self._runtime.clock())

    def _group(self, call: Call, name: str) -> Candidates:
        return self._selector.table.serving(name, team_of(call))

    def _is_full(self, deployment: Deployment) -> bool:
        return {block.reason for block in self._blocks.of(deployment) if not block.soft} == {"parallel"}

    def _back_s(self, group: Candidates, now: int) -> float:
        """Seconds until one of them may be back that is left out for another reason: nobody is called for that."""
        ends = [block.until for one in group for block in self._blocks.of(one) if block.reason != "parallel"]
        return max((min(ends) - now) / 1e9, _SOON_S) if ends else math.inf


def nobody(trace: Trace, now: int) -> NoDeployment:
    """The error that says why no deployment of the group can be used, and when to ask again. It tells of no tenants."""
    counted: dict[str, int] = {}
    removed = [removal for removal in trace.removed if removal.step != "team"]
    for removal in removed:
        reason = _UNTOLD.get(removal.step, removal.reason)
        counted[reason] = counted.get(reason, 0) + 1
    ends = [removal.until - now for removal in removed if removal.until > now and removal.step != "parallel"]
    seconds = max(1, math.ceil(min(ends) / 1e9)) if ends else 1
    why = "; ".join(f"{count} of {len(removed)}: {reason}" for reason, count in [*counted.items()][:_MOST_REASONS])
    cooling = bool(removed) and all(removal.step in ("cooldown", "probe") for removal in removed)
    text = f"No deployments available for the model '{trace.group[:200]}': {why}. Try again in {seconds} seconds."
    return NoDeployment(text, cooling=cooling, headers={"retry-after": str(seconds)})
