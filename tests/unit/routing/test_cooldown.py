"""Cooldowns: who is taken out, for how long, and how they come back."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.routing_core import FAILED, Clock, S, a_group, runtime_of
from tianji_mw.routing.blocks import Blocks
from tianji_mw.routing.cooldown import Cooldowns
from tianji_mw.routing.rules import Kind, RoutingRules


class Ward:
    """Cooldowns of two deployments, by a clock that stands."""

    def __init__(self, *fields: dict[str, Any], **rules: Any) -> None:
        self.clock = Clock()
        runtime = runtime_of(self.clock)
        self.blocks = Blocks(runtime)
        self.cooldowns = Cooldowns(RoutingRules(**rules), self.blocks, runtime)
        self.group = a_group(*(fields or ({}, {})))
        self.one = self.group[0]

    def fail(self, times: int = 1, *, alone: bool = False, **changes: Any) -> bool:
        out = False
        for _ in range(times):
            out = self.cooldowns.failed(self.one, FAILED._replace(**changes), alone=alone)
        return out

    def work(self, times: int = 1) -> None:
        for _ in range(times):
            self.cooldowns.succeeded(self.one)

    @property
    def free(self) -> list[str]:
        return [one.id for one in self.blocks.free(self.group)]

    @property
    def left_s(self) -> float:
        """Of its cooldown."""
        ends = [block.until for block in self.blocks.of(self.one) if block.reason == "cooldown"]
        return (max(ends) - self.clock.now) / S if ends else 0.0

    @property
    def state(self) -> str:
        return self.cooldowns.state(self.one)


def limited(**more: Any) -> dict[str, Any]:
    return {"kind": "RateLimit", "status": 429, **more}


# --- the rules


@pytest.mark.parametrize(
    ("kind", "status"), [("RateLimit", 429), ("Authentication", 401), ("Authentication", 402), ("NotFound", 404)]
)
def test_some_statuses_are_enough_at_once(kind: Kind, status: int) -> None:
    ward = Ward()
    ward.work(100)
    assert ward.fail(kind=kind, status=status)
    assert ward.free == ["d1"]
    assert not Ward().fail(kind=kind, status=status, alone=True)


def test_more_than_half_of_at_least_five() -> None:
    ward = Ward()
    ward.work(3)
    assert not ward.fail(3)  # 3 of 6
    assert ward.fail()  # 4 of 7
    ward = Ward()
    assert not ward.fail(4)
    assert ward.fail()


def test_a_row_of_failures_is_enough_whatever_was_before() -> None:
    ward = Ward()
    ward.work(1_000)
    assert not ward.fail(4)
    ward.work()
    assert not ward.fail(4)
    assert ward.fail()
    ward = Ward()
    assert not ward.fail(2, unreachable=True)
    assert ward.fail(unreachable=True)


def test_failures_are_forgotten_in_a_minute() -> None:
    ward = Ward()
    ward.work(10)
    ward.fail(4)
    ward.work()
    ward.clock.wait(61)
    assert ward.cooldowns.counts(ward.one) == (0, 0)
    assert not ward.fail(4)


def test_one_that_is_alone_is_taken_out_after_a_thousand() -> None:
    ward = Ward()
    assert not ward.fail(999, alone=True)
    assert ward.fail(alone=True)
    ward = Ward()
    ward.work()
    assert not ward.fail(2_000, alone=True)


def test_what_does_not_count_takes_nobody_out() -> None:
    ward = Ward()
    assert not ward.fail(2_000, counts=False)
    assert not Ward(cooldowns=False).fail(2_000, **limited())


def test_allowed_fails() -> None:
    ward = Ward(allowed_fails=3)
    assert not ward.fail(3, **limited())
    assert ward.fail(**limited())
    assert not Ward(allowed_fails=0).fail(50, alone=True)
    assert Ward(allowed_fails=0).fail()
    ward = Ward({"allowed_fails": 0}, {}, allowed_fails=9)
    assert ward.fail()


def test_allowed_fails_by_kind() -> None:
    ward = Ward(allowed_fails=3, allowed_fails_policy={"RateLimit": 1})
    assert not ward.fail(2)
    assert not ward.fail(1, **limited())  # its own count, not that of all
    assert ward.fail(1, **limited())
    ward = Ward({"allowed_fails_policy": {"Timeout": 0}}, {}, allowed_fails_policy={"Timeout": 9})
    assert ward.fail(kind="Timeout", status=408)


# --- how long


@pytest.mark.parametrize(
    ("field", "wait_s", "rule", "expected"),
    [
        (None, None, {}, 5), (None, None, {"cooldown_s": 7}, 7), (None, 20, {"cooldown_s": 7}, 20),
        (3, 20, {"cooldown_s": 7}, 3), (3, None, {}, 3), (None, 0.0, {}, 5),
        (1000, None, {}, 1000), (None, None, {"cooldown_s": 1000}, 1000), (None, 1000, {}, 1000),
        (None, 1e9 - 1, {}, 3600), (None, 1e300, {}, 3600), (None, float("inf"), {}, 3600), (10_000, 1e9, {}, 10_000),
    ],
)  # fmt: skip
def test_how_long(field: float | None, wait_s: float | None, rule: dict[str, float], expected: float) -> None:
    ward = Ward({"cooldown_s": field}, {}, **rule)
    ward.fail(**limited(wait_s=wait_s))
    assert ward.left_s == expected


def test_no_time_is_no_cooldown() -> None:
    ward = Ward({"cooldown_s": 0}, {})
    assert not ward.fail(20, **limited())
    assert not Ward(cooldown_s=0).fail(20, **limited())
    assert ward.state == "closed"


# --- coming back


def test_one_call_tries_it_and_opens_it_again() -> None:
    ward = Ward()
    ward.fail(**limited())
    assert (ward.state, ward.free) == ("open", ["d1"])
    ward.clock.wait(5)
    assert (ward.state, ward.free) == ("half_open", ["d0", "d1"])
    assert ward.cooldowns.began(ward.one)
    assert ward.free == ["d1"]
    assert ward.cooldowns.returning == set()
    ward.work()
    assert (ward.state, ward.free) == ("closed", ["d0", "d1"])
    assert ward.cooldowns.returning == {ward.one}


@pytest.mark.parametrize("end", ["abandoned", "no fault of its own"])
def test_a_trial_that_tells_nothing_leaves_it_to_the_next_call(end: str) -> None:
    ward = Ward()
    ward.fail(**limited())
    ward.clock.wait(5)
    assert ward.cooldowns.began(ward.one)
    if end == "abandoned":
        ward.cooldowns.abandoned(ward.one, probe=True)
    else:
        ward.fail(counts=False)
    assert (ward.state, ward.free) == ("half_open", ["d0", "d1"])


def test_a_trial_goes_on_when_another_call_is_abandoned() -> None:
    ward = Ward()
    assert not ward.cooldowns.began(ward.one)
    ward.fail(**limited())
    ward.clock.wait(5)
    assert ward.cooldowns.began(ward.one)
    ward.cooldowns.abandoned(ward.one, probe=False)
    assert ward.free == ["d1"]


def test_a_trial_without_an_end_holds_it_for_a_minute() -> None:
    ward = Ward()
    ward.fail(**limited())
    ward.clock.wait(5)
    ward.cooldowns.began(ward.one)
    ward.clock.wait(60)
    assert ward.free == ["d0", "d1"]


def test_cooldowns_grow_to_five_minutes_and_no_further_however_long_it_is_down() -> None:
    ward = Ward()
    ward.fail(**limited())
    lengths = []
    for _ in range(1_200):  # four days; 2 to the power of 1,024 is no float
        lengths.append(ward.left_s)
        ward.clock.wait(ward.left_s)
        ward.cooldowns.began(ward.one)
        assert ward.fail()
    assert lengths[:8] == [5, 10, 20, 40, 80, 160, 300, 300]
    assert set(lengths[6:]) == {300}
    ward.clock.wait(300)
    ward.work()
    ward.fail(**limited())
    assert ward.left_s == 5


def test_what_was_sent_before_the_cooldown_changes_nothing() -> None:
    ward = Ward()
    ward.fail(**limited())
    assert ward.fail(50)
    assert ward.left_s == 5
    ward.work()
    assert ward.state == "open"


def test_load_comes_back_over_half_a_minute() -> None:
    ward = Ward()
    assert ward.cooldowns.share(ward.one) == 1.0
    ward.fail(**limited())
    ward.clock.wait(5)
    ward.work()
    shares = []
    for _ in range(6):
        shares.append(ward.cooldowns.share(ward.one))
        ward.clock.wait(6)
    assert shares == [0.1, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ward.cooldowns.returning == set()
