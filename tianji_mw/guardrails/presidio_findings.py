"""What Presidio finds in a text, and what follows from it: large texts cut and joined, overlaps made one. Pure, no I/O.

All places are code points, as Presidio counts them.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol

import orjson

from tianji_mw.apis.base import JSON
from tianji_mw.guardrails.base import GuardrailFailed

#: Characters that two pieces of a large text share, so that what is cut in one is whole in the other (LiteLLM's).
_OVERLAP: Final = 4096
_MAX_NAME: Final = 200
_JSON_STRING: Final = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)


class Finding(NamedTuple):
    """A piece of a text, the entity that it is, such as `PERSON`, and how sure that is, from 0 to 1."""

    start: int
    end: int
    entity: str
    score: float


class Question(NamedTuple):
    """What is asked about the texts of one call."""

    language: str
    #: Only these; all that the analyzer knows when empty.
    entities: tuple[str, ...]
    #: Recognizers for these texts, in Presidio's JSON form.
    recognizers: Sequence[dict[str, JSON]]
    #: Words that are never found.
    allow_list: tuple[str, ...]
    #: Presidio's name for the id of the call.
    correlation_id: str


class Analyzer(Protocol):
    """Who finds things: a service, or an engine in this process."""

    async def analyze(self, text: str, question: Question) -> Sequence[Finding]:
        """Everything in the text. Raises GuardrailFailed."""

    async def aclose(self) -> None: ...


def read(found: Any, length: int) -> Finding:
    """One result of `/analyze` about a text of this length. Raises ValueError when it is none."""
    if not isinstance(found, dict):
        raise ValueError("holds something else than findings")
    entity, start, end, score = (found.get(name) for name in ("entity_type", "start", "end", "score"))
    if not isinstance(entity, str) or not 0 < len(entity) <= _MAX_NAME:
        raise ValueError("has a finding without an entity")
    if type(start) is not int or type(end) is not int or not 0 <= start < end <= length:
        raise ValueError("has a finding outside of the text")
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        raise ValueError("has a finding without a score")
    return Finding(start, end, entity, score)


def chunks(text: str, most: int) -> list[tuple[int, str]]:
    """The text in pieces of at most `most` bytes as JSON writes them, with their places; they overlap."""
    found: list[tuple[int, str]] = []
    start = 0
    while _size(text[start : start + most + 1]) > most:  # no character takes less than a byte
        low, high = 1, min(len(text) - start, most)
        while low < high:  # the longest piece that fits
            middle = (low + high + 1) // 2
            low, high = (middle, high) if _size(text[start : start + middle]) <= most else (low, middle - 1)
        found.append((start, text[start : start + low]))
        start += low - min(_OVERLAP, low // 2)
    return [*found, (start, text[start:])]


def _size(text: str) -> int:
    try:
        return len(orjson.dumps(text)) - 2
    except TypeError:
        raise GuardrailFailed("Presidio: a text is no valid Unicode") from None


def interleaved(text: str, parts: Iterable[str]) -> bool:
    """Whether a text consists of other ones, mixed: those that stand in it, in order, hold all of its characters.

    One that is judged nowhere else never counts as such: names beside it, such as ids, do not add up to it.
    """
    left = Counter(text)
    for part in parts:
        letters = iter(text)
        if all(letter in letters for letter in part):
            left -= Counter(part)
    return not left


def united(parts: Sequence[tuple[int, Sequence[Finding]]]) -> list[Finding]:
    """Findings of overlapping pieces as findings of the text; of those of one entity that overlap, the longest."""
    if len(parts) == 1:
        return list(parts[0][1])
    last: dict[str, Finding] = {}
    found: list[Finding] = []
    for one in sorted(one._replace(start=at + one.start, end=at + one.end) for at, of in parts for one in of):
        before = last.get(one.entity)
        if before is None or one.start >= before.end:
            found.append(one)
        elif one.end - one.start > before.end - before.start:
            found[found.index(before)] = one
        else:
            continue
        last[one.entity] = one
    return found


def runs(findings: Iterable[Finding]) -> list[Finding]:
    """Overlapping findings as one, in order. It is what the surest is that does not stand within another one."""
    groups: list[list[Finding]] = []
    end = -1
    for one in sorted(findings):
        if one.start < end:
            groups[-1].append(one)
        else:
            groups.append([one])
        end = max(end, one.end)
    return [_run(group) for group in groups]


def _run(group: Sequence[Finding]) -> Finding:
    outer: list[Finding] = []
    end = -1
    # In order of their starts, the longest first: what reaches no further than an earlier one stands within it.
    for one in sorted(group, key=lambda f: (f.start, -f.end)):
        if one.end > end or (outer and outer[-1][:2] == one[:2]):
            outer.append(one)
        end = max(end, one.end)
    best = max(outer, key=lambda f: (f.score, f.end - f.start))
    return Finding(group[0].start, end, best.entity, best.score)


def outside(finding: Finding, places: Sequence[tuple[int, int]], text: str) -> Iterator[Finding]:
    """What is left of a finding without these places, which are in order and apart from each other; rests without a
    letter or digit are none.
    """
    near = _touching(places, finding)
    if not near:
        yield finding
        return
    at = finding.start
    for start, end in [*near, (finding.end, finding.end)]:
        stop = min(start, finding.end)
        if at < stop and any(letter.isalnum() for letter in text[at:stop]):
            yield finding._replace(start=at, end=stop)
        at = max(at, min(end, finding.end))


def strings_of(text: str) -> list[tuple[int, int]]:
    """Where the strings of a JSON text stand, without their quotes, in order."""
    return [found.span(1) for found in _JSON_STRING.finditer(text)]


def within(strings: Sequence[tuple[int, int]], at: int) -> bool:
    """Whether a place is in one of these; what replaces a thing that stands in none has to become one."""
    before = bisect_right(strings, at, key=_start)
    return before > 0 and at < strings[before - 1][1]


def inside_strings(findings: Iterable[Finding], text: str) -> list[Finding]:
    """Findings of a JSON text, cut so that it stays JSON: within one string each, and at no half of an escape.

    What stands in no string, such as a number, stays as it is.
    """
    strings = strings_of(text)
    cut: list[Finding] = []
    for one in findings:
        own = [(max(one.start, start), min(one.end, end)) for start, end in _touching(strings, one)]
        for start, end in [place for place in own if place[0] < place[1]] or [(one.start, one.end)]:
            begins = start - _backslashes(text, start) % 2
            cut.append(one._replace(start=begins, end=end + _backslashes(text, end) % 2))
    return cut


def _touching(places: Sequence[tuple[int, int]], one: Finding) -> Sequence[tuple[int, int]]:
    """Those of the places that a finding shares characters with. Texts may hold thousands of both."""
    return places[bisect_right(places, one.start, key=_end) : bisect_left(places, one.end, key=_start)]


def _start(place: tuple[int, int]) -> int:
    return place[0]


def _end(place: tuple[int, int]) -> int:
    return place[1]


def _backslashes(text: str, at: int) -> int:
    """How many stand directly before this place."""
    before = at
    while before and text[before - 1] == "\\":
        before -= 1
    return at - before
