"""Routing strategies compared in virtual time: LiteLLM's semantics, ours, and an oracle that knows everything.

    .venv/bin/python tests/benchmarks/routing_sim.py [--seed N] [--quick] [--scenario NAME]

Deployments serve `slots` calls at a time and queue what is beyond. A call waits for a slot, then for its first token,
then for its other tokens; all three are drawn for the call and not for the deployment, so that every strategy meets the
same calls. Failures are tried again at up to two other deployments. Nothing sleeps, and a seed gives the same table.

LiteLLM's strategies are re-implemented below from our contract, with its cooldown rule (429: at once; more than half of
at least five calls of the minute failed: then; five seconds), which ours get as well.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tianji_mw.errors import UpstreamError, UpstreamTimeout
from tianji_mw.facts import Attempt
from tianji_mw.providers.mock import Mock
from tianji_mw.routing.adaptive import Adaptive
from tianji_mw.routing.base import Candidates, Deployment, Picker
from tianji_mw.routing.cost import Cost
from tianji_mw.routing.latency import Latency
from tianji_mw.routing.least_busy import LeastBusy
from tianji_mw.routing.shuffle import Shuffle, shuffled
from tianji_mw.routing.usage import LowestUsage
from tianji_mw.upstream import Deadlines

S = 1_000_000_000
ATTEMPTS = 3
TIMEOUT_S = 30.0
COOLDOWN_S = 5.0
TTFT_S, TPOT_S = 0.4, 0.02
INPUT, OUTPUT = 400, 100
#: Calls of the first seconds are served and not counted: everybody starts without knowledge.
WARM_UP_S = 30.0


# --- scenarios


@dataclass
class Server:
    """One deployment, as it truly is."""

    slots: int = 8
    #: How many times slower than 0.4 s and 20 ms a token, at a time in seconds.
    slow: Callable[[float], float] = lambda t: 1.0
    #: The part of its calls that fail with 503 after 50 ms.
    failing: Callable[[float], float] = lambda t: 0.0
    #: Whether it accepts calls and never answers.
    dead: Callable[[float], bool] = lambda t: False
    #: Calls a minute above which it answers 429; evenly spread, with a burst of 5.
    rpm: float | None = None
    told: dict[str, Any] = field(default_factory=dict)
    price: float = 1e-6


@dataclass
class Scenario:
    servers: list[Server]
    #: Calls per second.
    rate: float
    seconds: float = 900.0
    #: Gateways that know nothing of each other.
    gateways: int = 1


def wander(seed: int, low: float, high: float, step_s: float) -> Callable[[float], float]:
    """A random walk on a logarithmic scale that is drawn back to 1; straight between its steps."""
    rng, points = random.Random(seed), [0.0]
    for _ in range(2000):
        points.append(min(max(0.8 * points[-1] + rng.gauss(0, 0.5), math.log(low)), math.log(high)))

    def at(t: float) -> float:
        i, part = divmod(t / step_s, 1)
        return math.exp(points[int(i)] * (1 - part) + points[int(i) + 1] * part)

    return at


def between(begin: float, end: float, period: float) -> Callable[[float], bool]:
    return lambda t: begin <= t % period < end


def scenarios(seed: int = 0) -> dict[str, Scenario]:
    four = lambda **fields: [Server(**fields) for _ in range(4)]  # noqa: E731
    flap = between(0, 30, 90)
    slows = [0.7, 1.0, 1.5, 3.0]
    return {
        "equal": Scenario(four(), 6.0),
        "equal, busy": Scenario(four(), 10.5),
        "speeds differ": Scenario([Server(slow=lambda t, s=s: s) for s in slows], 5.0),  # type: ignore[misc]
        "one 10x slow": Scenario([*four()[:3], Server(slow=lambda t: 10.0)], 5.0),
        "one fails 30%": Scenario([*four()[:3], Server(failing=lambda t: 0.3)], 5.0),
        "one dead": Scenario([*four()[:3], Server(dead=lambda t: t > 60)], 5.0),
        "one limited": Scenario([*four()[:3], Server(rpm=30, told={"rpm": 30})], 5.0),
        "drifting": Scenario([Server(slow=wander(seed * 10 + i, 0.4, 5.0, 15)) for i in range(4)], 5.0),
        "one recovers": Scenario([*four()[:3], Server(dead=lambda t: t < 120)], 5.0),
        "20 drifting": Scenario([Server(slow=wander(seed * 100 + i, 0.4, 5.0, 15)) for i in range(20)], 25.0, 450),
        "flapping": Scenario([*four()[:3], Server(failing=lambda t: 0.9 if flap(t) else 0.0)], 5.0),
        "prices differ": Scenario([Server(price=p * 1e-6) for p in (1, 2, 3, 6)], 5.0),
        "4 gateways": Scenario([Server(slow=lambda t, s=s: s) for s in slows], 5.0, gateways=4),  # type: ignore[misc]
        "low rate": Scenario([Server(slow=wander(seed * 10 + i, 0.4, 5.0, 60)) for i in range(4)], 0.3, seconds=6000),
    }


# --- LiteLLM


class Reference(Picker):
    """State that LiteLLM's strategies share: fixed minutes, and a list in the order of the config."""

    buffer: float = 0.0

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        object.__setattr__(self, "__dict__", {**self.__dict__})
        self.__dict__.update(inflight=Counter(), tpm=Counter(), rpm=Counter(), samples=defaultdict(list))
        self.__dict__.update(firsts=defaultdict(list))

    def minute(self, d: Deployment, now: int) -> tuple[str, int]:
        return d.id, now // (60 * S)

    def sent(self, attempt: Attempt, call: Any) -> None:
        self.inflight[attempt.deployment.id] += 1  # type: ignore[attr-defined]
        self.rpm[self.minute(attempt.deployment, attempt.started)] += 1  # type: ignore[attr-defined]

    def observe(self, attempt: Attempt, call: Any) -> None:
        d = attempt.deployment
        self.inflight[d.id] -= 1  # type: ignore[attr-defined]
        if isinstance(attempt.error, UpstreamTimeout):
            self.keep(self.samples[d.id], 1000.0)  # type: ignore[attr-defined]
        if attempt.error is None:
            tokens = attempt.input_tokens + attempt.output_tokens
            self.tpm[self.minute(d, attempt.ended)] += tokens  # type: ignore[attr-defined]
            took = (attempt.ended - attempt.started) / S
            self.keep(self.samples[d.id], took / max(attempt.output_tokens, 1))  # type: ignore[attr-defined]
            if call.stream:
                self.keep(self.firsts[d.id], (attempt.first - attempt.started) / S)  # type: ignore[attr-defined]

    @staticmethod
    def keep(samples: list[float], sample: float) -> None:
        samples.append(sample)
        del samples[:-10]

    def within(self, ds: Sequence[Deployment], call: Any) -> list[Deployment]:
        now = call.runtime.clock()
        rpm = self.rpm  # type: ignore[attr-defined]
        return [d for d in ds if d.rpm is None or rpm[self.minute(d, now)] + 1 < d.rpm] or list(ds)


