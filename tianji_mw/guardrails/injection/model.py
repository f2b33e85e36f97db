"""The linear model of prompt injections: frozen weights, made by `tests/evaluation/train_injection.py`."""

from __future__ import annotations

import base64
import math
import zlib
from array import array
from collections.abc import Sequence
from importlib import resources
from typing import Final

import orjson

from tianji_mw.guardrails.injection.features import Block

#: Windows of fewer words count as if they had so many: a single word is no evidence.
LEAST: Final = 8
_MOST_LOGIT: Final = 30.0


def whole_text(scores: Sequence[float]) -> tuple[float, float, float, float, float]:
    """What the second stage sees: a constant, the best window, the best three, all of them, and how many there are."""
    best = sorted(scores, reverse=True)[:3]
    return 1.0, best[0], sum(best) / len(best), sum(scores) / len(scores), math.log(len(scores))


class Model:
    """Weights of words (hashed) and of meanings, rules and structure (by name) in a window; then, of windows."""

    def __init__(self, names: Sequence[str]) -> None:
        data = orjson.loads(resources.files(__package__).joinpath("model.json").read_bytes())
        self._hashed = array("b", zlib.decompress(base64.b85decode(data["hashed"]))).tolist()
        self._scale: float = data["scale"]
        self._dense = [float(data["dense"].get(name, 0.0)) for name in names]
        self._bias: float = data["bias"]
        self._whole: tuple[float, ...] = tuple(data["whole"])

    def window(self, window: Block) -> float:
        """How much a window looks like an attack, in logits."""
        words = sum(map(self._hashed.__getitem__, window.hashed)) * self._scale / max(len(window.hashed), LEAST) ** 0.5
        return self._bias + words + sum(map(self._dense.__getitem__, window.dense))

    def probability(self, scores: Sequence[float]) -> float:
        """The score of a text with these windows; .5 is where the frozen threshold was set."""
        logit = sum(weight * one for weight, one in zip(self._whole, whole_text(scores), strict=True))
        return 1 / (1 + math.exp(-max(-_MOST_LOGIT, min(_MOST_LOGIT, logit))))

    def weight(self, feature: int) -> float:
        """Of a dense feature."""
        return self._dense[feature]
