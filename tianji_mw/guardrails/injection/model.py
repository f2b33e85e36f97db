"""The linear model of prompt injections: frozen weights, made by `tests/evaluation/train_injection.py`."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Sequence
from importlib import resources
from typing import Final

import orjson

from tianji_mw.guardrails.injection.features import Block

#: Windows of fewer pairs of words count as if they had so many: a single one is no evidence.
LEAST: Final = 8
_MOST_LOGIT: Final = 30.0
_NONE: Final = 128


def whole_text(scores: Sequence[float]) -> tuple[float, float, float, float, float]:
    """For the second stage: a constant, the best window, the best three, all of them, and how many there are."""
    best = sorted(scores, reverse=True)[:3]
    return 1.0, best[0], sum(best) / len(best), sum(scores) / len(scores), math.log(len(scores))


class Model:
    """Weights of pairs of words (hashed), and of meanings, rules and structure (by name), in a window; of windows."""

    def __init__(self, names: Sequence[str]) -> None:
        data = orjson.loads(resources.files(__package__).joinpath("model.json").read_bytes())
        #: One byte for each, and 128 is no weight: they stay close together in memory.
        self._hashed = zlib.decompress(base64.b85decode(data["hashed"]))
        self._scale = float(data["scale"])
        self._dense = [float(data["dense"].get(name, 0.0)) for name in names]
        self._bias = float(data["bias"])
        self._whole: tuple[float, ...] = tuple(data["whole"])

    def windows(self, blocks: Sequence[Block]) -> list[float]:
        """How much each window looks like an attack, in logits."""
        weight, dense_weight = self._hashed.__getitem__, self._dense.__getitem__
        last = len(blocks) - 1
        sums = [sum(map(weight, block.hashed)) - _NONE * len(block.hashed) for block in blocks]
        scores = []
        for at in range(max(1, last)):
            words, count, dense = sums[at], len(blocks[at].hashed), blocks[at].dense
            if last:
                beside = blocks[at + 1]
                words, count, dense = words + sums[at + 1], count + len(beside.hashed), dense | beside.dense
            scores.append(self._bias + words * self._scale / max(count, LEAST) ** 0.5 + sum(map(dense_weight, dense)))
        return scores

    def probability(self, scores: Sequence[float]) -> float:
        """The score of a text with these windows; .5 is where the frozen threshold was set."""
        logit = sum(weight * one for weight, one in zip(self._whole, whole_text(scores), strict=True))
        return 1 / (1 + math.exp(-max(-_MOST_LOGIT, min(_MOST_LOGIT, logit))))

    def weight(self, feature: int) -> float:
        """Of a dense feature."""
        return self._dense[feature]
