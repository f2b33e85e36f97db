"""Routing strategies compared in virtual time: LiteLLM's semantics, ours, and an oracle that knows everything.

    .venv/bin/python tests/benchmarks/routing_sim.py [--seed N] [--quick] [--scenario NAME]

`tests/support/routing_world.py` says what is simulated, `routing_reference.py` what ours are compared with. The oracle
sends each call where it will really end first; it is greedy, so that a strategy may beat it in a single figure.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support.routing_reference import STRATEGIES, simulate
from tests.support.routing_world import INPUT, Request, S, Scenario, Server
from tianji_mw.facts import Attempt
from tianji_mw.providers.mock import Mock
from tianji_mw.routing.base import Candidates, Deployment, Picker
from tianji_mw.upstream import Deadlines


def wander(seed: int, low: float, high: float, step_s: float) -> Callable[[float], float]:
    """A random walk on a logarithmic scale that is drawn back to 1; straight between its steps."""
    rng, points = random.Random(seed), [0.0]
    for _ in range(2000):
        points.append(min(max(0.8 * points[-1] + rng.gauss(0, 0.5), math.log(low)), math.log(high)))

    def at(t: float) -> float:
        i, part = divmod(t / step_s, 1)
        return math.exp(points[int(i)] * (1 - part) + points[int(i) + 1] * part)

    return at


def always(slow: float) -> Callable[[float], float]:
    return lambda t: slow


def between(begin: float, end: float, period: float) -> Callable[[float], bool]:
    return lambda t: begin <= t % period < end


def scenarios(seed: int = 0) -> dict[str, Scenario]:
    flap = between(0, 30, 90)
    three = [Server() for _ in range(3)]
    slows = [0.7, 1.0, 1.5, 3.0]
    return {
        "equal": Scenario([Server() for _ in range(4)], 6.0),
        "equal, busy": Scenario([Server() for _ in range(4)], 10.5),
        "speeds differ": Scenario([Server(slow=always(s)) for s in slows], 5.0),
        "one 10x slow": Scenario([*three, Server(slow=lambda t: 10.0)], 5.0),
        "one fails 30%": Scenario([*three, Server(failing=lambda t: 0.3)], 5.0),
        "one dead": Scenario([*three, Server(dead=lambda t: t > 60)], 5.0),
        "one limited": Scenario([*three, Server(rpm=30, told={"rpm": 30})], 5.0),
        "drifting": Scenario([Server(slow=wander(seed * 10 + i, 0.4, 5.0, 15)) for i in range(4)], 5.0),
        "one recovers": Scenario([*three, Server(dead=lambda t: t < 120)], 5.0),
        "20 drifting": Scenario([Server(slow=wander(seed * 100 + i, 0.4, 5.0, 15)) for i in range(20)], 25.0, 450),
        "flapping": Scenario([*three, Server(failing=lambda t: 0.9 if flap(t) else 0.0)], 5.0),
        "prices differ": Scenario([Server(price=p * 1e-6) for p in (1, 2, 3, 6)], 5.0),
        "4 gateways": Scenario([Server(slow=always(s)) for s in slows], 5.0, gateways=4),
        "low rate": Scenario([Server(slow=wander(seed * 10 + i, 0.4, 5.0, 60)) for i in range(4)], 0.3, seconds=6000),
    }


def pick_cost_us(make: Callable[[], Picker], size: int, rounds: int = 3000) -> tuple[float, float]:
    """Microseconds of a pick right after an `observe`, and of pick, `sent` and `observe` together; best of 5."""
    now = [S]
    runtime: Any = SimpleNamespace(clock=lambda: now[0], rng=random.Random(1))
    sim: Any = SimpleNamespace(seed=1, now=S, runtime=runtime)
    rng = random.Random(2)
    group = Candidates(
        Deployment(
            id=f"d{i}", model_name="m", model="m", provider=Mock(), deadlines=Deadlines(), tpm=1e6, rpm=1e3,
            input_cost=rng.random() * 1e-6, output_cost=rng.random() * 1e-5,
        )
        for i in range(size)
    )  # fmt: skip
    picker = make()
    calls: list[Any] = [Request(sim, i, 0) for i in range(rounds)]
    best_pick = best_all = math.inf
    for _ in range(5):
        picking, begin = 0, time.perf_counter_ns()
        for call in calls:
            before = time.perf_counter_ns()
            chosen = picker.pick(group, call)
            picking += time.perf_counter_ns() - before
            now[0] += S // 200
            attempt = Attempt(chosen, now[0])
            picker.sent(attempt, call)
            attempt.first, attempt.ended = now[0] + S // 5, now[0] + S
            attempt.status, attempt.output_tokens, attempt.input_tokens = 200, call.tokens, INPUT
            picker.observe(attempt, call)
        best_pick = min(best_pick, picking / rounds / 1000)
        best_all = min(best_all, (time.perf_counter_ns() - begin) / rounds / 1000)
    return best_pick, best_all


def tables(seed: int, quick: bool, only: str) -> Iterator[str]:
    for name, scenario in scenarios(seed).items():
        if only and only not in name:
            continue
        if quick:
            scenario.seconds /= 5
        yield f"\n{name}: {len(scenario.servers)} deployments, {scenario.rate:g} calls/s, {scenario.seconds:g} s"
        heads = f"{'p50 s':>8}{'p99 s':>8}{'TTFT p50':>9}{'TTFT p99':>9}{'errors %':>9}{'$/1000':>8}{'imbalance':>10}"
        yield f"{'':30}{heads}  shares"
        for strategy in STRATEGIES:
            r = simulate(scenario, strategy, seed)
            shares = " ".join(f"{share:.3f}" for share in r.shares[:4])
            yield (
                f"{strategy:30}{r.p50:8.2f}{r.p99:8.2f}{r.first50:9.2f}{r.first99:9.2f}{r.errors:9.2f}"
                f"{r.cost:8.2f}{r.imbalance:10.2f}  {shares}"
            )
    if not only:
        yield f"\n{'us, pick (pick+sent+observe)':30}{'10':>16}{'100':>16}{'1,000':>16}"
        for strategy, (make, _) in STRATEGIES.items():
            if strategy != "oracle":
                costs = [pick_cost_us(make, size) for size in (10, 100, 1000)]
                yield f"{strategy:30}" + "".join(f"{pick:9.1f} ({both:4.0f})" for pick, both in costs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a fifth of the time")
    parser.add_argument("--scenario", default="", help="only those whose name contains this")
    chosen = parser.parse_args()
    for line in tables(chosen.seed, chosen.quick, chosen.scenario):
        print(line, flush=True)


if __name__ == "__main__":
    main()
