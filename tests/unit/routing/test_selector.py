"""The steps between a model's name and the strategy's choice, and that they can say what they did."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.routing_core import Clock, S, a_group, call_of, router_of, runtime_of
from tianji_mw.errors import PermissionDenied, UnknownModel, UpstreamError
from tianji_mw.identity.base import Identity
from tianji_mw.routing.base import Deployment
from tianji_mw.routing.blocks import UNTIL_LIFTED, Block
from tianji_mw.routing.router import Router
from tianji_mw.routing.vacancy import nobody

BLUE, RED = Identity(key_hash="b", team="blue"), Identity(key_hash="r", team="red")
ADMIN = Identity(key_hash="a", admin=True)


class Desk:
    """A router whose steps are asked, and its clock."""

    def __init__(self, *fields: dict[str, Any], aliases: dict[str, str] | None = None, **rules: Any) -> None:
        self.clock = Clock()
        self.runtime = runtime_of(self.clock)
        self.router: Router = router_of(self.runtime, a_group(*fields), aliases=aliases, **rules)
        self.all = self.router.table.all

    def block(self, number: int, reason: Any = "cooldown", seconds: float = 10, **more: Any) -> None:
        until = UNTIL_LIFTED if reason == "parallel" else self.clock.now + round(seconds * S)
        self.router.blocks.put(self.all[number], Block(reason, until, **more))

    def left(self, name: str = "m", *, failed: set[Deployment] | None = None, **asked: Any) -> list[str]:
        call = call_of(self.runtime, name, **asked)
        selector = self.router.selector
        found = selector.candidates(call, name, failed or set())
        assert list(selector.trace(call, name, failed or set()).left) == list(found)
        return [one.id for one in found]

    def refuse(self, name: str = "m", **asked: Any) -> str:
        """The error where nobody is left."""
        call = call_of(self.runtime, name, **asked)
        trace = self.router.selector.trace(call, name)
        assert not trace.left
        self.router.selector.refuse(call, trace)
        return nobody(trace, self.clock.now).message


def test_names() -> None:
    desk = Desk({}, {}, {"model_name": "other"}, aliases={"alias": "m"})
    assert desk.left() == desk.left("alias") == ["d0", "d1"]
    assert desk.left("other") == ["d2"]
    assert desk.left("d1") == ["d1"]
    with pytest.raises(UnknownModel):
        desk.left("nobody")


def test_those_that_failed_and_those_that_are_blocked_are_left_out() -> None:
    desk = Desk({}, {}, {})
    assert desk.left(failed={desk.all[0]}) == ["d1", "d2"]
    desk.block(1)
    assert desk.left() == ["d0", "d2"]
    assert desk.left(failed={desk.all[0], desk.all[2]}) == []


def test_one_that_mostly_works_comes_back_for_a_call_that_has_nobody_else() -> None:
    desk = Desk({}, {}, {"team": "red"})
    desk.block(1, soft=True)
    assert desk.left() == ["d0"]
    assert desk.left(failed={desk.all[0]}) == ["d1"]
    desk.block(0)
    # The only one that is free belongs to others.
    assert desk.left(identity=BLUE) == ["d1"]
    assert desk.left(identity=RED) == ["d2"]


def test_teams() -> None:
    desk = Desk({}, {"team": "blue"}, {"team": "red"}, {"model_name": "red only", "team": "red"})
    assert desk.left() == ["d0"]
    assert desk.left(identity=BLUE) == ["d0", "d1"]
    assert desk.left(identity=ADMIN) == ["d0", "d1", "d2"]
    assert desk.left("d2", identity=RED) == ["d2"]
    for name, identity in (("d2", BLUE), ("d2", None), ("red only", BLUE), ("red only", None)):
        assert desk.left(name, identity=identity) == []
        with pytest.raises(UnknownModel, match="does not exist"):
            desk.refuse(name, identity=identity)


def test_an_id_opens_no_model_that_the_key_may_not_use() -> None:
    desk = Desk({"id": "gpt-secret", "model_name": "secret"}, {"model_name": "gpt-4o"})
    key = Identity(key_hash="k", models=("gpt-*",))
    assert desk.left("gpt-4o", identity=key) == ["d1"]
    with pytest.raises(UnknownModel, match="does not exist"):
        desk.left("gpt-secret", identity=key)
    assert desk.left("gpt-secret", identity=Identity(key_hash="k")) == ["gpt-secret"]
    assert desk.left("gpt-secret", identity=Identity(key_hash="k", models=("gpt-secret", "secret"))) == ["gpt-secret"]


def test_tags() -> None:
    desk = Desk({"tags": frozenset({"eu"})}, {"tags": frozenset({"us"})}, tag_filtering=True)
    assert desk.left(tags=["eu"]) == ["d0"]
    with pytest.raises(PermissionDenied, match="gold") as refused:
        desk.refuse(tags=["gold"])
    assert refused.value.status == 401
    # Those with the tag are there, and only resting: that is no question of permission.
    desk.block(0)
    message = desk.refuse(tags=["eu"])
    assert "cooldown" in message
    assert "us" not in message.replace("used", "")


def test_only_tags_of_the_key_count_where_requests_may_bring_none() -> None:
    desk = Desk({"tags": frozenset({"eu"})}, {"tags": frozenset({"us"})}, tag_filtering=True, reject_client_tags=True)
    key = Identity(key_hash="k", tags=("us",))
    assert desk.left(identity=key, tags=["eu"]) == ["d1"]


def test_context_windows() -> None:
    desk = Desk({"max_input_tokens": 10}, {"max_input_tokens": 100}, pre_call_checks=True)
    assert desk.left(messages=[{"role": "user", "content": "x" * 200}]) == ["d1"]
    with pytest.raises(UpstreamError, match="takes 100") as refused:
        desk.refuse(messages=[{"role": "user", "content": "x" * 2000}])
    assert (refused.value.status, refused.value.code) == (400, "context_length_exceeded")
    desk.block(1)
    assert "cooldown" in desk.refuse(messages=[{"role": "user", "content": "x" * 200}])


def test_order() -> None:
    desk = Desk({"order": 2}, {"order": 1}, {}, {"order": 1})
    assert desk.left() == ["d1", "d3"]
    assert desk.left(failed={desk.all[1], desk.all[3]}) == ["d0"]
    desk.block(0)
    assert desk.left(failed={desk.all[1], desk.all[3]}) == ["d2"]


def test_the_same_set_is_the_same_object() -> None:
    desk = Desk(*[{"order": number % 2} for number in range(300)])
    call, selector = call_of(desk.runtime), desk.router.selector
    assert selector.candidates(call, "m") is selector.candidates(call, "m")
    for number in range(1_000):
        selector.candidates(call, "m", {desk.all[number % 300], desk.all[number // 4]})
    assert len(desk.router.table.serving("m").memo) < 200


def test_an_error_says_nothing_of_other_tenants_and_no_ids() -> None:
    desk = Desk({"id": "secret-id"}, {"team": "red", "tags": frozenset({"acme"})}, {"team": "red"})
    desk.block(0, seconds=20)
    desk.block(1, "budget", detail="red's money")
    message = desk.refuse(identity=BLUE)
    assert message == (
        "No deployments available for the model 'm': 1 of 1: it is in cooldown. Try again in 20 seconds."
    )


def test_an_error_is_short_however_many_there_are() -> None:
    desk = Desk(*[{} for _ in range(500)])
    for number in range(500):
        desk.block(number, "budget", detail=f"${number}")
    assert len(desk.refuse()) < 1_000


FIELDS = st.fixed_dictionaries(
    {
        "team": st.sampled_from(["", "", "blue", "red"]),
        "order": st.sampled_from([None, None, 1, 2]),
        "tags": st.frozensets(st.sampled_from(["eu", "us", "default"]), max_size=2),
        "max_input_tokens": st.sampled_from([None, 1, 1000]),
    }
)
BLOCKS = st.tuples(
    st.integers(0, 5), st.sampled_from(["cooldown", "probe", "rate_limit", "parallel", "budget", "health"]),
    st.floats(0.001, 30), st.booleans(),
)  # fmt: skip


@given(
    st.lists(FIELDS, min_size=1, max_size=6),
    st.lists(BLOCKS, max_size=8),
    st.sets(st.integers(0, 5), max_size=4),
    st.sampled_from([None, BLUE, RED, ADMIN]),
    st.lists(st.sampled_from(["eu", "us", "!eu", "&us", "gold"]), max_size=2),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    st.floats(0, 20),
)
def test_the_trace_tells_what_happened(
    fields: list[dict[str, Any]],
    blocks: list[tuple[int, Any, float, bool]],
    failed: set[int],
    identity: Identity | None,
    tags: list[str],
    rules: tuple[bool, bool, bool],
    passed: float,
) -> None:
    named: dict[str, Any] = dict(zip(("tag_filtering", "tag_match_any", "pre_call_checks"), rules, strict=True))
    desk = Desk(*fields, **named)
    for number, reason, seconds, soft in blocks:
        if number < len(fields):
            desk.block(number, reason, seconds, soft=soft)
    desk.clock.wait(passed)
    without = {desk.all[number] for number in failed if number < len(fields)}
    call = call_of(desk.runtime, identity=identity, tags=tags)
    candidates = desk.router.selector.candidates(call, "m", without)
    trace = desk.router.selector.trace(call, "m", without)
    assert list(trace.left) == list(candidates)
    removed = {removal.deployment for removal in trace.removed}
    assert len(removed) == len(trace.removed)
    assert removed | set(trace.left) == set(desk.all)
    assert not removed & set(trace.left)
    for one in candidates:
        assert one not in without
        assert identity is ADMIN or one.team in ("", identity.team if identity is not None else "")
        assert all(block.soft for block in desk.router.blocks.of(one))
    if not candidates:
        try:
            desk.router.selector.refuse(call, trace)
        except (PermissionDenied, UnknownModel, UpstreamError):
            return
        error = nobody(trace, desk.clock.now)
        assert 1 <= int(error.headers["retry-after"]) <= 31
        assert "team" not in error.message


async def test_a_teams_own_name_is_a_group_of_its_own() -> None:
    """Each of its deployments may have a `model_name` that nobody else has."""
    desk = Desk(*[{"model_name": f"internal-{n}", "team": "blue", "team_model_name": "ours"} for n in range(2)])
    assert desk.left("ours", identity=BLUE) == ["d0", "d1"]
    assert not any(desk.router.table.alone(one) for one in desk.all)
    desk.block(1)
    assert desk.left("ours", identity=BLUE) == ["d0"]
    assert desk.left("ours", identity=BLUE, failed={desk.all[0]}) == []
    with pytest.raises(UnknownModel):
        desk.left("ours", identity=RED)
