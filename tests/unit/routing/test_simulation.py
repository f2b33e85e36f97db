"""How good `adaptive` is, in simulated time: a seed decides everything, so that ratios can be demanded.

Figures of all strategies: `tests/benchmarks/routing_sim.py`.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.benchmarks.routing_sim import always, scenarios
from tests.support.routing_reference import simulate
from tests.support.routing_world import OUTPUT, TPOT_S, TTFT_S, Result, Scenario, Server

#: The others of LiteLLM are never the best: see the tables.
LITELLM = ["LiteLLM least-busy", "LiteLLM latency, buffer 0", "LiteLLM latency, buffer 0.5"]


def run(scenario: Scenario | str, strategy: str = "adaptive", *, seconds: float = 300.0, seed: int = 0) -> Result:
    found = scenarios(seed)[scenario] if isinstance(scenario, str) else scenario
    found.seconds = seconds
    return simulate(found, strategy, seed)


def test_a_seed_decides_everything() -> None:
    first, again = run("drifting", seconds=60), run("drifting", seconds=60)
    assert (first.p99, first.shares) == (again.p99, again.shares)


@pytest.mark.parametrize("seed", [0, 1])
def test_drifting_latencies_cost_a_fifth_less_than_with_the_best_of_litellm(seed: int) -> None:
    ours = run("drifting", seed=seed)
    best = min(run("drifting", name, seed=seed).p99 for name in LITELLM)
    assert ours.p99 <= 0.8 * best
    assert ours.errors == 0


@pytest.mark.parametrize("seed", [0, 1])
def test_one_of_four_ten_times_slower_is_hardly_felt(seed: int) -> None:
    healthy = run(Scenario([Server() for _ in range(4)], 5.0), seed=seed)
    assert run("one 10x slow", seed=seed).first99 <= 1.3 * healthy.first99


@pytest.mark.parametrize("scenario", ["one fails 30%", "one dead", "flapping", "one limited"])
def test_nobody_sees_the_errors_of_one_deployment(scenario: str) -> None:
    found = run(scenario)
    assert found.errors < 0.1
    assert found.first99 <= 1.5 * run("equal").first99


@pytest.mark.parametrize("scenario", ["one fails 30%", "one 10x slow"])
def test_a_bad_one_gets_hardly_any_calls(scenario: str) -> None:
    assert run(scenario, seconds=600).shares[-1] < 0.02


def test_one_that_recovers_is_used_again() -> None:
    calm = Scenario([*[Server() for _ in range(3)], Server(dead=lambda t: t < 60)], 5.0)
    assert run(calm, seconds=600).shares[-1] > 0.15


@pytest.mark.parametrize("scenario", ["equal", "equal, busy"])
def test_equals_are_used_equally(scenario: str) -> None:
    assert run(scenario).imbalance < 0.1


def test_gateways_that_know_nothing_of_each_other_do_not_herd() -> None:
    ours = run("4 gateways")
    assert ours.p99 <= 1.1 * min(run("4 gateways", name).p99 for name in LITELLM)


@pytest.mark.parametrize("gateways", [1, 4])
def test_the_fast_ones_of_many_are_found_and_remembered(gateways: int) -> None:
    def scenario() -> Scenario:
        servers = [Server(slow=always(1.0 if number % 5 else 0.4)) for number in range(20)]
        return Scenario(servers, 25.0, gateways=gateways)

    ours, best = (run(scenario(), name, seconds=120.0) for name in ("adaptive", "oracle"))
    assert ours.mean <= 1.4 * best.mean


@settings(max_examples=12)
@given(
    slows=st.lists(st.floats(0.3, 4.0), min_size=2, max_size=6),
    slots=st.integers(2, 12),
    busy=st.floats(0.1, 0.7),
    seed=st.integers(0, 99),
)
def test_whatever_the_speeds_it_is_near_the_best_that_can_be(
    slows: list[float], slots: int, busy: float, seed: int
) -> None:
    def scenario() -> Scenario:
        usual = TTFT_S + TPOT_S * OUTPUT
        rate = busy * sum(slots / (slow * usual) for slow in slows)
        return Scenario([Server(slots, slow=always(slow)) for slow in slows], rate)

    seconds = min(120.0, 30 + 800 / scenario().rate)
    ours, best = (run(scenario(), name, seconds=seconds, seed=seed) for name in ("adaptive", "oracle"))
    shuffled = run(scenario(), "simple-shuffle", seconds=seconds, seed=seed)
    assert ours.mean <= 1.6 * best.mean
    assert ours.mean <= 1.1 * shuffled.mean
