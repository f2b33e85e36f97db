"""Whether two requests may be asking the same: what a vector does not see, because it stands in single words.

Two texts disagree when their numbers, dates, names, codes, negations, opposites, directions, questions or days differ;
and when one of them merely replaces or adds a word in the frame of the other. A vector calls such texts nearly equal,
and they are the usual reason for a wrong answer. Agreement is no proof: it is asked for beside a high similarity.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import orjson

from tianji_mw.cache.semantic import _lexicon
from tianji_mw.cache.semantic._stems import is_empty, meaning, opposed, stem, typo, unfolded, words

_NUMBER: Final = re.compile(r"(?<![\w.])[£$€¥₹]?\d[\d,.]*\d(?![\d])|(?<![\w.])[£$€¥₹]?\d|\d+")
_SUFFIX: Final = re.compile(
    r"\d[\d,.]*\s?(am|pm|a\.m|p\.m|%|°?[cf]\b|[kmgt]?b\b|k\b|m\b|bn\b|[kmc]?m\b|kg\b|g\b|mg\b|ml\b|l\b)", re.IGNORECASE
)
_QUOTED: Final = re.compile(r"\"([^\"\n]{1,200})\"|“([^”\n]{1,200})”|`([^`\n]{1,200})`|«([^»\n]{1,200})»")
_CODE: Final = re.compile(
    r"[A-Za-z_][\w]*\([^)\n]{0,80}\)|\b\w+_\w+\b|\b[a-z]+[A-Z]\w*\b|(?:https?://|www\.)\S+|[\w.+-]+@[\w-]+\.\w[\w.-]*|(?:[~.]?/)[\w./-]+|\b[\w-]+\.(?:py|js|ts|go|rs|java|c|cpp|h|md|json|ya?ml|toml|csv|txt|sql|sh|html|css|pdf|docx?|xlsx?)\b"
)
#: A number and its unit: no name.
_MEASURE: Final = re.compile(
    r"[\d,.]+(?:am|pm|st|nd|rd|th|k|m|bn|[kmgt]b|kg|mg|g|ml|l|cm|km|mm|h|hr|hrs|min|mins|s|x)", re.IGNORECASE
)
_SENTENCE: Final = re.compile(r"[.!?:\n]\s*")
#: Words between which a direction lies: what stands after each of them.
_TOWARDS: Final = frozenset({"to", "into", "nach", "vers", "hacia", "verso", "para", "naar"})
_AWAY: Final = frozenset({"from", "von", "depuis", "desde", "da", "de", "van"})
#: Words in one text that are not in the other, up to which they are a replacement rather than another wording.
_FEW: Final = 2
#: Words that two texts share, from which on they are long.
_LONG: Final = 6

_Field = frozenset[str]


@dataclass(frozen=True, slots=True)
class Signature:
    """What of a text has to agree, as sets of plain strings; made once, kept beside its vector."""

    #: Meanings of the words that say something, in their order.
    content: tuple[str, ...]
    #: All words, by their stems: a name of one text has to stand among those of the other.
    stems: _Field
    numbers: _Field
    units: _Field
    names: _Field
    codes: _Field
    #: How many negations, of which the parity counts.
    negations: int
    towards: _Field
    away: _Field
    asked: _Field
    #: The day, of a text whose meaning depends on it.
    day: str
    script: str

    def encode(self) -> str:
        """As JSON text."""
        return orjson.dumps(
            [
                self.content, sorted(self.stems), sorted(self.numbers), sorted(self.units), sorted(self.names),
                sorted(self.codes), self.negations, sorted(self.towards), sorted(self.away), sorted(self.asked),
                self.day, self.script,
            ]
        ).decode()  # fmt: skip

    @classmethod
    def decode(cls, text: str) -> Signature:
        """The signature in this text. Raises ValueError for anything else."""
        try:
            content, stems, numbers, units, names, codes, negations, towards, away, asked, day, script = orjson.loads(
                text
            )
            return cls(
                tuple(content), frozenset(stems), frozenset(numbers), frozenset(units), frozenset(names),
                frozenset(codes), int(negations), frozenset(towards), frozenset(away), frozenset(asked), str(day),
                str(script),
            )  # fmt: skip
        except (orjson.JSONDecodeError, TypeError) as error:
            raise ValueError("no signature") from error


def signature(text: str, day: str = "") -> Signature:
    """The signature of a text; `day`: when it was said, for texts that speak of today."""
    plain = unfolded(text)
    codes = frozenset(found[0] for found in _CODE.finditer(plain))
    quoted = frozenset(next(filter(None, found.groups()), "").strip().lower() for found in _QUOTED.finditer(plain))
    names = _names(plain)
    numbers, units = _numbers(plain)
    lowered = plain.lower()
    for phrase, word in _lexicon.PHRASES:
        if phrase in lowered:
            lowered = re.sub(rf"\b{phrase}\b", word, lowered)
    listed = words(lowered)
    parts = [
        part for word in listed for part in (word.split("-") if "-" in word and len(word) > 3 else (word,)) if part
    ]
    content = [meaning(word) for word in parts if not is_empty(word) and not _told_elsewhere(word)]
    negations = sum(word in _lexicon.NEGATIONS for word in parts) + sum(
        sign in plain for sign in _lexicon.NEGATION_SIGNS
    )
    relative = not _lexicon.RELATIVE_DAYS.isdisjoint(parts) or any(
        phrase in lowered for phrase in _lexicon.RELATIVE_PHRASES
    )
    return Signature(
        content=tuple(dict.fromkeys(content)),
        stems=frozenset(stem(word) for word in (*parts, *listed)) | frozenset(content),
        numbers=numbers,
        units=units,
        names=frozenset(stem(name) for name in names),
        codes=codes | quoted,
        negations=negations,
        towards=_after(parts, _TOWARDS),
        away=_after(parts, _AWAY),
        asked=frozenset(_lexicon.ASKED[word] for word in parts[:8] if word in _lexicon.ASKED),
        day=day if relative else "",
        script=_script(plain),
    )


def disagreement(one: Signature, other: Signature) -> str | None:
    """What speaks against one answer for both; None when nothing does. Symmetric, and None for a text and itself."""
    if one == other:
        return None
    if one.script != other.script:
        return "script"
    if one.numbers != other.numbers or (one.units and other.units and one.units != other.units):
        return "numbers"
    if one.codes != other.codes:
        return "codes"
    if not (one.names <= other.stems and other.names <= one.stems):
        return "names"
    if one.negations % 2 != other.negations % 2:
        return "negation"
    if one.day != other.day:
        return "day"
    if one.asked and other.asked and one.asked.isdisjoint(other.asked):
        return "question"
    mine, theirs = different(one.content, other.content)
    if any(opposed(a, b) for a in mine for b in theirs):
        return "opposite"
    if _turned(one, other):
        return "direction"
    return _replaced(one, mine, theirs)


def same_words(one: Signature, other: Signature) -> bool:
    """Whether they say the same words that say something, in whatever order."""
    return not any(different(one.content, other.content))


def volatile(text: str) -> str | None:
    """Why no earlier answer will do: what is asked for changes by the minute, or is to be another one each time."""
    lowered = text.lower()
    if any(phrase in lowered for phrase in _lexicon.VARIETY):
        return "variety"
    return "time" if any(phrase in lowered for phrase in _lexicon.VOLATILE) else None


def _told_elsewhere(word: str) -> bool:
    """Whether a word is a number or a negation, which are compared by themselves."""
    return word.isdigit() or word in _lexicon.NEGATIONS or word in _lexicon.NUMBER_WORDS


# --- what differs


def different(one: Iterable[str], other: Iterable[str]) -> tuple[list[str], list[str]]:
    """Words of each that the other does not have; words that are the same but for a slip are left out."""
    first, second = dict.fromkeys(one), dict.fromkeys(other)
    mine = [word for word in first if word not in second]
    theirs = [word for word in second if word not in first]
    for word in list(mine):
        slip = next((found for found in theirs if typo(word, found)), None)
        if slip is not None:
            mine.remove(word)
            theirs.remove(slip)
    return mine, theirs


def _replaced(one: Signature, mine: list[str], theirs: list[str]) -> str | None:
    """A word in the frame of the other text was replaced, or one was added that narrows what is asked.

    A rewording of a long text replaces several words; of a short one, too little is left to tell the two apart.
    """
    few, many = sorted((len(mine), len(theirs)))
    shared = len(set(one.content)) - len(mine)
    if many == 0 or many > _FEW or shared == 0:
        return None
    if few and few + many > _FEW and shared >= _LONG:
        return None
    return "replaced" if few else "added"


def _turned(one: Signature, other: Signature) -> bool:
    """What one text goes to, the other does not go to, and yet speaks of: from A to B, and from B to A."""
    for mine, theirs in ((one.towards, other.towards), (one.away, other.away)):
        gone, come = mine - theirs, theirs - mine
        if gone and come and gone <= other.stems and come <= one.stems:
            return True
    return False


# --- what a text says


def _numbers(text: str) -> tuple[_Field, _Field]:
    found = set()
    for match in _NUMBER.finditer(text):
        digits = match[0].lstrip("£$€¥₹").rstrip(".,")
        digits = digits.replace(",", "") if re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d+)?", digits) else digits
        found.add(digits.lstrip("0") or "0")
    for word in words(text.lower()):
        for part in word.split("-"):
            if (number := _lexicon.NUMBER_WORDS.get(part)) is not None:
                found.add(number)
    units = {match[1].lower().replace(".", "") for match in _SUFFIX.finditer(text)}
    return frozenset(found), frozenset(units)


def _names(text: str) -> set[str]:
    """Words written as names: capitals inside of a sentence, abbreviations, letters with digits."""
    listed = words(text)
    # Where nearly every word has a capital, it says nothing.
    titled = len(listed) > 3 and sum(word[0].isupper() for word in listed) > 0.7 * len(listed)
    found = {
        word
        for sentence in _SENTENCE.split(text)
        for at, word in enumerate(words(sentence))
        if _is_name(word, inside=at > 0, titled=titled)
    }
    return {part for word in found for part in word.split("-") if part and not is_empty(part)}


def _is_name(word: str, *, inside: bool, titled: bool) -> bool:
    if any(char.isdigit() for char in word):
        return any(char.isalpha() for char in word) and "-" not in word and not _MEASURE.fullmatch(word)
    if word.isupper() and word.isalpha() and len(word) > 1:
        return not titled
    if any(char.isupper() for char in word[1:]):
        return True
    return inside and word[0].isupper() and word != "I" and not word.startswith(("I'", "I’")) and not titled


def _after(parts: list[str], marks: frozenset[str]) -> _Field:
    """The first words that say something after each of these."""
    found = set()
    for at, word in enumerate(parts):
        if word in marks:
            following = next((part for part in parts[at + 1 : at + 5] if not is_empty(part)), None)
            if following is not None:
                found.add(stem(following))
    return frozenset(found)


def _script(text: str) -> str:
    """The script of most of the letters: of other alphabets, translations of a text."""
    for char in text[:200]:
        if char.isalpha() and not char.isascii():
            name = unicodedata.name(char, "").partition(" ")[0]
            if name != "LATIN":
                return name
    return "LATIN"
