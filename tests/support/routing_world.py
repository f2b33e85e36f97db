"""Deployments under load in virtual time: what routing strategies are compared in. Nothing sleeps; a seed decides all.

Deployments serve `slots` calls at a time and queue what is beyond. A call waits for a slot, then for its first token,
then for its other tokens; what it draws belongs to the call and not to the deployment, so that every strategy meets the
same calls. Failures are tried again at up to two other deployments, with LiteLLM's cooldowns (429: at once; more than
half of at least five calls of the minute failed: then; five seconds) for every strategy.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from tianji_mw.errors import UpstreamError, UpstreamTimeout
from tianji_mw.facts import Attempt
from tianji_mw.providers.mock import Mock
from tianji_mw.routing.base import Candidates, Deployment, Picker
from tianji_mw.upstream import Deadlines

S = 1_000_000_000
ATTEMPTS = 3
TIMEOUT_S = 30.0
COOLDOWN_S = 5.0
TTFT_S, TPOT_S = 0.4, 0.02
INPUT, OUTPUT = 400, 100
#: Calls of the first seconds are served and not counted: everybody starts without knowledge.
WARM_UP_S = 30.0


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
    #: What the config says of it.
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


class Request:
    """Stands for a `Call`: what pickers ask of one, and what it truly needs."""

    def __init__(self, sim: Simulation, number: int, gateway: int) -> None:
        rng = random.Random(f"{sim.seed}/{number}")
        self.sim, self.gateway, self.runtime = sim, gateway, sim.runtime
        self.api, self.model = SimpleNamespace(streams=True), "m"
        self.notes: dict[type, Any] = {}
        self.tokens = max(int(OUTPUT * rng.lognormvariate(0, 0.4)), 2)
        self.stream = rng.random() < 0.8
        self.request: dict[str, Any] = {"messages": "x" * 4 * INPUT}
        #: What each attempt draws: first token, tokens, luck.
        self.draws = [(rng.lognormvariate(0, 0.35), rng.lognormvariate(0, 0.15), rng.random()) for _ in range(ATTEMPTS)]
        self.arrived, self.tries = sim.now, 0
        self.failed: list[Deployment] = []

    def note(self, kind: type[Any]) -> Any:
        return self.notes.setdefault(kind, kind())


class Truth:
    """A server at work."""

    def __init__(self, server: Server) -> None:
        self.server, self.busy = server, 0
        self.queue: deque[tuple[Request, Attempt]] = deque()
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
            fields: dict[str, Any] = {"input_cost": server.price, "output_cost": 4 * server.price, **server.told}
            one = Deployment(id=f"d{i}", model_name="m", model="m", provider=Mock(), deadlines=Deadlines(), **fields)
            self.truth[one] = Truth(server)
        self.pickers = [make() for _ in range(scenario.gateways)]
        self.events: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self.number = 0
        self.cooling: dict[Deployment, int] = {}
        self.recent: dict[Deployment, deque[tuple[int, bool]]] = defaultdict(deque)
        self.sends: dict[Deployment, deque[int]] = defaultdict(deque)
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
                    self.sends[d].popleft()
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
        picker, call = self.pickers[request.gateway], cast(Any, request)
        deployment = picker.pick(found, call)
        assert deployment in found
        attempt = Attempt(deployment, self.now)
        if self.counted(request):
            self.used[deployment] += 1
        self.sends[deployment].append(self.now)
        picker.sent(attempt, call)
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
            self.serve(truth, *truth.queue.popleft())

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
        self.pickers[request.gateway].observe(attempt, cast(Any, request))
        recent = self.recent[d]
        recent.append((self.now, attempt.error is not None))
        while recent[0][0] < self.now - 60 * S:
            recent.popleft()
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
