"""`Cache`: answers a request that was answered before, and asks for equal ones at the same time only once.

It stands inside of the guardrails, which check the request before it is looked up and the answer wherever it comes
from, and outside of routing. A cache never fails a call: what goes wrong in it is a miss, and counted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Final, Literal, Unpack

from tianji_mw.apis.base import JSON, Usage
from tianji_mw.cache.base import CacheStore
from tianji_mw.cache.batches import Batches
from tianji_mw.cache.entry import Entry, NoEntry, decode
from tianji_mw.cache.flight import Flight
from tianji_mw.cache.headers import mark
from tianji_mw.cache.memory import Memory
from tianji_mw.cache.refresh import REFRESH_KEY, refresh
from tianji_mw.cache.replay import fits, give, rendered
from tianji_mw.cache.rules import CacheRules, Plan, Planner
from tianji_mw.cache.shelf import Shelf
from tianji_mw.cache.stats import Stats
from tianji_mw.cache.storable import whole, worth_keeping
from tianji_mw.cache.writer import Writer
from tianji_mw.call import Call
from tianji_mw.driver import Inner, LayerOptions, LLMMiddleware
from tianji_mw.facts import CacheUse
from tianji_mw.runtime import Runtime

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Send

    from tianji_mw.cache.semantic.layer import Looked, Semantic

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
        self._price = price
        self._flights: dict[str, Flight] = {}
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
        plan = call.notes.get(Plan)
        if not isinstance(plan, Plan):
            await inner(send)
        elif plan.items:
            await Batches(self, call, plan).run(inner, send)
        else:
            await self._answer(call, plan, inner, send)

    async def _answer(self, call: Call, plan: Plan, inner: Inner, send: Send) -> None:
        spare: Entry | None = None
        if plan.controls.read and not plan.refresh:
            entry = await self.find(plan.key, call)
            fitness = self.fitness(entry, plan, call) if entry is not None else "no"
            if entry is not None and fitness in ("fresh", "stale"):
                if fitness == "stale" and plan.controls.write:
                    self._refresh(call, plan)
                await self._give(call, entry, send, "hit" if fitness == "fresh" else "stale")
                return
            spare = entry if fitness == "if-error" else None
            if plan.controls.write and await self.followed(call, plan, send):
                return
        await self.lead(call, plan, inner, send, spare)

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

    async def _give(
        self, call: Call, entry: Entry, send: Send, status: Literal["hit", "stale"], *, shared: bool = False
    ) -> None:
        use = call.cache
        assert use is not None
        use.status, use.shared, use.age_s = status, shared, entry.age_s(call.runtime.wall())
        self.saved(call, use, entry.usage)
        call.usage = entry.usage
        mark(call, use)
        await give(rendered(entry, call.api, call.request, stream=call.stream and call.api.streams), send)

    def saved(self, call: Call, use: CacheUse, usage: Usage) -> None:
        """Note what no provider had to do."""
        use.saved_tokens += usage.input_tokens + usage.output_tokens
        if self._price is not None:
            use.saved_cost += self._price(call.model, usage)

    # --- together

    async def followed(self, call: Call, plan: Plan, send: Send) -> bool:
        """Answer with what another call is being answered with at this moment; False where there is none."""
        use = call.cache
        assert use is not None
        while (flight := self._flights.get(plan.key)) is not None and flight.joinable:
            use.status, use.shared = "hit", True
            mark(call, use)
            if await flight.follow(call, send, live=call.stream and call.api.streams):
                call.usage = replace(flight.leader.usage)
                self.saved(call, use, call.usage)
                return True
            if flight.entry is not None and fits(flight.entry, call.api, call.request, stream=call.stream):
                await self._give(call, flight.entry, send, "stale" if flight.held else "hit", shared=True)
                return True
            if self._flights.get(plan.key) is flight:
                break
        use.status, use.shared = "miss", False
        return False

    async def lead(self, call: Call, plan: Plan, inner: Inner, send: Send, spare: Entry | None) -> None:
        """Ask, for this call and for all who ask the same meanwhile; `spare` is given where there is no answer."""
        use = call.cache
        assert use is not None
        flight = Flight(call, send, self.rules.max_item_bytes, hold_errors=spare is not None)
        epoch, key = self.epoch, plan.key
        together = plan.controls.write and plan.controls.read and key not in self._flights
        if together:
            self._flights[key] = flight
        try:
            looked = await self._looked(call, plan)
            if looked is not None and looked.entry is not None:
                flight.entry = looked.entry
                use.kind = "semantic"
                await self._give(call, looked.entry, send, "hit")
                return
            mark(call, use)
            await inner(flight.take)
            if flight.held:
                flight.entry = spare
            elif flight.good and flight.joinable:
                await self._keep(call, plan, flight, looked, fresh=epoch == self.epoch)
        finally:
            flight.end()
            if together and self._flights.get(key) is flight:
                del self._flights[key]
        if flight.held and spare is not None and not call.gone:
            call.runtime.count("cache_stale_if_error", call.api.name)
            call.error = None
            await self._give(call, spare, send, "stale")

    async def _looked(self, call: Call, plan: Plan) -> Looked | None:
        """An answer to other words, if there may be one."""
        if self.semantic is None or plan.items or plan.refresh or not plan.controls.read:
            return None
        use = call.cache
        assert use is not None
        prefix = self.planner.keys.prefix(plan.tenant, plan.controls.namespace, call.model)
        looked = await self.semantic.look(call, plan, prefix, self)
        if looked is None:
            return None
        use.similarity = looked.asked.neighbours[0].similarity if looked.asked.neighbours else 0.0
        if looked.entry is not None and self.fitness(looked.entry, plan, call) != "fresh":
            looked.entry = None
        return looked

    async def _keep(self, call: Call, plan: Plan, flight: Flight, looked: Looked | None, *, fresh: bool) -> None:
        """Make an entry of the answer, and store it if it may be given again."""
        api = call.api
        if flight.form == "opaque":
            return
        answer = whole(api, flight.body, flight.form)
        worth = worth_keeping(api, call.request, answer)
        if not worth:
            call.runtime.count("cache_not_kept", api.name)
        if worth or call.followers:
            usage = call.usage if call.usage.source != "none" else api.usage(answer) or call.usage
            made = self.made(call, plan, body=flight.body, usage=replace(usage))
            entry = flight.entry = replace(made, form=flight.form, content_type=flight.content_type)
            if worth and fresh and plan.controls.write:
                await self._store(call, plan, entry, answer)
                seen = api.see_whole(answer)
                # What calls a tool acts: it is given again to the same words alone.
                if looked is not None and self.semantic is not None and seen.kind == "text":
                    self.semantic.keep(call, looked, plan.key, entry, seen.text, self)

    async def _store(self, call: Call, plan: Plan, entry: Entry, answer: JSON) -> None:
        if not plan.items:
            await self.put(plan.key, entry)
        elif (items := Batches(self, call, plan).items(answer, len(plan.items))) is not None:
            await self.put_items(plan.items, items)
        else:
            call.runtime.count("cache_not_kept", call.api.name)

    def made(self, call: Call, plan: Plan, *, body: bytes, usage: Usage) -> Entry:
        """A plain answer to this call as an entry."""
        rules, ttl = self.rules, plan.controls.ttl_s
        return Entry(
            body=body,
            form="whole",
            content_type=b"application/json",
            api=call.api.name,
            model=call.model,
            created=call.runtime.wall(),
            fresh_s=rules.ttl_s if ttl is None else ttl,
            stale_s=rules.stale_while_revalidate_s,
            if_error_s=rules.stale_if_error_s,
            usage=usage,
            tags=call.identity.tags if call.identity is not None else (),
        )

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

    def _refresh(self, call: Call, plan: Plan) -> None:
        """Fetch a new answer in the background, as a call of its own through the whole stack; once per key."""
        key = plan.key
        if key in self._refreshing:
            return
        self._refreshing.add(key)
        task = asyncio.create_task(refresh(call, key))
        self._tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._refreshing.discard(key)

        task.add_done_callback(done)

    def on_end_now(self, call: Call) -> None:
        if call.cache is not None:
            self.stats.note(call, call.cache)
