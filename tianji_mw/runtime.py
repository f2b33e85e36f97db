"""The `Runtime`: what all middlewares of one process share: clients, background tasks, clock, randomness, drain state.

Clients are made inside the running event loop, once per key, and closed in reverse order. Tests pass their own clock
and seed. It serves no request itself.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tianji_mw.alarms import Alarms

if TYPE_CHECKING:
    from tianji_mw.alerts import Alert
    from tianji_mw.upstream import Transport, TransportOptions

log = logging.getLogger("tianji_mw.runtime")

T = TypeVar("T")
_RESTART_AFTER_S: Final = (0.1, 0.5, 2.0, 10.0, 30.0)
#: A task that ran this long before it died starts with the short pauses again.
_STEADY_NS: Final = 60_000_000_000


@dataclass(eq=False)
class Runtime:
    """Shared state of one process. `async with Runtime()` opens and closes it; the outermost middleware does this."""

    clock: Callable[[], int] = time.monotonic_ns
    wall: Callable[[], float] = time.time
    #: For choices, jitter and ids; nothing secret is made of it. Seeded by the system.
    rng: random.Random = field(default_factory=random.Random)
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    transport_factory: Callable[[], Transport] | None = None
    #: Set while the process drains: readiness is off, running calls go on.
    draining: bool = False
    #: LLM calls being served now.
    inflight: int = 0
    #: What went wrong without failing a call, by (event, detail); never reset, exported as metrics.
    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    #: What works worse than it should, by who says so; shown by the probes.
    degraded: dict[str, str] = field(default_factory=dict)
    #: Who sends alerts on.
    alert_listeners: list[Callable[[Alert], None]] = field(default_factory=list)
    #: Background tasks that died and were started anew, by name.
    restarts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        #: Deadlines that need no precision.
        self.alarms = Alarms()
        self._shared: dict[object, asyncio.Task[Any]] = {}
        self._exits: list[Callable[[], Awaitable[None]]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._transport: Transport | None = None
        #: The first half of ids, which all of one millisecond share.
        self._id_ms, self._id_head = -1, ""

    async def __aenter__(self) -> Runtime:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    @property
    def transport(self) -> Transport:
        """The client for upstream LLM traffic, made at first use."""
        if self._transport is None:
            if self.transport_factory is None:
                from tianji_mw.upstream.choose import transport_of

                self.transport_factory = transport_of
            self._transport = self.transport_factory()
            self.on_close(self._transport.aclose)
        return self._transport

    def send_through(self, options: TransportOptions | None) -> None:
        """Make the transport now, so that what it lacks stops the start. A factory that was given goes before."""
        if self.transport_factory is None and options is not None:
            from tianji_mw.upstream.choose import transport_of

            self.transport_factory = lambda: transport_of(options)
        _ = self.transport

    async def shared(self, key: object, open_: Callable[[], Awaitable[T]], close: Callable[[T], Awaitable[None]]) -> T:
        """The one resource for `key`, opened at the first demand; whoever asks meanwhile waits for it.

        The opening is a task of its own: the request that came first may be cancelled without harm to the others.
        """
        task = self._shared.get(key)
        if task is None:
            task = self._shared[key] = asyncio.create_task(self._open(open_, close))
            task.add_done_callback(lambda done: self._forget_failed(key, done))
        result: T = task.result() if task.done() else await asyncio.shield(task)
        return result

    async def _open(self, open_: Callable[[], Awaitable[T]], close: Callable[[T], Awaitable[None]]) -> T:
        value = await open_()
        self.on_close(lambda: close(value))
        return value

    def _forget_failed(self, key: object, task: asyncio.Task[Any]) -> None:
        # Reading the exception also marks it as seen, should nobody wait any more.
        if (task.cancelled() or task.exception() is not None) and self._shared.get(key) is task:
            del self._shared[key]

    def on_close(self, close: Callable[[], Awaitable[None]]) -> None:
        """Have `aclose` await this, before what was registered earlier. A fault in it is logged and counted."""
        self._exits.append(close)

    def spawn(self, name: str, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a background task until `aclose`; one that dies is started anew with backoff, and counted."""
        task = asyncio.create_task(self._supervise(name, run), name=f"tianji:{name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _supervise(self, name: str, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        failures = 0
        while True:
            began = self.clock()
            try:
                await run()
                return
            except Exception:  # plugin failsafe: whatever a task raises is logged, counted and restarted
                failures = 1 if self.clock() - began >= _STEADY_NS else failures + 1
                count = self.restarts[name] = self.restarts.get(name, 0) + 1
                pause = _RESTART_AFTER_S[min(failures, len(_RESTART_AFTER_S)) - 1]
                log.exception("background task %s failed (%d times); starts again in %g s", name, count, pause)
                await self.sleep(pause)

    def count(self, event: str, detail: str, times: int = 1) -> None:
        """Count something that must not pass in silence."""
        self.counts[event, detail] = self.counts.get((event, detail), 0) + times

    def alert(self, alert: Alert) -> None:
        """Tell people, through every layer that sends alerts; counted, and logged where there is none."""
        self.count("alerts", alert.kind)
        for listener in self.alert_listeners:
            listener(alert)
        if not self.alert_listeners:
            log.warning("%s: %s", alert.kind, alert.message)

    def report(self, who: str, trouble: str) -> None:
        """Say what is wrong with `who`, which goes on working; nothing when all is well again."""
        if trouble:
            self.degraded[who] = trouble
        else:
            self.degraded.pop(who, None)

    def new_id(self) -> str:
        """A UUIDv7 (RFC 9562, section 5.7): sortable by time."""
        ms, rand = int(self.wall() * 1000) & 0xFFFF_FFFF_FFFF, self.rng.getrandbits(74)
        if ms != self._id_ms:
            self._id_ms, self._id_head = ms, f"{ms >> 16:08x}-{ms & 0xFFFF:04x}-7"
        variant = 0x8000 | (rand >> 48 & 0x3FFF)
        return f"{self._id_head}{rand >> 62:03x}-{variant:04x}-{rand & 0xFFFF_FFFF_FFFF:012x}"

    async def aclose(self) -> None:
        """Stop the background tasks and close every resource, the last opened first. Each is closed, whatever fails."""
        running = [*self._tasks, *(task for task in self._shared.values() if not task.done())]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        while self._exits:
            close = self._exits.pop()
            try:
                await close()
            except Exception:  # plugin failsafe: one resource must not keep the others open
                self.count("close_failures", "")
                log.exception("a resource could not be closed")
        self._shared.clear()
        self._transport = None