class RefShuffle(Reference):
    def pick(self, deployments: Candidates, call: Any) -> Deployment:
        return shuffled(deployments, call)


class RefLeastBusy(Reference):
    def pick(self, deployments: Candidates, call: Any) -> Deployment:
        return min(deployments, key=lambda d: self.inflight[d.id])  # type: ignore[attr-defined]


class RefUsage(Reference):
    def pick(self, deployments: Candidates, call: Any) -> Deployment:
        now, tpm = call.runtime.clock(), self.tpm  # type: ignore[attr-defined]
        left = self.within(deployments, call)
        least = min(tpm[self.minute(d, now)] for d in left)
        return call.runtime.rng.choice([d for d in left if tpm[self.minute(d, now)] == least])  # type: ignore[no-any-return]


class RefLatency(Reference):
    def pick(self, deployments: Candidates, call: Any) -> Deployment:
        left = self.within(deployments, call)
        means = {}
        for d in left:
            samples = self.samples[d.id]  # type: ignore[attr-defined]
            if call.stream and self.firsts[d.id]:  # type: ignore[attr-defined]
                samples = self.firsts[d.id]  # type: ignore[attr-defined]
            means[d] = sum(samples) / len(samples) if samples else 0.0
        least = min(means.values())
        return call.runtime.rng.choice([d for d in left if means[d] <= least * (1 + self.buffer)])  # type: ignore[no-any-return]


