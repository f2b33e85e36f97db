"""Whether a text says nearly the same as a typical sentence of an attack: shared pairs of words, hashed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from tianji_mw.guardrails.folding import fold
from tianji_mw.guardrails.injection.features import Block, hashes

#: The part of a sentence that has to be in a window.
_PART: Final = 0.55


class Similarity:
    """Families of sentences by category."""

    def __init__(self, families: Mapping[str, Iterable[str]]) -> None:
        self._sentences = [
            (category, frozenset[int]().union(*hashes(fold(sentence))))
            for category, sentences in families.items()
            for sentence in sentences
        ]
        self._known = frozenset[int]().union(*(features for _, features in self._sentences))
        self._least = min((len(features) for _, features in self._sentences), default=0) * _PART

    def find(self, blocks: Sequence[Block]) -> set[str]:
        """The categories of sentences that nearly stand in a window."""
        found: set[str] = set()
        before: frozenset[int] = frozenset()
        for block in blocks:
            part = self._known & block.hashed
            common = before | part
            before = part
            if len(common) >= self._least:
                found |= {kind for kind, features in self._sentences if len(features & common) >= _PART * len(features)}
        return found
