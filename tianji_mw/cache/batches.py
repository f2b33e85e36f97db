"""Embeddings, item by item: of a batch only the texts that nobody has asked for yet go upstream.

An entry holds one item: `{"embedding", "object", "model"}`. A batch's usage is spread evenly over its items, as the
API tells one sum for all. Where the provider answers with another number of items, nothing is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import orjson

from tianji_mw.apis.base import JSON, Usage
from tianji_mw.cache.answering import Answering
from tianji_mw.cache.entry import Entry
from tianji_mw.cache.flight import Flight
from tianji_mw.cache.headers import mark
from tianji_mw.cache.replay import give
from tianji_mw.cache.rules import items_of
from tianji_mw.errors import UpstreamMalformed
from tianji_mw.taps import send_error

if TYPE_CHECKING:
    from starlette.types import Message, Send

    from tianji_mw.driver import Inner

_JSON: Final = b"application/json"


class Batches(Answering):
    """One call for embeddings."""

    __slots__ = ()

    async def run(self, inner: Inner, send: Send) -> None:
        """Answer the call."""
        known = await self._known()
        missing = [at for at, entry in enumerate(known) if entry is None]
        if not missing:
            await self._answer([entry for entry in known if entry is not None], send)
        elif len(missing) == len(known):
            if not await self.followed(send):
                await self.lead(inner, send, None)
        else:
            await self._fill(known, missing, inner, send)

    async def _known(self) -> list[Entry | None]:
        """The entries there are, in the order of the items."""
        cache, call, plan = self.cache, self.call, self.plan
        if not plan.controls.read or plan.refresh:
            return [None] * len(plan.items)
        raws = await cache.get_many(plan.items)
        found = [cache.read(raw, call) if raw is not None else None for raw in raws]
        return [entry if entry is not None and cache.fitness(entry, plan, call) == "fresh" else None for entry in found]

    async def _answer(self, entries: Sequence[Entry], send: Send) -> None:
        call, use = self.call, self.use
        use.status = "hit"
        use.age_s = max(entry.age_s(call.runtime.wall()) for entry in entries)
        call.usage = _sum(entries)
        self.saved(call.usage)
        mark(call, use)
        await give(self._whole([orjson.loads(entry.body) for entry in entries], call.usage), send)

    async def _fill(self, known: list[Entry | None], missing: list[int], inner: Inner, send: Send) -> None:
        """Ask for the missing items alone, and put the answer together."""
        cache, call, plan = self.cache, self.call, self.plan
        use = self.use
        hits = [entry for entry in known if entry is not None]
        use.status, use.reason = "partial", f"hits-{len(hits)}-misses-{len(missing)}"
        self.saved(_sum(hits))
        mark(call, use)
        asked = items_of(call.request["input"])
        call.edit()["input"] = [asked[at] for at in missing]
        epoch = cache.epoch
        held = _Held()
        flight = Flight(call, held, call.limits.max_answer_bytes)
        await inner(flight.take)
        flight.end()
        call.edit()["input"] = asked  # as the record has to show it
        if not flight.good:
            await held.release(send)
            return
        answer = _parsed(flight.body)
        made = self.items(answer, len(missing))
        if made is None:
            error = UpstreamMalformed("The provider sent another number of embeddings than were asked for.")
            call.fail(error)
            await send_error(call, send, error)
            return
        if plan.controls.write and epoch == cache.epoch:
            await cache.put_items([plan.items[at] for at in missing], made)
        new = iter(made)
        both = [entry if entry is not None else next(new) for entry in known]
        # What was asked for and what was known already: the client is told of the whole.
        await give(self._whole([orjson.loads(entry.body) for entry in both], _sum(both), answer), send)

    async def store(self, entry: Entry, answer: JSON) -> None:
        items = self.items(answer, len(self.plan.items))
        if items is None:
            self.call.runtime.count("cache_not_kept", self.call.api.name)
        else:
            await self.cache.put_items(self.plan.items, items)

    def items(self, answer: JSON, count: int) -> list[Entry] | None:
        """The entries of an answer to so many items; None where it has not as many."""
        call = self.call
        listed = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(listed, list) or len(listed) != count:
            return None
        in_order: dict[int, JSON] = {}
        for at, item in enumerate(listed):
            if not isinstance(item, dict) or "embedding" not in item:
                return None
            index = item.get("index", at)
            in_order[index if isinstance(index, int) else at] = item["embedding"]
        if in_order.keys() != set(range(count)):
            return None
        share, rest = divmod(call.usage.input_tokens, count)
        return [
            self.made(
                orjson.dumps({"embedding": in_order[at], "model": answer.get("model") or call.model}),
                Usage(share + (at < rest), source=call.usage.source),
            )
            for at in range(count)
        ]

    def _whole(self, items: Sequence[JSON], usage: Usage, answer: JSON = None) -> Entry:
        """The answer to the client."""
        data = [{"object": "embedding", "index": at, "embedding": item["embedding"]} for at, item in enumerate(items)]
        told = {"prompt_tokens": usage.input_tokens, "total_tokens": usage.input_tokens}
        first: JSON = {"object": "list", "model": items[0]["model"]}
        if isinstance(answer, dict):
            first = {key: value for key, value in answer.items() if key not in ("data", "usage")}
        body = orjson.dumps({**first, "data": data, "usage": told})
        return self.made(body, usage)


class _Held:
    """Keeps the messages of an answer back."""

    __slots__ = ("_messages",)

    def __init__(self) -> None:
        self._messages: list[Message] = []

    async def __call__(self, message: Message) -> None:
        self._messages.append(message)

    async def release(self, send: Send) -> None:
        """Send them after all."""
        for message in self._messages:
            await send(message)


def _parsed(body: bytes) -> JSON:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def _sum(entries: Sequence[Entry]) -> Usage:
    tokens = sum(entry.usage.input_tokens for entry in entries)
    counted = all(entry.usage.source != "none" for entry in entries)
    return Usage(tokens, source="provider" if counted else "none")