class RefCost(Reference):
    def pick(self, deployments: Candidates, call: Any) -> Deployment:
        return min(self.within(deployments, call), key=lambda d: (d.input_cost or 0) + (d.output_cost or 0))


class Oracle(Picker):
    """Where this call really ends first: it sees the servers."""

    def pick(self, deployments: Candidates, call: Any) -> Deployment:
        sim: Simulation = call.sim
        t = sim.now / S
        return min(deployments, key=lambda d: (sim.truth[d].expected(t, call), call.runtime.rng.random()))


STRATEGIES: dict[str, tuple[Callable[[], Picker], bool]] = {
    # name: (picker, whether the selection leaves out who is over its limits, in a sliding minute)
    "LiteLLM simple-shuffle": (RefShuffle, False),
    "LiteLLM least-busy": (RefLeastBusy, False),
    "LiteLLM usage-based-v2": (RefUsage, False),
    "LiteLLM latency, buffer 0": (RefLatency, False),
    "LiteLLM latency, buffer 0.5": (lambda: RefLatency(buffer=0.5), False),
    "LiteLLM cost-based": (RefCost, False),
    "simple-shuffle": (Shuffle, False),
    "least-busy": (LeastBusy, False),
    "usage-based-v2": (LowestUsage, True),
    "latency, buffer 0": (Latency, True),
    "latency, buffer 0.5": (lambda: Latency(lowest_latency_buffer=0.5), True),
    "cost-based": (Cost, True),
    "adaptive": (Adaptive, False),
    "oracle": (Oracle, True),
}


# --- the simulation


class Request:
    """Stands for a `Call`: what pickers ask of one, and what it truly needs."""

    def __init__(self, sim: Simulation, number: int, gateway: int) -> None:
        rng = random.Random(f"{sim.seed}/{number}")
        self.sim, self.gateway, self.runtime = sim, gateway, sim.runtime
        self.api, self.model, self.notes = SimpleNamespace(streams=True), "m", {}
        self.tokens = max(int(OUTPUT * rng.lognormvariate(0, 0.4)), 2)
        self.stream = rng.random() < 0.8
        self.request: dict[str, Any] = {"messages": "x" * 4 * INPUT}
        #: What each attempt draws: first token, tokens, luck.
        self.draws = [(rng.lognormvariate(0, 0.35), rng.lognormvariate(0, 0.15), rng.random()) for _ in range(ATTEMPTS)]
        self.arrived, self.failed, self.tries = sim.now, [], 0  # type: ignore[var-annotated]

    def note(self, kind: type[Any]) -> Any:
        found = self.notes.get(kind)
        if found is None:
            found = self.notes[kind] = kind()
        return found


class Truth:
    """A server at work."""

    def __init__(self, server: Server) -> None:
        self.server, self.busy, self.queue = server, 0, []  # type: ignore[var-annotated]
        self.free_at = 0.0

    def expected(self, t: float, call: Request) -> float:
        server = self.server
        slow = server.slow(t)
        one = slow * (TTFT_S + TPOT_S * call.tokens)
        usual = slow * (TTFT_S + TPOT_S * OUTPUT)
        ahead = max(self.busy + len(self.queue) + 1 - server.slots, 0)
        return one + usual * ahead / server.slots + 1000 * server.dead(t) + 30 * server.failing(t)

    def limited(self, t: float) -> bool:
        """A token bucket."""
        if self.server.rpm is None:
            return False
        each = 60 / self.server.rpm
        self.free_at = max(self.free_at, t - 5 * each)
        if self.free_at + each > t:
            return True
        self.free_at += each
        return False


