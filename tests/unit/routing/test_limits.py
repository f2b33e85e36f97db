"""`rpm` and `tpm` as limits: what is reserved, what is counted, and what is given back."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.routing_core import FAILED, Clock, a_group, call_of, router_of, runtime_of
from tianji_mw.apis.base import Usage
from tianji_mw.call import Call
from tianji_mw.errors import NoDeployment, UpstreamError
from tianji_mw.routing.router import Router, Trip
from tianji_mw.routing.rules import Budget


class Meter:
    """A router over one deployment, and what is counted of its minute."""

    def __init__(self, field: dict[str, Any], **rules: Any) -> None:
        self.clock = Clock()
        self.runtime = runtime_of(self.clock)
        self.router: Router = router_of(self.runtime, a_group(field), **{"enforce_limits": True, **rules})
        [self.one] = self.router.table.all

    async def depart(self, **request: Any) -> tuple[Trip, Call]:
        call = call_of(self.runtime, **request)
        return await self.router.depart(call, "m"), call

    async def arrive(
        self, sent: tuple[Trip, Call], *, tokens: tuple[int, int] | None = None, status: int = 200, sent_bytes: int = 0,
        failure: Any = None, abandoned: bool = False,
    ) -> None:  # fmt: skip
        trip, call = sent
        trip.attempt.status, call.bytes_out = status, sent_bytes
        if failure is not None:
            trip.attempt.error = UpstreamError("no")
        if tokens is not None:
            call.usage = Usage(*tokens, source="provider")
        self.router.arrive(trip, call, failure, abandoned=abandoned)
        await self.router.aclose()

    async def used(self) -> dict[str, float]:
        return await self.router.limits.used(self.one)


async def test_requests_are_refused_and_come_back_with_their_minute() -> None:
    meter = Meter({"rpm": 3})
    for _ in range(3):
        await meter.arrive(await meter.depart())
        meter.clock.wait(10)
    with pytest.raises(NoDeployment, match=r"3 rpm") as refused:
        await meter.depart()
    wait_s = int(refused.value.headers["retry-after"])
    assert 30 <= wait_s <= 32
    assert meter.router.blocks.free(meter.router.table.serving("m")) == ()
    meter.clock.wait(wait_s)
    await meter.depart()


async def test_tokens_are_reserved_and_then_counted() -> None:
    meter = Meter({"tpm": 10_000})
    sent = await meter.depart(max_tokens=100, messages=[{"role": "user", "content": "x" * 400}])
    assert (await meter.used())["tpm"] == 207  # 100 and 7 of the prompt, 100 of the answer
    await meter.arrive(sent, tokens=(90, 20))
    assert await meter.used() == {"tpm": 110}


async def test_answers_are_expected_to_be_as_long_as_usual() -> None:
    meter = Meter({"tpm": 100_000})
    await meter.arrive(await meter.depart(), tokens=(10, 50))
    before = (await meter.used())["tpm"]
    await meter.depart()
    assert (await meter.used())["tpm"] - before == 58  # 8 of the prompt, 50 of the answer


async def test_a_call_above_the_limit_runs_alone_in_its_minute() -> None:
    meter = Meter({"tpm": 100})
    await meter.depart(max_tokens=1 << 60, messages=[{"role": "user", "content": "x" * 4_000}])
    with pytest.raises(NoDeployment):
        await meter.depart()


@pytest.mark.parametrize("status", [0, 500])
async def test_what_failed_used_no_tokens(status: int) -> None:
    meter = Meter({"rpm": 10, "tpm": 10_000})
    await meter.arrive(await meter.depart(), status=status, failure=FAILED)
    assert await meter.used() == {"rpm": 1, "tpm": 0}


async def test_one_that_failed_does_not_pay_for_the_one_beside_it() -> None:
    meter = Meter({"tpm": 10_000})
    # In a race both share the call, whose tokens the winner has told.
    await meter.arrive(await meter.depart(), status=503, tokens=(1_000, 1_000), failure=FAILED)
    assert await meter.used() == {"tpm": 0}


async def test_a_stream_that_broke_off_is_counted_by_what_left() -> None:
    meter = Meter({"tpm": 10_000})
    sent = await meter.depart(stream=True)
    await meter.arrive(sent, sent_bytes=1_800, failure=FAILED)
    assert await meter.used() == {"tpm": 18}  # 8 of the prompt, 10 events
    sent = await meter.depart(stream=True)
    await meter.arrive(sent, sent_bytes=1_800, tokens=(7, 0), abandoned=True)
    assert await meter.used() == {"tpm": 35}  # the provider told of 7


@pytest.mark.parametrize("api", ["embeddings", "rerank", "moderations", "count_tokens", "passthrough"])
async def test_bytes_of_vectors_scores_and_files_are_no_tokens(api: str) -> None:
    meter = Meter({"tpm": 10_000})
    for tokens, expected in (((8, 0), 8), (None, 8 + 2)):
        call = call_of(meter.runtime, api=api, input="x" * 8, messages=[])
        sent = await meter.router.depart(call, "m"), call
        await meter.arrive(sent, tokens=tokens, sent_bytes=1_000_000)
        assert await meter.used() == {"tpm": expected}


async def test_what_is_no_limit_is_not_counted() -> None:
    meter = Meter({"rpm": 1, "tpm": 1}, enforce_limits=False)
    for _ in range(5):
        await meter.arrive(await meter.depart(), tokens=(1_000, 1_000))
    assert await meter.used() == {}


async def test_a_call_that_a_budget_refuses_gives_back_what_it_reserved() -> None:
    budget = {"poor": Budget(limit=0.001, period_s=60)}
    meter = Meter({"rpm": 10, "tpm": 10_000, "input_cost": 1.0}, tag_budgets=budget)
    await meter.arrive(await meter.depart(tags=["poor"]), tokens=(5, 0))
    before = await meter.used()
    for _ in range(20):
        with pytest.raises(NoDeployment, match="poor"):
            await meter.depart(tags=["poor"])
        await meter.router.aclose()
    assert await meter.used() == before
    assert meter.router.parallel.inflight[meter.one] == 0
    await meter.depart()  # somebody else's call


async def test_limits_that_fail_leave_no_place_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = Meter({"rpm": 10}, max_parallel=1)

    async def fails(*given: Any) -> Any:
        raise RuntimeError("no")

    monkeypatch.setattr(meter.router.limits, "take", fails)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            await meter.depart()
    assert meter.router.parallel.inflight[meter.one] == 0
    assert meter.router.blocks.of(meter.one) == []


async def test_a_call_too_large_for_what_is_left_holds_nobody_else_off() -> None:
    meter = Meter({"tpm": 1000})
    await meter.arrive(await meter.depart(max_tokens=500), tokens=(100, 400))
    with pytest.raises(NoDeployment, match=r"1000 tpm"):
        await meter.depart(messages=[{"role": "user", "content": "long " * 600}])
    meter.clock.wait(0.1)
    await meter.depart(max_tokens=100)
