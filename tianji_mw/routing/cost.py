"""The deployment where the call is expected to cost least, LiteLLM's `cost-based-routing`.

Unlike LiteLLM's sum of two prices: tokens of the prompt at their price, and as many of an answer as answers usually
have at theirs. Ties are decided at random. It knows nothing of speed or load.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Final

from tianji_mw.routing.base import Candidates, Deployment, Picker
from tianji_mw.routing.demand import demand_of
from tianji_mw.routing.lengths import Lengths

if TYPE_CHECKING:
    from tianji_mw.call import Call
    from tianji_mw.facts import Attempt

#: US dollars per token where nobody knows the price, as in LiteLLM: such a deployment comes last.
_UNKNOWN_PRICE: Final = 5.0


class Cost(Picker):
    """`routing_strategy: cost-based-routing`."""

    names: ClassVar[tuple[str, ...]] = ("cost-based-routing", "lowest-cost")
    limits: ClassVar[bool] = True

    # A pydantic private attribute costs twenty times as much to read.
    @cached_property
    def _lengths(self) -> Lengths:
        return Lengths()

    def pick(self, deployments: Candidates, call: Call) -> Deployment:
        """One of the cheapest for this call."""
        if len(deployments) == 1:
            return deployments[0]
        offers: _Offers | None = deployments.memo.get(Cost)
        if offers is None:
            offers = deployments.memo[Cost] = _Offers(deployments)
        if len(offers.lines) == 1:
            best = offers.lines[0]
        else:
            demand = demand_of(call)
            answer = demand.output(self._lengths.usual(deployments[0]))
            best = offers.cheapest(demand.input_tokens, answer)
        return best[int(call.runtime.rng.random() * len(best))]

    def observe(self, attempt: Attempt, call: Call) -> None:
        """Learn how long answers are."""
        self._lengths.learn(attempt)

    def report(self, deployment: Deployment) -> Mapping[str, Any]:
        """Prices, and the answer that is reckoned with."""
        read, written = _prices(deployment)
        return {
            "input_usd_per_token": read,
            "output_usd_per_token": written,
            "expected_output_tokens": round(self._lengths.usual(deployment)),
        }


class _Offers:
    """Who can be the cheapest: with the answer's length as x, each pair of prices is a line, and the lowest ones form a
    chain, each good up to some x. It depends on no call, so a choice is a search in a sorted list."""

    __slots__ = ("_until", "free_answer", "lines")

    def __init__(self, deployments: Candidates) -> None:
        by_price: dict[tuple[float, float], list[Deployment]] = {}
        for deployment in deployments:
            by_price.setdefault(_prices(deployment), []).append(deployment)
        chain, self._until = _lowest(list(by_price))
        self.lines = [by_price[prices] for prices in chain]
        #: Without an answer its price does not matter.
        least = chain[0][0]
        self.free_answer = [one for (read, _), group in by_price.items() if read == least for one in group]

    def cheapest(self, read: float, written: float) -> list[Deployment]:
        if written <= 0:
            return self.free_answer
        return self.lines[bisect_left(self._until, written / read if read else float("inf"))]


def _lowest(prices: list[tuple[float, float]]) -> tuple[list[tuple[float, float]], list[float]]:
    """The lower envelope of `input + output * x` for x > 0, and up to which x each but the last is the lowest."""
    chain: list[tuple[float, float]] = []
    until: list[float] = []
    for read, written in sorted(prices):
        if chain and written >= chain[-1][1]:
            continue  # dearer in both
        while chain:
            crossing = (read - chain[-1][0]) / (chain[-1][1] - written)
            if not until or crossing > until[-1]:
                until.append(crossing)
                break
            until.pop()
            chain.pop()
        chain.append((read, written))
    return chain, until


def _prices(deployment: Deployment) -> tuple[float, float]:
    read, written = deployment.input_cost, deployment.output_cost
    return _UNKNOWN_PRICE if read is None else read, _UNKNOWN_PRICE if written is None else written
