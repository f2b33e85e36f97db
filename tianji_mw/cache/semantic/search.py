"""Finds an answer to a request that means the same, and learns how far that may go.

A neighbour is looked for within one partition: same tenant, model, parameters, tools, policy and context; only the
words of the last turn may differ. What is found is given when it is near enough, and nothing in the words speaks
against it. Where it is not given, the provider's answer shows what it would have been worth.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tianji_mw.cache.embedders.base import Embedder
from tianji_mw.cache.indexes.base import VectorIndex
from tianji_mw.cache.semantic.agreement import Signature
from tianji_mw.cache.semantic.conversation import Question
from tianji_mw.cache.semantic.payload import Payload
from tianji_mw.cache.semantic.rules import SemanticRules
from tianji_mw.runtime import Runtime

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger("tianji_mw.cache")

#: Where the words of a request stand, and so what the partition leaves out.
_WORDS: Final = frozenset({"messages", "input", "prompt", "system", "instructions"})
APIS: Final = frozenset({"chat_completions", "messages", "responses", "completions"})


@dataclass(slots=True, kw_only=True, eq=False)
class Neighbour:
    """One request that was asked before, and is near."""

    id: str
    similarity: float
    payload: Payload
    #: What speaks against its answer; empty when nothing does.
    against: str = ""


@dataclass(slots=True, kw_only=True, eq=False)
class Asked:
    """What a call asks, as far as it can be compared."""

    partition: str
    #: Whose thresholds hold for it.
    namespace: str
    question: Question
    signature: Signature
    vector: NDArray[np.float32] | None = None
    neighbours: list[Neighbour] = field(default_factory=list)


class Search:
    """Looks for neighbours; decides nothing."""

    def __init__(self, embedder: Embedder, index: VectorIndex, rules: SemanticRules) -> None:
        self.embedder = embedder
        self.index = index
        self.rules = rules
        self._runtime: Runtime | None = None
        self._opening: asyncio.Task[None] | None = None

    async def start(self, runtime: Runtime) -> None:
        """Load the model."""
        self._runtime = runtime
        await self.embedder.start(runtime)

    async def aclose(self) -> None:
        """Let it all go."""
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
            self._opening = None
        try:
            await self.index.aclose()
        finally:
            await self.embedder.aclose()
