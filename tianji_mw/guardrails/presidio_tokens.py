"""Tokens such as `<PERSON_1>` in the place of personal data, and the data again in the place of the tokens.

The memory is that of one call; nothing is kept longer. Tokens are at most `LONGEST` characters long.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

import orjson

from tianji_mw.guardrails.base import Span
from tianji_mw.guardrails.rewrite import replaced

LONGEST: Final = 64
#: The label of what is restored.
RESTORED: Final = "RESTORED"

_NAME: Final = 40
_ODD: Final = re.compile(r"[^A-Z0-9_]+")
_TOKEN: Final = re.compile(r"<[A-Z0-9_]{1,40}_\d{1,6}>")
#: Servers written in Go write `<` and `>` as escapes in the arguments of tools.
_ESCAPED: Final = re.compile(r"(?:<|\\u003c)([A-Z0-9_]{1,40}_\d{1,6})(?:>|\\u003e)", re.IGNORECASE)
_CUT: Final = re.compile(r"(?:<|\\u003c)[A-Z0-9_]{0,47}\Z", re.IGNORECASE)
_JSON: Final = re.compile(r'\s*(?:\{\s*(?:["}]|\Z)|\[\s*(?:["{}\]\[\d]|\Z))')


class Tokens:
    """The tokens of one call, in both directions."""

    __slots__ = ("_by_value", "_counts", "_json_ends", "_taken", "originals")

    def __init__(self) -> None:
        #: What each token stands for.
        self.originals: dict[str, str] = {}
        self._by_value: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        self._taken: set[str] = set()
        #: Ends of the parts of JSON texts on streams: what follows them is JSON too.
        self._json_ends: deque[str] = deque(maxlen=16)

    def avoid(self, texts: Iterable[str]) -> None:
        """Never give a token that already stands in these texts: it would become something else on its way back."""
        for text in texts:
            if "<" in text:
                self._taken.update(_TOKEN.findall(text.upper()))

    def token(self, entity: str, value: str) -> str:
        """The token of a value; the same value has the same one, whatever it is found to be later."""
        if value in self._by_value:
            return self._by_value[value]
        name = _ODD.sub("_", entity.upper())[:_NAME]
        number = self._counts.get(name, 0) + 1
        while (made := f"<{name}_{number}>") in self._taken:
            number += 1
        self._counts[name] = number
        self._by_value[value] = made
        self.originals[made] = value
        return made

    def restored(self, text: str) -> list[Span]:
        """The tokens in a text of the answer, with what they stand for; also one that is cut off at its end."""
        if not self.originals:
            return []
        as_json = self._is_json(text)
        spans = []
        for found in _ESCAPED.finditer(text):
            value = self.originals.get(f"<{found[1].upper()}>")
            if value is not None:
                spans.append(_span(found.start(), found.end(), value, as_json))
        if (cut := _CUT.search(text)) and (value := self._of_cut(cut[0])) is not None:
            spans.append(_span(cut.start(), len(text), value, as_json))
        if as_json:
            now = replaced(text, [span for span in spans if span.end < len(text)])
            self._json_ends.append(now[-LONGEST:])
        return spans

    def _of_cut(self, text: str) -> str | None:
        """The original of the one token that begins so, when enough of it is there (LiteLLM's rule)."""
        beginning = text.lower().replace("\\u003c", "<").upper()
        found = [
            token
            for token in self.originals
            if token.startswith(beginning) and len(beginning) >= min(20, len(token) / 2)
        ]
        # `<PERSON_1` also begins <PERSON_12>; nothing but the end is missing.
        whole = f"{beginning}>"
        token = whole if whole in found else found[0] if len(found) == 1 else None
        return None if token is None else self.originals[token]

    def _is_json(self, text: str) -> bool:
        return is_json(text) or any(end in text for end in self._json_ends)

    def own(self, text: str, spans: Sequence[Span]) -> list[tuple[int, int]]:
        """Places that belong to the caller in what a text becomes by `spans`: what was restored, now or before.

        They are in order and apart from each other.
        """
        if not self.originals:
            return []
        found, moved = [], 0
        for span in spans:
            size = len(span.replacement or "")
            found.append((span.start + moved, span.start + moved + size))
            moved += size - (span.end - span.start)
        now = replaced(text, spans)
        values = set(self.originals.values())
        for value in values | {escaped(one) for one in values}:
            at = now.find(value)
            while at >= 0:
                if _apart(now, at, at + len(value)):
                    found.append((at, at + len(value)))
                at = now.find(value, at + 1)
        apart: list[tuple[int, int]] = []
        for start, end in sorted(found):
            if apart and start < apart[-1][1]:
                apart[-1] = apart[-1][0], max(end, apart[-1][1])
            else:
                apart.append((start, end))
        return apart


def is_json(text: str) -> bool:
    """Whether a text begins as a JSON object or list, such as the arguments of a tool."""
    return _JSON.match(text) is not None


def escaped(text: str) -> str:
    """The text as it stands within a JSON string."""
    try:
        return orjson.dumps(text).decode()[1:-1]
    except TypeError:  # no valid Unicode, which JSON cannot hold
        return text


def unescaped(text: str) -> str:
    """A piece of a JSON string, read; itself when it cannot be read."""
    try:
        found = orjson.loads(f'"{text}"')
    except (orjson.JSONDecodeError, UnicodeError):
        return text
    return found if isinstance(found, str) else text


def _span(start: int, end: int, value: str, as_json: bool) -> Span:
    return Span(start, end, RESTORED, escaped(value) if as_json else value)


def _apart(text: str, start: int, end: int) -> bool:
    """Whether a piece is no part of a longer word."""
    before, after = text[start - 1 : start], text[end : end + 1]
    return not (before.isalnum() and text[start].isalnum()) and not (after.isalnum() and text[end - 1].isalnum())
