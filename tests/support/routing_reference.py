"""Routing strategies to compare ours with: LiteLLM's, written anew from our contract, and one that knows everything."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import PrivateAttr

from tests.support.routing_world import Result, S, Scenario, Simulation
from tianji_mw.errors import UpstreamTimeout
from tianji_mw.facts import Attempt
from tianji_mw.routing.adaptive import Adaptive
from tianji_mw.routing.base import Candidates, Deployment, Picker
from tianji_mw.routing.cost import Cost
from tianji_mw.routing.latency import Latency
from tianji_mw.routing.least_busy import LeastBusy
from tianji_mw.routing.shuffle import Shuffle, shuffled
from tianji_mw.routing.usage import LowestUsage


class Books:
    """What LiteLLM's strategies keep, by deployment and fixed minutes."""

    def __init__(self) -> None:
        self.inflight: Counter[Deployment] = Counter()
        self.tpm: Counter[tuple[Deployment, int]] = Counter()
        self.rpm: Counter[tuple[Deployment, int]] = Counter()
        self.per_token: dict[Deployment, list[float]] = defaultdict(list)
        self.firsts: dict[Deployment, list[float]] = defaultdict(list)

    def within(self, group: Sequence[Deployment], now: int) -> list[Deployment]:
        """Those below their `rpm` in this minute; LiteLLM refuses the call where there are none, we let it try."""
        return [d for d in group if d.rpm is None or self.rpm[d, minute(now)] + 1 < d.rpm] or list(group)


def minute(now: int) -> int:
    return now // (60 * S)


def keep(samples: list[float], sample: float) -> None:
    samples.append(sample)
    del samples[:-10]


class Reference(Picker):
    """Counts as LiteLLM does."""

    buffer: float = 0.0
    _books: Books = PrivateAttr(default_factory=Books)

    def sent(self, attempt: Attempt, call: Any) -> None:
        books = self._books
        books.inflight[attempt.deployment] += 1
        books.rpm[attempt.deployment, minute(attempt.started)] += 1

    def observe(self, attempt: Attempt, call: Any) -> None:
        books, d = self._books, attempt.deployment
        books.inflight[d] -= 1
        if isinstance(attempt.error, UpstreamTimeout):
            keep(books.per_token[d], 1000.0)
        if attempt.error is None:
            books.tpm[d, minute(attempt.ended)] += attempt.input_tokens + attempt.output_tokens
            keep(books.per_token[d], (attempt.ended - attempt.started) / S / max(attempt.output_tokens, 1))
            if call.stream:
                keep(books.firsts[d], (attempt.first - attempt.started) / S)


class RefShuffle(Reference):
    def pick(self, deployments: Candidates, call: Any) -> Deployment:
        return shuffled(deployments, call)


class RefLeastBusy(Reference):
    def pick(self, deployments: Candidates, call: Any) -> Deployment:
        inflight = self._books.inflight
        return min(deployments, key=lambda d: inflight[d])


class RefUsage(Reference):
    def pick(self, deployments: Candidates, call: Any) -> Deployment:
        books, now = self._books, call.runtime.clock()
        left = books.within(deployments, now)
        least = min(books.tpm[d, minute(now)] for d in left)
        choice: Deployment = call.runtime.rng.choice([d for d in left if books.tpm[d, minute(now)] == least])
        return choice


class RefLatency(Reference):
    def pick(self, deployments: Candidates, call: Any) -> Deployment:
        books = self._books
        means = {}
        for d in books.within(deployments, call.runtime.clock()):
            samples = (books.firsts[d] if call.stream else []) or books.per_token[d]
            means[d] = sum(samples) / len(samples) if samples else 0.0
        most = min(means.values()) * (1 + self.buffer)
        choice: Deployment = call.runtime.rng.choice([d for d, mean in means.items() if mean <= most])
        return choice


class RefCost(Reference):
    def pick(self, deployments: Candidates, call: Any) -> Deployment:
        left = self._books.within(deployments, call.runtime.clock())
        return min(left, key=lambda d: (d.input_cost or 0) + (d.output_cost or 0))


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


def simulate(scenario: Scenario, strategy: str, seed: int = 0) -> Result:
    make, limits = STRATEGIES[strategy]
    return Simulation(scenario, make, limits, seed).run()
