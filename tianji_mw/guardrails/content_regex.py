"""Regular expressions of users, by RE2: linear in the text whatever the pattern. Offsets are in characters.

A text is searched as bytes, encoded once for all patterns. No `re2.Set`: it says "nothing" when it runs out of memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, Generic, NamedTuple, TypeVar

from tianji_mw.errors import SetupError

T = TypeVar("T")

#: Behind that many places in one text, the rest of it counts as one: each search looks ahead, which adds up.
_MOST_PLACES: Final = 2_000
#: How far, in bytes, a search for one more place looks at first.
_STRETCH: Final = 16_384
_LONGEST_CHARACTER: Final = 4
#: What a pattern without a limit is taken to match, on streams.
_UNLIMITED: Final = 256


class _Rule(NamedTuple):
    compiled: Any
    what: Any
    #: Only the first place is wanted.
    once: bool


class Place(NamedTuple, Generic[T]):
    """A piece of the text that a pattern matches, and what its owner said about the pattern."""

    start: int
    end: int
    what: T


class Regexes(Generic[T]):
    """Patterns, each with what it stands for."""

    def __init__(self) -> None:
        self._rules: list[_Rule] = []
        #: Characters of the longest thing that they match.
        self.longest = 0

    def add(self, name: str, pattern: str, what: T, *, once: bool) -> None:
        """Add a pattern; `once`: its first place in a text is enough. Raises SetupError when RE2 does not take it."""
        try:
            import re2
        except ModuleNotFoundError:
            raise SetupError('this guardrail needs a package; pip install "tianji-mw[guardrails]"') from None
        options = re2.Options()
        options.case_sensitive = False
        options.log_errors = False
        options.never_capture = True
        try:
            compiled = re2.compile(pattern.encode(), options)
        except (re2.error, UnicodeEncodeError) as error:
            raise SetupError(f"content_filter: {_told(name, pattern)}: {_reason(error, pattern)}") from None
        if compiled.fullmatch(b""):
            text = "it matches the empty text, so it would match everywhere; demand one character at least"
            raise SetupError(f"content_filter: {_told(name, pattern)}: {text}")
        self._rules.append(_Rule(compiled, what, once))
        self.longest = max(self.longest, _longest(pattern))

    def find(self, text: str, *, every: bool = False) -> Iterator[Place[T]]:
        """What matches, pattern by pattern; `every`: also of those whose first place is enough."""
        if not self._rules:
            return
        # A lone surrogate cannot be encoded; a question mark has one character too.
        data = text.encode() if text.isascii() else text.encode("utf-8", "replace")
        for compiled, what, once in self._rules:
            found = compiled.search(data)
            if found is None:
                continue
            places = [found.span()] if once and not every else _places(compiled, data, found.span())
            for start, end in _in_characters(data, places) if len(data) != len(text) else places:
                yield Place(start, end, what)


def _places(compiled: Any, data: bytes, first: tuple[int, int]) -> list[tuple[int, int]]:
    """All places from the first one on."""
    size, places, at = len(data), [first], max(first[1], first[0] + 1)
    stretch = _STRETCH
    while at < size:
        if len(places) >= _MOST_PLACES:
            places.append((at, size))
            break
        limit = min(at + stretch, size)
        found = compiled.search(data, at, limit)
        if limit < size and (found is None or found.end() > limit - _LONGEST_CHARACTER):
            stretch *= 2  # nothing near, or more than what was looked at
            continue
        if found is None:
            break
        start, end = found.span()
        if end > start:
            places.append((start, end))
        at, stretch = max(end, start + 1), _STRETCH
    return places


def _in_characters(data: bytes, places: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Places in bytes as places in characters; they come in order, so the text is counted once."""
    byte = character = 0
    for start, end in places:
        first = character + len(data[byte:start].decode("utf-8", "replace"))
        character = first + len(data[start:end].decode("utf-8", "replace"))
        byte = end
        yield first, character


def _told(name: str, pattern: str) -> str:
    return f"the regex {name!r} ({pattern[:200]})"


def _reason(error: Exception, pattern: str) -> str:
    reason = str(error.args[0]) if error.args else "not valid"
    reason = error.args[0].decode("utf-8", "replace") if error.args and isinstance(error.args[0], bytes) else reason
    if re.search(r"\(\?<?[=!]", pattern):
        return "look-around is not supported; match what stands around too, or use a prebuilt pattern"
    if re.search(r"\\[1-9]|\(\?P=", pattern):
        return "back references are not supported; write the alternatives out"
    if "\\Z" in pattern:
        return "\\Z is not supported; write \\z"
    return f"RE2 does not take it ({reason}); its syntax is at github.com/google/re2/wiki/Syntax"


def _longest(pattern: str) -> int:
    """Characters that it may match, a guess where it has no limit or Python cannot read it."""
    try:
        longest = re._parser.parse(pattern).getwidth()[1]  # type: ignore[attr-defined]
    except (re.error, OverflowError, RecursionError):
        return _UNLIMITED
    return int(longest) if longest <= 2_000 else _UNLIMITED
