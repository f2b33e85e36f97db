"""A second look at words spelled to be missed: digits for letters, blanks inside or left out, slips of the pen.

It repairs the text where that makes a word of a pack; the repaired text is then judged like any other. Which words are
worth a look, `judge.py` says: those beside a word that was found, and those that look like tricks anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from tianji_mw.guardrails.harm.pack import BIT, Pack

#: `h4te`, `k!ll`, `f*ck`; and `h a t e`, `h.a.t.e`. Each with what is looked for first, as it is rare and found fast.
_DIGITS: Final = re.compile(
    r"(?<![\w@$])(?=[a-z0-9@$!*]{0,15}[a-z])(?:[a-z]+[0-9@$!*]|[0-9@$][a-z])[a-z0-9@$!*]{1,16}",
)
_DIGIT: Final = re.compile(r"[0-9@$!*](?:(?=[a-z0-9@$!*])(?<=[a-z].)|(?<![!*])(?=[a-z][a-z0-9@$!*]))")
_SPACED: Final = re.compile(r"(?<![\w'])\w(?:[ ._*-]\w){2,40}(?![\w'])")
_SPACE: Final = re.compile(r"[ ._*-]\w[ ._*-]\w(?![\w'])")
_FORMS: Final = ((_DIGIT, _DIGITS, 18), (_SPACE, _SPACED, 82))
_LETTERS: Final = (str.maketrans("0134579@$!", "oieastgasi"), str.maketrans("0134578@$!", "oleastbasl"))
_APART: Final = re.compile(r"[ ._*-]")
_TOKEN: Final = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
#: Words that are repaired: what finds something, and who is meant.
_WORTH: Final = (
    BIT["group"] | BIT["group_adjective"] | BIT["slur"] | BIT["slur_ambiguous"] | BIT["dehumanising"] | BIT["negative"]
    | BIT["contempt"] | BIT["exclude"] | BIT["violent"] | BIT["die"] | BIT["suicidal"] | BIT["weapon"] | BIT["crime"]
    | BIT["explicit"] | BIT["sexual"] | BIT["hate_idea"] | BIT["incite"] | BIT["sex_crime"]
)  # fmt: skip
_LONGEST: Final = 20
_MOST_TOKENS: Final = 60


class Repair(NamedTuple):
    """A piece of the text, and what it should read."""

    start: int
    end: int
    text: str


class Speller:
    """Knows the single words of the packs, and how they are written wrong."""

    def __init__(self, packs: Sequence[Pack]) -> None:
        self._words: set[str] = set()
        self._worth: set[str] = set()
        #: Words without blanks, as they are written; and words without one of their letters.
        self._joined: dict[str, str] = {}
        self._short: dict[str, str] = {}
        for pack in packs:
            for word, mask in pack.words.items():
                bare = word.strip("*").strip()
                self._words.add(bare)
                if mask & _WORTH and not mask & BIT["neutral"] and bare.isascii() | bare.isalpha():
                    self._worth.add(bare)
                    if " " in bare:
                        self._joined.setdefault(bare.replace(" ", ""), bare)
        for word in sorted(self._worth):
            if 5 <= len(word) <= 14 and word.isalpha():
                for at in range(1, len(word)):
                    self._short.setdefault(word[:at] + word[at + 1 :], word)
        # Five letters less one are often another word: those packs name under `small`.
        for word in self._words & self._short.keys():
            del self._short[word]

    def odd(self, text: str) -> Iterator[Repair]:
        """Repairs of what looks like a trick."""
        for found in _odd(text):
            piece = found[0]
            bare = _APART.sub("", piece) if _APART.search(piece) else ""
            if len(bare) * 2 - 1 == len(piece):
                yield from self._together(found.start(), piece, bare)
                continue
            for letters in _LETTERS:
                word = piece.rstrip("!*").translate(letters)
                right = self._short.get(word.replace("*", "")) if "*" in word else self._stem(word)
                if right is not None:
                    yield Repair(found.start(), found.start() + len(piece.rstrip("!*")), right)
                    break

    def near(self, text: str, start: int, end: int) -> Iterator[Repair]:
        """Repairs of words between these places, where something else was found."""
        tokens = list(_TOKEN.finditer(text, start, end))[:_MOST_TOKENS]
        for token in tokens:
            word = token[0]
            if 2 <= len(word) <= _LONGEST and word not in self._words:
                right = self._slip(word) or self._split(word)
                if right:
                    yield Repair(token.start(), token.end(), right)
        for one, two in pairwise(tokens):
            word = one[0] + two[0]
            apart = two.start() - one.end() == 1 and word in self._worth and len(word) >= 5
            if apart and one[0] not in self._words and two[0] not in self._words:
                yield Repair(one.start(), two.end(), word)

    def _stem(self, word: str) -> str | None:
        """The word itself if it, or its beginning, is one; endings such as `s` stay."""
        if any(word[:size] in self._worth for size in range(len(word), max(3, len(word) - 4), -1)):
            return word
        return self._joined.get(word)

    def _slip(self, word: str) -> str | None:
        """The word with one letter more, or two letters in each other's place."""
        if len(word) >= 4:
            right = self._short.get(word)
            if right is not None:
                return right
            for at in range(len(word) - 1):
                swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
                if swapped in self._worth:
                    return swapped
        return None

    def _split(self, word: str) -> str | None:
        """Two words that were written as one."""
        if word in self._joined:
            return self._joined[word]
        for at in range(2, len(word) - 1):
            left, right = word[:at], word[at:]
            known = left in self._words and right in self._words
            if known and any(len(part) >= 4 and part in self._worth for part in (left, right)):
                return f"{left} {right}"
        return None

    def _together(self, start: int, piece: str, bare: str) -> Iterator[Repair]:
        """Words in a run of single letters, with what stands before and behind them."""
        at = 0
        while at < len(bare) - 2:
            for end in range(min(len(bare), at + _LONGEST), at + 2, -1):
                word = bare[at:end]
                right = word if word in self._worth else self._joined.get(word)
                if right is not None:
                    yield Repair(start + 2 * at, start + 2 * end - 1, right)
                    at = end - 1
                    break
            at += 1


def _odd(text: str) -> Iterator[re.Match[str]]:
    """Places that look like a trick."""
    for sign, form, size in _FORMS:
        looked = 0
        for hint in sign.finditer(text):
            if hint.start() >= looked:
                end = hint.end() + size
                for found in form.finditer(text, max(looked, hint.start() - size), end):
                    looked = found.end()
                    yield found
                looked = max(looked, hint.end())


def repaired(text: str, repairs: Sequence[Repair]) -> tuple[str, list[tuple[int, int, int, int]]]:
    """The text with the repairs, and for each its place there and here."""
    parts: list[str] = []
    places: list[tuple[int, int, int, int]] = []
    at = size = 0
    for repair in sorted(set(repairs)):
        if repair.start < at:
            continue
        parts += text[at : repair.start], repair.text
        size += repair.start - at
        places.append((size, size + len(repair.text), repair.start, repair.end))
        size += len(repair.text)
        at = repair.end
    parts.append(text[at:])
    return "".join(parts), places


def original(start: int, end: int, places: Sequence[tuple[int, int, int, int]]) -> tuple[int, int]:
    """Where a piece of the repaired text stood."""
    shift_start = shift_end = 0
    first, last = None, None
    for low, high, here, there in places:
        if low <= start < high:
            first = here
        if low < end <= high:
            last = there
        if high <= start:
            shift_start = there - high
        if high <= end:
            shift_end = there - high
    return (start + shift_start if first is None else first), (end + shift_end if last is None else last)
