"""`Cache`: answers a request that was answered before, and asks for equal ones at the same time only once.

It stands inside of the guardrails, which check the request before it is looked up and the answer wherever it comes
from, and outside of routing. A cache never fails a call: what goes wrong in it is a miss, and counted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, ClassVar, Final, Literal, Unpack

from tianji_mw.apis.base import Usage
from tianji_mw.cache.answering import Answering
from tianji_mw.cache.base import CacheStore
from tianji_mw.cache.batches import Batches
from tianji_mw.cache.entry import Entry, NoEntry, decode
from tianji_mw.cache.flight import Flight
from tianji_mw.cache.headers import mark
from tianji_mw.cache.memory import Memory
from tianji_mw.cache.refresh import REFRESH_KEY, ask_again
from tianji_mw.cache.replay import fits
from tianji_mw.cache.rules import CacheRules, Plan, Planner
from tianji_mw.cache.shelf import Shelf
from tianji_mw.cache.stats import Stats
from tianji_mw.cache.writer import Writer
from tianji_mw.call import Call
from tianji_mw.driver import Inner, LayerOptions, LLMMiddleware
from tianji_mw.facts import CacheUse
from tianji_mw.runtime import Runtime

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Send

    from tianji_mw.cache.semantic.layer import Semantic

log = logging.getLogger("tianji_mw.cache")

#: Longest time that the end waits for what is not written yet.
_FLUSH_S: Final = 5.0

Fitness = Literal["fresh", "stale", "if-error", "no"]


class Cache(LLMMiddleware):
    """Keeps answers and gives them again, within a tenant.

    >>> app.add_middleware(Cache, store=Redis(host="cache"), rules=CacheRules(ttl_s=600))       # doctest: +SKIP

    `price`: US dollars of a usage of a model, for what was saved.
    """

    phase: ClassVar[int] = 700
    order_reason: ClassVar[str] = "a hit must pass the same checks as any other answer"

    def __init__(
        self,
        app: ASGIApp,
        *,
        store: CacheStore | None = None,
        rules: CacheRules | None = None,
        semantic: Semantic | None = None,
        price: Callable[[str, Usage], float] | None = None,
        **options: Unpack[LayerOptions],
    ) -> None:
        super().__init__(app, **options)
        self.rules = rules or CacheRules()
        self.store = store or Memory()
        self.stats = Stats()
        self.shelf: Shelf | None = None
        self.writer: Writer | None = None
        #: Grows with every purge: what was asked for before one is not kept after it.
        self.epoch = 0
        self.planner = Planner(self.rules)
        self.semantic = semantic
        self.price: Callable[[str, Usage], float] = price or _no_price
        #: Answers that are on their way, by their keys.
        self.flights: dict[str, Flight] = {}
        self._refreshing: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._told_keyless = False

    # --- life

    async def start(self, runtime: Runtime) -> None:
        self.shelf = Shelf(self.store, runtime)
        await self.shelf.start()
        self.writer = None if self.store.instant else Writer(self.shelf, runtime)
        if self.semantic is not None:
            await self.semantic.start(runtime, self.shelf)

    async def aclose(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        async with AsyncExitStack() as stack:  # each is closed, whatever another raises; the last pushed is the first
            if self.shelf is not None:
                stack.push_async_callback(self.shelf.aclose)
            if self.writer is not None:
                stack.push_async_callback(self.writer.drain, _FLUSH_S)
            if self.semantic is not None:
                stack.push_async_callback(self.semantic.aclose)

    # --- a call

    async def on_request(self, call: Call) -> None:
        if call.api.name not in self.rules.apis:
            return
        use = call.cache = CacheUse()
        plan = self.planner.plan(call)
        if isinstance(plan, str):
            use.status, use.reason = "bypass", plan
            call.runtime.count("cache_bypassed", plan)
            mark(call, use)
            if plan == "no-tenant":
                self._tell_keyless()
        else:
            use.key = plan.key
            call.notes[Plan] = plan
            assert call.origin is not None
            if refreshed := call.origin[1].get(REFRESH_KEY):
                plan.key, plan.refresh = refreshed, True

    def _tell_keyless(self) -> None:
        if not self._told_keyless:
            self._told_keyless = True
            log.warning(
                "calls without an identity are not cached: put Authentication outside of Cache, say whose calls they "
                "are with CacheRules(tenant=...), or let all callers share answers with CacheRules(scope='global')"
            )

    async def around(self, call: Call, inner: Inner, send: Send) -> None:
        plan, use = call.notes.get(Plan), call.cache
        if not isinstance(plan, Plan) or use is None:
            await inner(send)
        else:
            await (Batches if plan.items else Answering)(self, call, plan, use).run(inner, send)

    # --- entries

    async def find(self, key: str, call: Call) -> Entry | None:
        """The entry of this key, if there is one that can be read."""
        assert self.shelf is not None
        raw = self.writer.get(key) if self.writer is not None else None
        if raw is None:
            raw = await self.shelf.get(key)
        return self.read(raw, call) if raw is not None else None

    def read(self, raw: bytes, call: Call) -> Entry | None:
        """The entry in these bytes; None, and counted, for what is none."""
        try:
            return decode(raw)
        except NoEntry as error:
            call.runtime.count("cache_errors", f"get {error.reason}")
            return None

    def fitness(self, entry: Entry, plan: Plan, call: Call) -> Fitness:
        """What the entry is good for, here and now."""
        age, limit = entry.age_s(call.runtime.wall()), plan.controls.max_age_s
        if entry.api != call.api.name or not fits(entry, call.api, call.request, stream=call.stream):
            return "no"
        if limit is not None and (limit == 0 or age > limit):
            return "no"
        if age < entry.fresh_s:
            return "fresh"
        if age < entry.fresh_s + entry.stale_s:
            return "stale"
        return "if-error" if age < entry.fresh_s + entry.if_error_s else "no"

    async def put_items(self, keys: Sequence[str], entries: Sequence[Entry]) -> None:
        """`put` for several."""
        for key, entry in zip(keys, entries, strict=True):
            await self.put(key, entry)

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """The bytes of these keys, also of what still waits to be written."""
        assert self.shelf is not None
        if self.writer is None:
            return await self.shelf.get_many(keys)
        found = [self.writer.get(key) for key in keys]
        missing = [key for key, raw in zip(keys, found, strict=True) if raw is None]
        fetched = dict(zip(missing, await self.shelf.get_many(missing) if missing else [], strict=True))
        return [raw if raw is not None else fetched[key] for key, raw in zip(keys, found, strict=True)]

    async def put(self, key: str, entry: Entry) -> None:
        """Store an entry: at once where that waits for nothing, else soon."""
        assert self.shelf is not None
        if entry.kept_s <= 0:
            return
        if self.writer is not None:
            self.writer.offer(key, entry.encode(), entry.kept_s)
        else:
            await self.shelf.put(key, entry.encode(), entry.kept_s)

    # --- afterwards

    def refresh(self, call: Call, plan: Plan) -> None:
        """Fetch a new answer in the background, as a call of its own through the whole stack; once per key."""
        key = plan.key
        if key in self._refreshing:
            return
        self._refreshing.add(key)
        task = asyncio.create_task(ask_again(call, key))
        self._tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._refreshing.discard(key)

        task.add_done_callback(done)

    def on_end_now(self, call: Call) -> None:
        if call.cache is not None:
            self.stats.note(call, call.cache)


def _no_price(model: str, usage: Usage) -> float:
    return 0.0
