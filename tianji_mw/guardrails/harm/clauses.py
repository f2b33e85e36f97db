"""Reads the words that were found as sentences: which of them count, who is meant, and what is denied."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple, cast

from tianji_mw.guardrails.harm.pack import BIT, Pack
from tianji_mw.guardrails.scanner import Hit, Scanner

#: Beyond the concepts: a bad thing that is denied, a good one that is denied, and the end of the bits.
DENIED: Final = 1 << len(BIT)
UNGOOD: Final = DENIED << 1
#: A third person that stands for a group of a sentence before.
MEANT: Final = UNGOOD << 1

#: What a negation turns over.
BAD: Final = (
    BIT["dehumanising"] | BIT["negative"] | BIT["contempt"] | BIT["exclude"] | BIT["violent"] | BIT["die"]
    | BIT["suicidal"] | BIT["crime"] | BIT["slur"] | BIT["wrong"] | BIT["praise"]
)  # fmt: skip
GOOD: Final = BIT["positive"]
_PREDICATE: Final = BAD | GOOD
_GROUP: Final = BIT["group"]
_ADJECTIVE: Final = BIT["group_adjective"]
_PERSON: Final = BIT["person"] | BIT["minor"]
_THEY: Final = BIT["they"]
_ALLOW: Final = BIT["allow"]
_NEGATION: Final = BIT["negation"]
_BUT: Final = BIT["but"]
_NEUTRAL: Final = BIT["neutral"]

_END: Final = re.compile(r"[.!?]+(?=[\s\"')]|$)|[。！？؟।;]|: ")
#: Quoted speech, not quoted words. Curly quotes and guillemets are folded.
_QUOTE: Final = re.compile('"[^"]{8,300}"|[「『][^」』]{3,100}[」』]')
_QUOTES: Final = re.compile('["「『]')
#: So many words make a sentence at most: a text without stops must not cost the square of its length.
_MOST: Final = 48
_COMMA: Final = re.compile("[,،、，]")
#: How far a negation reaches, how far apart two words are that share it, and how far `they` looks back.
_FAR: Final = 30
_NEAR: Final = 8
BACK: Final = 200


#: A word in the folded text; `what` has the bits of its concepts.
Mark = Hit


class Sentence(NamedTuple):
    """Words of one language in one sentence; `mask` has the bits of all."""

    marks: Sequence[Mark]
    mask: int
    pack: Pack
    #: Where the quotations of the text stand.
    quotes: Sequence[tuple[int, int]]


class Text:
    """A folded text in sentences, which are read in their order."""

    def __init__(self, text: str, packs: Mapping[str, Pack], words: Scanner) -> None:
        self.text = text
        self._packs, self._words = packs, words
        self._stops = [found.end() for found in _END.finditer(text)]
        self._quotes = [found.span() for found in _QUOTE.finditer(text)] if _QUOTES.search(text) else []
        self._groups: dict[str, int] = {}

    def number(self, place: int) -> int:
        """The number of the sentence at this place."""
        return bisect_right(self._stops, place)

    def place(self, number: int) -> tuple[int, int]:
        """Where a sentence starts and ends."""
        stops = self._stops
        start = stops[number - 1] if number else 0
        return start, stops[number] if number < len(stops) else len(self.text)

    def sentences(self, number: int, core: int) -> Iterator[Sentence]:
        """The sentence in each of the languages that know most of it, where they have anything of `core` in it."""
        known = cast(dict[str, list[Mark]], self._words.hits(self.text, *self.place(number)))
        if any(len(own) > _MOST for own in known.values()):
            for language, own in known.items():
                for at in range(0, len(own), _MOST):
                    yield from self._sentence(language, own[at : at + _MOST], core)
            return
        for language, own in _best(known) if len(known) > 1 else known.items():
            yield from self._sentence(language, own, core)

    def _sentence(self, language: str, own: list[Mark], core: int) -> Iterator[Sentence]:
        sentence = _sentence(self.text, own, self._packs[language], self._groups, self._quotes, core)
        if sentence is not None:
            yield sentence


def _best(known: Mapping[str, list[Mark]]) -> Iterator[tuple[str, list[Mark]]]:
    """The words by language, without the languages that know much less of the sentence than another."""
    weights = {language: _known(own) for language, own in known.items()}
    most = max(weights.values())
    for language, own in known.items():
        if weights[language] * 10 >= most * 6:
            yield language, own


def _known(own: list[Mark]) -> int:
    """How many characters of a sentence the words of a language cover. What only hides others counts for none."""
    size = last = 0
    for start, end, mask in sorted(own):
        if end > last and not mask & _NEUTRAL:
            size += end - max(start, last)
            last = end
    return size


def _sentence(
    text: str, own: list[Mark], pack: Pack, groups: dict[str, int], quotes: Sequence[tuple[int, int]], core: int
) -> Sentence | None:
    mask = 0
    for mark in own:
        mask |= mark.what
    if not mask & core:
        if mask & (_GROUP | _ADJECTIVE):
            _meant(_joined(_longest(own)), pack, groups)
        return None
    marks = _longest(own)
    if mask & _ADJECTIVE:
        marks = _joined(marks)
    if mask & (_GROUP | _THEY | _ADJECTIVE):
        marks = _meant(marks, pack, groups)
    if mask & _NEGATION and mask & _PREDICATE:
        marks = _denied(text, marks, pack)
    mask = 0
    for mark in marks:
        mask |= mark.what
    return Sentence(marks, mask, pack, quotes) if mask & core else None


def _longest(marks: list[Mark]) -> list[Mark]:
    """Without the words inside longer ones."""
    marks.sort(key=lambda mark: (mark.start, -mark.end))
    kept: list[Mark] = []
    for mark in marks:
        if kept and mark.end <= kept[-1].end:
            last = kept[-1]
            if (mark.start, mark.end) == (last.start, last.end):
                kept[-1] = Mark(last.start, last.end, last.what | mark.what)
        else:
            kept.append(mark)
    return kept


def _joined(marks: list[Mark]) -> list[Mark]:
    """With `gay` and `people` as one group."""
    kept: list[Mark] = []
    for mark in marks:
        last = kept[-1] if kept else None
        if last and mark.start - last.end <= 2 and (last.what | mark.what) & _ADJECTIVE:
            one, two = last.what, mark.what
            if (one & (_PERSON | _GROUP) and two & _ADJECTIVE) or (one & _ADJECTIVE and two & (_PERSON | _GROUP)):
                mask = (one | two) & ~(_ADJECTIVE | BIT["person"] | BIT["slur_ambiguous"]) | _GROUP
                kept[-1] = Mark(last.start, mark.end, mask)
                continue
        kept.append(mark)
    return kept


def _meant(marks: list[Mark], pack: Pack, groups: dict[str, int]) -> list[Mark]:
    """With `they` as the group that was named before."""
    named = groups.get(pack.language, -BACK - 1)
    read: list[Mark] = []
    for mark in marks:
        if mark.what & _GROUP:
            named = mark.end
        elif mark.what & _THEY and mark.start - named <= BACK:
            mark = Mark(mark.start, mark.end, mark.what | MEANT)
            named = mark.end
        read.append(mark)
    groups[pack.language] = named
    return read


def _denied(text: str, marks: list[Mark], pack: Pack) -> list[Mark]:
    """With what a negation turns over. Two turn it back."""
    counts = dict.fromkeys(range(len(marks)), 0)
    for at, mark in enumerate(marks):
        if mark.what & _NEGATION:
            behind = _first(text, marks, range(at + 1, len(marks)), mark) if pack.negation != "after" else None
            if behind is None and pack.negation != "before":
                behind = _first(text, marks, range(at - 1, -1, -1), mark)
            if behind is not None:
                counts[behind] += 1
                for later in _sharing(marks, behind):
                    counts[later] += 1
    return [_turned(mark) if counts[at] % 2 else mark for at, mark in enumerate(marks)]


def _sharing(marks: list[Mark], first: int) -> Iterator[int]:
    """The later words that share a negation: those in line with it, and the wrong that is not allowed."""
    kind = BAD if marks[first].what & BAD else GOOD
    for later in range(first + 1, len(marks)):
        if marks[later].start - marks[later - 1].end > _NEAR or not marks[later].what & kind:
            break
        yield later
    if marks[first].what & _ALLOW:
        for later in range(first + 1, len(marks)):
            if marks[later].what & BAD:
                yield later
                # Both are turned: nobody is denied anything good.
                yield first
                break


def _first(text: str, marks: list[Mark], places: range, negation: Mark) -> int | None:
    """The first word from there that a negation turns over."""
    for at in places:
        mark = marks[at]
        low, high = (negation.end, mark.start) if mark.start >= negation.end else (mark.end, negation.start)
        if high - low > _FAR or mark.what & _BUT or _COMMA.search(text, low, high):
            return None
        if mark.what & _PREDICATE:
            return at
    return None


def _turned(mark: Mark) -> Mark:
    mask = mark.what & ~_PREDICATE
    if mark.what & BAD:
        mask |= DENIED
    if mark.what & GOOD:
        mask |= UNGOOD
    return Mark(mark.start, mark.end, mask)
