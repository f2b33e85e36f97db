"""How often something is tried again, after what time, and how much of that a group may afford."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.routing_core import FAILED, Clock, a_group, call_of, runtime_of
from tianji_mw.errors import InvalidRequest
from tianji_mw.routing.retries import (
    RetryBudget,
    has_policy,
    retries_of,
    wait_s,
)
from tianji_mw.routing.rules import RoutingRules
from tianji_mw.routing.wishes import MOST_RETRIES, asked_retries

RUNTIME = runtime_of(Clock())
POLICY: Any = {"InternalServer": 4}


def asked(headers: dict[str, str] | None = None, **request: Any) -> int | None:
    pairs = [(name.encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
    return asked_retries(call_of(RUNTIME, headers=pairs, **request))


@pytest.mark.parametrize("value", [0, 1, MOST_RETRIES])
def test_a_request_may_say_how_often(value: int) -> None:
    assert asked(num_retries=value) == value
    for name in ("x-litellm-num-retries", "x-tianji-num-retries"):
        assert asked({name: str(value)}) == value
    assert asked({"x-litellm-num-retries": "9"}, num_retries=value) == value


def test_a_request_may_say_nothing() -> None:
    assert asked() is asked(num_retries=None) is None


@pytest.mark.parametrize(
    "value", [True, False, -1, MOST_RETRIES + 1, 1 << 80, 1.0, "1", [], {}, float("nan")], ids=repr
)
def test_a_wrong_number_is_refused(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="num_retries"):
        asked(num_retries=value)


@pytest.mark.parametrize("value", ["x", "-1", "1.5", "11", "9" * 5000, "²", "1e1", "0x1", "+1", " "])
def test_a_wrong_header_is_refused(value: str) -> None:
    with pytest.raises(InvalidRequest, match="num_retries"):
        asked({"x-litellm-num-retries": value})


@pytest.mark.parametrize(
    ("request_", "deployment", "rules", "expected"),
    [
        ({}, {}, {}, 2),
        ({}, {}, {"num_retries": 5}, 5),
        ({}, {}, {"retry_policy": POLICY}, 4),
        ({}, {}, {"retry_policy": POLICY, "retry_policy_of": {"m": {"InternalServer": 1}}}, 1),
        ({}, {}, {"retry_policy": POLICY, "retry_policy_of": {"other": {"InternalServer": 1}}}, 4),
        ({}, {}, {"retry_policy": {"Timeout": 9}, "num_retries": 3}, 3),
        ({}, {"num_retries": 0}, {"retry_policy": POLICY}, 0),
        ({"num_retries": 0}, {"num_retries": 7}, {"retry_policy": POLICY}, 0),
        ({"num_retries": 3}, {"num_retries": 7}, {}, 3),
    ],
)
def test_who_decides(request_: dict[str, Any], deployment: Any, rules: dict[str, Any], expected: int) -> None:
    [one] = a_group(deployment)
    assert retries_of(call_of(RUNTIME, **request_), RoutingRules(**rules), one, "m", FAILED) == expected


def test_a_policy_speaks_of_a_kind() -> None:
    rules = RoutingRules(retry_policy=POLICY, retry_policy_of={"m": {"Timeout": 0}})
    assert has_policy(rules, "m", FAILED)
    assert has_policy(rules, "m", FAILED._replace(kind="Timeout"))
    assert not has_policy(rules, "other", FAILED._replace(kind="Timeout"))


# --- the wait


def waits(retry: int = 0, *, others: bool = False, asked_s: float | None = None, **rules: Any) -> float:
    failure = FAILED._replace(wait_s=asked_s)
    return wait_s(call_of(RUNTIME), RoutingRules(**rules), failure, retry, others=others)


def test_nobody_waits_while_somebody_else_is_there() -> None:
    assert waits(others=True) == waits(others=True, asked_s=50, retry_after_s=9) == 0.0


@pytest.mark.parametrize(("retry", "least"), [(0, 0.5), (1, 1), (2, 2), (3, 4), (4, 8), (10, 8), (5000, 8)])
def test_waits_double_up_to_eight_seconds(retry: int, least: float) -> None:
    assert least <= waits(retry) <= least + 0.75


def test_the_upstreams_word_counts_up_to_the_longest_wait() -> None:
    assert 20 <= waits(asked_s=20) <= 20.75
    assert 60 <= waits(asked_s=60) <= 60.75
    assert waits(asked_s=60.001) == math.inf
    assert waits(asked_s=3, longest_wait_s=2) == math.inf
    assert 0.5 <= waits(asked_s=0) <= 1.25
    assert waits(asked_s=1, retry_after_s=5) == waits(retry_after_s=5) == 5


@given(st.integers(0, 100), st.one_of(st.none(), st.floats(0, 1e9)), st.booleans(), st.floats(0, 60))
def test_no_wait_is_longer_than_the_longest(retry: int, asked_s: float | None, others: bool, least: float) -> None:
    found = waits(retry, others=others, asked_s=asked_s, retry_after_s=least)
    assert found == math.inf or 0 <= found <= 60.75


# --- what a group may afford


def test_a_group_that_only_fails_soon_retries_a_share_of_its_calls() -> None:
    budget = RetryBudget(0.1)
    retried = 0
    for _ in range(1_000):
        budget.failed()
        retried += budget.spend()
    assert 190 <= retried <= 205  # what was saved, and a tenth


def test_a_group_that_works_retries_as_often_as_it_likes() -> None:
    budget = RetryBudget(0.1)
    for _ in range(1_000):
        budget.failed()
        assert budget.spend()
        budget.succeeded()


@given(st.floats(0, 1), st.lists(st.sampled_from(["failed", "succeeded", "spend"]), max_size=300))
def test_never_more_than_what_was_paid_in(share: float, steps: list[str]) -> None:
    budget, paid, spent = RetryBudget(share), 100.0, 0
    for step in steps:
        if step == "spend":
            spent += budget.spend()
        else:
            getattr(budget, step)()
            paid += share if step == "failed" else 1.0
        assert spent <= paid + 1e-6
