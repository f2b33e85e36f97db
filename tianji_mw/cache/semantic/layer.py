"""The semantic part of a cache: gives an answer to other words, or learns from the provider's what it would be worth.

It never holds a call up for longer than its time limit, and never changes what a provider says. What is verified is
verified in the background, after the client has its answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from tianji_mw.cache.embedders.base import Embedder, EmbeddingFailed
from tianji_mw.cache.entry import Entry
from tianji_mw.cache.indexes.base import VectorIndex
from tianji_mw.cache.rules import Plan
from tianji_mw.cache.semantic.equivalence import same_answer
from tianji_mw.cache.semantic.learned import Learned
from tianji_mw.cache.semantic.reuse import Rule
from tianji_mw.cache.semantic.rules import SemanticRules
from tianji_mw.cache.semantic.search import Asked, Neighbour, Search
from tianji_mw.cache.semantic.thresholds import Choice, Chooser, Fixed, agreeing
from tianji_mw.cache.storable import whole
from tianji_mw.call import Call
from tianji_mw.runtime import Runtime

if TYPE_CHECKING:
    from tianji_mw.cache.shelf import Shelf

log = logging.getLogger("tianji_mw.cache")

#: Namespaces whose thresholds are held in memory.
_MOST_NAMESPACES: Final = 1000
#: Answers that may wait to be verified; further ones are not, and counted.
_MOST_WAITING: Final = 200
#: Observations after which what was learned is written down.
_SAVE_EVERY: Final = 25
_STATE_S: Final = 90 * 86_400.0


class Entries(Protocol):
    """Where answers are read: the cache."""

    async def find(self, key: str, call: Call) -> Entry | None: ...


@dataclass(slots=True, kw_only=True, eq=False)
class Looked:
    """What looking for a neighbour has brought for one call."""

    asked: Asked
    choice: Choice
    #: Of what is given.
    entry: Entry | None = None


@dataclass(slots=True)
class Shadow:
    """What was seen of answers that could have been given, and were verified instead."""

    would_hit: int = 0
    verified: int = 0
    wrong: int = 0
    calls: int = 0


class Semantic:
    """Answers to requests that mean the same.

    >>> Semantic(embedder=Local(), index=Embedded(), rules=SemanticRules(mode="shadow"))        # doctest: +SKIP
    """

    def __init__(self, *, embedder: Embedder, index: VectorIndex, rules: SemanticRules | None = None) -> None:
        self.rules = rules or SemanticRules()
        self.search = Search(embedder, index, self.rules)
        self.shadow = Shadow()
        self._choosers: OrderedDict[str, Chooser] = OrderedDict()
        self._unsaved: dict[str, int] = {}
        self._shelf: Shelf | None = None
        self._runtime: Runtime | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, runtime: Runtime, shelf: Shelf) -> None:
        """Load the model. Raises SetupError."""
        self._runtime, self._shelf = runtime, shelf
        await self.search.start(runtime)

    async def aclose(self) -> None:
        """Write down what was learned, and let everything go."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            for namespace in [name for name, count in self._unsaved.items() if count]:
                await self._save(namespace)
        finally:
            await self.search.aclose()

    # --- before the provider is asked

    async def look(self, call: Call, plan: Plan, prefix: str, entries: Entries) -> Looked | None:
        """Look for an answer; None for a call that is compared with nothing. `entry` is there when one is given."""
        try:
            return await self._look(call, plan, prefix, entries)
        except Exception:  # plugin failsafe: a cache never fails a call
            call.runtime.count("semantic_errors", "look")
            log.exception("call %s: looking for other words failed", call.id)
            return None

    async def _look(self, call: Call, plan: Plan, prefix: str, entries: Entries) -> Looked | None:
        asked = self.search.asked(call, plan, prefix)
        if isinstance(asked, str):
            call.runtime.count("semantic_bypassed", asked)
            return None
        await self.search.look(asked)
        if asked.vector is None:
            return None
        chooser = await self._chooser(asked.namespace)
        choice = chooser.choose(asked, call.runtime.rng)
        looked = Looked(asked=asked, choice=choice)
        self.shadow.calls += 1
        near = choice.neighbour
        if near is None:
            return looked
        if self.rules.mode == "shadow" or choice.explore:
            self.shadow.would_hit += 1
            return looked
        looked.entry = await entries.find(near.payload.key, call)
        if looked.entry is None:  # it has expired, or was purged
            await self.search.forget(asked.partition, [near.id])
        return looked

    # --- after the provider has answered

    def keep(self, call: Call, looked: Looked, key: str, entry: Entry, text: str, entries: Entries) -> None:
        """Verify what could have been given, learn from it, and keep the new answer: in the background."""
        if len(self._tasks) >= _MOST_WAITING:
            call.runtime.count("semantic_errors", "too many to verify")
            return
        task = asyncio.create_task(self._kept(call, looked, key, entry, text, entries))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _kept(self, call: Call, looked: Looked, key: str, entry: Entry, text: str, entries: Entries) -> None:
        asked, own = looked.asked, key.rpartition(":")[2]
        answer = own
        try:
            near = self._to_verify(looked, call)
            if near is not None:
                same = await self._same(near, text, call, entries)
                if same is not None:
                    answer = near.payload.answer if same else own
                    self._note(looked, same=same)
                    await self._learn(asked, answer, explored=looked.choice.neighbour is not None)
            await self.search.add(asked, key, answer, entry.kept_s)
        except Exception:  # plugin failsafe: nobody waits for this, and the call has long been answered
            call.runtime.count("semantic_errors", "verify")
            log.exception("call %s: its answer could not be kept for other words", call.id)

    def _to_verify(self, looked: Looked, call: Call) -> Neighbour | None:
        """The neighbour whose answer is compared with the real one: what could have been given, or the nearest."""
        if looked.choice.neighbour is not None:
            return looked.choice.neighbour
        found = agreeing(looked.asked, lexical=self.rules.lexical)
        return found[0] if found and call.runtime.rng.random() < self.rules.verify else None

    async def _same(self, near: Neighbour, text: str, call: Call, entries: Entries) -> bool | None:
        cached = await entries.find(near.payload.key, call)
        if cached is None:
            return None
        told = call.api.see_whole(whole(call.api, cached.body, cached.form)).text
        try:
            return await same_answer(told, text, self.search.embedder)
        except EmbeddingFailed:
            call.runtime.count("semantic_errors", "embed")
            return None

    def _note(self, looked: Looked, *, same: bool) -> None:
        if looked.choice.neighbour is not None:
            self.shadow.verified += 1
            self.shadow.wrong += not same

    # --- what was learned

    async def _chooser(self, namespace: str) -> Chooser:
        chooser = self._choosers.get(namespace)
        if chooser is None:
            made = await self._made(namespace)
            # Another call may have made one meanwhile: it has what was decided since.
            chooser = self._choosers.setdefault(namespace, made)
            while len(self._choosers) > _MOST_NAMESPACES:
                oldest = next(iter(self._choosers))
                await self._save(oldest)
                self._choosers.pop(oldest, None)
        self._choosers.move_to_end(namespace)
        return chooser

    async def _made(self, namespace: str) -> Chooser:
        rules = self.rules
        if rules.similarity_threshold is not None:
            return Fixed(Rule.at(rules.similarity_threshold, lexical=rules.lexical))
        assert self._shelf is not None
        return await Learned.of(rules, await self._shelf.get(_state_key(namespace)))

    async def _learn(self, asked: Asked, answer: str, *, explored: bool) -> None:
        chooser = await self._chooser(asked.namespace)
        await chooser.learn(asked, answer, explored=explored)
        count = self._unsaved[asked.namespace] = self._unsaved.get(asked.namespace, 0) + 1
        if count >= _SAVE_EVERY:
            await self._save(asked.namespace)

    async def _save(self, namespace: str) -> None:
        chooser = self._choosers.get(namespace)
        if isinstance(chooser, Learned) and self._unsaved.pop(namespace, 0) and self._shelf is not None:
            await self._shelf.put(_state_key(namespace), await chooser.to_bytes(), _STATE_S)

    # --- for people

    async def purge(self, prefix: str) -> int:
        """Forget every point of the partitions that begin so."""
        return await self.search.index.purge(prefix)

    async def report(self) -> dict[str, Any]:
        """What was seen, what was learned, and the embedder and index."""
        seen = self.shadow
        return {
            "mode": self.rules.mode,
            "calls": seen.calls,
            "would_hit": seen.would_hit,
            "verified": seen.verified,
            "wrong": seen.wrong,
            "error_at_most": round(error_bound(seen.wrong, seen.verified), 4),
            "namespaces": {name: chooser.report() for name, chooser in list(self._choosers.items())[-20:]},
            **await self.search.report(),
        }


def _state_key(namespace: str) -> str:
    return f"{namespace}learned"


def error_bound(wrong: int, seen: int, confidence: float = 0.95) -> float:
    """The one-sided Clopper-Pearson bound: the share of wrong ones is not above it, with this confidence; 1 for none.

    Source: Clopper and Pearson, Biometrika 26 (1934), by bisection on the binomial distribution.
    """
    if seen == 0 or wrong >= seen:
        return 1.0
    low, high = wrong / seen, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if _at_most(wrong, seen, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def _at_most(wrong: int, seen: int, share: float) -> float:
    """The probability of so many or fewer in a binomial distribution."""
    term = total = (1 - share) ** seen
    if term == 0.0:
        return 0.0
    for k in range(wrong):
        term *= (seen - k) / (k + 1) * share / (1 - share)
        total += term
    return total
