"""The deployment with the fewest tokens in the last minute, LiteLLM's `usage-based-routing-v2`.

Unlike LiteLLM's: the minute slides, and a call counts from when it is sent, with what it will probably need, until its
answer says what it was. Who is over `rpm` or `tpm` is left out before: nothing is refused here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Final

from tianji_mw.routing.base import Candidates, Deployment, Picker
from tianji_mw.routing.demand import demand_of
from tianji_mw.routing.lengths import Lengths
from tianji_mw.routing.ranking import Figures

if TYPE_CHECKING:
    from tianji_mw.call import Call
    from tianji_mw.facts import Attempt
    from tianji_mw.runtime import Runtime

_SECOND: Final = 1_000_000_000
_WINDOW_S: Final = 60


class LowestUsage(Picker):
    """`routing_strategy: usage-based-routing-v2`."""

    names: ClassVar[tuple[str, ...]] = (
        "usage-based-routing-v2", "usage-based-routing", "usage-based", "lowest-tpm-rpm",
    )  # fmt: skip
    limits: ClassVar[bool] = True

    #: LiteLLM's; its counters are kept for so long, ours for the minute that they are about.
    ttl: int = 60

    # A pydantic private attribute costs twenty times as much to read.
    @cached_property
    def _state(self) -> _State:
        return _State()

    def pick(self, deployments: Candidates, call: Call) -> Deployment:
        """One of those with the fewest tokens; with the least share of `tpm` where each of them has one."""
        if len(deployments) == 1:
            return deployments[0]
        state, runtime = self._state, call.runtime
        state.forget(runtime.clock())
        figures: Figures | None = deployments.memo.get(state)
        if figures is None:
            relative = all(deployment.tpm for deployment in deployments)
            figures = deployments.memo[state] = state.shares if relative else state.tokens
        return figures.least(deployments, runtime.rng)

    def open(self, runtime: Runtime) -> None:
        """Reports forget what is too old, too."""
        self._state.clock = runtime.clock

    def sent(self, attempt: Attempt, call: Call) -> None:
        """Reserve what it will probably need."""
        state, deployment = self._state, attempt.deployment
        expected = demand_of(call).total(state.lengths.usual(deployment))
        state.reserved[attempt] = expected
        state.change(deployment, expected)

    def observe(self, attempt: Attempt, call: Call) -> None:
        """Settle: tokens that were counted take the reservation's place. What failed needed none."""
        state = self._state
        expected = state.reserved.pop(attempt, 0)
        counted = attempt.input_tokens + attempt.output_tokens
        if not counted and attempt.error is None:
            counted = expected  # nobody counted
        state.lengths.learn(attempt)
        state.forget(attempt.ended)
        state.spend(attempt.deployment, counted, attempt.ended)
        state.change(attempt.deployment, counted - expected)

    def report(self, deployment: Deployment) -> Mapping[str, Any]:
        """Tokens of the last minute, with those reserved for calls that run."""
        state = self._state
        if state.clock is not None:
            state.forget(state.clock())
        return {"tokens_last_minute": int(state.tokens.figure.get(deployment, 0))}


class _State:
    __slots__ = ("_latest", "_spent", "clock", "lengths", "reserved", "shares", "tokens")

    def __init__(self) -> None:
        self.clock: Callable[[], int] | None = None
        self.lengths = Lengths()
        self.reserved: dict[Attempt, int] = {}
        #: Tokens of the minute, and what part they are of `tpm`.
        self.tokens = Figures(default=0.0)
        self.shares = Figures(default=0.0)
        #: What was spent, in the order in which it will be forgotten: one entry a second and deployment.
        self._spent: deque[_Spent] = deque()
        self._latest: dict[Deployment, _Spent] = {}

    def change(self, deployment: Deployment, tokens: int) -> None:
        """So many more, or less."""
        now = max(self.tokens.figure.get(deployment, 0.0) + tokens, 0.0)
        self.tokens.set(deployment, now)
        if deployment.tpm:
            self.shares.set(deployment, now / deployment.tpm)

    def spend(self, deployment: Deployment, tokens: int, now: int) -> None:
        """They are spent now, and forgotten in a minute."""
        if tokens <= 0:
            return
        second = now // _SECOND
        latest = self._latest.get(deployment)
        if latest is not None and latest.second == second:
            latest.tokens += tokens
        else:
            latest = self._latest[deployment] = _Spent(deployment, second, tokens)
            self._spent.append(latest)

    def forget(self, now: int) -> None:
        """What is more than a minute old counts no more."""
        spent, oldest = self._spent, now // _SECOND - _WINDOW_S
        while spent and spent[0].second < oldest:
            gone = spent.popleft()
            self.change(gone.deployment, -gone.tokens)


class _Spent:
    __slots__ = ("deployment", "second", "tokens")

    def __init__(self, deployment: Deployment, second: int, tokens: int) -> None:
        self.deployment, self.second, self.tokens = deployment, second, tokens
