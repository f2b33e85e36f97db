"""The circuit breaker, by a clock of the test's own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tianji_mw.breaker import Breaker

S = 1_000_000_000


def test_it_opens_after_failures_in_a_row_and_lets_one_attempt_through_each_time() -> None:
    breaker = Breaker(failures=2, cooldown_s=10)
    breaker.failed(0)
    breaker.succeeded()
    breaker.failed(0)
    assert breaker.allows(1)
    breaker.failed(1 * S)
    assert breaker.open
    assert not breaker.allows(10 * S)
    assert breaker.allows(11 * S)
    assert not breaker.allows(12 * S)
    breaker.failed(13 * S)
    assert not breaker.allows(22 * S)
    assert breaker.allows(23 * S)
    breaker.succeeded()
    assert not breaker.open
    assert breaker.allows(23 * S)


def test_an_attempt_that_never_reports_blocks_nothing() -> None:
    breaker = Breaker(failures=1, cooldown_s=1)
    breaker.failed(0)
    assert breaker.allows(1 * S)
    assert breaker.allows(2 * S)


@given(st.lists(st.booleans(), max_size=50))
def test_without_a_number_of_failures_it_never_opens(outcomes: list[bool]) -> None:
    breaker = Breaker(failures=0)
    for at, good in enumerate(outcomes):
        assert breaker.allows(at)
        breaker.succeeded() if good else breaker.failed(at)
