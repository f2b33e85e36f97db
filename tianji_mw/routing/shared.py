"""What several processes of one router share through Redis: limits, budgets, pins, cooldowns, and how busy each is.

    shared = await Shared.open(RedisSettings(host="cache.internal"), runtime)
    router = Router(table, picker, rules, runtime, shared.windows, shared.holds, shared)
    await shared.join(router)

No failure of Redis leaves this file, and nothing in it is waited for by a call but a pin: without Redis each process
goes by what it sees itself. Cooldowns are told at once, and lie under a key for those that were not listening.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from tianji_mw.counters.redis import RedisHolds, RedisWindows
from tianji_mw.redis import shared as shared_redis
from tianji_mw.redis.channel import Channel
from tianji_mw.redis.errors import RedisFailed
from tianji_mw.routing import news
from tianji_mw.routing.base import Deployment
from tianji_mw.routing.blocks import Block
from tianji_mw.routing.loads import Loads
from tianji_mw.routing.shared_cooldowns import SharedCooldowns
from tianji_mw.routing.shared_pins import SharedPins
from tianji_mw.runtime import Runtime

if TYPE_CHECKING:
    from tianji_mw.redis.client import Redis
    from tianji_mw.redis.settings import RedisSettings
    from tianji_mw.routing.router import Router

_BEAT_S: Final = 0.2
_LONGEST_BEAT_S: Final = 1.0
_HELLO_NS: Final = 1_000_000_000
#: Counts that a process tells in a second: with very many deployments it tells them less often.
_COUNTS_PER_S: Final = 2_500
#: A channel that was silent for longer is deaf: it asks the server once a second.
_DEAF_NS: Final = 1_500_000_000
_CLOSE_S: Final = 2.0
#: Of an interval of health checks, for which one process has the turn.
_TURN_SHARE: Final = 0.95


class Shared:
    """The link of one router to the others; `join` begins it."""

    def __init__(self, redis: Redis, runtime: Runtime, namespace: str = "tianji") -> None:
        prefix = f"{namespace.replace('{', '(').replace('}', ')')}:route"
        self._runtime = runtime
        self.windows = RedisWindows(redis, runtime, prefix=prefix, replicas=self.replicas)
        self.holds = RedisHolds(redis, runtime, prefix=prefix, replicas=self.replicas)
        self.pins = SharedPins(redis, runtime, prefix)
        self._cooldowns = SharedCooldowns(redis, runtime, prefix)
        #: Who we are in messages.
        self._me = f"{runtime.rng.getrandbits(64):016x}"
        self._channel = Channel(redis, f"{prefix}:news", heard=self._heard, joined=self._joined)
        self._router: Router | None = None
        self._by_id: dict[str, Deployment] = {}
        self._loads = Loads(runtime, self._elsewhere)
        #: Cooldowns that began here, until they are over; and deployments whose state the others do not know yet.
        self._own: dict[Deployment, Block] = {}
        self._untold: set[Deployment] = set()
        self._telling: asyncio.Task[None] | None = None
        #: Ids of deployments whose cooldown was not read since we could hear.
        self._unread: set[str] = set()
        #: The counts that the others know; when they were told all of them, and whether that went wrong.
        self._said: dict[Deployment, int] = {}
        self._hello = 0
        self._mute = False
        self._closed = False
        #: Hears of health checks that others made.
        self.checked: Callable[[Deployment, news.Checked], None] | None = None
        self._sending: set[asyncio.Task[bool]] = set()
        self._redis, self._turn_key = redis, f"{prefix}:health"

    @classmethod
    async def open(cls, settings: RedisSettings, runtime: Runtime) -> Shared:
        """Raises MissingExtra, and SetupError for settings that cannot work; a server that is down is no error."""
        namespace = getattr(settings, "namespace", None)
        return cls(await shared_redis(settings, runtime), runtime, namespace or "tianji")

    async def join(self, router: Router) -> None:
        """Listen and tell from now on."""
        self._router = router
        self._by_id = {deployment.id: deployment for deployment in router.table.all}
        router.cooldowns.told_closed = self.closed
        self._runtime.spawn("routing-news", self._channel.listen)
        self._runtime.spawn("routing-loads", self._beat)

    async def aclose(self) -> None:
        """Tell what is untold, and say goodbye."""
        if self._closed:
            return
        self._closed = True
        if self._telling is not None and not self._telling.done():
            await asyncio.wait((self._telling,), timeout=_CLOSE_S)
        if self._sending:
            await asyncio.wait(self._sending, timeout=_CLOSE_S)
        if self._router is not None:
            await self._send([news.bye(self._me)])
        await self._channel.aclose()
        await self.pins.aclose()

    def replicas(self) -> int:
        """How many processes there are, this one included."""
        return self._loads.processes + 1

    # --- telling cooldowns

    def cooled(self, deployment: Deployment, seconds: float, block: Block) -> None:
        """A cooldown begins here."""
        self._own[deployment] = block
        self._tell_soon(deployment)

    def closed(self, deployment: Deployment) -> None:
        """The first call after a cooldown went well."""
        self._own.pop(deployment, None)
        self._tell_soon(deployment)

    def _tell_soon(self, *deployments: Deployment) -> None:
        self._untold.update(deployments)
        if self._untold and not self._closed and (self._telling is None or self._telling.done()):
            self._telling = asyncio.create_task(self._tell(), name="tianji:routing-tell")

    async def _tell(self) -> None:
        """What is untold, until it is told or fails; `_beat` comes back to it."""
        while self._untold:
            now, told = self._runtime.clock(), self._untold
            self._untold = set()
            cooled, closed = [], []
            for deployment in told:
                block = self._own.get(deployment)
                if block is None:
                    closed.append(deployment.id)
                elif block.until > now:
                    left_s = (block.until - now) / 1e9
                    cooled.append(news.Cooled(deployment.id, left_s, block.detail, block.soft))
            # First the keys: who begins to listen between the two finds the key.
            kept = await self._cooldowns.put(cooled)
            messages = [*news.written(self._me, "cooled", [news.said(one) for one in cooled])] if cooled else []
            messages += [*news.written(self._me, "closed", closed)] if closed else []
            if not await self._send(messages) or not kept:
                self._untold |= told
                return

    # --- health checks

    async def turn(self, every_s: float) -> bool:
        """Whether it is this process that makes the checks of this interval; without Redis each does."""
        milliseconds = int(every_s * _TURN_SHARE * 1000)
        try:
            answer = await self._redis.run(
                "SET", self._turn_key, self._me, "NX", "PX", milliseconds, key=self._turn_key, repeatable=False
            )
        except RedisFailed as error:
            self._runtime.count("routing_errors", f"turn {error.kind}")
            return True
        return answer is not None

    def told_health(self, check: news.Checked) -> None:
        """This process has asked a deployment; one that was not told is asked by the others in their turn."""
        task = asyncio.create_task(self._send([*news.written(self._me, "health", [(*check,)])]))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    # --- telling loads

    async def _beat(self) -> None:
        while not self._closed:
            counts = await self._tell_loads()
            await self._runtime.sleep(min(max(_BEAT_S, counts / _COUNTS_PER_S), _LONGEST_BEAT_S))
            heard = self._channel.heard_ns
            self._loads.sweep(hears=heard is not None and self._runtime.clock() - heard < _DEAF_NS)

    async def _tell_loads(self) -> int:
        """What has changed; once a second all that is not 0, and what could not be told before. How many counts."""
        assert self._router is not None
        now, inflight = self._runtime.clock(), self._router.parallel.inflight
        changed = {d: count for d, count in inflight.items() if count != self._said.get(d, 0)}
        hello = now - self._hello >= _HELLO_NS
        if not hello and (self._mute or not changed):
            return 0
        if hello:
            self._hello = now
            self._tell_soon()
            await self._read()
            changed = {d: count for d, count in inflight.items() if count or self._said.get(d)}
        self._mute = not await self._send([*news.written(self._me, "load", [(d.id, n) for d, n in changed.items()])])
        if not self._mute:
            self._said.update(changed)
        return len(changed)

    # --- hearing

    async def _joined(self) -> None:
        """From now on we hear everything. What was told before stands in Redis, unless Redis has lost it."""
        now = self._runtime.clock()
        self._loads.joined()
        self._unread = set(self._by_id)
        await self._read()
        self._tell_soon(*[deployment for deployment, block in self._own.items() if block.until > now])

    async def _read(self) -> None:
        """Cooldowns that lie in Redis."""
        found = await self._cooldowns.read(self._unread)
        self._unread.difference_update(found)
        for cooled in found.values():
            if cooled is not None:
                self._cooled(cooled)

    async def _heard(self, message: bytes) -> None:
        try:
            told = news.read(message)
        except ValueError:
            self._runtime.count("routing_messages", "malformed")
            return
        if told is None:
            self._runtime.count("routing_messages", "of another version")
        elif told.sender != self._me:
            self._hear(told)

    def _hear(self, told: news.News) -> None:
        assert self._router is not None
        if told.bye:
            self._loads.leave(told.sender)
            return
        self._loads.hear(told.sender, {self._by_id[d]: count for d, count in told.load.items() if d in self._by_id})
        for one in told.cooled:
            self._cooled(one)
        checked = self.checked
        for check in told.health if checked is not None else ():
            if checked is not None and check.id in self._by_id:
                checked(self._by_id[check.id], check)
        for deployment in told.closed:
            if deployment in self._by_id:
                self._router.cooldowns.closed(self._by_id[deployment])

    def _cooled(self, one: news.Cooled) -> None:
        deployment = self._by_id.get(one.id)
        if deployment is not None and self._router is not None:
            until = self._runtime.clock() + int(one.seconds * 1e9)
            self._router.cooldowns.heard(deployment, one.seconds, Block("cooldown", until, one.detail, one.soft))

    def _elsewhere(self, deployment: Deployment, inflight: int) -> None:
        assert self._router is not None
        self._router.picker.elsewhere(deployment, inflight)

    # --- Redis

    async def _send(self, messages: list[bytes]) -> bool:
        """Whether all were sent."""
        try:
            for message in messages:
                await self._channel.send(message)
        except RedisFailed as error:
            self._runtime.count("routing_errors", f"tell {error.kind}")
            return False
        return True
