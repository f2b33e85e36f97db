"""Whether two requests may be asking the same: what a vector does not see, because it stands in single words.

Two texts disagree when their numbers, dates, names, codes, negations, opposites, directions, questions or days differ;
and when one of them merely replaces or adds a word in the frame of the other. A vector calls such texts nearly equal,
and they are the usual reason for a wrong answer. Agreement is no proof: it is asked for beside a high similarity.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Final

import orjson

from tianji_mw.cache.semantic import _facts, _lexicon
from tianji_mw.cache.semantic._stems import known, meaning, opposed, typo, unfolded, words

#: Words between which a direction lies: what stands after each of them.
_TOWARDS: Final = frozenset({"to", "into", "with", "by", "than", "nach", "vers", "hacia", "verso", "para", "naar"})
_AWAY: Final = frozenset({"from", "von", "depuis", "desde", "da", "de", "van"})
#: Languages whose small words and opposites are known; empty: nothing tells.
_KNOWN: Final = frozenset({"en", ""})
#: "Where do I see it" and "how do I see it".
_LIKE_EACH_OTHER: Final = frozenset({"where", "how"})
#: Words in one text that are not in the other, up to which they are a replacement rather than another wording.
_FEW: Final = 2
#: Words that two texts share, from which on they are long.
_LONG: Final = 6

#: Words that differ, up to which slips are looked for.
_SLIPS: Final = 4

_Field = frozenset[str]


@dataclass(frozen=True, slots=True)
class Signature:
    """What of a text has to agree, in plain strings; made once, kept beside its vector."""

    #: Meanings of the words that say something, in their order.
    content: tuple[str, ...]
    #: All words, by their stems: a name of one text has to stand among those of the other.
    stems: _Field
    numbers: tuple[str, ...]
    units: _Field
    names: _Field
    codes: _Field
    #: Operators and currencies, in their order.
    signs: tuple[str, ...]
    #: How many negations, of which the parity counts.
    negations: int
    towards: _Field
    away: _Field
    asked: _Field
    #: The day, of a text whose meaning depends on it.
    day: str
    language: str

    def encode(self) -> str:
        """As JSON text."""
        return orjson.dumps(
            [
                self.content, sorted(self.stems), self.numbers, sorted(self.units), sorted(self.names),
                sorted(self.codes), self.signs, self.negations, sorted(self.towards), sorted(self.away),
                sorted(self.asked), self.day, self.language,
            ]
        ).decode()  # fmt: skip

    @classmethod
    def decode(cls, text: str) -> Signature:
        """The signature in this text. Raises ValueError for anything else."""
        try:
            (content, stems, numbers, units, names, codes, signs, negations, towards, away, asked, day,
             language) = orjson.loads(text)  # fmt: skip
            return cls(
                tuple(content), frozenset(stems), tuple(numbers), frozenset(units), frozenset(names),
                frozenset(codes), tuple(signs), int(negations), frozenset(towards), frozenset(away), frozenset(asked),
                str(day), str(language),
            )  # fmt: skip
        except (orjson.JSONDecodeError, TypeError) as error:
            raise ValueError("no signature") from error


def signature(text: str, day: str = "") -> Signature:
    """The signature of a text; `day`: when it was said, for texts that speak of today."""
    plain = unfolded(text)
    lowered = plain.lower()
    listed = words(lowered)
    phrased = lowered
    for phrase, word in _lexicon.PHRASES:
        if phrase in phrased:
            phrased = re.sub(rf"\b{phrase}\b", word, phrased)
    read = [known(word) for word in listed]
    stems = set(chain.from_iterable(word.stems for word in read))
    if phrased is not lowered:
        read = [known(word) for word in words(phrased)]
        stems.update(chain.from_iterable(word.stems for word in read))
    parts = [part for word in read for part in word.parts]
    language = _facts.language(plain, parts)
    small = _lexicon.SMALL_WORDS.get(language, frozenset())
    relative = not _lexicon.RELATIVE_DAYS.isdisjoint(parts) or any(
        phrase in lowered for phrase in _lexicon.RELATIVE_PHRASES
    )
    return Signature(
        content=tuple(dict.fromkeys(found for word in read for part, found in word.content if part not in small)),
        stems=frozenset(stems),
        numbers=_facts.numbers(plain, parts),
        units=_facts.units(plain),
        names=_facts.names(plain),
        codes=_facts.codes(plain),
        signs=_facts.signs(plain),
        negations=sum(word.negations for word in read) + _facts.negation_signs(plain),
        towards=_facts.after(parts, _TOWARDS),
        away=_facts.after(parts, _AWAY),
        asked=frozenset(_lexicon.ASKED[part] for part in parts[:8] if part in _lexicon.ASKED),
        day=day if relative else "",
        language=language,
    )


def disagreement(one: Signature, other: Signature) -> str | None:
    """What speaks against one answer for both; None when nothing does. Symmetric, and None for a text and itself."""
    if one == other:
        return None
    if one.language and other.language and one.language != other.language:
        return "language"
    if one.numbers != other.numbers or (one.units and other.units and one.units != other.units):
        return "numbers"
    if one.codes != other.codes or one.signs != other.signs:
        return "codes"
    if not (one.names <= other.stems and other.names <= one.stems):
        return "names"
    if one.negations % 2 != other.negations % 2:
        return "negation"
    if one.day != other.day:
        return "day"
    if _asks_otherwise(one.asked, other.asked):
        return "question"
    mine, theirs = different(one, other)
    if _turned(one, other) or exchanged(one.content, other.content):
        return "direction"
    if any(opposed(a, b) for a in mine for b in theirs):
        return "opposite"
    return _replaced(one, other, mine, theirs)


def same_words(one: Signature, other: Signature) -> bool:
    """Whether they say the same words that say something, in whatever order."""
    return not any(different(one, other))


def volatile(text: str) -> str | None:
    """Why no earlier answer will do: what is asked for changes by the minute, or is to be another one each time."""
    lowered = text.lower()
    if any(phrase in lowered for phrase in _lexicon.VARIETY):
        return "variety"
    return "time" if any(phrase in lowered for phrase in _lexicon.VOLATILE) else None


# --- what differs


def different(one: Signature, other: Signature) -> tuple[list[str], list[str]]:
    """Words of each that the other does not have; words that are the same but for a slip are left out."""
    first, second = set(one.content), set(other.content)
    mine = [word for word in one.content if word not in second]
    theirs = [word for word in other.content if word not in first]
    if max(len(mine), len(theirs)) <= _SLIPS:
        for word in list(mine):
            slip = _slip(word, other, theirs) or next((found for found in theirs if _slip(found, one, [word])), None)
            if slip is not None:
                mine.remove(word)
                theirs.remove(slip)
    return mine, theirs


def _slip(word: str, other: Signature, among: list[str]) -> str | None:
    """The word that this one may be, mistyped: looked for as it is written, and not only by its meaning."""
    return next((meaning(found) for found in other.stems if typo(word, found) and meaning(found) in among), None)


def _replaced(one: Signature, other: Signature, mine: list[str], theirs: list[str]) -> str | None:
    """A word in the frame of the other text was replaced, or one was added that narrows what is asked.

    A rewording of a long text replaces several words. In a language whose words are not known, every other word may be
    the one that counts.
    """
    few, many = sorted((len(mine), len(theirs)))
    shared = len(one.content) - len(mine)
    if many == 0:
        return None if one.content or one.stems == other.stems else "replaced"
    if (
        shared
        and {one.language, other.language} <= _KNOWN
        and (many > _FEW or (few and few + many > _FEW and shared >= _LONG))
    ):
        return None
    return "replaced" if few else "added"


def _asks_otherwise(one: _Field, other: _Field) -> bool:
    """Whether they ask for different things: where or how a thing is done may be asked either way."""
    return bool(one and other) and one.isdisjoint(other) and not one | other <= _LIKE_EACH_OTHER


def exchanged(one: Iterable[str], other: Iterable[str]) -> bool:
    """Whether words that both have changed places around others: who does what to whom.

    In a long text only single words: its parts are put in another order without another meaning.

    >>> exchanged(["cat", "chase", "dog"], ["dog", "chase", "cat"]), exchanged(["fuse", "box"], ["box", "fuse"])
    (True, False)
    """
    first, second = list(one), list(other)
    both = set(first) & set(second)
    first, second = [word for word in first if word in both], [word for word in second if word in both]
    long = len(first) > _LONG
    while first and first[0] == second[0]:
        del first[0], second[0]
    while first and first[-1] == second[-1]:
        del first[-1], second[-1]
    if len(first) < 3:
        return False
    # From A X B to B X A: what comes last begins now, and what began comes last.
    ends, begun = first.index(second[0]), len(second) - second.index(first[0])
    between = first[begun:ends]
    if long and (begun, ends) != (1, len(first) - 1):
        return False
    return bool(between) and second == [*first[ends:], *between, *first[:begun]]


def _turned(one: Signature, other: Signature) -> bool:
    """What one text goes to, the other does not go to, and yet speaks of: from A to B, and from B to A."""
    for mine, theirs in ((one.towards, other.towards), (one.away, other.away)):
        gone, come = mine - theirs, theirs - mine
        if gone and come and gone <= other.stems and come <= one.stems:
            return True
    return False
