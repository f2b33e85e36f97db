"""A store as the cache uses it: within a time limit, and never the reason why a call fails.

What cannot be read is a miss, what cannot be written is dropped; both are counted, and told once. A store that does not
answer is left alone until a question in the background is answered again: no call pays for that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, Final, TypeVar

from tianji_mw.breaker import Breaker
from tianji_mw.cache.base import CacheStore, StoreFailed
from tianji_mw.runtime import Runtime

log = logging.getLogger("tianji_mw.cache")

T = TypeVar("T")

#: Failures in a row, other than a time limit, after which a store is left alone.
_FAILURES: Final = 3
_WRITE_S: Final = 5.0
#: Seconds between questions to a store that is left alone.
_PROBE_S: Final = (0.25, 0.5, 1.0, 2.0, 5.0)


class Shelf:
    """The store of one cache."""

    def __init__(self, store: CacheStore, runtime: Runtime, *, read_s: float | None = None) -> None:
        self.store = store
        self._runtime = runtime
        self._read_s = read_s or store.read_timeout_s
        self._guarded = not (store.instant or store.has_breaker)
        # Never closes by time: only an answered question in the background closes it.
        self._breaker = Breaker(_FAILURES, cooldown_s=1e9)
        self._probing: asyncio.Task[None] | None = None
        #: What is wrong with it now; empty when nothing is.
        self.trouble = ""

    async def start(self) -> None:
        """Open the store. Raises SetupError for wrong settings."""
        await self.store.start(self._runtime)

    async def aclose(self) -> None:
        """Close it."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)
        self._runtime.report("cache", "")
        await self.store.aclose()

    # --- in the path of calls

    async def get(self, key: str) -> bytes | None:
        """The value; None where there is none, or it cannot be had."""
        if self.store.instant:
            return await self.store.get(key)
        return await self._asked("get", self.store.get(key), self._read_s, None)

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """The values, in the order of the keys."""
        found = await self._asked("get", self.store.get_many(keys), self._read_s, None)
        return found if found is not None else [None] * len(keys)

    async def put(self, key: str, value: bytes, ttl_s: float) -> None:
        """Keep a value, if that is possible."""
        await self._asked("put", self.store.put(key, value, ttl_s), _WRITE_S, None)

    async def put_many(self, items: Sequence[tuple[str, bytes, float]]) -> None:
        """Keep several."""
        await self._asked("put", self.store.put_many(items), _WRITE_S, None)

    async def delete(self, keys: Sequence[str]) -> int:
        """Forget them; how many there were, as far as that is known."""
        return await self._asked("delete", self.store.delete(keys), _WRITE_S, 0)

    # --- for people

    def keys(self, prefix: str) -> AsyncIterator[str]:
        """Every key that begins so. Raises StoreFailed."""
        return self.store.keys(prefix)

    async def ping(self) -> None:
        """Raises StoreFailed."""
        try:
            async with asyncio.timeout(_WRITE_S):
                await self.store.ping()
        except TimeoutError:
            raise StoreFailed(f"the store did not answer within {_WRITE_S:g} s", kind="timeout") from None

    async def report(self) -> dict[str, Any]:
        """Figures of the store, and what is wrong with it."""
        kind = type(self.store).__name__
        try:
            async with asyncio.timeout(_WRITE_S):
                figures = await self.store.report()
        except (StoreFailed, TimeoutError) as error:
            figures = {"error": error.message if isinstance(error, StoreFailed) else "it does not answer"}
        return {"store": kind, "left_alone": self._breaker.open, "trouble": self.trouble, **figures}

    # --- failures

    async def _asked(self, what: str, question: Awaitable[T], within_s: float, otherwise: T) -> T:
        if self._guarded and self._breaker.open:
            close = getattr(question, "close", None)
            if close is not None:
                close()
            self._runtime.count("cache_errors", f"{what} left-alone")
            return otherwise
        try:
            if self.store.instant:
                answer = await question
            else:
                async with asyncio.timeout(within_s):
                    answer = await question
        except TimeoutError:
            self._failed(what, "timeout", f"did not answer within {within_s:g} s", at_once=what == "get")
            return otherwise
        except StoreFailed as error:
            self._failed(what, error.kind, error.message, at_once=error.kind == "timeout")
            return otherwise
        except Exception as error:  # plugin failsafe: a cache never fails a call, whatever its store raises
            log.exception("the store of the cache raised")
            self._failed(what, type(error).__name__, f"raised {type(error).__name__}", at_once=False)
            return otherwise
        self._went_well()
        return answer

    def _failed(self, what: str, kind: str, message: str, *, at_once: bool) -> None:
        runtime = self._runtime
        runtime.count("cache_errors", f"{what} {kind}")
        if not self.trouble:
            log.warning("cache %s: %s; calls go on without it", type(self.store).__name__, message)
        self.trouble = message
        runtime.report("cache", message)
        if not self._guarded:
            return
        for _ in range(_FAILURES if at_once else 1):
            self._breaker.failed(runtime.clock())
        if self._breaker.open and (self._probing is None or self._probing.done()):
            self._probing = asyncio.create_task(self._probe())

    def _went_well(self) -> None:
        if self.trouble:
            log.warning("cache %s: it answers again", type(self.store).__name__)
            self.trouble = ""
            self._runtime.report("cache", "")
        self._breaker.succeeded()

    async def _probe(self) -> None:
        """Ask until there is an answer."""
        pauses = list(_PROBE_S)
        while True:
            await self._runtime.sleep(pauses.pop(0) if len(pauses) > 1 else pauses[0])
            try:
                await self.ping()
            except StoreFailed:
                continue
            except Exception as error:  # noqa: BLE001 - plugin failsafe
                self._runtime.count("cache_errors", f"ping {type(error).__name__}")
                continue
            self._went_well()
            return
