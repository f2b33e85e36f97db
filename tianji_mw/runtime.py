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
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from tianji_mw.upstream import Transport

log = logging.getLogger("tianji_mw.runtime")

T = TypeVar("T")
_RESTART_AFTER_S: Final = (0.1, 0.5, 2.0, 10.0, 30.0)


@dataclass(eq=False)
class Runtime:
    """Shared state of one process. `async with Runtime()` opens and closes it; the outermost middleware does this."""

    clock: Callable[[], int] = time.monotonic_ns
    wall: Callable[[], float] = time.time
    rng: random.Random = field(default_factory=random.SystemRandom)
    transport_factory: Callable[[], Transport] | None = None
    #: Set while the process drains: readiness is off, running calls go on.
    draining: bool = False
    #: LLM calls being served now.
    inflight: int = 0
    #: What went wrong without failing a call, by (event, detail); never reset, exported as metrics.
    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    #: Background tasks that died and were started anew, by name.
    restarts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._shared: dict[object, asyncio.Future[Any]] = {}
        self._exits = AsyncExitStack()
        self._tasks: set[asyncio.Task[None]] = set()
        self._transport: Transport | None = None

    async def __aenter__(self) -> Runtime:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    @property
    def transport(self) -> Transport:
        """The client for upstream LLM traffic, made at first use."""
        if self._transport is None:
            if self.transport_factory is None:
                from tianji_mw.upstream import AiohttpTransport

                self.transport_factory = AiohttpTransport
            self._transport = self.transport_factory()
            self._exits.push_async_callback(self._transport.aclose)
        return self._transport

    async def shared(self, key: object, open_: Callable[[], Awaitable[T]], close: Callable[[T], Awaitable[None]]) -> T:
        """The one resource for `key`, opened by the first who asks; the others wait for it."""
        future = self._shared.get(key)
        if future is None:
            future = self._shared[key] = asyncio.get_running_loop().create_future()
            try:
                value = await open_()
            except BaseException as error:
                del self._shared[key]
                future.set_exception(error)
                future.exception()  # whoever waits raises it; with nobody waiting it is not "never retrieved"
                raise
            self._exits.push_async_callback(close, value)
            future.set_result(value)
        result: T = await asyncio.shield(future)
        return result

    def spawn(self, name: str, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a background task until `aclose`; one that dies is started anew with backoff, and counted."""
        task = asyncio.create_task(self._supervise(name, run), name=f"tianji:{name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _supervise(self, name: str, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            try:
                await run()
                return
            except Exception:  # noqa: BLE001 - plugin failsafe: whatever a task raises is logged, counted and restarted
                count = self.restarts[name] = self.restarts.get(name, 0) + 1
                pause = _RESTART_AFTER_S[min(count, len(_RESTART_AFTER_S)) - 1]
                log.exception("background task %s failed (%d times); starts again in %g s", name, count, pause)
                await asyncio.sleep(pause)

    def count(self, event: str, detail: str) -> None:
        """Count something that must not pass in silence."""
        self.counts[event, detail] = self.counts.get((event, detail), 0) + 1

    def new_id(self) -> str:
        """A UUIDv7 (RFC 9562, section 5.7): sortable by time."""
        value = (int(self.wall() * 1000) & 0xFFFF_FFFF_FFFF) << 80 | self.rng.getrandbits(80)
        value = value & ~(0xF << 76) | 0x7 << 76
        value = value & ~(0x3 << 62) | 0x2 << 62
        text = f"{value:032x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    async def aclose(self) -> None:
        """Stop the background tasks and close every resource, the last opened first."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._exits.aclose()
        self._shared.clear()
        self._transport = None