class Simulation:
    """One strategy in one scenario."""

    def __init__(self, scenario: Scenario, make: Callable[[], Picker], limits: bool, seed: int) -> None:
        self.scenario, self.seed, self.limits = scenario, seed, limits
        self.now = S  # a clock that starts at zero hides mistakes
        self.rng = random.Random(f"arrivals {seed}")
        self.runtime: Any = SimpleNamespace(clock=lambda: self.now, rng=random.Random(f"choices {seed}"))
        self.truth: dict[Deployment, Truth] = {}
        for i, server in enumerate(scenario.servers):
            price = {"input_cost": server.price, "output_cost": 4 * server.price}
            one = Deployment(
                id=f"d{i}", model_name="m", model="m", provider=Mock(), deadlines=Deadlines(), **price, **server.told
            )
            self.truth[one] = Truth(server)
        self.pickers = [make() for _ in range(scenario.gateways)]
        self.events: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self.number = 0
        self.cooling: dict[Deployment, int] = {}
        self.recent: dict[Deployment, list[tuple[int, bool]]] = defaultdict(list)
        self.sends: dict[Deployment, list[int]] = defaultdict(list)
        self.sets: dict[tuple[Deployment, ...], Candidates] = {}
        self.latencies: list[float] = []
        self.firsts: list[float] = []
        self.errors = 0
        self.cost = 0.0
        self.used: Counter[Deployment] = Counter()

    def at(self, when: int, do: Callable[..., None], *args: Any) -> None:
        self.number += 1
        heapq.heappush(self.events, (when, self.number, do, args))

    def run(self) -> Result:
        end, t, n = S + int(self.scenario.seconds * S), S, 0
        while t < end:
            self.at(t, self.arrive, n)
            n += 1
            t += int(self.rng.expovariate(self.scenario.rate) * S)
        while self.events:
            self.now, _, do, args = heapq.heappop(self.events)
            do(*args)
        return Result(self)

    def arrive(self, number: int) -> None:
        self.attempt(Request(self, number, number % self.scenario.gateways))

    def candidates(self, request: Request) -> Candidates | None:
        left = [d for d in self.truth if d not in request.failed and self.cooling.get(d, 0) <= self.now]
        if self.limits and len(left) > 1:
            since = self.now - 60 * S
            for d in left:
                while self.sends[d] and self.sends[d][0] < since:
                    self.sends[d].pop(0)
            left = [d for d in left if d.rpm is None or len(self.sends[d]) < d.rpm] or left
        if not left:
            return None
        key = tuple(left)
        if key not in self.sets:
            self.sets[key] = Candidates(key)
        return self.sets[key]

    def attempt(self, request: Request) -> None:
        found = self.candidates(request)
        if found is None:
            self.finish(request, None)
            return
        picker = self.pickers[request.gateway]
        deployment = picker.pick(found, request)  # type: ignore[arg-type]
        assert deployment in found
        attempt = Attempt(deployment, self.now)
        if self.counted(request):
            self.used[deployment] += 1
        self.sends[deployment].append(self.now)
        picker.sent(attempt, request)  # type: ignore[arg-type]
        truth, t, luck = self.truth[deployment], self.now / S, request.draws[request.tries][2]
        server = truth.server
        if truth.limited(t):
            self.at(self.now + S // 50, self.fail, request, attempt, UpstreamError("limited", status=429), False)
        elif luck < server.failing(t):
            self.at(self.now + S // 20, self.fail, request, attempt, UpstreamError("failed", status=503), False)
        elif server.dead(t):
            self.at(self.now + int(TIMEOUT_S * S), self.fail, request, attempt, UpstreamTimeout("late"), False)
        elif truth.busy < server.slots:
            self.serve(truth, request, attempt)
        else:
            truth.queue.append((request, attempt))

    def serve(self, truth: Truth, request: Request, attempt: Attempt) -> None:
        truth.busy += 1
        first, speed, _ = request.draws[request.tries]
        slow = truth.server.slow(self.now / S)
        begun = self.now + int(slow * TTFT_S * first * S)
        ended = begun + int(slow * TPOT_S * speed * request.tokens * S)
        limit = attempt.started + int(TIMEOUT_S * S)
        content = begun if request.stream else ended
        if content > limit:
            self.at(max(limit, self.now), self.fail, request, attempt, UpstreamTimeout("late"), True)
            return
        self.at(content, self.begin, attempt)
        self.at(ended, self.succeed, request, attempt)

    def begin(self, attempt: Attempt) -> None:
        attempt.first, attempt.status = self.now, 200

    def leave(self, deployment: Deployment) -> None:
        truth = self.truth[deployment]
        truth.busy -= 1
        if truth.queue:
            self.serve(truth, *truth.queue.pop(0))

    def succeed(self, request: Request, attempt: Attempt) -> None:
        attempt.ended, attempt.input_tokens, attempt.output_tokens = self.now, INPUT, request.tokens
        self.leave(attempt.deployment)
        self.end(request, attempt)
        self.finish(request, attempt)

    def fail(self, request: Request, attempt: Attempt, error: UpstreamError, served: bool) -> None:
        attempt.ended, attempt.error = self.now, error
        attempt.status = 0 if isinstance(error, UpstreamTimeout) else error.status
        if served:
            self.leave(attempt.deployment)
        self.end(request, attempt)
        request.failed.append(attempt.deployment)
        request.tries += 1
        if request.tries < ATTEMPTS:
            self.attempt(request)
        else:
            self.finish(request, None)

    def end(self, request: Request, attempt: Attempt) -> None:
        d = attempt.deployment
        self.pickers[request.gateway].observe(attempt, request)  # type: ignore[arg-type]
        recent = self.recent[d]
        recent.append((self.now, attempt.error is not None))
        while recent[0][0] < self.now - 60 * S:
            recent.pop(0)
        failed = sum(bad for _, bad in recent)
        if attempt.error is not None and (attempt.status == 429 or (len(recent) >= 5 and failed > len(recent) / 2)):
            self.cooling[d] = self.now + int(COOLDOWN_S * S)
            recent.clear()

    def counted(self, request: Request) -> bool:
        return request.arrived >= S * (1 + WARM_UP_S)

    def finish(self, request: Request, attempt: Attempt | None) -> None:
        if not self.counted(request):
            return
        if attempt is None:
            self.errors += 1
            return
        self.latencies.append((self.now - request.arrived) / S)
        if request.stream:
            self.firsts.append((attempt.first - request.arrived) / S)
        price = self.truth[attempt.deployment].server.price
        self.cost += price * (INPUT + 4 * request.tokens)


class Result:
    """The figures of one run."""

    def __init__(self, sim: Simulation) -> None:
        self.calls = len(sim.latencies) + sim.errors
        self.p50, self.p99 = quantile(sim.latencies, 0.5), quantile(sim.latencies, 0.99)
        self.first50, self.first99 = quantile(sim.firsts, 0.5), quantile(sim.firsts, 0.99)
        self.mean = sum(sim.latencies) / max(len(sim.latencies), 1)
        self.errors = 100 * sim.errors / self.calls
        self.cost = 1000 * sim.cost / self.calls
        used = [sim.used[d] / max(sum(sim.used.values()), 1) for d in sim.truth]
        self.shares = used
        self.imbalance = max(used) - 1 / len(used)


def quantile(values: Iterable[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(q * len(ordered)), len(ordered) - 1)] if ordered else math.nan


def simulate(scenario: Scenario, strategy: str, seed: int = 0) -> Result:
    make, limits = STRATEGIES[strategy]
    return Simulation(scenario, make, limits, seed).run()


# --- what a choice costs


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
    picker, calls = make(), [Request(sim, i, 0) for i in range(rounds)]
    best_pick = best_all = math.inf
    for _ in range(5):
        picking, begin = 0, time.perf_counter_ns()
        for call in calls:
            before = time.perf_counter_ns()
            chosen = picker.pick(group, call)  # type: ignore[arg-type]
            picking += time.perf_counter_ns() - before
            now[0] += S // 200
            attempt = Attempt(chosen, now[0])
            picker.sent(attempt, call)  # type: ignore[arg-type]
            attempt.first, attempt.ended = now[0] + S // 5, now[0] + S
            attempt.status, attempt.output_tokens, attempt.input_tokens = 200, call.tokens, INPUT
            picker.observe(attempt, call)  # type: ignore[arg-type]
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
