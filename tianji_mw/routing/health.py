"""Health checks: what real traffic tells is believed, and only who has none, or is in trouble, is asked.

Whoever answered clients lately works: no token is spent to learn that. The others get one small request
(`health_probe.py`) every `every_s` seconds. A failed check counts like a failed call; with `routing` the deployment is
also left out, while others are there: checks alone never leave a group without anybody.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

from tianji_mw.routing.base import Deployment
from tianji_mw.routing.blocks import Block
from tianji_mw.routing.health_probe import Probe, mode_of, probe, unasked
from tianji_mw.routing.news import Checked
from tianji_mw.routing.rules import HealthRules

if TYPE_CHECKING:
    from tianji_mw.routing.failure import Failure
    from tianji_mw.routing.router import Router
    from tianji_mw.runtime import Runtime

log = logging.getLogger("tianji_mw.routing")

#: LiteLLM's interval; without one of the config it only says how long a failed check holds.
_USUAL_S: Final = 300.0
#: Counts of calls cover a minute: looking twice in it misses none.
_LISTEN_S: Final = 30.0
#: The first check comes within so many seconds, so that processes that start together do not ask together.
_FIRST_S: Final = 10.0


@dataclass(slots=True, frozen=True)
class Health:
    """What is known of one deployment. `elsewhere`: another process has asked it."""

    state: Literal["healthy", "unhealthy", "skipped"]
    how: Literal["probe", "traffic", "elsewhere", ""]
    #: Nanoseconds of the runtime's clock, and seconds since 1970.
    at: int
    wall: float
    error: str = ""
    #: HTTP status of a failure; 0 where there was none.
    status: int = 0
    #: Seconds that a probe took.
    seconds: float = 0.0


class HealthChecks:
    """The checks of one router. `start` begins those in the background; `check` asks now."""

    def __init__(self, router: Router, rules: HealthRules, runtime: Runtime) -> None:
        self._router, self._rules, self._runtime = router, rules, runtime
        self.latest: dict[Deployment, Health] = {}
        #: Where several processes share their state: whether it is this one that asks now, for all of them.
        self.lock: Callable[[], Awaitable[bool]] | None = None
        #: Hears of each probe, to tell other processes; theirs come in through `heard`.
        self.told: Callable[[Checked], None] | None = None
        self._places = asyncio.Semaphore(max(1, rules.concurrency))
        self._running: dict[Deployment, asyncio.Task[None]] = {}
        self._started = False

    @property
    def rules(self) -> HealthRules:
        """The config's."""
        return self._rules

    def start(self) -> None:
        """Check in the background from now on, until the runtime closes; nothing where the rules have no interval."""
        if self._rules.every_s is not None and not self._started:
            self._started = True
            self._runtime.spawn("health checks", self._run)

    async def aclose(self) -> None:
        """Give up what is being asked: an answer that we cut ourselves says nothing."""
        running = [*self._running.values()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    # --- in the background

    async def _run(self) -> None:
        every = self._rules.every_s or _USUAL_S
        parts = max(1, math.ceil(every / _LISTEN_S))
        try:
            await self._runtime.sleep(self._runtime.rng.random() * min(every, _FIRST_S))
            while True:
                await self.round()
                for _ in range(parts):
                    await self._runtime.sleep(every / parts)
                    self.listen()
        finally:
            await self.aclose()

    async def round(self) -> None:
        """Ask those of whom nothing is known, or nothing good."""
        self.listen()
        if self._runtime.draining or (self.lock is not None and not await self.lock()):
            return
        await self.check([one for one in self._router.table.all if self._due(one)])

    def listen(self) -> None:
        """Take what clients' calls told: who answered them works."""
        now, wall = self._runtime.clock(), self._runtime.wall()
        for deployment in self._router.table.all:
            calls, failures = self._router.cooldowns.counts(deployment)
            if calls > failures and not self._troubled(deployment):
                self.latest[deployment] = Health("healthy", "traffic", now, wall)
                self._router.blocks.lift(deployment, "health")

    def heard(self, deployment: Deployment, check: Checked) -> None:
        """Another process has asked it."""
        state: Literal["healthy", "unhealthy"] = "healthy" if check.healthy else "unhealthy"
        now, wall = self._runtime.clock(), self._runtime.wall()
        self.latest[deployment] = Health(state, "elsewhere", now, wall, status=check.status)
        if check.healthy:
            self._router.blocks.lift(deployment, "health")
        elif self._rules.routing:
            self._block(deployment, f"status {check.status}" if check.status else "")

    def _troubled(self, deployment: Deployment) -> bool:
        calls, failures = self._router.cooldowns.counts(deployment)
        return failures * 2 > calls or self._router.cooldowns.state(deployment) != "closed"

    def _due(self, deployment: Deployment) -> bool:
        if deployment.unchecked:
            return False
        if any(block.reason == "budget" for block in self._router.blocks.of(deployment)):
            return False  # there is no money left for it
        known = self.latest.get(deployment)
        if known is None or self._troubled(deployment) or known.how not in ("traffic", "elsewhere"):
            return True
        return self._runtime.clock() - known.at > int((self._rules.every_s or _USUAL_S) * 1e9)

    # --- asking

    async def check(self, deployments: Iterable[Deployment]) -> dict[Deployment, Health]:
        """Ask these now, a few at a time; one that is being asked already is not asked twice."""
        asked = dict.fromkeys(deployments)
        for deployment in asked:
            if skipped := unasked(deployment):
                self._note(deployment, Probe(skipped=skipped))
            elif deployment not in self._running:
                task = self._running[deployment] = asyncio.ensure_future(self._ask(deployment))
                task.add_done_callback(partial(self._settle, deployment))
        running = [self._running[one] for one in asked if one in self._running]
        if running:
            await asyncio.wait(running)
        return {one: found for one in asked if (found := self.latest.get(one)) is not None}

    async def _ask(self, deployment: Deployment) -> None:
        async with self._places:
            self._note(deployment, await probe(deployment, self._runtime))

    def _settle(self, deployment: Deployment, task: asyncio.Task[None]) -> None:
        self._running.pop(deployment, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A plugin's fault: it says nothing of the deployment, and must not end the other checks.
            log.error("the check of %s failed", deployment.id, exc_info=error)
            self._note(deployment, Probe(error=f"the check itself failed: {type(error).__name__}"))

    # --- what it means

    def _note(self, deployment: Deployment, found: Probe) -> None:
        now, wall = self._runtime.clock(), self._runtime.wall()
        failure = found.failure
        if found.skipped:
            self.latest[deployment] = Health("skipped", "", now, wall, found.skipped)
            return
        if found.error:
            status = failure.status if failure is not None and not failure.unreachable else 0
            health = Health("unhealthy", "probe", now, wall, found.error, status, found.seconds)
            self._runtime.count("failed_health_checks", deployment.model_name)
            if failure is not None and self._speaks_against(deployment, failure):
                self._blame(deployment, failure)
        else:
            health = Health("healthy", "probe", now, wall, seconds=found.seconds)
            self._clear(deployment)
        self.latest[deployment] = health
        if self.told is not None:
            self.told(Checked(deployment.id, health.state == "healthy", health.status))

    def _speaks_against(self, deployment: Deployment, failure: Failure) -> bool:
        """Whether it should change who is chosen. A request that was guessed, and not understood, says nothing."""
        if self._rules.ignore_transient and failure.kind in ("Timeout", "RateLimit"):
            return False
        return failure.counts and not (failure.kind == "NotFound" and mode_of(deployment)[1])

    def _blame(self, deployment: Deployment, failure: Failure) -> None:
        self._router.cooldowns.failed(deployment, failure, alone=self._router.table.alone(deployment))
        if self._rules.routing:
            self._block(deployment, failure.reason)

    def _block(self, deployment: Deployment, detail: str) -> None:
        holds = self._rules.staleness_s or 2 * (self._rules.every_s or _USUAL_S)
        # Soft: where the checks of a whole group fail, it is perhaps the checks that are wrong.
        self._router.blocks.put(
            deployment, Block("health", self._runtime.clock() + int(holds * 1e9), detail, soft=True)
        )

    def _clear(self, deployment: Deployment) -> None:
        self._router.blocks.lift(deployment, "health")
        if self._router.cooldowns.state(deployment) == "half_open":
            self._router.cooldowns.succeeded(deployment)  # no client's call has to try it out


async def health_of(router: Router) -> HealthChecks:
    """The checks of this router: there is one set of them in a process."""
    runtime = router.runtime

    async def opened() -> HealthChecks:
        return HealthChecks(router, router.rules.health, runtime)

    return await runtime.shared(("routing.health", router), opened, HealthChecks.aclose)
