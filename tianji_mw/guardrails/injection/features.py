"""What the model sees of a text: blocks of it, with the hashed words and the meanings in each. Pure.

A window is two neighbouring blocks, so that a document of any length costs the same per character, and a sentence in
it weighs as much as one that stands alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final, NamedTuple
from zlib import crc32

from tianji_mw.guardrails.injection.lexicon import Lexicon, Rule
from tianji_mw.guardrails.scanner import Hit

#: Characters of a block.
BLOCK: Final = 300
BITS: Final = 15
MASK: Final = (1 << BITS) - 1
_PAIR: Final = 0x9E3779B1
_UNSPACED: Final = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff"
_ASCII_WORD: Final = re.compile("[a-z]+")
_WORD: Final = re.compile(f"[{_UNSPACED}]|(?:[^\\W\\d_{_UNSPACED}]|[\u0900-\u0dff])+")
#: An order in the middle of somebody else's sentence: put there by a third party.
_MIDWAY: Final = re.compile(
    r"[a-z,] {1,2}(?:Add|Provide|Write|Express|Use|Include|Mention|Encrypt|Encode|Explain|Give|List|Describe|"
    r"Create|Generate|Translate|Compose|Suggest|Recommend|Respond|Reply|Answer|Tell|Ignore|Disregard|Forget|Insert|"
    r"Integrate|Incorporate|Convert|Calculate|Summarize|How|What|Can|Could|Please|Modify|Craft|Enhance|Alter) [a-z]"
)
#: What is counted about a text besides words; `structure` fills them.
STRUCTURE: Final = ("tags", "invisible", "decoded", "midway", "shouting")
_INVISIBLE: Final = re.compile("[\u200b-\u200f\u2060-\u2064\ufeff\u202a-\u202e\u2066-\u2069]")
_TAGS: Final = re.compile("[\U000e0020-\U000e007e]")


class Block(NamedTuple):
    """A part of a text: hashes of its words and pairs of words, and its dense features."""

    hashed: set[int]
    dense: set[int]


class Matched(NamedTuple):
    """A rule, and where it matched."""

    rule: int
    at: int


class Features:
    """Makes blocks of texts. Dense features are meanings, then rules, then structure."""

    def __init__(self, lexicon: Lexicon) -> None:
        self.lexicon = lexicon
        self.names = (
            *(f"word:{name}" for name in lexicon.meanings),
            *(f"rule:{rule.name}" for rule in lexicon.rules),
            *(f"text:{name}" for name in STRUCTURE),
        )
        self._first_rule = len(lexicon.meanings)
        self._first_structure = self._first_rule + len(lexicon.rules)
        self._rules_of: list[list[tuple[int, Rule, tuple[int, ...]]]] = [[] for _ in lexicon.meanings]
        for at, rule in enumerate(lexicon.rules):
            for need in rule.needs:
                others = tuple(other for other in rule.needs if other != need)
                self._rules_of[need].append((at, rule, others))

    def rule(self, at: int) -> int:
        """The dense feature of a rule."""
        return self._first_rule + at

    def matched(self, hits: Sequence[Hit]) -> list[Matched]:
        """The rules that hold, and where each holds first in a block."""
        last = [-1_000_000] * len(self.lexicon.meanings)
        found: dict[tuple[int, int], int] = {}
        for start, end, what in hits:
            last[what] = start
            for at, rule, others in self._rules_of[what]:
                since = end - rule.within
                if start >= since and all(last[other] >= since for other in others):
                    found.setdefault((at, start // BLOCK), start)
        return [Matched(rule, at) for (rule, _), at in found.items()]

    def blocks(self, folded: str, hits: Sequence[Hit], matched: Sequence[Matched], whole: Sequence[int]) -> list[Block]:
        """All blocks of a text. `whole`: features of all of it."""
        count = max(1, -(-len(folded) // BLOCK))
        made = [Block(hashed, set(whole)) for hashed in hashes(folded)]
        for start, _, what in hits:
            made[min(start // BLOCK, count - 1)].dense.add(what)
        for rule, at in matched:
            made[min(at // BLOCK, count - 1)].dense.add(self._first_rule + rule)
        return made

    def structure(self, text: str, *, decoded: bool) -> list[int]:
        """Features of a text as it was written."""
        found = []
        if not text.isascii():
            found += ["tags"] if _TAGS.search(text) else []
            found += ["invisible"] if len(_INVISIBLE.findall(text)) > 3 else []
        if decoded:
            found.append("decoded")
        if len(text) > 200 and _MIDWAY.search(text):
            found.append("midway")
        if len(text) > 40 and sum(map(str.isupper, text[:2000])) * 3 > min(len(text), 2000):
            found.append("shouting")
        return [self._first_structure + STRUCTURE.index(name) for name in found]


def hashes(folded: str) -> Iterator[set[int]]:
    """For each block, the hashes of its words and of neighbouring words."""
    word = _ASCII_WORD if folded.isascii() else _WORD
    for start in range(0, len(folded) or 1, BLOCK):
        codes = list(map(crc32, map(str.encode, word.findall(folded, start, start + BLOCK))))
        found = {code & MASK for code in codes}
        found.update((one * _PAIR ^ two) & MASK for one, two in pairwise(codes))
        yield found


def windows(blocks: Sequence[Block]) -> Iterator[Block]:
    """Neighbouring blocks as one; a single block alone."""
    if len(blocks) == 1:
        yield blocks[0]
    for one, two in pairwise(blocks):
        yield Block(one.hashed | two.hashed, one.dense | two.dense)
