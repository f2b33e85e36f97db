"""Words as they are compared: lower case, without endings, of one spelling. Pure."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from tianji_mw.cache.semantic import _lexicon

WORD: Final = re.compile(
    r"[^\W_]+(?:['’][^\W_]+)*(?:[-–][^\W_]+(?:['’][^\W_]+)*)*|[^\W\d]\w*|[#@/\\.~]?\w[\w./\\@:#~+-]*"
)
_CONTRACTIONS: Final = (
    (re.compile(r"can['’]t\b", re.IGNORECASE), "can not"),
    (re.compile(r"\bwon['’]t\b", re.IGNORECASE), "will not"),
    (re.compile(r"n['’]t\b", re.IGNORECASE), " not"),
    (re.compile(r"['’](?:s|re|m|ve|ll|d)\b", re.IGNORECASE), ""),
)
_VERSION: Final = re.compile(r"[vV](?<=\b.)(?=\d+\.)")
#: A first "no" denies what was said before.
_AGREES: Final = re.compile(r"^\s*(?:no|nope|yes|yeah)[,.!]+\s", re.IGNORECASE)
#: Signs of scripts that put no spaces between words.
_UNSPACED: Final = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]")
_SUFFIXES: Final = ("ing", "ed", "es", "s", "ly")


def unfolded(text: str) -> str:
    """The text in one Unicode form, without contractions."""
    text = unicodedata.normalize("NFKC", text)
    text = _VERSION.sub("version ", _AGREES.sub("", text))
    if "'" in text or "’" in text:
        for pattern, full in _CONTRACTIONS:
            text = pattern.sub(full, text)
    return text


def words(text: str) -> list[str]:
    """The words of an unfolded text, as they are written."""
    return WORD.findall(text)


@lru_cache(maxsize=20_000)
def stem(word: str) -> str:
    """The word without its ending; not always a word.

    >>> stem("submitting"), stem("increased"), stem("policies"), stem("dress")
    ('submit', 'increas', 'policy', 'dress')
    """
    word = word.lower().replace("’", "'")
    word = word.removesuffix("'s").removesuffix("'")
    if not word.isascii() or not word.isalpha() or len(word) < 4:
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3 and not word.endswith("ss"):
            word = word[: -len(suffix)]
            if suffix in ("ing", "ed") and word[-1] == word[-2] and word[-1] not in "lsz":
                word = word[:-1]
            break
    return word.removesuffix("e") if len(word) > 3 else word


@dataclass(frozen=True, slots=True)
class Word:
    """What is known of a word by itself."""

    #: Around its hyphens, or sign by sign where a script has no spaces.
    parts: tuple[str, ...]
    #: Of the word and its parts.
    stems: frozenset[str]
    #: Meanings of the parts that say something, by the part.
    content: tuple[tuple[str, str], ...]
    negations: int


@lru_cache(maxsize=20_000)
def known(word: str) -> Word:
    """What is known of a word in lower case."""
    if not word.isascii() and _UNSPACED.search(word):
        parts = tuple(word)
    else:
        parts = tuple(filter(None, word.split("-"))) if "-" in word and len(word) > 3 else (word,)
    content = tuple(
        (part, meaning(part))
        for part in parts
        if not (is_empty(part) or part.isdigit() or part in _lexicon.NEGATIONS or part in _lexicon.NUMBER_WORDS)
    )
    return Word(
        parts,
        frozenset(map(stem, (word, *parts))).union(found for _, found in content),
        content,
        sum(part in _lexicon.NEGATIONS for part in parts),
    )


@lru_cache(maxsize=1)
def _same() -> dict[str, str]:
    return {stem(word): stem(first) for word, first in _lexicon.same_meaning().items()}


@lru_cache(maxsize=1)
def _opposite() -> dict[str, frozenset[tuple[int, int]]]:
    found: dict[str, frozenset[tuple[int, int]]] = {}
    for word, sides in _lexicon.opposites().items():
        for key in {stem(word), meaning(word)}:
            found[key] = found.get(key, frozenset()).union(sides)
    return found


@lru_cache(maxsize=1)
def _empty() -> frozenset[str]:
    return frozenset(stem(word) for word in _lexicon.EMPTY) | _lexicon.EMPTY


def meaning(word: str) -> str:
    """The stem that stands for the word's meaning."""
    found = stem(word)
    return _same().get(found, found)


def is_empty(word: str) -> bool:
    """Whether the word says nothing by itself."""
    return word.lower() in _empty() or stem(word) in _empty()


def opposed(one: str, other: str) -> bool:
    """Whether two stems are opposites, by the list or by a prefix (safe, unsafe)."""
    sides = _opposite().get(one, frozenset())
    if sides and any(
        number == there and side != where
        for there, where in _opposite().get(other, frozenset())
        for number, side in sides
    ):
        return True
    short, long = (one, other) if len(one) < len(other) else (other, one)
    return (
        len(short) > 3
        and long.endswith(short)
        and long[: -len(short)] in ("un", "in", "im", "ir", "il", "dis", "non", "de", "anti")
    )


def typo(one: str, other: str) -> bool:
    """Whether one may be the other, mistyped: one letter more, less or other, or two changed places, in a long word."""
    if one[:1] != other[:1] or min(len(one), len(other)) < 5 or abs(len(one) - len(other)) > 1:
        return False
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    a, b = one[at:], other[at:]
    return a[1:] == b[1:] or a[1:] == b or a == b[1:] or (a[:2] == b[1::-1] and a[2:] == b[2:])
