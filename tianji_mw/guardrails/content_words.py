"""Words of `content_filter`, as the shared scanner finds them: blocked words, and categories by the sentence.

An exception excuses the keywords of its own category in its own sentence, and nothing else.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Final, Literal, NamedTuple

from tianji_mw.errors import SetupError
from tianji_mw.guardrails.content_options import Action, BlockedWord, CategoryWords, level_name
from tianji_mw.guardrails.folding import fold
from tianji_mw.guardrails.scanner import Hit, Scanned

#: A point ends a sentence where a blank follows, so not in `3.5`; two lines apart are two sentences.
_END: Final = re.compile(r"[.!?…]+(?=[\"')\]»”’]*(?:\s|$))|[。！？｡؟।۔]|\n\s*\n")
#: From here on, scripts put no blanks between words.
_UNSPACED: Final = "\u0e00"

Role = Literal["blocked", "keyword", "always", "exception", "identifier", "companion"]


class Found(NamedTuple):
    """Something that the config forbids, in characters of the original text."""

    start: int
    end: int
    action: Action
    label: str
    detail: dict[str, str]
    #: What stands around it may excuse it.
    depends: bool = False


class Term(NamedTuple):
    """What a word of the scanner stands for."""

    role: Role
    word: str
    severity: int = 3
    category: Category | None = None
    blocked: BlockedWord | None = None
    #: With a `*` inside, the scanner finds the longest piece, and this the whole around it.
    form: re.Pattern[str] | None = None
    #: How far before the piece the whole may begin.
    before: tuple[int, int] = (0, 0)


class Category(NamedTuple):
    """A category with words of its own."""

    name: str
    action: Action
    threshold: int
    words: CategoryWords

    def terms(self) -> Iterator[tuple[str, Term]]:
        """Its words, for the scanner."""
        words = self.words
        listed: list[tuple[Role, str, int]] = [
            *(("keyword", one.keyword, one.severity) for one in words.keywords),
            *(("always", one.keyword, one.severity) for one in words.always_block_keywords),
            *(("exception", word, 3) for word in words.exceptions),
            *(("identifier", word, 3) for word in words.identifier_words),
            *(("companion", word, 3) for word in words.additional_block_words),
        ]
        for role, word, severity in listed:
            if severity >= self.threshold:
                yield _scannable(word, Term(role, word, severity, self), opens=False)

    def found(self, start: int, end: int, severity: int, keyword: str = "") -> Found:
        """A finding of this category."""
        detail = {"severity": level_name(severity)}
        if keyword:
            detail["keyword"] = keyword
        return Found(start, end, self.action, self.name, detail, depends=True)


def blocked_terms(words: Iterable[BlockedWord]) -> Iterator[tuple[str, Term]]:
    """Blocked words, for the scanner."""
    for one in words:
        yield _scannable(one.keyword, Term("blocked", one.keyword, blocked=one), opens=True)


def _scannable(word: str, term: Term, *, opens: bool) -> tuple[str, Term]:
    """The word for the scanner. A `*` is one character or none; where it `opens` an end, any letters."""
    bare = fold(word).strip(" ")
    left, right = opens and bare.startswith("*"), opens and bare.endswith("*")
    parts = (bare.strip("*") if opens else bare).split("*")
    piece = max(parts, key=len)
    if not piece.strip(" "):
        raise SetupError(f"content_filter: the keyword {word!r} has no letters; take it out")
    if len(parts) == 1:
        return f"{'*' * left}{piece}{'*' * right}", term
    at = parts.index(piece)
    least = sum(map(len, parts[:at]))
    first, last = "".join(parts)[0], "".join(parts)[-1]
    # Ends of words count where the word has letters there.
    head = "" if left or first >= _UNSPACED or not first.isalnum() else r"(?<![^\W_])"
    tail = "" if right or last >= _UNSPACED or not last.isalnum() else r"(?![^\W_])"
    form = re.compile(head + r"\S?".join(map(re.escape, parts)) + tail)
    # The scanner takes blanks off the ends.
    cut = len(piece) - len(piece.lstrip(" "))
    return f"*{piece}*", term._replace(form=form, before=(least + cut, least + cut + at))


def _whole(scanned: Scanned, hit: Hit) -> tuple[int, int] | None:
    """Where the word stands in the folded text."""
    term: Term = hit.what
    if term.form is None:
        return hit.start, hit.end
    for back in range(term.before[0], term.before[1] + 1):
        found = term.form.match(scanned.text, hit.start - back) if back <= hit.start else None
        if found:
            return found.start(), found.end()
    return None


class Sentences:
    """The sentences of a text."""

    def __init__(self, text: str) -> None:
        self._ends = [found.end() for found in _END.finditer(text)]

    def at(self, place: int) -> int:
        """The number of the sentence at this place."""
        return bisect_right(self._ends, place)


def blocked(scanned: Scanned, hits: Iterable[Hit]) -> Iterator[Found]:
    """Blocked words of the text."""
    for hit in hits:
        one = hit.what.blocked
        whole = _whole(scanned, hit) if one is not None else None
        if whole is not None:
            detail = {"keyword": one.keyword}
            if one.description:
                detail["description"] = one.description
            yield Found(*scanned.span(*whole), one.action, "KEYWORD", detail)


def categorised(scanned: Scanned, hits: Iterable[Hit], phrases: Iterable[tuple[Category, int, int]]) -> Iterator[Found]:
    """What the text holds of categories, without what an exception excuses. `phrases`: what their patterns found."""
    found = [
        (hit.what, *scanned.span(*whole))
        for hit in hits
        if hit.what.category is not None and (whole := _whole(scanned, hit)) is not None
    ]
    phrases = list(phrases)
    if not found and not phrases:
        return
    sentences = Sentences(scanned.original)
    excused = {(id(term.category), sentences.at(start)) for term, start, _ in found if term.role == "exception"}
    yield from _together(found, sentences, excused)
    for category, start, end in phrases:
        if (id(category), sentences.at(start)) not in excused:
            yield category.found(start, end, 3)
    for term, start, end in found:
        if term.role == "always":
            yield term.category.found(start, end, term.severity, term.word)._replace(depends=False)
        elif term.role == "keyword" and (id(term.category), sentences.at(start)) not in excused:
            yield term.category.found(start, end, term.severity, term.word)


def _together(
    found: list[tuple[Term, int, int]], sentences: Sentences, excused: set[tuple[int, int]]
) -> Iterator[Found]:
    """Identifiers with a block word in the same sentence: from the first of them to the last."""
    pairs: dict[tuple[int, int], dict[Role, tuple[int, int]]] = {}
    owners: dict[int, Category] = {}
    for term, start, end in found:
        if term.role in ("identifier", "companion") and term.category is not None:
            owners[id(term.category)] = term.category
            roles = pairs.setdefault((id(term.category), sentences.at(start)), {})
            first, last = roles.get(term.role, (start, end))
            roles[term.role] = min(first, start), max(last, end)
    for key, roles in pairs.items():
        if len(roles) == 2 and key not in excused:
            starts, ends = zip(*roles.values(), strict=True)
            yield owners[key[0]].found(min(starts), max(ends), 3)
