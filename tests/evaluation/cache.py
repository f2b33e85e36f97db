"""Targets for the harness beside the development data: when one answer may be given for two requests, at the default.

`pairs(a, b)` takes two texts, `conversations(a, b)` two lists of messages; both say whether the second would be given
the answer of the first.
"""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any

import numpy as np

from tianji_mw.cache.embedders.local import Local
from tianji_mw.cache.semantic.conversation import Question, question_of
from tianji_mw.cache.semantic.reuse import Meaning, Rule
from tianji_mw.runtime import Runtime

RULE = Rule()


@cache
def _loop() -> tuple[asyncio.AbstractEventLoop, Local]:
    loop, embedder = asyncio.new_event_loop(), Local()
    loop.run_until_complete(embedder.start(Runtime()))
    return loop, embedder


@cache
def vector(text: str) -> np.ndarray[Any, Any]:
    """The embedding of a text."""
    loop, embedder = _loop()
    found: np.ndarray[Any, Any] = loop.run_until_complete(embedder.embed([text])).vectors[0]
    return found


def served(cached: Question | str, asked: Question | str) -> bool:
    """Whether the answer of one question is given to the other."""
    if isinstance(cached, str) or isinstance(asked, str) or cached.context != asked.context:
        return False
    similarity = float(vector(cached.text) @ vector(asked.text))
    return RULE.refusal(Meaning.of(asked), Meaning.of(cached), similarity) is None


def pairs(one: str, other: str) -> bool:
    """Two texts, each the only turn of its conversation."""
    return conversations([{"role": "user", "content": one}], [{"role": "user", "content": other}])


def conversations(one: Any, other: Any) -> bool:
    """Two conversations."""
    asked = [question_of("chat_completions", {"messages": messages}) for messages in (one, other)]
    return served(asked[0], asked[1])
