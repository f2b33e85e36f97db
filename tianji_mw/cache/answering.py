"""One call and the cache: given an answer that is there, or one that is on its way, or asking for all who wait.

What is asked twice at the same time is asked upstream once (`flight.py`). What an answer leaves behind is made here
too: the entry, and what the semantic part learns from it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from tianji_mw.apis.base import JSON, Usage
from tianji_mw.cache.entry import Entry
from tianji_mw.cache.flight import Flight
from tianji_mw.cache.headers import mark
from tianji_mw.cache.replay import fits, give, rendered
from tianji_mw.cache.rules import Plan
from tianji_mw.cache.storable import whole, worth_keeping
from tianji_mw.tags import tags_of

if TYPE_CHECKING:
    from starlette.types import Send

    from tianji_mw.cache.middleware import Cache
    from tianji_mw.cache.semantic.layer import Looked
    from tianji_mw.call import Call
    from tianji_mw.driver import Inner
    from tianji_mw.facts import CacheUse


class Answering:
    """A call that uses the cache."""

    __slots__ = ("cache", "call", "plan", "use")

    def __init__(self, cache: Cache, call: Call, plan: Plan, use: CacheUse) -> None:
        self.cache = cache
        self.call = call
        self.plan = plan
        self.use = use

    async def run(self, inner: Inner, send: Send) -> None:
        """Answer the call."""
        cache, call, plan = self.cache, self.call, self.plan
        spare: Entry | None = None
        if plan.controls.read and not plan.refresh:
            entry = await cache.find(plan.key, call)
            fitness = cache.fitness(entry, plan, call) if entry is not None else "no"
            if entry is not None and fitness in ("fresh", "stale"):
                if fitness == "stale" and plan.controls.write:
                    cache.refresh(call, plan)
                await self.give(entry, send, "hit" if fitness == "fresh" else "stale")
                return
            spare = entry if fitness == "if-error" else None
            if plan.controls.write and await self.followed(send):
                return
        await self.lead(inner, send, spare)

    async def give(self, entry: Entry, send: Send, status: Literal["hit", "stale"], *, shared: bool = False) -> None:
        """Answer with an entry, in the form that is asked for."""
        call, use = self.call, self.use
        use.status, use.shared, use.age_s = status, shared, entry.age_s(call.runtime.wall())
        self.saved(entry.usage)
        call.usage = entry.usage
        mark(call, use)
        await give(rendered(entry, call.api, call.request, stream=call.stream and call.api.streams), send)

    def saved(self, usage: Usage) -> None:
        """Note what no provider had to do."""
        self.use.saved_tokens += usage.input_tokens + usage.output_tokens
        self.use.saved_cost += self.cache.price(self.call.model, usage)

    # --- together

    async def followed(self, send: Send) -> bool:
        """Answer with what another call is being answered with at this moment; False where there is none."""
        call, use, flights, key = self.call, self.use, self.cache.flights, self.plan.key
        while (flight := flights.get(key)) is not None and flight.joinable:
            use.status, use.shared = "hit", True
            mark(call, use)
            if await flight.follow(call, send, live=call.stream and call.api.streams):
                call.usage = replace(flight.leader.usage)
                self.saved(call.usage)
                return True
            if flight.entry is not None and fits(flight.entry, call.api, call.request, stream=call.stream):
                if flight.leader.cache is not None:
                    use.kind = flight.leader.cache.kind
                await self.give(flight.entry, send, "stale" if flight.held else "hit", shared=True)
                return True
            if flights.get(key) is flight:
                break
        use.status, use.shared = "miss", False
        return False

    async def lead(self, inner: Inner, send: Send, spare: Entry | None) -> None:
        """Ask, for this call and for all who ask the same meanwhile; `spare` is given where there is no answer."""
        cache, call, controls, key = self.cache, self.call, self.plan.controls, self.plan.key
        flight = Flight(call, send, cache.rules.max_item_bytes, hold_errors=spare is not None)
        epoch = cache.epoch
        together = controls.write and controls.read and key not in cache.flights
        if together:
            cache.flights[key] = flight
        try:
            looked = await self._looked()
            if looked is not None and looked.entry is not None:
                flight.entry = looked.entry
                self.use.kind = "semantic"
                await self.give(looked.entry, send, "hit")
                return
            mark(call, self.use)
            await inner(flight.take)
            if flight.held:
                flight.entry = spare
            elif flight.good and flight.joinable:
                await self._keep(flight, looked, fresh=epoch == cache.epoch)
        finally:
            flight.end()
            if together and cache.flights.get(key) is flight:
                del cache.flights[key]
        if flight.held and spare is not None and not call.gone:
            call.runtime.count("cache_stale_if_error", call.api.name)
            call.error = None
            await self.give(spare, send, "stale")

    async def _looked(self) -> Looked | None:
        """An answer to other words, if there may be one."""
        cache, call, plan = self.cache, self.call, self.plan
        if cache.semantic is None or plan.items or plan.refresh or not plan.controls.read:
            return None
        prefix = cache.planner.keys.prefix(plan.tenant, plan.controls.namespace, call.model)
        looked = await cache.semantic.look(call, plan, prefix, cache)
        if looked is None:
            return None
        self.use.similarity = looked.asked.neighbours[0].similarity if looked.asked.neighbours else 0.0
        if looked.entry is not None and cache.fitness(looked.entry, plan, call) != "fresh":
            looked.entry = None
        return looked

    # --- what an answer leaves behind

    async def _keep(self, flight: Flight, looked: Looked | None, *, fresh: bool) -> None:
        """Make an entry of the answer, and store it if it may be given again."""
        cache, call = self.cache, self.call
        api = call.api
        if flight.form == "opaque":
            return
        answer = whole(api, flight.body, flight.form)
        worth = worth_keeping(api, call.request, answer)
        if not worth:
            call.runtime.count("cache_not_kept", api.name)
        if not worth and not call.followers:
            return
        usage = call.usage if call.usage.source != "none" else api.usage(answer) or call.usage
        made = self.made(flight.body, replace(usage))
        entry = flight.entry = replace(made, form=flight.form, content_type=flight.content_type)
        if not (worth and fresh and self.plan.controls.write):
            return
        await self.store(entry, answer)
        seen = api.see_whole(answer)
        # What calls a tool acts: it is given again to the same words alone.
        if looked is not None and cache.semantic is not None and seen.kind == "text":
            cache.semantic.keep(call, looked, self.plan.key, entry, seen.text, cache)

    async def store(self, entry: Entry, answer: JSON) -> None:
        """Put the entry where it is found again."""
        await self.cache.put(self.plan.key, entry)

    def made(self, body: bytes, usage: Usage) -> Entry:
        """A plain answer to this call as an entry."""
        call, rules, ttl = self.call, self.cache.rules, self.plan.controls.ttl_s
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
            tags=tuple(tags_of(call)),
        )
