"""What people are told of a router: its state as JSON, and why a call would go where it goes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from tests.support.stack import deployment
from tianji_mw.apis import by_name
from tianji_mw.call import Call
from tianji_mw.counters.local import LocalHolds, LocalWindows
from tianji_mw.errors import UnknownModel, UpstreamError
from tianji_mw.routing.adaptive import Adaptive
from tianji_mw.routing.base import Deployment, Picker
from tianji_mw.routing.blocks import UNTIL_LIFTED, Block
from tianji_mw.routing.failure import Failure
from tianji_mw.routing.health import Health, health_of
from tianji_mw.routing.health_probe import call_of
from tianji_mw.routing.least_busy import LeastBusy
from tianji_mw.routing.report import explain, report
from tianji_mw.routing.router import Router
from tianji_mw.routing.rules import Budget, RoutingRules
from tianji_mw.routing.shuffle import Shuffle
from tianji_mw.routing.table import Deployments
from tianji_mw.runtime import Runtime

_S = 1_000_000_000
URL = "http://127.0.0.1:9"
FAILED = Failure("InternalServer", 500, UpstreamError("x", status=500), True, True, True, True, False, None)


class Clock:
    now = 1_000 * _S

    def __call__(self) -> int:
        return self.now


@pytest.fixture
async def runtime() -> AsyncIterator[Runtime]:
    async with Runtime(clock=Clock()) as made:
        yield made


def router_of(
    runtime: Runtime,
    *deployments: Deployment,
    picker: Picker | None = None,
    aliases: dict[str, str] | None = None,
    **rules: Any,
) -> Router:
    picker = picker or LeastBusy()
    picker.open(runtime)
    windows, holds = LocalWindows(runtime), LocalHolds(runtime)
    return Router(Deployments(deployments, aliases), picker, RoutingRules(**rules), runtime, windows, holds)


async def asked(runtime: Runtime, model: str = "gpt-4o", **more: Any) -> Call:
    request = {"model": model, "messages": [{"role": "user", "content": "Hi"}], **more}
    return await call_of(by_name("chat_completions"), request, runtime)


def by_id(found: dict[str, Any]) -> dict[str, Any]:
    return {one["id"]: one for one in found["deployments"]}


# --- the report


async def test_the_state_of_each_deployment(runtime: Runtime) -> None:
    a, b = deployment(URL, id="a", rpm=10, weight=2, tags=frozenset({"eu"})), deployment(URL, id="b")
    router = router_of(runtime, a, b, deployment(URL, id="c", model_name="other"), enforce_limits=True)
    trip = await router.depart(await asked(runtime), "gpt-4o", {b})
    for _ in range(5):
        router.cooldowns.failed(b, FAILED, alone=False)
    (await health_of(router)).latest[a] = Health("healthy", "probe", 0, 1_700_000_000.0)
    router.counts.retries["gpt-4o", "RateLimit"] = 2
    router.counts.fallbacks["gpt-4o", "other", "Timeout"] = 1
    found = await report(router)
    assert found["strategy"] == "least-busy"
    assert [(group["model"], group["waiting"]) for group in found["groups"]] == [("gpt-4o", 0), ("other", 0)]
    told = by_id(found["groups"][0])
    assert told["a"] | {"figures": None} == {
        "id": "a", "provider": "openai", "model": "gpt-4o-2024", "weight": 2, "order": None, "tags": ["eu"],
        "state": "closed", "blocks": [], "inflight": 1, "picked": 1, "last_minute": {"attempts": 0, "failures": 0},
        "limits": {"rpm": {"limit": 10, "used": 1.0}}, "max_parallel": None, "share": 1.0, "figures": None,
        "health": {"state": "healthy", "how": "probe", "when": "2023-11-14T22:13:20+00:00", "error": None},
    }  # fmt: skip
    assert told["a"]["figures"] == {"inflight": 1, "inflight_elsewhere": 0}
    assert (told["b"]["state"], told["b"]["last_minute"]) == ("open", {"attempts": 5, "failures": 5})
    [block] = told["b"]["blocks"]
    assert (block["reason"], block["detail"], block["seconds_left"]) == ("cooldown", "InternalServer 500", 5.0)
    assert found["retries"] == [{"group": "gpt-4o", "kind": "RateLimit", "count": 2}]
    assert found["fallbacks"] == [{"from": "gpt-4o", "to": "other", "kind": "Timeout", "count": 1}]
    orjson.dumps(found)
    router.arrive(trip, await asked(runtime), None)


async def test_coming_back_and_blocks_without_an_end(runtime: Runtime) -> None:
    a = deployment(URL, id="a")
    router = router_of(runtime, a, deployment(URL, id="b"))
    for _ in range(5):
        router.cooldowns.failed(a, FAILED, alone=False)
    runtime.clock.now += 6 * _S  # type: ignore[attr-defined]
    assert by_id((await report(router))["groups"][0])["a"]["state"] == "half_open"
    router.cooldowns.succeeded(a)
    router.blocks.put(a, Block("parallel", UNTIL_LIFTED, "2 at a time"))
    told = by_id((await report(router))["groups"][0])["a"]
    assert (told["state"], told["share"]) == ("closed", 0.1)
    assert told["blocks"] == [{"reason": "parallel", "detail": "2 at a time", "seconds_left": None, "soft": False}]


async def test_budgets(runtime: Runtime) -> None:
    router = router_of(
        runtime, deployment(URL, id="a"), provider_budgets={"openai": Budget(limit=5.0, period_s=3600.0)}
    )
    [budget] = (await report(router))["budgets"]
    assert (budget["kind"], budget["name"], budget["limit_usd"], budget["spent_usd"]) == ("provider", "openai", 5.0, 0)


# --- explain


async def test_whom_each_step_takes_out(runtime: Runtime) -> None:
    cooled = deployment(URL, id="cooled", order=1)
    router = router_of(
        runtime, cooled, deployment(URL, id="first", order=1), deployment(URL, id="later", order=2),
        deployment(URL, id="theirs", order=1, team="red"), aliases={"gpt-4": "gpt-4o"},
    )  # fmt: skip
    for _ in range(5):
        router.cooldowns.failed(cooled, FAILED, alone=False)
    found = explain(router, await asked(runtime, "gpt-4"), "gpt-4")
    assert (found["model"], found["group"], found["pattern"], found["refused"]) == ("gpt-4", "gpt-4o", None, None)
    told = by_id(found)
    assert {name: one["removed"] and one["removed"]["step"] for name, one in told.items()} == {
        "cooled": "cooldown", "first": None, "later": "order", "theirs": "team",
    }  # fmt: skip
    assert told["cooled"]["removed"]["seconds_left"] == 5.0
    assert "InternalServer 500" in told["cooled"]["removed"]["reason"]
    assert told["first"]["chance"] == 1.0
    orjson.dumps(found)


async def test_tags(runtime: Runtime) -> None:
    router = router_of(
        runtime, deployment(URL, id="eu", tags=frozenset({"eu"})), deployment(URL, id="us", tags=frozenset({"us"})),
        tag_filtering=True,
    )  # fmt: skip
    found = explain(router, await asked(runtime, tags=["eu"]), "gpt-4o")
    assert found["tags"] == ["eu"]
    assert [one["id"] for one in found["deployments"] if one["removed"] is None] == ["eu"]
    refused = explain(router, await asked(runtime, tags=["mars"]), "gpt-4o")["refused"]
    assert (refused["status"], "mars" in refused["message"]) == (401, True)


async def test_the_error_when_nobody_is_left(runtime: Runtime) -> None:
    a, b = deployment(URL, id="a"), deployment(URL, id="b")
    router = router_of(runtime, a, b)
    for one in (a, b):
        for _ in range(5):
            router.cooldowns.failed(one, FAILED, alone=False)
    refused = explain(router, await asked(runtime), "gpt-4o")["refused"]
    assert refused["status"] == 429
    assert "Try again in 5 seconds" in refused["message"]


@pytest.mark.parametrize(
    ("picker", "weights", "chances"),
    [
        (Shuffle(), (3, 1), [0.75, 0.25]),
        (Shuffle(), (None, None), [0.5, 0.5]),
        (Adaptive(), (3, 1), [0.75, 0.25]),
        (Adaptive(), (None, None), [None, None]),
        (LeastBusy(), (3, 1), [None, None]),
    ],
)
async def test_chances_where_only_weights_decide(
    runtime: Runtime, picker: Picker, weights: tuple[float | None, float | None], chances: list[float | None]
) -> None:
    router = router_of(runtime, *(deployment(URL, id=str(w), weight=w) for w in weights), picker=picker)
    found = explain(router, await asked(runtime), "gpt-4o")
    assert [one["chance"] for one in found["deployments"]] == chances


async def test_a_pattern_and_an_id(runtime: Runtime) -> None:
    router = router_of(runtime, deployment(URL, id="wild", model_name="openai/*", model="*"), deployment(URL, id="d1"))
    found = explain(router, await asked(runtime, "openai/o3"), "openai/o3")
    assert (found["pattern"], found["deployments"][0]["upstream_model"]) == ("openai/*", "o3")
    assert [one["id"] for one in explain(router, await asked(runtime, "d1"), "d1")["deployments"]] == ["d1"]
    with pytest.raises(UnknownModel):
        explain(router, await asked(runtime, "nobody"), "nobody")


async def test_what_follows_a_failure(runtime: Runtime) -> None:
    names = ("gpt-4o", "b", "c", "d", "long")
    router = router_of(
        runtime,
        *(deployment(URL, id=name, model_name=name) for name in names),
        fallbacks={"gpt-4o": ("b", "c"), "b": ("d", "gpt-4o")},
        context_window_fallbacks={"gpt-4o": ("long",)},
        num_retries=4,
    )
    found = explain(router, await asked(runtime), "gpt-4o")
    assert (found["fallbacks"], found["context_window_fallbacks"]) == (["b", "c"], ["long"])
    assert found["content_policy_fallbacks"] == ["b", "c"]  # where there is no list of its own
    assert found["way"] == ["gpt-4o", "b", "d", "c"]
    assert found["retries"] == 4


async def test_it_changes_nothing(runtime: Runtime) -> None:
    picker = Adaptive()
    a, b = deployment(URL, id="a"), deployment(URL, id="b")
    router = router_of(runtime, a, b, picker=picker)
    before = await report(router)
    for _ in range(3):
        explain(router, await asked(runtime), "gpt-4o")
    assert await report(router) == before
