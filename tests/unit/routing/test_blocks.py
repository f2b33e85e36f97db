"""Blocks: who is left of a group, as a list of everybody with a look at each block would say it."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.support.routing_core import Clock, S, a_group, runtime_of
from tianji_mw.routing.base import Candidates, Deployment
from tianji_mw.routing.blocks import UNTIL_LIFTED, Block, Blocks, Reason

REASONS: list[Reason] = ["cooldown", "probe", "rate_limit", "parallel", "budget", "health"]


def made(*fields: dict[str, Any]) -> tuple[Clock, Blocks, Candidates]:
    clock = Clock()
    return clock, Blocks(runtime_of(clock)), a_group(*(fields or ({}, {}, {})))


def test_without_blocks_it_is_the_very_group() -> None:
    _, blocks, group = made()
    assert blocks.free(group) is group
    blocks.put(group[0], Block("cooldown", UNTIL_LIFTED))
    assert blocks.free(group) is blocks.free(group)
    assert [*blocks.free(group)] == [*group[1:]]
    blocks.lift(group[0], "cooldown")
    assert blocks.free(group) is group


def test_several_reasons_hold_side_by_side() -> None:
    clock, blocks, group = made()
    blocks.put(group[0], Block("cooldown", clock.now + 5 * S))
    blocks.put(group[0], Block("parallel", UNTIL_LIFTED))
    blocks.lift(group[0], "parallel")
    assert group[0] not in blocks.free(group)
    clock.wait(5)
    assert group[0] in blocks.free(group)
    assert blocks.of(group[0]) == []


def test_a_later_block_of_the_same_reason_takes_the_place_of_the_earlier_one() -> None:
    clock, blocks, group = made()
    blocks.put(group[0], Block("health", clock.now + 50 * S))
    blocks.put(group[0], Block("health", clock.now + S))
    clock.wait(1)
    assert group[0] in blocks.free(group)


def test_lifting_what_is_not_there_is_no_harm() -> None:
    _, blocks, group = made()
    blocks.lift(group[0], "cooldown")
    blocks.put(group[0], Block("cooldown", UNTIL_LIFTED))
    blocks.lift(group[0], "probe")
    blocks.lift(group[1], "cooldown")
    assert [*blocks.free(group)] == [*group[1:]]


def test_soft_ones_are_used_when_nobody_else_is_left() -> None:
    clock, blocks, group = made()
    for one in group:
        blocks.put(one, Block("cooldown", clock.now + S, soft=one is not group[0]))
    assert [*blocks.free(group)] == [*group[1:]]
    blocks.put(group[1], Block("budget", UNTIL_LIFTED))
    assert [*blocks.free(group)] == [group[2]]
    assert [one.id for one in group if blocks.soft(one)] == ["d2"]


def test_what_a_look_found_is_kept_while_time_goes_on() -> None:
    """Between leaving somebody out and saying why, its block may end."""
    clock, blocks, group = made()
    blocks.put(group[0], Block("cooldown", clock.now + S))
    assert group[0] not in blocks.free(group)
    clock.wait(1)
    assert blocks.of(group[0]) == []
    assert [block.reason for block in blocks.kept(group[0])] == ["cooldown"]


def test_groups_do_not_touch_each_other() -> None:
    _, blocks, group = made()
    other = a_group({"id": "o"}, name="other")
    blocks.put(other[0], Block("cooldown", UNTIL_LIFTED))
    assert blocks.free(group) is group
    assert [*blocks.free(other)] == []


def test_a_group_of_several_public_names_sees_the_blocks_of_all() -> None:
    """As a team's own name for deployments that each have a `model_name` of their own."""
    clock, blocks, _ = made()
    mixed = Candidates([*a_group({"id": "a"}, name="m1"), *a_group({"id": "b"}, name="m2")])
    assert blocks.free(mixed) is mixed
    blocks.put(mixed[1], Block("cooldown", clock.now + S))
    assert [one.id for one in blocks.free(mixed)] == ["a"]
    blocks.put(mixed[0], Block("parallel", UNTIL_LIFTED))
    assert [*blocks.free(mixed)] == []
    clock.wait(1)
    assert [one.id for one in blocks.free(mixed)] == ["b"]


class Naive:
    """The same without anything that is remembered."""

    def __init__(self) -> None:
        self.blocks: dict[tuple[Deployment, Reason], Block] = {}

    def free(self, group: Candidates, now: int) -> list[Deployment]:
        held = {key: block for key, block in self.blocks.items() if block.until > now}
        free = [one for one in group if not any(blocked is one for blocked, _ in held)]
        hard = {one for (one, _), block in held.items() if not block.soft}
        return free or [one for one in group if one not in hard]


STEPS = st.one_of(
    st.tuples(
        st.just("put"), st.integers(0, 5), st.sampled_from(REASONS),
        st.one_of(st.floats(-1, 20), st.none()), st.booleans(),
    ),
    st.tuples(st.just("lift"), st.integers(0, 5), st.sampled_from(REASONS), st.none(), st.none()),
    st.tuples(st.just("wait"), st.none(), st.none(), st.floats(0, 10), st.none()),
    st.tuples(st.just("ask"), st.none(), st.none(), st.none(), st.none()),
)  # fmt: skip


@given(st.lists(STEPS, max_size=60))
def test_as_a_naive_one(steps: list[Any]) -> None:
    clock = Clock()
    blocks, naive = Blocks(runtime_of(clock)), Naive()
    one, two = a_group({}, {}, {}), a_group({"id": "x"}, {"id": "y"}, {"id": "z"}, name="n")
    everybody = [*one, *two]
    groups = [one, two, Candidates(one[:2]), Candidates(two[2:]), Candidates(everybody)]
    for what, number, reason, amount, soft in steps:
        if what == "put":
            until = UNTIL_LIFTED if amount is None else clock.now + round(amount * S)
            block = Block(reason, until, soft=soft)
            blocks.put(everybody[number], block)
            naive.blocks[everybody[number], reason] = block
        elif what == "lift":
            blocks.lift(everybody[number], reason)
            naive.blocks.pop((everybody[number], reason), None)
        elif what == "wait":
            clock.wait(amount)
        else:
            for group in groups:
                assert [*blocks.free(group)] == naive.free(group, clock.now)
    for group in groups:
        assert [*blocks.free(group)] == naive.free(group, clock.now)
        for member in group:
            held = {block.reason for block in blocks.of(member)}
            assert held == {r for (d, r), b in naive.blocks.items() if d is member and b.until > clock.now}
