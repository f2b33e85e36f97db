"""Finds requests that were asked before and are near to this one. It decides nothing.

A neighbour is looked for within one partition: same tenant, model, parameters, tools, policy and context; only the
words of the last turn may differ.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from tianji_mw.apis.base import JSON
from tianji_mw.breaker import Breaker
from tianji_mw.cache.embedders.base import Embedder, EmbeddingFailed
from tianji_mw.cache.indexes.base import IndexFailed, Match, Point, VectorIndex
from tianji_mw.cache.key import digest_of
from tianji_mw.cache.rules import Plan
from tianji_mw.cache.semantic.conversation import Question, question_of
from tianji_mw.cache.semantic.payload import Payload
from tianji_mw.cache.semantic.reuse import Meaning
from tianji_mw.cache.semantic.rules import SemanticRules
from tianji_mw.call import Call
from tianji_mw.errors import SetupError
from tianji_mw.runtime import Runtime

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger("tianji_mw.cache")

#: Where the words of a request stand; all the rest of it is in the partition.
_WORDS: Final = frozenset({"messages", "input", "prompt", "system", "instructions"})
APIS: Final = frozenset({"chat_completions", "messages", "responses", "completions"})
_FAILURES: Final = 3
_LEFT_ALONE_S: Final = 10.0


@dataclass(slots=True, kw_only=True, eq=False)
class Neighbour:
    """One request that was asked before, and is near."""

    id: str
    similarity: float
    payload: Payload
    _meaning: Meaning | None = None

    @property
    def meaning(self) -> Meaning:
        """What it says; read when it is needed: most neighbours are too far for it to matter."""
        if self._meaning is None:
            self._meaning = Meaning.decode(self.payload.meaning)
        return self._meaning


@dataclass(slots=True, kw_only=True, eq=False)
class Asked:
    """What a call asks, as far as it can be compared."""

    partition: str
    #: Whose thresholds hold for it.
    namespace: str
    question: Question
    meaning: Meaning
    #: None where it could not be embedded, or not as a whole.
    vector: NDArray[np.float32] | None = None
    #: The nearest first.
    neighbours: list[Neighbour] = field(default_factory=list)


class Search:
    """An embedder and an index, as the cache uses them: within a time limit, and never the reason why a call fails."""

    def __init__(self, embedder: Embedder, index: VectorIndex, rules: SemanticRules) -> None:
        self.embedder = embedder
        self.index = index
        self._rules = rules
        self._runtime: Runtime | None = None
        self._breaker = Breaker(_FAILURES, _LEFT_ALONE_S)
        #: The opening of the index, once the number of dimensions is known.
        self._open: asyncio.Task[None] | None = None

    async def start(self, runtime: Runtime) -> None:
        """Load the model, and open the index unless only a vector tells its dimensions. Raises SetupError."""
        self._runtime = runtime
        await self.embedder.start(runtime)
        if self.embedder.dims is not None:
            self._open = asyncio.create_task(self._opened(self.embedder.dims))
            await self._open

    async def aclose(self) -> None:
        """Let it all go."""
        opening, self._open = self._open, None
        if opening is not None:
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
        try:
            if opening is not None:
                await self.index.aclose()
        finally:
            await self.embedder.aclose()

    # --- what is compared

    def asked(self, call: Call, plan: Plan, prefix: str) -> Asked | str:
        """What a call asks, or why it is compared with nothing. `prefix`: how keys of its tenant and model begin."""
        reason = self._unfit(call)
        if reason:
            return reason
        question = question_of(call.api.name, call.request)
        if isinstance(question, str):
            return question
        rest = {name: value for name, value in plan.body.items() if name not in _WORDS}
        partition = prefix + digest_of([call.api.name, rest, dict(call.vary), question.context])[:32]
        day = datetime.fromtimestamp(call.runtime.wall(), UTC).date().isoformat()
        return Asked(partition=partition, namespace=prefix, question=question, meaning=Meaning.of(question, day))

    def _unfit(self, call: Call) -> str:
        rules, request = self._rules, call.request
        if call.api.name not in APIS:
            return "api"
        if request.get("n") not in (None, 1) or request.get("best_of") not in (None, 1):
            return "variety"
        temperature = request.get("temperature")
        if isinstance(temperature, int | float) and temperature >= rules.max_temperature:
            return "variety"
        if not rules.allow_tools and any(request.get(name) for name in ("tools", "functions", "web_search_options")):
            return "tools"
        if rules.max_messages is not None and _turns(request) > rules.max_messages:
            return "messages"
        return ""

    # --- looking

    async def look(self, asked: Asked) -> None:
        """Find the neighbours; none where that takes too long or fails, which is counted."""
        runtime = self._runtime
        assert runtime is not None
        if not self._breaker.allows(runtime.clock()):
            runtime.count("semantic_errors", "left-alone")
            return
        try:
            async with asyncio.timeout(self._rules.within_s):
                await self._embed(asked)
                if asked.vector is not None:
                    found = await self.index.search(asked.partition, asked.vector, self._rules.neighbours)
                    asked.neighbours = [near for match in found if (near := _neighbour(match)) is not None]
        except TimeoutError:
            self._failed("timeout", f"it took longer than {self._rules.within_s:g} s")
        except (EmbeddingFailed, IndexFailed, SetupError) as error:
            self._failed("embed" if isinstance(error, EmbeddingFailed) else "index", error.message)
        except Exception as error:  # plugin failsafe: a cache never fails a call, whatever its parts raise
            log.exception("the semantic cache raised")
            self._failed(type(error).__name__, f"it raised {type(error).__name__}")
        else:
            self._breaker.succeeded()
            runtime.report("semantic cache", "")

    async def _embed(self, asked: Asked) -> None:
        found = await self.embedder.embed([asked.question.text])
        if found.truncated[0]:
            assert self._runtime is not None
            self._runtime.count("semantic_bypassed", "truncated")
            return
        if self._open is None or (self._open.done() and self._open.exception() is not None):
            self._open = asyncio.create_task(self._opened(int(found.vectors.shape[1])))
        await asyncio.shield(self._open)
        asked.vector = found.vectors[0]

    async def _opened(self, dims: int) -> None:
        assert self._runtime is not None
        await self.index.start(self._runtime, model_id=self.embedder.model_id, dims=dims)

    def _failed(self, kind: str, message: str) -> None:
        runtime = self._runtime
        assert runtime is not None
        runtime.count("semantic_errors", kind)
        was_open = self._breaker.open
        self._breaker.failed(runtime.clock())
        if self._breaker.open and not was_open:
            log.warning("semantic cache: %s; calls go on without it", message)
        runtime.report("semantic cache", message)

    # --- keeping

    async def add(self, asked: Asked, key: str, answer: str, ttl_s: float) -> None:
        """Keep what was asked, and where its answer lies. A failure is counted."""
        if asked.vector is None:
            return
        payload = Payload(key, answer, asked.meaning.encode())
        point = Point(asked.partition, key.rpartition(":")[2], asked.vector, payload.encode(), ttl_s)
        try:
            await self.index.add([point])
        except IndexFailed as error:
            self._failed("index", error.message)

    async def forget(self, partition: str, ids: list[str]) -> None:
        """Forget points whose answer is gone. A failure is counted."""
        try:
            await self.index.delete(partition, ids)
        except IndexFailed as error:
            self._failed("index", error.message)

    async def report(self) -> dict[str, Any]:
        """Figures of both."""
        index: dict[str, Any] = {}
        if self._open is not None and self._open.done():
            try:
                index = await self.index.report()
            except IndexFailed as error:
                index = {"error": error.message}
        return {
            "embedder": await self.embedder.report(),
            "index": index,
            "left_alone": self._breaker.open,
        }


def _neighbour(match: Match) -> Neighbour | None:
    payload = Payload.decode(match.payload)
    return Neighbour(id=match.id, similarity=match.similarity, payload=payload) if payload is not None else None


def _turns(request: Any) -> int:
    for name in ("messages", "input"):
        listed: JSON = request.get(name)
        if isinstance(listed, list):
            return len(listed)
    return 1
