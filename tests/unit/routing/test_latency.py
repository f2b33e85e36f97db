"""`latency-based-routing`: LiteLLM's figures, and who is tried first."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tests.support.pickers import World, failed, late, plain, strategy


def world(**fields: Any) -> World:
    return World(strategy("latency", **fields))


def test_plain_calls_are_compared_by_seconds_per_token() -> None:
    w, (long, short) = world(), (group := plain(2))
    w.serve(long, 10.0, tokens=1000)
    w.serve(short, 1.0, tokens=10)
    assert w.picks(group) == {"d0": 1000}
    assert w.report(long)["s_per_output_token"] == 0.01


def test_an_answer_without_tokens_counts_by_its_seconds() -> None:
    w, (one, other) = world(), (group := plain(2))
    w.serve(one, 0.2, tokens=0)
    w.serve(other, 0.3, tokens=0)
    assert w.picks(group) == {"d0": 1000}


def test_streams_are_compared_by_their_first_token() -> None:
    w, (quick, steady) = world(), (group := plain(2))
    w.serve(quick, 20.0, first=0.1)
    w.serve(steady, 2.0, first=0.4)
    assert w.picks(group, stream=True) == {"d0": 1000}
    assert w.picks(group, stream=False) == {"d1": 1000}


@pytest.mark.parametrize(("percentile", "best"), [(None, "d1"), (0.5, "d0"), (1.0, "d1")])
def test_a_percentile_in_place_of_the_mean(percentile: float | None, best: str) -> None:
    w, (uneven, even) = world(ttft_percentile=percentile), (group := plain(2))
    for first in (0.1, 0.1, 0.1, 5.0):
        w.serve(uneven, 6.0, first=first)
        w.serve(even, 6.0, first=0.5)
    assert w.picks(group, stream=True) == {best: 1000}


def test_the_buffer_shares_among_those_that_are_nearly_as_fast() -> None:
    w, group = world(lowest_latency_buffer=0.5), plain(4)
    for one, seconds in zip(group, (1.0, 1.2, 1.5, 1.6), strict=True):
        w.serve(one, seconds)
    shares = w.picks(group, 3000)
    assert set(shares) == {"d0", "d1", "d2"}
    assert min(shares.values()) > 850


def test_the_mean_is_of_the_last_samples() -> None:
    w, (one, other) = world(max_latency_list_size=3), (group := plain(2))
    for seconds in (100.0, 1.0, 1.0, 1.0):
        w.serve(one, seconds)
    w.serve(other, 1.1)
    assert w.picks(group) == {"d0": 1000}
    assert w.report(one)["samples"] == 3


def test_a_timeout_counts_a_thousand_seconds_for_streams_as_well() -> None:
    w, (one, other) = world(), (group := plain(2))
    w.serve(one, 1.0, first=0.1)
    w.serve(other, 50.0, first=20.0)
    w.fail(one, late(), seconds=30)
    assert w.picks(group) == w.picks(group, stream=True) == {"d1": 1000}
    assert w.report(one)["ttft_s"] == pytest.approx((0.1 + 1000) / 2)


def test_an_unknown_one_is_tried_first_but_not_by_everybody() -> None:
    w, (known, unknown) = world(), (group := plain(2))
    w.serve(known, 1.0)
    assert w.pick(group) is unknown
    sent = w.send(unknown)
    assert w.picks(group) == {"d0": 1000}
    w.end(sent, abandoned=True)
    assert w.pick(group) is unknown


def test_when_all_are_unknown_and_busy_all_are_chosen() -> None:
    w, group = world(), plain(3)
    for one in group:
        w.send(one)
    assert len(w.picks(group)) == 3


def test_one_that_failed_before_it_was_known_waits_a_minute() -> None:
    w, (known, unknown) = world(), (group := plain(2))
    w.serve(known, 1.0)
    w.fail(unknown, failed())
    assert w.picks(group) == {"d0": 1000}
    w.wait(61)
    assert w.pick(group) is unknown


def test_other_failures_say_nothing_of_latency() -> None:
    w, (one, other) = world(), (group := plain(2))
    w.serve(one, 1.0)
    w.serve(other, 2.0)
    for _ in range(50):
        w.fail(one, failed())
    assert w.picks(group) == {"d0": 1000}


def test_what_is_too_old_is_unknown_again() -> None:
    w, (fast, slow) = world(ttl=100), (group := plain(2))
    w.serve(fast, 1.0)
    w.serve(slow, 2.0)
    w.wait(60)
    w.serve(fast, 1.0)
    w.wait(50)
    assert w.pick(group) is slow
    assert w.report(slow)["s_per_output_token"] is None
    assert w.report(fast)["samples"] == 2


@pytest.mark.parametrize(
    "wrong",
    [{"ttl": 0}, {"lowest_latency_buffer": -1}, {"max_latency_list_size": 0}, {"ttft_percentile": 1.1}, {"x": 1}],
)
def test_wrong_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        strategy("latency", **wrong)
