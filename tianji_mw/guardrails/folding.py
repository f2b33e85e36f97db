"""Text as the built-in checks read it: one spelling for the many ways to write a letter, with the places kept.

Compatibility forms (full width, mathematical, circled), case, accents, invisible characters, look-alikes of other
scripts, tag characters (which models read and people do not see), curly quotes and runs of blanks are folded. Sources:
Unicode Standard Annex 15 (NFKC), Unicode Technical Standard 39 (confusables; the common ones).
"""

from __future__ import annotations

import functools
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator
from typing import Final

#: Letters that Unicode does not take apart, and signs that are written in several ways.
_SIGNS: Final = {
    **dict(zip("øłđħŧıɨʉƀ", "oldhtiiub", strict=True)),
    **{"æ": "ae", "œ": "oe", "þ": "th", "ð": "d"},
    **dict(zip("‘’‚‛´′“”„«»″", "'''''" + "'" + '""""""', strict=True)),
    **dict.fromkeys("‐‑‒–—―−", "-"),
    **dict.fromkeys("\t\n\r\x0b\x0c\x85\u2028\u2029", " "),
    # Small capitals.
    **dict(zip("ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ", "abcdefghijklmnoprstuvwyz", strict=True)),
    # Arabic and Devanagari letters that people write in either way.
    **dict.fromkeys("أإآٱ", "ا"),
    **{"ى": "ي", "ة": "ه", "ک": "ك", "ی": "ي", "ـ": "", "ँ": "ं"},
}
#: Cyrillic and Greek letters that look like Latin ones; folded in words that mix the scripts.
_LOOK_ALIKES: Final = str.maketrans("аеорсухіѕјһԁԛԝӏгпвмнткьαοερτικνυβηωϲ", "aeopcyxisjhdqwlrnbmhtkbaoeptiknubnwc")
_BORDER: Final = re.compile("[\u0370-\u052f](?:(?=[a-z])|(?<=[a-z].))")
_MIXED: Final = re.compile(
    "[a-z0-9]*(?:[a-z][\u0370-\u052f]|[\u0370-\u052f][a-z])[a-z0-9\u0370-\u052f]*|"
    "[\u0370-\u052f]+(?=[a-z])[a-z0-9\u0370-\u052f]*"
)
_STRETCH: Final = re.compile(r"[\x20-\x7e]+|[^\x20-\x7e]+")
_OTHER: Final = re.compile(r"[^\x20-\x7e]+")
_BLANKS: Final = re.compile(" {2,}")
#: Marks of scripts in which they are mere ornament or accent: Latin, Greek, Cyrillic, Arabic, the Devanagari nukta.
_MARKS: Final = re.compile(
    "[\u0300-\u036f\u0610-\u061a\u064b-\u065f\u0670\u093c\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff]"
)
_TAGS: Final = range(0xE0020, 0xE007F)


