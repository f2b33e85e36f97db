"""What the model sees of a text: blocks of it, with the hashed pairs of words and the meanings in each. Pure.

A window is two neighbouring blocks, so that a document of any length costs the same per character, and a sentence in
it weighs as much as one that stands alone. ASCII has paths of its own, for speed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple
from zlib import crc32

from tianji_mw.guardrails.injection.lexicon import Lexicon
from tianji_mw.guardrails.scanner import Hit, Scanned

#: Characters of a block.
BLOCK: Final = 300
BITS: Final = 15
MASK: Final = (1 << BITS) - 1
_UNSPACED: Final = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff"
#: Small letters of ASCII as they are, and everything else as a blank.
_LETTERS: Final = bytes(code if 97 <= code <= 122 else 32 for code in range(256))
_WORD: Final = re.compile(f"[{_UNSPACED}]|(?:[^\\W\\d_{_UNSPACED}]|[\u0900-\u0dff])+")
_ORDER: Final = re.compile(
    r"(?:Add|Provide|Write|Express|Use|Include|Mention|Encrypt|Encode|Explain|Give|List|Describe|"
    r"Create|Generate|Translate|Compose|Suggest|Recommend|Respond|Reply|Answer|Tell|Ignore|Disregard|Forget|Insert|"
    r"Integrate|Incorporate|Convert|Calculate|Summarize|How|What|Can|Could|Please|Modify|Craft|Enhance|Alter) [a-z]"
)
_BEFORE_ORDER: Final = re.compile("[a-z,] {1,2}$")
_NO_CAPITALS: Final = bytes(code for code in range(256) if not 65 <= code <= 90)
_NO_SMALL: Final = bytes(code for code in range(256) if not 97 <= code <= 122)
#: What is counted about a text besides words: of all of it, and `midway` where it stands.
STRUCTURE: Final = ("tags", "invisible", "coded", "shouting", "midway")
_INVISIBLE: Final = re.compile("[\u200b-\u200f\u2060-\u2064\ufeff\u202a-\u202e\u2066-\u2069]")
_TAGS: Final = re.compile("[\U000e0020-\U000e007e]")


class Block(NamedTuple):
    """A part of a text: hashes of its pairs of words, and its dense features."""

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
        self._midway = self._first_structure + STRUCTURE.index("midway")
        self._masks = [(at, sum(1 << need for need in rule.needs)) for at, rule in enumerate(lexicon.rules)]

    def rule(self, at: int) -> int:
        """The dense feature of a rule."""
        return self._first_rule + at

    def of(self, dense: Iterable[int]) -> Iterator[str]:
        """The meanings among dense features."""
        return (self.lexicon.meanings[at] for at in dense if at < self._first_rule)

    def matched(self, hits: Sequence[Hit]) -> list[Matched]:
        """The rules that hold, and where each holds first in a block."""
        present = 0
        for hit in hits:
            present |= 1 << hit[2]
        found: dict[tuple[int, int], int] = {}
        for at, mask in self._masks:
            if present & mask != mask:
                continue
            rule = self.lexicon.rules[at]
            last = dict.fromkeys(rule.needs, -1_000_000)
            for start, end, what in hits:
                if what in last:
                    last[what] = start
                    if min(last.values()) >= end - rule.within:
                        found.setdefault((at, start // BLOCK), start)
        return [Matched(rule, at) for (rule, _), at in found.items()]

    def blocks(self, scanned: Scanned, hits: Sequence[Hit], matched: Sequence[Matched], *, coded: bool) -> list[Block]:
        """All blocks of a text. `coded`: a rule knows what is written in code in it."""
        whole = self._structure(scanned.original, coded=coded)
        made = [Block(hashed, set(whole)) for hashed in hashes(scanned.text)]
        for start, _, what in hits:
            made[start // BLOCK].dense.add(what)
        for rule, at in matched:
            made[at // BLOCK].dense.add(self._first_rule + rule)
        for at in _orders(scanned.original):
            made[min(at // BLOCK, len(made) - 1)].dense.add(self._midway)
        return made

    def _structure(self, text: str, *, coded: bool) -> list[int]:
        """Features of a text as it was written."""
        found = ["coded"] if coded else []
        if not text.isascii():
            found += ["tags"] if _TAGS.search(text) else []
            found += ["invisible"] if len(_INVISIBLE.findall(text)) > 3 else []
        start = text[:2000].encode("latin-1", "replace")
        capitals = len(start.translate(None, _NO_CAPITALS))
        if len(text) > 40 and capitals * 3 > len(start) and capitals > 2 * len(start.translate(None, _NO_SMALL)):
            found.append("shouting")
        return [self._first_structure + STRUCTURE.index(name) for name in found]


def _orders(text: str) -> Iterator[int]:
    """Where an order stands in the middle of somebody else's sentence: a third party may have put it there."""
    for order in _ORDER.finditer(text, 3) if len(text) > 200 else ():
        if _BEFORE_ORDER.search(text, order.start() - 3, order.start()):
            yield order.start()


def hashes(folded: str) -> Iterator[set[int]]:
    """For each block, the hashes of neighbouring words, and of words where not all is ASCII.

    A pair's is the checksum of the first word that goes on with the second.
    """
    for start in range(0, len(folded) or 1, BLOCK):
        part = folded[start : start + BLOCK]
        if part.isascii():
            words = part.encode().translate(_LETTERS).split()
            yield set(map(MASK.__and__, map(crc32, words[1:], map(crc32, words))))
        else:
            words = [word.encode() for word in _WORD.findall(part)]
            codes = [crc32(word) for word in words]
            yield {code & MASK for code in (*codes, *map(crc32, words[1:], codes))}


def windows(blocks: Sequence[Block]) -> Iterator[Sequence[Block]]:
    """Neighbouring blocks; a single block alone."""
    for at in range(max(1, len(blocks) - 1)):
        yield blocks[at : at + 2]
