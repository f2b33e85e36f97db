"""An embedder whose vectors tests choose, and a cached gateway with a semantic part."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import PrivateAttr

from tests.support.cached import Cached
from tianji_mw.cache.embedders.base import Embedder, EmbeddingFailed, Embeddings
from tianji_mw.cache.indexes.embedded import Embedded
from tianji_mw.cache.semantic.layer import Semantic
from tianji_mw.cache.semantic.rules import SemanticRules
from tianji_mw.testing import FakeLLM

DIMS = 1024


class Words(Embedder):
    """A text's vector is made of its words: texts with the same words are equal, others are as near as they share."""

    delay_s: float = 0.0
    fails: bool = False
    truncates: bool = False
    _texts: list[str] = PrivateAttr(default_factory=list)

    @property
    def model_id(self) -> str:
        return "words@1"

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        self._texts += texts
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.fails:
            raise EmbeddingFailed("the model is away")
        rows = np.array([self._vector(text) for text in texts], np.float32)
        return Embeddings(rows, [self.truncates] * len(texts))

    def _vector(self, text: str) -> Any:
        found = np.full(DIMS, 1e-3)
        for word in text.lower().replace("?", "").split():
            found[zlib.crc32(word.encode()) % DIMS] += 1
        return found / np.linalg.norm(found)


def semantic(llm: FakeLLM, *, embedder: Embedder | None = None, keys: bool = False, **rules: Any) -> Cached:
    """A cached gateway; without a threshold it learns."""
    given = SemanticRules(**{"within_s": 5.0, **rules})
    part = Semantic(embedder=embedder or Words(), index=Embedded(), rules=given)
    return Cached(llm, keys=keys, semantic=part)


async def settled(gateway: Cached) -> None:
    """When what runs in the background is done."""
    part = gateway.cache.semantic
    assert part is not None
    while part._tasks:
        await asyncio.sleep(0.005)