class Folded:
    """A text in its folded form, `text`; `span` tells where a piece of that stands in the original."""

    __slots__ = ("_places", "original", "text")

    def __init__(self, original: str) -> None:
        self.original = original
        self.text = fold(original)
        self._places: _Places | None = None

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Where text[start:end] stands in the original. All of it, where the places cannot be told."""
        if self.original.isascii() and len(self.text) == len(self.original):
            return start, end
        if self._places is None:
            self._places = _Places(self.original)
        places, size = self._places, len(self.text)
        if places.size != size:  # sequences that are joined in no way that is known here
            return 0, len(self.original)
        last = places.of(end - 1)
        while end < size and places.of(end) == last:
            end += 1
        return places.of(start), places.of(end) if end < size else len(self.original)


def fold(text: str) -> str:
    """The folded form.

    >>> fold("Ｋíll　ｔ\u200bhеm “now”")
    'kill them "now"'
    """
    if text.isascii():
        text = text.lower()
        if not text.isprintable():
            text = text.translate(_table())
    else:
        if not unicodedata.is_normalized("NFKC", text):
            text = unicodedata.normalize("NFKC", text)
        # ASCII needs lower case alone, which costs a tenth of the table.
        text = _OTHER.sub(lambda found: found[0].translate(_table()), text.lower())
        if _BORDER.search(text):
            text = _MIXED.sub(lambda word: word[0].translate(_LOOK_ALIKES), text)
    while "  " in text:
        text = text.replace("  ", " ")
    return text


class _Table(dict[int, str]):
    """Characters to their folded forms, worked out at first use."""

    def __missing__(self, code: int) -> str:
        folded = self[code] = _char(chr(code))
        return folded


@functools.cache
def _table() -> _Table:
    return _Table()


def _char(char: str) -> str:
    code = ord(char)
    if code in _TAGS:
        return chr(code - 0xE0000).lower()
    lower = char.casefold()
    if lower in _SIGNS:
        return _SIGNS[lower]
    category = unicodedata.category(char)
    if category == "Cf" or 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF or char in "\u034f\u115f\u3164":
        return ""
    if category in ("Zs", "Cc"):
        return " "
    if category == "Nd":
        return str(unicodedata.digit(char))
    if code < 0x0590 or 0x1E00 <= code < 0x2000:  # Latin, Greek, Cyrillic: letters without their accents
        lower = unicodedata.normalize("NFD", lower)
    bare = _MARKS.sub("", lower)
    return "".join(_SIGNS.get(one, one) for one in bare)


class _Places:
    """For each character of the folded text, where it comes from."""

    __slots__ = ("_blank", "_folded", "_original", "size")

    def __init__(self, original: str) -> None:
        self.size = 0
        self._blank = False
        #: Where the distance between a character and its origin changes, in both texts.
        self._folded: list[int] = [0]
        self._original: list[int] = [0]
        for found in _STRETCH.finditer(original):
            stretch, start = found[0], found.start()
            if _one_by_one(stretch):
                self._add(stretch, start)
            else:
                for place, cluster in _clusters(stretch):
                    for char in unicodedata.normalize("NFKC", cluster).translate(_table()):
                        self._add(char, start + place)

    def of(self, at: int) -> int:
        """Where the character comes from."""
        last = bisect_right(self._folded, at) - 1
        return self._original[last] + at - self._folded[last]

    def _add(self, text: str, start: int) -> None:
        """Count characters that stand one by one in the original, without blanks behind blanks."""
        at = 0
        if self._blank:
            at = len(text) - len(text.lstrip(" "))
        for found in _BLANKS.finditer(text, at):
            self._run(found.start() + 1 - at, start + at)
            at = found.end()
        self._run(len(text) - at, start + at)
        self._blank = text.endswith(" ") if text else self._blank

    def _run(self, size: int, start: int) -> None:
        if size:
            if self.size - start != self._folded[-1] - self._original[-1]:
                self._folded.append(self.size)
                self._original.append(start)
            self.size += size


def _one_by_one(stretch: str) -> bool:
    """Whether each character has one that is no blank, so that no mark is lost and no blank added."""
    if stretch.isascii():
        return stretch.isprintable()
    if not unicodedata.is_normalized("NFKC", stretch):
        return False
    table = _table()
    return all(len(folded) == 1 and folded != " " for folded in map(table.__getitem__, map(ord, set(stretch))))


def _clusters(text: str) -> Iterator[tuple[int, str]]:
    """Characters with the marks that belong to them."""
    start = 0
    for i in range(1, len(text) + 1):
        if i == len(text) or not _joins(text[i]):
            yield start, text[start:i]
            start = i


def _joins(char: str) -> bool:
    """Whether normalisation may unite it with what stands before: marks, Hangul vowels and finals, voiced marks."""
    return bool(unicodedata.combining(char)) or "\u1160" <= char <= "\u11ff" or char in "\uff9e\uff9f"
