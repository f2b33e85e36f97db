"""Random faults at random deployments: whatever happens, the client gets one answer, and nothing is sent twice."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.stack import ANSWER, CHAT, STREAM, Ends, delta, deployment, stream_of
from tianji_mw.gateway import Gateway
from tianji_mw.routing.adaptive import Adaptive
from tianji_mw.routing.least_busy import LeastBusy
from tianji_mw.routing.middleware import Routing
from tianji_mw.routing.rules import Hedge, RoutingRules
from tianji_mw.routing.shuffle import Shuffle
from tianji_mw.routing.table import Deployments
from tianji_mw.runtime import Runtime
from tianji_mw.testing import Driven, FakeLLM, Received, Reply, drive, started

EVENTS = stream_of("Hello", " you")
#: Bytes of the stream before its first content.
OPENING = len(delta(role="assistant"))
WHOLE = len(b"".join(EVENTS))


def _failing(status: int) -> Reply:
    return Reply.json({"error": {"message": "no", "type": "x", "code": None}}, status=status)


def _answer(request: Received, cut: int | None) -> Reply:
    if orjson.loads(request.body).get("stream"):
        return Reply.events(*EVENTS, cut_after=cut, reset=cut is not None)
    whole = len(orjson.dumps(ANSWER))
    return Reply.json(ANSWER, cut_after=None if cut is None else min(cut, whole - 1))


FAULTS = st.one_of(
    st.none(),
    st.none(),
    st.sampled_from([400, 401, 404, 429, 500, 503]),
    st.integers(0, WHOLE - 1).map(lambda cut: ("cut", cut)),
    st.just("refuse"),
)


class Upstream:
    """Does what its list says, one request after another, then answers."""

    def __init__(self, faults: list[Any]) -> None:
        self.faults = list(faults)

    def __call__(self, request: Received) -> Reply:
        fault = self.faults.pop(0) if self.faults else None
        if fault == "refuse":
            return Reply(refuse=True)
        if isinstance(fault, int):
            return _failing(fault)
        return _answer(request, fault[1] if fault else None)


def right(answer: Driven, body: dict[str, Any]) -> None:
    """A whole answer, a cut one that says so, or an error."""
    assert answer.error is None or isinstance(answer.error, ConnectionError)
    assert answer.status
    if answer.status != 200:
        assert "error" in answer.json
    elif "stream" not in body:
        assert answer.json == ANSWER
    else:
        delivered = answer.body
        assert delivered == b"".join(EVENTS) or (b'"error"' in delivered and delivered.endswith(b"\n\n"))
        assert delivered.count(b"Hello") <= 1


@settings(max_examples=60)
@given(
    st.lists(st.lists(FAULTS, max_size=4), min_size=1, max_size=3),
    st.lists(st.booleans(), min_size=1, max_size=6),
    st.sampled_from([Shuffle, Adaptive, LeastBusy]),
    st.booleans(),
    st.integers(0, 3),
)
def test_one_answer_whatever_happens(
    scripts: list[list[Any]], streams: list[bool], picker: type[Any], hedged: bool, retries: int
) -> None:
    hedge = Hedge(after_s=0.0, max_percent=100) if hedged else None

    async def run() -> None:
        async with AsyncExitStack() as stack:
            llms = [await stack.enter_async_context(FakeLLM(Upstream(faults))) for faults in scripts]
            table = Deployments([deployment(llm.url, id=f"d{at}") for at, llm in enumerate(llms)])
            rules = RoutingRules(num_retries=retries, longest_wait_s=0.0, hedge=hedge)
            routing = Routing(Gateway(table), table, picker=picker(), rules=rules)
            ends = Ends(routing, runtime=Runtime(sleep=lambda seconds: asyncio.sleep(0)))
            app = await stack.enter_async_context(started(ends))
            bodies = [STREAM if stream else CHAT for stream in streams]
            answers = await asyncio.gather(*(drive(app, body) for body in bodies))
            for answer, body in zip(answers, bodies, strict=True):
                right(answer, body)
            assert len(ends.ends) == len(bodies)
            attempts = [attempt for call in ends.ends for attempt in call.attempts]
            # One record for each request that an upstream got; one that was let go may not have arrived.
            arrived = sum(len(llm.requests) for llm in llms)
            assert arrived <= len(attempts)
            assert arrived >= sum(not attempt.abandoned for attempt in attempts)
            assert all(attempt.ended for attempt in attempts)
            assert all(len(call.attempts) <= (retries + 1) + hedged for call in ends.ends)
            assert not any(routing.router.parallel.inflight.values())
            for call in ends.ends:
                # Nothing was tried again once content was delivered.
                assert [a for a in call.attempts if a.first and not a.abandoned][1:] == []

    asyncio.run(run())
