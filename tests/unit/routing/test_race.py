"""Two attempts of one call at the same time: one answer, and each of them ends once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.routing_core import Clock, a_group, call_of, router_of, runtime_of
from tianji_mw.call import Call
from tianji_mw.errors import UpstreamError, UpstreamTruncated
from tianji_mw.facts import Attempt
from tianji_mw.routing.failover import Failover
from tianji_mw.routing.hedge import Hedging
from tianji_mw.routing.rules import Hedge

START: dict[str, Any] = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json")],
}
BODY = {"type": "http.response.body", "body": b"x", "more_body": False}
App = Callable[[Call, Attempt, Any], Awaitable[None]]


class Track:
    """One call over deployments that do as `apps` say, the first of which is asked first."""

    def __init__(self, *apps: App, **rules: Any) -> None:
        runtime = runtime_of(Clock())
        group = a_group(*[{"order": number} for number in range(len(apps))])
        hedge = Hedge(after_s=0.0, max_percent=100)
        self.router = router_of(runtime, group, **{"hedge": hedge, "num_retries": 0, **rules})
        self.call = call_of(runtime)
        self.apps = dict(zip(group, apps, strict=True))
        self.sent: list[Any] = []
        self.ended: list[Attempt] = []
        arrive = self.router.arrive

        def note(trip: Any, *given_: Any, **named: Any) -> None:
            self.ended.append(trip.attempt)
            arrive(trip, *given_, **named)

        self.router.arrive = note  # type: ignore[method-assign]

    async def inner(self, send: Any) -> None:
        attempt = next(one for one in self.call.attempts if not one.sent)
        self.call.attempt(attempt.deployment, self.call.begun(attempt.deployment))
        attempt.status = 200
        await self.apps[attempt.deployment](self.call, attempt, send)

    async def _send(self, message: Any) -> None:
        self.sent.append(message)
        await asyncio.sleep(0)

    async def run(self) -> None:
        await Failover(self.router, self.call, self.inner, self._send, lambda held: True, free=True).run()
        self.settled()

    def settled(self) -> None:
        assert len(self.ended) == len(set(self.ended)) == len(self.call.attempts)
        assert not any(self.router.parallel.inflight.values())

    @property
    def won(self) -> str:
        return next(str(v, "ascii") for k, v in self.sent[0]["headers"] if k == b"x-litellm-model-id")


def answers(*, after: int = 0, fails: bool = False, stalls: int = 0) -> App:
    """So many turns of the loop, then an answer, or an error; a pause between head and end."""

    async def app(call: Call, attempt: Attempt, send: Any) -> None:
        for _ in range(after):
            await asyncio.sleep(0)
        if fails:
            attempt.status = 503
            call.fail(UpstreamError("no", status=503), attempt)
            await send({**START, "status": 503, "headers": []})
            await send(BODY)
            return
        await send({**START, "headers": list(START["headers"])})
        for _ in range(stalls):
            await asyncio.sleep(0)
        await send(dict(BODY))

    return app


async def sleeps(call: Call, attempt: Attempt, send: Any) -> None:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError as cancelled:
        call.fail(cancelled)  # as every layer on the way does
        raise


async def test_the_loser_leaves_no_trace_on_the_winner() -> None:
    track = Track(sleeps, answers(after=3, stalls=3))
    await track.run()
    assert track.won == "d1"
    assert track.call.error is None
    assert [(a.deployment.id, a.abandoned, a.error) for a in track.call.attempts] == [
        ("d0", True, None), ("d1", False, None),
    ]  # fmt: skip


async def test_two_that_answer_in_the_same_moment() -> None:
    for first in range(12):
        for second in range(12):
            track = Track(answers(after=first), answers(after=second))
            await track.run()
            assert [message["type"] for message in track.sent] == ["http.response.start", "http.response.body"]
            assert track.call.error is None
            assert [one.error for one in track.call.attempts] == [None] * len(track.call.attempts)
            assert [one.abandoned for one in track.call.attempts][:-1] == [True] * (len(track.call.attempts) - 1)


async def test_after_both_have_failed_a_third_one_is_asked() -> None:
    track = Track(answers(after=5, fails=True), answers(fails=True), answers(), num_retries=1)
    await track.run()
    assert track.won == "d2"
    assert [one.deployment.id for one in track.call.attempts] == ["d0", "d1", "d2"]


async def test_an_earlier_groups_error_is_no_part_of_a_race_after_it() -> None:
    track = Track(answers(fails=True), answers(), fallbacks={"m": ("d1",)})
    track.call.edit()["model"] = "d0"
    track.call.edit()["fallbacks"] = ["d1"]
    await track.run()
    assert track.won == "d1"
    assert track.call.error is None


async def test_a_cancelled_call_ends_both() -> None:
    track = Track(sleeps, sleeps)
    task = asyncio.ensure_future(track.run())
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert len(track.call.attempts) == 2
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    track.settled()
    assert all(one.abandoned for one in track.call.attempts)


@pytest.mark.parametrize("raises", [RuntimeError("x"), UpstreamTruncated("x")])
async def test_what_an_app_raises_after_its_head_has_left(raises: Exception) -> None:
    async def breaks(call: Call, attempt: Attempt, send: Any) -> None:
        await send({**START, "headers": []})
        await send({**BODY, "more_body": True})
        raise raises

    track = Track(breaks, sleeps)
    with pytest.raises(type(raises)):
        await track.run()
    track.settled()


APPS = st.builds(answers, after=st.integers(0, 6), fails=st.booleans(), stalls=st.integers(0, 3)) | st.just(sleeps)


@settings(max_examples=150)
@given(st.lists(APPS, min_size=2, max_size=3), st.integers(0, 2), st.integers(0, 14))
def test_one_answer_whoever_is_faster(apps: list[App], retries: int, leaves_after: int) -> None:
    async def run() -> None:
        track = Track(*apps, num_retries=retries, longest_wait_s=0.0)
        task = asyncio.ensure_future(track.run())
        if leaves_after > 10 or sleeps in apps:
            for _ in range(leaves_after * 3):
                await asyncio.sleep(0)
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        track.settled()
        assert [m["type"] for m in track.sent][:2] in ([], [START["type"]], [START["type"], BODY["type"]])
        assert len(track.sent) <= 2
        if not task.cancelled():
            assert task.exception() is None
            assert (track.call.error is None) == (track.sent[0]["status"] == 200)

    asyncio.run(run())


# --- when


def test_a_percentile_of_what_a_group_took_lately() -> None:
    hedging = Hedging(Hedge(groups=frozenset({"m"})))
    for number in range(19):
        hedging.took("m", number / 10)
    assert hedging.after_s("m") is None
    hedging.took("m", 1.9)
    assert hedging.after_s("m") == 1.9
    assert hedging.after_s("other") is None
    for _ in range(400):
        hedging.took("m", 0.5)
    assert hedging.after_s("m") == 0.5


def test_a_share_of_calls_at_most() -> None:
    hedging, sent = Hedging(Hedge(after_s=0.1, max_percent=5)), 0
    for _ in range(1_000):
        assert hedging.after_s("m") == 0.1
        if hedging.affordable:
            hedging.spend()
            sent += 1
    assert 49 <= sent <= 52
