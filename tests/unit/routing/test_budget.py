"""Budgets: what calls hold and spend, who is left out then, and until when."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.routing_core import Clock, a_group, call_of, router_of, runtime_of
from tianji_mw.apis.base import Usage
from tianji_mw.call import Call
from tianji_mw.errors import NoDeployment
from tianji_mw.routing.budget import cost_of
from tianji_mw.routing.router import Router, Trip
from tianji_mw.routing.rules import Budget

DAY = 86_400.0
PRICES = {"input_cost": 0.001, "output_cost": 0.002}


class Till:
    """A router with budgets."""

    def __init__(self, *fields: dict[str, Any], **rules: Any) -> None:
        self.clock = Clock()
        self.runtime = runtime_of(self.clock)
        self.router: Router = router_of(self.runtime, a_group(*[{**PRICES, **one} for one in fields]), **rules)

    async def depart(self, name: str = "m", **request: Any) -> tuple[Trip, Call]:
        call = call_of(self.runtime, name, **{"max_tokens": 5, **request})
        return await self.router.depart(call, name), call

    async def arrive(self, sent: tuple[Trip, Call], tokens: tuple[int, int] = (5, 5)) -> None:
        trip, call = sent
        trip.attempt.status, call.usage = 200, Usage(*tokens, source="provider")
        self.router.arrive(trip, call, None)
        await self.router.aclose()

    async def report(self, kind: str) -> dict[str, Any]:
        return next(one for one in await self.router.budgets.report() if one["kind"] == kind)


def own(limit: float) -> dict[str, Any]:
    return {"max_budget": limit, "budget_s": DAY}


async def test_a_call_holds_what_it_may_cost_and_spends_what_it_does() -> None:
    till = Till(own(1.0))
    sent = await till.depart()
    assert (await till.report("deployment"))["held_usd"] == pytest.approx(0.018)
    await till.arrive(sent, (10, 1))
    found = await till.report("deployment")
    assert (found["spent_usd"], found["held_usd"]) == (pytest.approx(0.012), 0)


async def test_a_spent_budget_lasts_until_its_period_ends() -> None:
    till = Till(own(0.02))
    await till.arrive(await till.depart())
    await till.arrive(await till.depart(), (10, 10))  # nothing else ran: one call may go past it
    with pytest.raises(NoDeployment, match=r"\$0.045 of \$0.02 spent") as refused:
        await till.depart()
    assert "d0" not in refused.value.message  # ids are the operator's
    assert int(refused.value.headers["retry-after"]) == DAY
    till.clock.wait(DAY - 1)
    with pytest.raises(NoDeployment):
        await till.depart()
    till.clock.wait(1)
    await till.depart()


async def test_a_budget_whose_rest_is_held_is_asked_again_when_a_call_ends() -> None:
    till = Till(own(0.02))
    sent = await till.depart()
    with pytest.raises(NoDeployment, match="held by calls on their way") as refused:
        await till.depart()
    assert refused.value.headers["retry-after"] == "1"
    await till.arrive(sent, (1, 0))
    again = await till.depart()
    with pytest.raises(NoDeployment):
        await till.depart()
    till.clock.wait(0.5)  # in a moment, too: another process may have let go of it
    assert till.router.blocks.of(till.router.table.all[0]) == []
    await till.arrive(again, (1, 0))


async def test_calls_at_the_same_time_go_past_a_budget_once_at_most() -> None:
    till = Till(own(0.12))
    found = await asyncio.gather(*(till.depart() for _ in range(50)), return_exceptions=True)
    sent = [one for one in found if not isinstance(one, BaseException)]
    assert len(sent) == 6
    for one in sent:
        await till.arrive(one)
    assert (await till.report("deployment"))["spent_usd"] == pytest.approx(0.09)


async def test_prompts_that_are_denser_than_estimated_hold_what_they_cost() -> None:
    till = Till(own(10.0))
    await till.arrive(await till.depart(), (80, 5))  # ten times the estimate
    found = await asyncio.gather(*(till.depart() for _ in range(500)), return_exceptions=True)
    sent = [one for one in found if not isinstance(one, BaseException)]
    assert len(sent) > 50
    for one in sent:
        await till.arrive(one, (80, 5))
    spent = (await till.report("deployment"))["spent_usd"]
    assert 9.8 < spent <= 10.0


async def test_a_providers_budget_is_that_of_all_its_deployments() -> None:
    till = Till({}, {"model_name": "other"}, provider_budgets={"mock": Budget(limit=0.01, period_s=DAY)})
    await till.arrive(await till.depart())
    for name in ("m", "other"):
        with pytest.raises(NoDeployment, match="provider, mock"):
            await till.depart(name)


async def test_a_tags_budget_is_the_business_of_its_calls() -> None:
    till = Till({}, tag_budgets={"poor": Budget(limit=0.01, period_s=DAY)})
    await till.arrive(await till.depart(tags=["poor", "unknown"]))
    with pytest.raises(NoDeployment, match="tag 'poor'"):
        await till.depart(tags=["poor"])
    await till.depart(tags=["unknown"])
    assert till.router.blocks.of(till.router.table.all[0]) == []
    assert {one["name"] for one in await till.router.budgets.report()} == {"poor"}


async def test_a_refused_budget_lets_go_of_those_before_it() -> None:
    till = Till(own(10.0), tag_budgets={"poor": Budget(limit=0.001, period_s=DAY)})
    await till.arrive(await till.depart(tags=["poor"]))
    for _ in range(3):
        with pytest.raises(NoDeployment):
            await till.depart(tags=["poor"])
    assert (await till.report("deployment"))["held_usd"] == 0


async def test_no_request_can_hold_a_whole_budget_by_asking_for_more_than_any_model_writes() -> None:
    till = Till(own(1_000.0))
    greedy = await till.depart(max_tokens=1 << 62)
    assert (await till.report("deployment"))["held_usd"] == pytest.approx((1 << 17) * 0.002, rel=0.01)
    await till.depart()
    await till.arrive(greedy)


async def test_a_client_that_leaves_while_it_is_asked_leaves_nothing_held(monkeypatch: pytest.MonkeyPatch) -> None:
    till = Till({**own(1.0), "rpm": 10}, enforce_limits=True, max_parallel=1)
    hold = till.router.budgets.hold
    holding = asyncio.Event()

    async def slow(*given: Any) -> Any:
        found = await hold(*given)
        holding.set()
        await asyncio.sleep(60)
        return found

    monkeypatch.setattr(till.router.budgets, "hold", slow)
    leaving = asyncio.ensure_future(till.depart())
    await holding.wait()
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await till.router.aclose()
    [one] = till.router.table.all
    assert (await till.report("deployment"))["held_usd"] == 0
    assert await till.router.limits.used(one) == {"rpm": 0}
    assert till.router.parallel.inflight[one] == 0
    monkeypatch.undo()
    await till.depart()


def test_costs() -> None:
    [priced, free] = a_group(PRICES, {})
    assert cost_of(priced, 10, 5) == pytest.approx(0.02)
    assert cost_of(free, 1 << 60, 1 << 60) == 0
