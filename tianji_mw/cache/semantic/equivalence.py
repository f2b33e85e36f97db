"""Whether two answers say the same: what a cached answer would have been worth, seen beside the real one.

It errs on the side of no. A wrong no costs hits, a wrong yes costs trust.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Final

from tianji_mw.cache.semantic.agreement import disagreement, signature

if TYPE_CHECKING:
    from tianji_mw.cache.embedders.base import Embedder

#: Cosine of two answers that say the same.
ENOUGH: Final = 0.85
#: Characters up to which answers are words, not texts: they say the same when they are the same.
_SHORT: Final = 48
_NO_WORD: Final = re.compile(r"[\W_]+")


def plain(text: str) -> str:
    """The words alone, in lower case."""
    return _NO_WORD.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


async def same_answer(one: str, other: str, embedder: Embedder) -> bool:
    """Whether they say the same. Raises EmbeddingFailed."""
    first, second = plain(one), plain(other)
    if first == second:
        return True
    if min(len(first), len(second)) <= _SHORT or disagreement(signature(one), signature(other)) is not None:
        return False
    found = await embedder.embed([one, other])
    return not any(found.truncated) and float(found.vectors[0] @ found.vectors[1]) >= ENOUGH
