"""`rpm` and `tpm` of deployments as limits: tokens are reserved before a call and counted after it.

Counted in a sliding minute, in this process or, with a shared Redis, over all of them. Where a limit is used up the
deployment is blocked until enough of its minute is over, so that no later call has to ask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tianji_mw.counters.base import Want, Windows
from tianji_mw.routing.base import Candidates, Deployment
from tianji_mw.routing.blocks import Block, Blocks
from tianji_mw.routing.demand import FIRST_OUTPUT, demand_of
from tianji_mw.routing.headers import RawHeader
from tianji_mw.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Collection

    from tianji_mw.call import Call
    from tianji_mw.facts import Attempt

_LEARNS: Final = 0.1
#: A limit of which so much is used is used up for every call.
_NEARLY: Final = 0.95
#: How long others make way for a call that was too large for what is left of a limit.
_MOMENT_S: Final = 0.05
#: Deployments that are looked at for each answer; of more than that, what is left may be a tenth of a second old.
_FEW: Final = 8
_FRESH_NS: Final = 100_000_000


class Limits:
    """Those of all deployments. `limited`: where they are enforced; elsewhere they are weights."""

    def __init__(self, windows: Windows, blocks: Blocks, runtime: Runtime, limited: Collection[Deployment]) -> None:
        self._windows, self._blocks, self._runtime = windows, blocks, runtime
        self.limited = frozenset(one for one in limited if one.rpm is not None or one.tpm is not None)
        self._teams = frozenset(one.team for one in self.limited)
        #: Tokens that answers usually have.
        self._usual: dict[Deployment, float] = {}

    def holds_for(self, deployment: Deployment) -> bool:
        """Whether this deployment has limits to count for."""
        return deployment in self.limited

    async def take(self, deployment: Deployment, call: Call) -> int | None:
        """Reserve a call; the tokens that were reserved, or None, and the deployment is blocked, when it is full."""
        wants, tokens = [], 0
        if deployment.rpm is not None:
            wants.append(Want("rpm", deployment.rpm, 1))
        if deployment.tpm is not None:
            tokens = demand_of(call).total(self._usual.get(deployment, FIRST_OUTPUT))
            # A single call above the limit would wait for ever; alone in its minute it may run.
            wants.append(Want("tpm", deployment.tpm, min(tokens, deployment.tpm)))
            tokens = int(min(tokens, deployment.tpm))
        refused = await self._windows.take(deployment.id, wants)
        if refused is None:
            return tokens
        seconds = refused.retry_after_s
        if refused.used < refused.limit * _NEARLY:
            seconds = min(seconds, _MOMENT_S)  # this call is too large for what is left, and others are not
        until = self._runtime.clock() + max(1, int(seconds * 1e9))
        self._blocks.put(deployment, Block("rate_limit", until, f"{refused.limit:g} {refused.key}"))
        self._runtime.count("deployment_limits", refused.key)
        return None

    async def give_back(self, deployment: Deployment, reserved: int, attempt: Attempt) -> None:
        """Nothing was sent: take out what `take` has reserved."""
        at = attempt.started / 1e9
        if deployment.rpm is not None:
            await self._windows.settle(deployment.id, "rpm", -1, at=at)
        if deployment.tpm is not None and reserved:
            await self._windows.settle(deployment.id, "tpm", -reserved, at=at)

    async def settle(self, deployment: Deployment, reserved: int, attempt: Attempt) -> None:
        """Count what a call really used in the place of what was reserved."""
        used = attempt.input_tokens + attempt.output_tokens
        if attempt.output_tokens:
            usual = self._usual.get(deployment, float(attempt.output_tokens))
            self._usual[deployment] = usual + _LEARNS * (attempt.output_tokens - usual)
        if attempt.status == 200 and not used:
            return  # it answered and nobody counted: the estimate stands
        if deployment.tpm is not None and used != reserved:
            await self._windows.settle(deployment.id, "tpm", used - reserved, at=attempt.started / 1e9)

    def left(self, group: Candidates, team: str) -> list[RawHeader]:
        """What a group may serve this team in a minute, and what is left of it, as headers of an answer.

        As LiteLLM has it: the sum of those that have the limit. A large group is looked at ten times a second at most.
        """
        now, team = self._runtime.clock(), team if team in self._teams else ""  # all others see the same
        kept: tuple[int, list[RawHeader]] | None = group.memo.get((self, team))
        if kept is not None and now < kept[0]:
            return kept[1]
        headers: list[RawHeader] = []
        for key, what in (("rpm", b"requests"), ("tpm", b"tokens")):
            able = [d for d in group if d in self.limited and d.team in ("", team)]
            limits = [(d.id, limit) for d in able if (limit := getattr(d, key)) is not None]
            if limits:
                left = sum(max(0.0, limit - self._windows.known(name, key)) for name, limit in limits)
                headers.append((b"x-ratelimit-limit-%b" % what, b"%d" % sum(limit for _, limit in limits)))
                headers.append((b"x-ratelimit-remaining-%b" % what, b"%d" % left))
        if len(group) > _FEW:
            group.memo[self, team] = now + _FRESH_NS, headers
        return headers

    async def used(self, deployment: Deployment) -> dict[str, float]:
        """What was used of the limits in the last minute."""
        if not self.holds_for(deployment):
            return {}
        names = [name for name in ("rpm", "tpm") if getattr(deployment, name) is not None]
        return {name: await self._windows.used(deployment.id, name) for name in names}
