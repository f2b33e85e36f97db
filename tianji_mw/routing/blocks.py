"""Who may not be chosen now, and until when; and who is left of a group, without looking at everyone for each call.

A block has a reason, so that several can hold at once and "nobody is left" can say why. What is left of a group is
remembered until a block of one of its deployments comes or goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from tianji_mw.routing.base import Candidates, Deployment
from tianji_mw.runtime import Runtime

Reason = Literal["cooldown", "probe", "rate_limit", "parallel", "budget", "health"]

#: A block that ends when somebody lifts it.
UNTIL_LIFTED: Final = 1 << 62


@dataclass(slots=True, frozen=True)
class Block:
    """Why a deployment is left out."""

    reason: Reason
    #: Nanoseconds of the runtime's clock.
    until: int
    detail: str = ""
    #: It is left out while others are there, and used when nobody else is.
    soft: bool = False


#: Key of the public names of some deployments, in their memo.
_NAMES: Final = "names"


class _Group:
    """What is known of the deployments of one public name."""

    __slots__ = ("next_end", "version")

    def __init__(self) -> None:
        #: Grows when a block comes or goes.
        self.version = 0
        self.next_end = UNTIL_LIFTED


class Blocks:
    """All blocks of a router."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._of: dict[Deployment, dict[Reason, Block]] = {}
        self._groups: dict[str, _Group] = {}

    def put(self, deployment: Deployment, block: Block) -> None:
        """Block it, in the place of an earlier block for the same reason."""
        self._of.setdefault(deployment, {})[block.reason] = block
        group = self._groups.setdefault(deployment.model_name, _Group())
        group.version += 1
        group.next_end = min(group.next_end, block.until)

    def lift(self, deployment: Deployment, reason: Reason) -> None:
        """End a block, if there is one."""
        blocks = self._of.get(deployment)
        if blocks is not None and blocks.pop(reason, None) is not None:
            if not blocks:
                del self._of[deployment]
            self._groups[deployment.model_name].version += 1

    def of(self, deployment: Deployment) -> list[Block]:
        """The blocks that hold now."""
        now = self._runtime.clock()
        return [block for block in self._of.get(deployment, {}).values() if block.until > now]

    def kept(self, deployment: Deployment) -> list[Block]:
        """The blocks by which `free` has just left it out; time that has passed since then ends none of them."""
        return [*self._of.get(deployment, {}).values()]

    def soft(self, deployment: Deployment) -> bool:
        """Whether it may be used when nobody else is there."""
        return all(block.soft for block in self._of.get(deployment, {}).values())

    def free(self, group: Candidates) -> Candidates:
        """Those of a group that nothing blocks; where there are none, those whose blocks are all soft. May be empty."""
        names: tuple[str, ...] | None = group.memo.get(_NAMES)
        if names is None:
            names = group.memo[_NAMES] = tuple({deployment.model_name for deployment in group})
        version = 0
        for name in names:  # nearly always one
            state = self._groups.get(name)
            if state is not None:
                if state.next_end <= self._runtime.clock():
                    self._end(name, state)
                version += state.version
        if not version:
            return group
        known: tuple[int, Candidates] | None = group.memo.get(self)
        if known is None or known[0] != version:
            known = group.memo[self] = (version, self._left(group))
        return known[1]

    def _left(self, group: Candidates) -> Candidates:
        free = [deployment for deployment in group if deployment not in self._of]
        if len(free) == len(group):
            return group
        return Candidates(free or [deployment for deployment in group if self.soft(deployment)])

    def _end(self, name: str, state: _Group) -> None:
        """Take out the blocks of a group whose time is over."""
        now, next_end = self._runtime.clock(), UNTIL_LIFTED
        for deployment, blocks in [*self._of.items()]:
            if deployment.model_name != name:
                continue
            for reason in [reason for reason, block in blocks.items() if block.until <= now]:
                del blocks[reason]
            if blocks:
                next_end = min(next_end, *(block.until for block in blocks.values()))
            else:
                del self._of[deployment]
        state.next_end = next_end
        state.version += 1
