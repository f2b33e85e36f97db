"""What a text states in single signs and words: numbers, names, code, signs, directions, its language. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from tianji_mw.cache.semantic import _lexicon
from tianji_mw.cache.semantic._stems import is_empty, stem, words

_NUMBER: Final = re.compile(r"\d[\d,.]*")
_SPELLED: Final = re.compile(r"[a-z]+")
_THOUSANDS: Final = re.compile(r"\d{1,3}(,\d{3})+(\.\d+)?")
_SUFFIX: Final = re.compile(
    r"(?<![\d,.])\d[\d,.]*+\s?(am|pm|a\.m|p\.m|%|°?[cf]\b|[kmgt]?b\b|k\b|m\b|bn\b|[kmc]?m\b|kg\b|g\b|mg\b|ml\b|l\b)",
    re.IGNORECASE,
)
_QUOTED: Final = re.compile(r"\"([^\"\n]{1,200})\"|“([^”\n]{1,200})”|`([^`\n]{1,200})`|«([^»\n]{1,200})»")
_CODE: Final = re.compile(
    r"""(?<![\w.+-])(?:
        [A-Za-z_][\w.]*\([^)\n]{0,80}\)                       # a call
      | \w[\w.]*_\w+ | (?:\w+\.)*[a-z]+[A-Z]\w*             # names with a stroke or a capital in them
      | (?:https?://|www\.)\S+ | [\w.+-]+@[\w-]+\.\w[\w.-]* | [~.]?/[\w./-]+
      | -[A-Za-z-][\w-]*                                     # an option of a command
      | [\w/.-]+\.(?:py|js|ts|go|rs|java|c|cpp|h|md|json|ya?ml|toml|csv|txt|sql|sh|html|css|pdf|docx?|xlsx?)\b
    )""",
    re.VERBOSE,
)
#: Operators and currencies; a dash, a stroke or an ampersand only by itself behind a number, a letter or a bracket.
_SIGN: Final = re.compile(r"[+*=<>|^~!$£€¥₹]+|[-/&%](?:(?<=\b\w .)|(?<=[)\]] .))(?= ?\w)")
#: Signs of a sentence, or of a table.
_NO_SIGN: Final = frozenset({"!", "!!", "!!!", "|"})
_BULLET: Final = re.compile(r"^\s*[*+>~=-]+\s|\*{2,}|={3,}", re.MULTILINE)
#: A number and its unit: no name.
_MEASURE: Final = re.compile(
    r"[\d,.]+(?:am|pm|st|nd|rd|th|k|m|bn|[kmgt]b|kg|mg|g|ml|l|cm|km|mm|h|hr|hrs|min|mins|s|x)", re.IGNORECASE
)
_SENTENCE: Final = re.compile(r"[.!?:\n]\s*")
#: Japanese is written in several.
_ONE_SCRIPT: Final[Mapping[str, str]] = MappingProxyType({"HIRAGANA": "CJK", "KATAKANA": "CJK"})
#: Letters that tell a script.
_LOOKED_AT: Final = 200


def numbers(text: str, parts: list[str]) -> tuple[str, ...]:
    """The numbers of a text, in digits or words, in their order; `parts`: its words."""
    found = []
    for match in _NUMBER.finditer(text):
        digits = match[0].rstrip(".,")
        digits = digits.replace(",", "") if _THOUSANDS.fullmatch(digits) else digits
        found.append((match.start(), digits.lstrip("0") or "0"))
    if not _lexicon.NUMBER_WORDS.keys().isdisjoint(parts):
        spelled = _lexicon.NUMBER_WORDS
        found += [
            (match.start(), spelled[match[0]]) for match in _SPELLED.finditer(text.lower()) if match[0] in spelled
        ]
    return tuple(dict.fromkeys(number for _, number in sorted(found)))


def units(text: str) -> frozenset[str]:
    """What is written behind the numbers of a text."""
    return frozenset(match[1].lower().replace(".", "") for match in _SUFFIX.finditer(text))


def codes(text: str) -> frozenset[str]:
    """Identifiers, calls, addresses and files of a text, and what stands in quotation marks."""
    quoted = (next(filter(None, found.groups()), "").strip().lower() for found in _QUOTED.finditer(text))
    return frozenset(found[0].lower().rstrip(".,:;") for found in _CODE.finditer(text)).union(quoted)


def signs(text: str) -> tuple[str, ...]:
    """The operators and currencies of a text, in their order.

    >>> signs("Why is 3 + 4 >= x - 1?"), signs("- a state-of-the-art list - and/or bullets")
    (('+', '>=', '-'), ())
    """
    return tuple(sign for sign in _SIGN.findall(_BULLET.sub(" ", text)) if sign not in _NO_SIGN)


def names(text: str) -> frozenset[str]:
    """Stems of the words written as names: capitals inside of a sentence, abbreviations, letters with digits."""
    sentences = [words(sentence) for sentence in _SENTENCE.split(text)]
    listed = [word for sentence in sentences for word in sentence]
    # Where nearly every word has a capital, it says nothing.
    titled = len(listed) > 3 and sum(word[0].isupper() for word in listed) > 0.7 * len(listed)
    found = {
        word
        for sentence in sentences
        for at, word in enumerate(sentence)
        if not (word.islower() and word.isalpha()) and _is_name(word, inside=at > 0, titled=titled)
    }
    return frozenset(stem(part) for word in found for part in word.split("-") if part and not is_empty(part))


def _is_name(word: str, *, inside: bool, titled: bool) -> bool:
    if not word.isalpha() and any(map(str.isdigit, word)):
        return any(map(str.isalpha, word)) and "-" not in word and not _MEASURE.fullmatch(word)
    if word.isupper() and word.isalpha() and len(word) > 1:
        return not titled
    if any(map(str.isupper, word[1:])):
        return True
    return inside and word[0].isupper() and word != "I" and not word.startswith(("I'", "I’")) and not titled


def after(parts: list[str], marks: frozenset[str]) -> frozenset[str]:
    """Stems of the first words that say something after each of these."""
    found = set()
    for at, word in enumerate(parts):
        if word in marks:
            following = next((part for part in parts[at + 1 : at + 5] if not is_empty(part)), None)
            if following is not None:
                found.add(stem(following))
    return frozenset(found)


def negation_signs(text: str) -> int:
    """How many negations there are, in scripts that put no spaces between words."""
    return 0 if text.isascii() else sum(text.count(sign) for sign in _lexicon.NEGATION_SIGNS)


def language(text: str, parts: list[str]) -> str:
    """The language of a text by its small words, or the name of its script; empty where nothing tells.

    >>> language("¿dónde está?", ["dónde", "está"]), language("nginx 502", ["nginx"]), language("где", ["где"])
    ('es', '', 'CYRILLIC')
    """
    letters = [char for char in text[:_LOOKED_AT] if char.isalpha()]
    foreign = [char for char in letters if not char.isascii()]
    if len(foreign) * 4 > len(letters):
        scripts = Counter(unicodedata.name(char, "").partition(" ")[0] for char in foreign)
        script = scripts.most_common(1)[0][0]
        if script != "LATIN":
            return _ONE_SCRIPT.get(script, script)
    counted = Counter(name for part in parts for name in _languages().get(part, ()))
    # Of two that count the same the first of the list.
    best = max(_lexicon.SMALL_WORDS, key=lambda name: counted[name])
    return best if counted[best] else "other" if foreign else ""


@lru_cache(maxsize=1)
def _languages() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, small in _lexicon.SMALL_WORDS.items():
        for word in small:
            found.setdefault(word, []).append(name)
    return found
